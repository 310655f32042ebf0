"""Where priors lie, and the card of each: what the model is and what it was trained on. Torch-free.

A prior of our own is a folder `<name>/` as diffusers' `save_pretrained` makes it; beside it, and committed, lie its
card `<name>.json` and the digests of its training images, `<name>.images.npy`. In somebody's own folder the two are
called `card.json` and `images.npy` and lie inside.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dfkd import documents
from dfkd.errors import UserError
from dfkd.files import replace_file, replacing
from dfkd.teachers.cards import DIGEST, POSITIVE, SECONDS, TEXT, complete, or_null

# The class that a folder's configuration names, and what that is here.
KINDS = {
    "UNet2DModel": "pixel",
    "StableDiffusionPipeline": "stable-diffusion",
    "StableDiffusionImageVariationPipeline": "image-variations",
}
ORIGINS = ("trained", "adopted", "foreign")
SCHEMA = complete(
    {
        "name": TEXT,
        "kind": {"enum": list(KINDS.values())},
        "trained_on": TEXT,  # one sentence, for people
        "data": or_null(TEXT),  # the pool
        "data_digest": or_null(TEXT),
        # Of the training images, as the pool has them.
        "images": or_null(complete(dict.fromkeys(("count", "height", "width"), POSITIVE), additionalProperties=False)),
        "size": POSITIVE,  # pixels, of the images it makes
        "recipe": or_null({"type": "object"}),
        "seed": or_null({"type": "integer"}),
        "seconds": SECONDS,  # training time; 0 where nobody told, and for foreign weights
        "origin": {"enum": list(ORIGINS)},
        "address": or_null(TEXT),  # where the public may get the same weights
        "digest": DIGEST,  # sha256 of the weights, of a pipeline those of its U-Net
        "date": TEXT,
    },
    title="The card of a diffusion prior",
)
KEYS = list(SCHEMA["properties"])


def kind_of(folder: Path) -> str:
    """What sort of model a folder holds. Raises UserError where none that is known."""
    for name in ("model_index.json", "config.json"):
        if (folder / name).is_file():
            config = read_json(folder / name)
            documents.check(config, {"properties": {"_class_name": TEXT}}, folder / name)
            found = config.get("_class_name")
            if found not in KINDS:
                raise UserError(f"{folder} holds a {found}; a prior is one of: {', '.join(KINDS)}")
            return KINDS[found]
    raise UserError(f"{folder} is no prior: neither config.json nor model_index.json is there")


def weights_path(folder: Path) -> Path:
    """The weights file that a prior is known by. Raises UserError where there is none."""
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    files = [inner / f"diffusion_pytorch_model{end}" for end in (".safetensors", ".fp16.safetensors", ".bin")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(f"{files[0]} is missing")
    return found


def side_of(folder: Path) -> int:
    """Side in pixels of the images that a model makes, from its configuration. UserError where it does not say."""
    pipeline = (folder / "model_index.json").is_file()
    path = folder / "unet" / "config.json" if pipeline else folder / "config.json"
    config, side = read_json(path), complete({"sample_size": POSITIVE})
    documents.check(config, side, path)
    if not pipeline:
        return config["sample_size"]
    path = folder / "vae" / "config.json"
    vae = read_json(path)
    documents.check(vae, complete({"block_out_channels": {"type": "array", "minItems": 1}}), path)
    return config["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError for anything else."""
    try:
        found = documents.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    documents.check(found, {"type": "object"}, path)
    return found


def card_path(folder: Path) -> Path:
    """The card of a prior: inside the folder, or beside it."""
    inside = folder / "card.json"
    return inside if inside.is_file() else folder.parent / f"{folder.name}.json"


def digests_path(folder: Path) -> Path | None:
    """The digests of the images a prior was trained on, for `check_disjoint`; None where nobody has them."""
    paths = (folder / "images.npy", folder.parent / f"{folder.name}.images.npy")
    return next((path for path in paths if path.is_file()), None)


def new_card(name: str, kind: str, trained_on: str, origin: str, **facts: Any) -> dict[str, Any]:
    """A card of these facts; what is not given is unknown."""
    card = dict.fromkeys(("data", "data_digest", "images", "recipe", "seed", "address"))
    card |= {"name": name, "kind": kind, "trained_on": trained_on, "origin": origin, "seconds": 0.0}
    return card | {"date": datetime.now(UTC).isoformat(timespec="seconds")} | facts


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write a complete card."""
    check(card, path)
    replace_file(path, json.dumps({key: card[key] for key in KEYS}, indent=1) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a prior. Raises UserError where it is missing, or naming the first wrong key."""
    path = card_path(Path(folder))
    if not path.is_file():
        raise UserError(f"{path} is missing: the card of the prior {Path(folder).name}")
    card = read_json(path)
    check(card, path)
    return card


def check(card: Any, path: Path) -> None:
    """Raise UserError naming the first key of a card that is missing or wrong."""
    documents.check(card, SCHEMA, f"{path} is no card of a prior")


def image_digests(images: np.ndarray) -> np.ndarray:
    """Of each image (uint8, N×H×W×3) the first 8 bytes of the sha256 of its bytes: uint64, N."""
    heads = (hashlib.sha256(np.ascontiguousarray(image)).digest()[:8] for image in images)
    return np.array([int.from_bytes(head, "big") for head in heads], np.uint64)


def write_digests(path: Path, images: np.ndarray) -> None:
    """Write the digests of the training images, sorted."""
    with replacing(path) as file:
        np.save(file, np.sort(image_digests(images)))
