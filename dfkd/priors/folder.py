"""What lies in the folder of a prior, as diffusers' `save_pretrained` makes it, and the hashes of its training images.

Those lie in `images.npy` inside or in `<name>.images.npy` beside it. Torch-free.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from dfkd import documents
from dfkd.errors import UserError
from dfkd.files import replacing

# The class that a folder's configuration names, and what that is here.
KINDS = {
    "UNet2DModel": "pixel",
    "StableDiffusionPipeline": "stable-diffusion",
    "StableDiffusionImageVariationPipeline": "image-variations",
}


def kind_of(folder: Path) -> str:
    """What sort of model a folder holds. Raises UserError where none that is known."""
    for name in ("model_index.json", "config.json"):
        if (folder / name).is_file():
            config = read_json(folder / name)
            documents.check(config, {"properties": {"_class_name": {"type": "string"}}}, folder / name)
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
    config = _holding(path, "sample_size", {"type": "integer", "minimum": 1})
    if not pipeline:
        return config["sample_size"]
    vae = _holding(folder / "vae" / "config.json", "block_out_channels", {"type": "array", "minItems": 1})
    return config["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def _holding(path: Path, key: str, schema: dict[str, Any]) -> dict[str, Any]:
    config = read_json(path)
    documents.check(config, {"properties": {key: schema}, "required": [key]}, path)
    return config


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError for anything else."""
    try:
        found = documents.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    documents.check(found, {"type": "object"}, path)
    return found


def digests_path(folder: Path) -> Path | None:
    """The digests of the images a prior was trained on, for `check_disjoint`; None where nobody has them."""
    paths = (folder / "images.npy", folder.parent / f"{folder.name}.images.npy")
    return next((path for path in paths if path.is_file()), None)


def image_digests(images: np.ndarray) -> np.ndarray:
    """Of each image (uint8, N×H×W×3) the first 8 bytes of the sha256 of its bytes: uint64, N."""
    heads = (hashlib.sha256(np.ascontiguousarray(image).data).digest()[:8] for image in images)
    return np.array([int.from_bytes(head, "big") for head in heads], np.uint64)


def write_digests(path: Path, images: np.ndarray) -> None:
    """Write the digests of the training images, sorted."""
    with replacing(path) as file:
        np.save(file, np.sort(image_digests(images)))
