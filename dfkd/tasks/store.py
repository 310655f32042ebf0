"""The array store: `<root>/<name>/<split>_images.npy`, `<split>_labels.npy` and `manifest.json`.

Images are uint8, N x H x W x 3, memory-mapped; labels are uint8 (N, or N x H x W). The manifest holds
shapes, class names, the sha256 of every array's bytes (not of the files), and `changed`: how this copy
differs from the published data set ("" where it does not).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.errors import UserError
from dfkd.files import replacing

Splits = Mapping[str, tuple[np.ndarray, np.ndarray]]


def data_root(option: str | Path | None = None) -> Path:
    """The folder of all data sets: the option, else `DFKD_DATA`, else `~/.cache/dfkd/data`."""
    chosen = option or os.environ.get("DFKD_DATA") or "~/.cache/dfkd/data"
    return Path(chosen).expanduser()


def describe(name: str, splits: Splits, classes: Sequence[str], changed: str = "") -> dict[str, Any]:
    """The manifest of these arrays."""
    entries = {}
    for split, arrays in splits.items():
        entry: dict[str, Any] = {}
        for part, array in zip(("images", "labels"), arrays, strict=True):
            entry[part], entry[f"{part}_sha256"] = list(array.shape), _sha256(array)
        entries[split] = entry
    return {"name": name, "classes": list(classes), "changed": changed, "splits": entries}


def write(root: Path, name: str, splits: Splits, classes: Sequence[str], changed: str = "") -> dict[str, Any]:
    """Store one data set, all of it or nothing; returns its manifest. Labels are kept as uint8."""
    splits = {split: (images, labels.astype(np.uint8)) for split, (images, labels) in splits.items()}
    result = describe(name, splits, classes, changed)
    folder = Path(root) / name
    with ExitStack() as files:
        # Files take their places in reverse order when the stack closes: the manifest comes last.
        files.enter_context(replacing(folder / "manifest.json")).write(json.dumps(result, indent=1).encode())
        for split, arrays in splits.items():
            for part, array in zip(("images", "labels"), arrays, strict=True):
                file = files.enter_context(replacing(folder / f"{split}_{part}.npy"))
                array = np.ascontiguousarray(array)
                # Not np.save: it hides the reason when the disk is full.
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                file.write(array.data)
    return result


def manifest(root: Path, name: str) -> dict[str, Any]:
    """The manifest of a stored data set. Raises UserError where it is missing or unreadable."""
    path = Path(root) / name / "manifest.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result["splits"], dict):
            raise TypeError("splits")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {_remedy(name)}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no manifest ({error!r}); {_remedy(name)}") from None
    return result


def digest(manifest: Mapping[str, Any]) -> str:
    """The sha256 that stands for a data set in records: over the manifest as canonical JSON."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read(root: Path, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (memory map) and labels of one split, their shapes and digests verified.

    Raises UserError naming the file, and what was expected and found.
    """
    entry = manifest(root, name)["splits"].get(split)
    folder = Path(root) / name
    if entry is None:
        raise UserError(f"{folder / 'manifest.json'} lists no split {split!r}; {_remedy(name)}")
    images = _read(folder / f"{split}_images.npy", name, entry, "images")
    return images, _read(folder / f"{split}_labels.npy", name, entry, "labels")


def check(root: Path, name: str) -> list[str]:
    """What is wrong with a stored data set, a line each; an empty list where all is well."""
    problems = []
    try:
        splits = list(manifest(root, name)["splits"])
    except UserError as error:
        return [str(error)]
    for split in splits:
        try:
            read(root, name, split)
        except UserError as error:
            problems.append(str(error))
    return problems


def _read(path: Path, name: str, entry: Mapping[str, Any], part: str) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {_remedy(name)}") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_remedy(name)}") from None
    shape, expected = entry.get(part), entry.get(f"{part}_sha256")
    if list(array.shape) != shape or array.dtype != np.uint8:
        raise UserError(f"{path} is damaged: uint8 {shape} expected, {array.dtype} {list(array.shape)} found")
    found = _sha256(array)
    if found != expected:
        raise UserError(f"{path} is damaged: sha256 {expected} expected, {found} found; {_remedy(name)}")
    return array


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _remedy(name: str) -> str:
    return f"make it with: python bench.py data {name}"
