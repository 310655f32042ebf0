"""Where weights lie, and the card beside each file: `<stem>.json`, saying what the weights are (`CARD`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any

from dfkd.errors import UserError, unknown
from dfkd.files import replacing
from dfkd.tasks import InputSpec

CARD: dict[str, tuple[type, ...]] = {
    "data": (str,),
    "arch": (str,),
    "spec": (dict,),
    "recipe": (dict, NoneType),
    "seed": (int, NoneType),
    # The task's metric (top-1 in percent, mIoU as a fraction) on the test set, measured by us at the last epoch.
    "accuracy": (int, float, NoneType),
    "origin": (str,),
    "address": (str, NoneType),  # where the public may get the same weights
    "seconds": (int, float),  # training time; 0 for weights that were not trained here
    "digest": (str,),  # sha256 of the weights file
    "data_digest": (str, NoneType),
    "date": (str,),
}
ORIGINS = ("trained", "adopted", "foreign", "distilled")


def weights_folders(own: Path, option: str | Path | None = None) -> list[Path]:
    """The folders searched for weights, in order: the project's own, then the option, else `DFKD_WEIGHTS`."""
    given = option or os.environ.get("DFKD_WEIGHTS")
    return [Path(own), *([Path(given).expanduser()] if given else [])]


def weights_name(data: str, arch: str) -> str:
    """The file name of a teacher."""
    return f"{data}_{arch}.safetensors"


def find(data: str, arch: str, folders: Iterable[Path]) -> Path | None:
    """The first weights file of that teacher in `folders`, or None."""
    paths = (folder / weights_name(data, arch) for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def new_card(data: str, arch: str, spec: InputSpec, origin: str, **facts: Any) -> dict[str, Any]:
    """A card without `digest`, which `write_card` and `save` fill in; `facts` are further keys of `CARD`."""
    card = dict.fromkeys(("recipe", "seed", "accuracy", "address", "data_digest"))
    card |= {"data": data, "arch": arch, "spec": spec.to_dict(), "origin": origin, "seconds": 0.0}
    return card | {"date": datetime.now(UTC).isoformat(timespec="seconds")} | facts


def card_path(weights: Path) -> Path:
    """The card of a weights file."""
    return Path(weights).with_suffix(".json")


def write_card(weights: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write the card beside an existing weights file, with that file's digest; returns it as written."""
    card = {**card, "digest": file_digest(weights)}
    _check_card(card, card_path(weights))
    with replacing(card_path(weights)) as file:
        file.write((json.dumps(card, indent=1) + "\n").encode())
    return card


def read_card(weights: Path) -> dict[str, Any]:
    """The card of a weights file. Raises UserError where it is missing, or naming the first wrong key."""
    path = card_path(weights)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the card of {Path(weights).name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no card ({error})") from None
    _check_card(card, path)
    return card


def _check_card(card: Any, path: Path) -> None:
    if not isinstance(card, dict):
        raise UserError(f"{path} is no card: not a dictionary")
    for key, types in CARD.items():
        if key not in card:
            raise UserError(f"{path} is no card: {key!r} is missing")
        if not isinstance(card[key], types) or isinstance(card[key], bool):
            raise UserError(f"{path} is no card: {key!r} is {card[key]!r}")
    if card["origin"] not in ORIGINS:
        raise unknown("origin", card["origin"], ORIGINS)
    InputSpec.from_dict(card["spec"])


def file_digest(path: Path) -> str:
    """The sha256 of a file. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
