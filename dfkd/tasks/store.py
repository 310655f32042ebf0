"""The array store: `<root>/<name>/<split>_images.npy`, `<split>_labels.npy` and `manifest.json`.

Images are uint8, N x H x W x 3, memory-mapped; labels are uint8 (N, or N x H x W). The manifest holds
shapes, class names, the sha256 of every array's bytes (not of the files), and `changed`: how this copy
differs from the published data set ("" where it does not).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from dfkd import names
from dfkd.documents import check, read_json
from dfkd.errors import CannotWrite, UserError, reason
from dfkd.files import replacing
from dfkd.paths import ROOT

Splits = Mapping[str, tuple[np.ndarray, np.ndarray]]

_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1}
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_SPLIT = {"images": _SHAPE, "images_sha256": _SHA256, "labels": _SHAPE, "labels_sha256": _SHA256}

SCHEMA: dict = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Manifest of a stored data set",
    "type": "object",
    "required": ["name", "classes", "changed", "splits"],
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "classes": {"type": "array", "items": {"type": "string"}},
        "changed": {"type": "string"},  # how this copy differs from the published data set
        "splits": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"type": "object", "required": list(_SPLIT), "properties": _SPLIT},
        },
        "digest": _SHA256,  # in the copies that `bench.py data --manifest` makes
    },
}


def data_root(option: str | Path | None = None) -> Path:
    """The folder of all data sets: the option, else `DFKD_DATA`, else `~/.cache/dfkd/data`.

    Raises UserError where nobody has such a home folder.
    """
    return names.path(str(option or os.environ.get("DFKD_DATA") or "~/.cache/dfkd/data"))


def below(root: Path) -> list[str]:
    """What of the program itself lies below a data root, where the guard of a data-free run opens nothing."""
    own = {"the project": ROOT, "Python": Path(os.__file__).parent, "its packages": Path(np.__file__).parent}
    return [f"{what} ({path})" for what, path in own.items() if path.resolve().is_relative_to(root.resolve())]


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
    result, folder = describe(name, splits, classes, changed), Path(root) / name
    check(result, SCHEMA, folder / "manifest.json")
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


@contextmanager
def spooled(root: Path, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Images (uint8, all of one shape), on the disk instead of in memory: N x H x W x 3, gone when the block ends.

    Written as they come, since a full disk ends a process that writes through a memory map. Raises CannotWrite.
    """
    with ExitStack() as stack:
        try:
            Path(root).mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(dir=root))
        except OSError as error:
            raise CannotWrite(f"cannot write into {root}: {error.strerror or error}") from error
        shape = _spool(file, images, root)
        yield np.memmap(file, np.uint8, "r", shape=shape) if shape[0] else np.empty((0, 1, 1, 3), np.uint8)


def _spool(file: IO[bytes], images: Iterable[np.ndarray], root: Path) -> tuple[int, ...]:
    """Write the images one after another; returns the shape of all of them together."""
    count, shape = 0, ()
    try:
        for image in images:  # whoever makes them has UserErrors of their own
            file.write(np.ascontiguousarray(image).data)
            count, shape = count + 1, image.shape
        file.flush()
    except OSError as error:
        raise CannotWrite(f"cannot write into {root}: {error.strerror or error}") from error
    return count, *shape


def is_layout(folder: Path) -> bool:
    """Whether a folder holds arrays as the store has them, somebody else's perhaps."""
    return (Path(folder) / "manifest.json").is_file()


def handed_on(folder: Path, splits: Sequence[str]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str], str]:
    """These splits of a folder in the store's layout, verified, whatever data set its manifest names; the names of its
    classes, and how it differs from the published data set. Raises UserError as `read` does."""
    folder = Path(folder).resolve()
    content = read_json(folder / "manifest.json")
    check(content, SCHEMA, folder / "manifest.json")
    missing = [split for split in splits if split not in content["splits"]]
    if missing:
        raise UserError(f"{folder / 'manifest.json'} lists no split {missing[0]!r}")
    found = {split: _arrays(folder, content["name"], content["splits"][split], split) for split in splits}
    return found, content["classes"], content["changed"]


def manifest(root: Path, name: str) -> dict[str, Any]:
    """The manifest of a stored data set. Raises UserError where it is missing, unreadable or another one's."""
    path = Path(root) / name / "manifest.json"
    try:
        result = read_json(path)
        check(result, SCHEMA, path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {_remedy(name)}") from None
    except UserError as error:
        raise UserError(f"{error}; {_remedy(name)}") from None
    if result["name"] != name:
        raise UserError(f"{path} is the manifest of {result['name']!r}; {_remedy(name)}")
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
    return _arrays(folder, name, entry, split)


def _arrays(folder: Path, name: str, entry: Mapping[str, Any], split: str) -> tuple[np.ndarray, np.ndarray]:
    images = _read(folder / f"{split}_images.npy", name, entry, "images")
    return images, _read(folder / f"{split}_labels.npy", name, entry, "labels")


def regular(path: Path) -> Path:
    """`path`, if it is a file that can be read to its end. Raises OSError: a pipe, say, would wait for a writer."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("no regular file")
    return path


def _read(path: Path, name: str, entry: Mapping[str, Any], part: str) -> np.ndarray:
    try:
        # Copy on write, for torch takes no array that is read-only; the file stays as it is.
        array = np.lib.format.open_memmap(regular(path), mode="c")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {_remedy(name)}") from None
    except RuntimeError:  # the guard's refusal is no fault of the file
        raise
    except Exception as error:  # numpy raises whatever a damaged header makes it stumble over
        raise UserError(f"{path} cannot be read ({reason(error)}); {_remedy(name)}") from None
    shape, expected = entry[part], entry[f"{part}_sha256"]
    if list(array.shape) != shape or array.dtype != np.uint8 or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else " in Fortran's order"
        found = f"{array.dtype} {list(array.shape)}{order}"
        raise UserError(f"{path} is damaged: uint8 {shape} expected, {found} found; {_remedy(name)}")
    found = _sha256(array)
    if found != expected:
        raise UserError(f"{path} is damaged: sha256 {expected} expected, {found} found; {_remedy(name)}")
    return array


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _remedy(name: str) -> str:
    return f"make it with: python bench.py data {name}"
