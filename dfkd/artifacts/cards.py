"""The card beside weights, which says what they are: one schema for teachers, one for diffusion priors. Torch-free.

A teacher is a file `<name>.safetensors` with the bare network's keys, and `mean` and `std` in its metadata; students of
finished runs are kept in the same way. A prior is a folder `<name>/`. The card `<name>.json` lies beside either; a
user-provided prior has a `card.json` inside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dfkd import documents, names
from dfkd.errors import UserError
from dfkd.files import file_there, replace_file
from dfkd.priors.folder import KINDS, weights_path
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
# Stored values: those of imported and of user-provided weights keep the names of the first records.
ORIGINS = TRAINED, IMPORTED, USER_PROVIDED = "trained", "adopted", "foreign"
TEACHER_SCHEMA = complete(
    {
        "data": TEXT,
        "arch": TEXT,
        "spec": SPEC,
        "recipe": or_null({"type": "object", "properties": {"epochs": POSITIVE}}),
        "seed": or_null({"type": "integer"}),
        # The task's metric (top-1 in percent, mIoU as a fraction) on the test set, measured by us at the last epoch.
        "accuracy": or_null({"type": "number", "minimum": 0, "maximum": 100}),
        "origin": {"enum": [*ORIGINS, "distilled"]},
        "address": or_null(TEXT),  # where the public may get the same weights
        "seconds": SECONDS,  # training time; 0 for weights that were not trained here
        "digest": DIGEST,  # sha256 of the weights file
        "data_digest": or_null(TEXT),
        "date": TEXT,
    },
    title="The card of a teacher, or of a student that a run left",
)
PRIOR_SCHEMA = complete(
    {
        "name": TEXT,
        "kind": {"enum": list(KINDS.values())},
        "trained_on": TEXT,  # one sentence, for people
        "data": or_null(TEXT),  # the auxiliary images
        "data_digest": or_null(TEXT),
        # Of the training images, in their own size.
        "images": or_null(complete(dict.fromkeys(("count", "height", "width"), POSITIVE), additionalProperties=False)),
        "size": POSITIVE,  # pixels, of the images it makes
        "recipe": or_null({"type": "object"}),
        "seed": or_null({"type": "integer"}),
        "seconds": SECONDS,  # training time; 0 where nobody told, and for user-provided weights
        "origin": {"enum": list(ORIGINS)},
        "address": or_null(TEXT),  # where the public may get the same weights
        "digest": DIGEST,  # sha256 of the weights, of a pipeline those of its U-Net
        "date": TEXT,
    },
    title="The card of a diffusion prior",
)


class Artifact(NamedTuple):
    """Weights, a file or a folder, and their card."""

    path: Path
    card: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What there is a card of.

    Attributes:
        identity: the keys of a card that make the artifact's name.
        in_folder: what it is called in a weights folder.
        there: whether something of the kind is at a path; UserError for whatever else is.
        weights: the file whose sha256 is the card's digest.
        passing: keys that say only when and how fast it was made, and are billed to no run.
    """

    what: str
    schema: Mapping[str, Any]
    identity: tuple[str, ...]
    in_folder: str
    there: Callable[[Path], bool]
    weights: Callable[[Path], Path]
    card_path: Callable[[Path], Path]
    passing: tuple[str, ...]

    def find(self, name: str, folders: Iterable[Path]) -> Path | None:
        """The first of that name in weights folders, or None. Raises as `there` does."""
        places = (folder / self.in_folder.format(name) for folder in folders)
        return next((path for path in places if self.there(path)), None)

    def new(self, *identity: str, origin: str, **facts: Any) -> dict[str, Any]:
        """A card; what is not given is unknown."""
        card = dict.fromkeys(self.schema["properties"]) | dict(zip(self.identity, identity, strict=True))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return card | {"origin": origin, "seconds": 0.0, "date": now} | facts

    def write(self, path: Path, card: Mapping[str, Any]) -> None:
        """Write the complete card of an artifact.

        Who makes an artifact writes the card first: a card without weights is what every fresh clone has, weights
        without their card are nobody's. One that is there and says the same but for what is passing stays, so that to
        import weights into a fresh clone, or to train a teacher there to the same bits, changes no committed file.
        """
        place = self.card_path(path)
        self.check(card, place)
        kept = {key: card[key] for key in self.schema["properties"]}
        with suppress(UserError):
            there = self.read(path)
            if kept == there | {key: kept[key] for key in self.passing}:
                return
        replace_file(place, json.dumps(kept, indent=1) + "\n")

    def read(self, path: Path) -> dict[str, Any]:
        """The card of an artifact. Raises UserError where it is missing, or naming the first wrong key."""
        place = self.card_path(path)
        try:
            card = documents.read_json(place)
        except FileNotFoundError:
            raise UserError(f"{place} is missing: the card of the {self.what} {path.name}") from None
        self.check(card, place)
        return card

    def read_of(self, path: Path, name: str) -> dict[str, Any]:
        """As `read`. Raises UserError for the card of another artifact, too."""
        card = self.read(path)
        if (found := "_".join(card[key] for key in self.identity)) != name:
            raise UserError(f"{self.card_path(path)} is the card of {found}, not of {name}")
        return card

    def check(self, card: Any, where: Path) -> None:
        """Raise UserError naming the first key of a card that is missing or wrong."""
        documents.check(card, self.schema, f"{where} is no card of a {self.what}")
        try:
            if "spec" in self.schema["properties"]:
                InputSpec.from_dict(card["spec"])
        except UserError as error:
            raise UserError(f"{where} is no card of a {self.what}: spec: {error}") from None


def _folder_there(path: Path) -> bool:
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{path} is no folder, where a prior is expected")
    return path.is_dir()


def _card_of_prior(path: Path) -> Path:
    inside = path / "card.json"
    return inside if inside.is_file() else path.parent / f"{path.name}.json"


TEACHER = Kind(
    *("teacher", TEACHER_SCHEMA, ("data", "arch"), "{}.safetensors"),
    there=file_there,
    weights=Path,
    card_path=lambda path: path.with_suffix(".json"),
    passing=("date", "seconds"),
)
PRIOR = Kind(
    *("prior", PRIOR_SCHEMA, ("name",), "prior_{}"),
    there=_folder_there,
    weights=weights_path,
    card_path=_card_of_prior,
    passing=("date",),
)


def given_folders(option: str | Path | None = None) -> list[Path]:
    """What is searched after the project's own folder: the option, else `DFKD_WEIGHTS`, if there is either.

    Raises UserError where that is no folder.
    """
    given = option or os.environ.get("DFKD_WEIGHTS")
    folders = [names.path(str(given))] if given else []
    for folder in folders:
        if not folder.is_dir():
            what = f"{folder} is no folder" if os.path.lexists(folder) else f"there is no weights folder {folder}"
            raise UserError(f"{what} (--weights, DFKD_WEIGHTS)")
    return folders
