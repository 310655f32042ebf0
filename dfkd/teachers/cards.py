"""Where weights lie, and the card beside each file: `<stem>.json`, saying what the weights are (`SCHEMA`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dfkd import documents, names
from dfkd.errors import UserError
from dfkd.files import replace_file
from dfkd.tasks import InputSpec

TEXT, NUMBER, POSITIVE = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 1}
DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$", "maxLength": 64}
SECONDS = {"type": "number", "minimum": 0}


def or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What is unknown is null."""
    return {**schema, "type": [schema["type"], "null"]}


def complete(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The schema of an object that has all these keys; further ones are nobody's concern."""
    return {"type": "object", "properties": dict(properties), "required": list(properties), **more}


SPEC = complete(
    {
        "size": POSITIVE,
        "channels": POSITIVE,
        "mean": {"type": "array", "items": NUMBER},
        "std": {"type": "array", "items": NUMBER},
        "classes": POSITIVE,
    }
)
ORIGINS = ("trained", "adopted", "foreign", "distilled")
SCHEMA = complete(
    {
        "data": TEXT,
        "arch": TEXT,
        "spec": SPEC,
        "recipe": or_null({"type": "object", "properties": {"epochs": POSITIVE}}),
        "seed": or_null({"type": "integer"}),
        # The task's metric (top-1 in percent, mIoU as a fraction) on the test set, measured by us at the last epoch.
        "accuracy": or_null({"type": "number", "minimum": 0, "maximum": 100}),
        "origin": {"enum": list(ORIGINS)},
        "address": or_null(TEXT),  # where the public may get the same weights
        "seconds": SECONDS,  # training time; 0 for weights that were not trained here
        "digest": DIGEST,  # sha256 of the weights file
        "data_digest": or_null(TEXT),
        "date": TEXT,
    },
    title="The card of a teacher, or of a student that a run left",
)


def weights_folders(own: Path, option: str | Path | None = None) -> list[Path]:
    """The folders searched for weights, in order: the project's own, then the option, else `DFKD_WEIGHTS`."""
    given = option or os.environ.get("DFKD_WEIGHTS")
    return [Path(own), *([names.path(str(given))] if given else [])]


def given_folders(own: Path, option: str | Path | None = None) -> list[Path]:
    """As `weights_folders`. Raises UserError where one that somebody names is no folder."""
    folders = weights_folders(own, option)
    for folder in folders[1:]:
        if not folder.is_dir():
            what = f"{folder} is no folder" if os.path.lexists(folder) else f"there is no weights folder {folder}"
            raise UserError(f"{what} (--weights, DFKD_WEIGHTS)")
    return folders


def there(path: Path) -> bool:
    """Whether there is a file. Raises UserError for whatever else has its name: nothing is opened to find out."""
    try:
        if path.is_file():
            return True
        if not os.path.lexists(path):
            return False
        what = "a broken link" if not path.exists() else "a folder" if path.is_dir() else "no regular file"
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    raise UserError(f"{path} is {what}, where a file is expected")


def weights_name(data: str, arch: str) -> str:
    """The file name of a teacher."""
    return f"{data}_{arch}.safetensors"


def find(data: str, arch: str, folders: Iterable[Path]) -> Path | None:
    """The first weights file of that teacher in `folders`, or None. UserError where something else has its name."""
    paths = (folder / weights_name(data, arch) for folder in folders)
    return next((path for path in paths if there(path)), None)


def new_card(data: str, arch: str, spec: InputSpec, origin: str, **facts: Any) -> dict[str, Any]:
    """A card without `digest`, which `write_card` and `save` fill in; `facts` are further keys of `SCHEMA`."""
    card = dict.fromkeys(("recipe", "seed", "accuracy", "address", "data_digest"))
    card |= {"data": data, "arch": arch, "spec": spec.to_dict(), "origin": origin, "seconds": 0.0}
    return card | {"date": datetime.now(UTC).isoformat(timespec="seconds")} | facts


def card_path(weights: Path) -> Path:
    """The card of a weights file."""
    return Path(weights).with_suffix(".json")


def write_card(weights: Path, card: Mapping[str, Any], digest: str | None = None) -> dict[str, Any]:
    """Write the card of a weights file, with that file's digest; returns it as written.

    Who makes a weights file writes the card first, with the `digest` that the file will have: a card without weights is
    what every fresh clone has, weights without their card are nobody's.
    """
    card = {**card, "digest": digest or file_digest(weights)}
    path = card_path(weights)
    _check(card, path)
    replace_file(path, json.dumps(card, indent=1) + "\n")
    return card


def read_card(weights: Path) -> dict[str, Any]:
    """The card of a weights file. Raises UserError where it is missing, or naming the first wrong key."""
    path = card_path(weights)
    try:
        card = documents.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the card of {Path(weights).name}") from None
    _check(card, path)
    return card


def card_of(weights: Path, data: str, arch: str) -> dict[str, Any]:
    """As `read_card`. Raises UserError for the card of another teacher, too."""
    card = read_card(weights)
    if (card["data"], card["arch"]) != (data, arch):
        raise UserError(f"{card_path(weights)} is the card of {card['data']}_{card['arch']}, not of {data}_{arch}")
    return card


def _check(card: Any, path: Path) -> None:
    documents.check(card, SCHEMA, f"{path} is no card")
    try:
        InputSpec.from_dict(card["spec"])
    except UserError as error:
        raise UserError(f"{path} is no card: spec: {error}") from None


def file_digest(path: Path) -> str:
    """The sha256 of a file. Raises UserError where it is missing or cannot be read."""
    if not there(Path(path)):
        raise UserError(f"{path} is missing")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
