"""The images that a diffusion prior was trained on: which they are, and the rule that none of them is the task's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.errors import UserError
from dfkd.priors.folder import image_digests
from dfkd.tasks import POOLS, Task, pool


def check_disjoint(card: Mapping[str, Any], digests: Path | None, task: Task, data_root: Path) -> None:
    """Raise UserError if any image of the task was among the training images of the prior.

    Images are compared byte by byte (by digest), so only equal copies in equal resolution are found. Without `digests`
    those of the auxiliary images that the card names are taken. Where it names none, a prior of our own is refused; of
    a user-provided one, as of Stable Diffusion, nothing is known and nothing compared.
    """
    name, advice = card["name"], "choose a prior that has not seen them"
    if card["data"] == task.name:
        raise UserError(f"images of {task.name} were the training set of prior {name}; {advice}")
    if digests is not None:
        seen = _read(digests)
    elif card["data"] in POOLS:
        seen = image_digests(training_images(card, data_root)[0])
    elif card["origin"] == "foreign":  # user-provided
        return
    else:
        raise UserError(f"the image digests of prior {name} are gone; remove its folder to have it made anew")
    for split in task.splits:
        images, _ = task.load(split, data_root)
        shared = int(np.isin(image_digests(images), seen).sum())
        if shared:
            raise UserError(
                f"{shared} images of the {split} split of {task.name} were in the training set of prior {name}; "
                f"{advice}"
            )


def training_images(card: Mapping[str, Any], data_root: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The auxiliary images that a card names (uint8, N×H×W×3), their manifest. UserError where they are missing."""
    try:
        source = pool(card["data"])
        return source.load("train", data_root)[0], source.manifest(data_root)
    except UserError as error:
        raise UserError(
            f"prior {card['name']} was trained on {card['data']}, and which images these are must be known: {error}"
        ) from None


def _read(digests: Path) -> np.ndarray:
    try:
        seen = np.load(digests)
        if seen.dtype != np.uint64 or seen.ndim != 1:
            raise ValueError(f"{seen.dtype} {seen.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{digests} holds no image digests ({error})") from None
    return seen


def public_images(card: Mapping[str, Any] | None, size: int, data_root: Path) -> np.ndarray:
    """The training images of the prior of this card, uint8 N×size×size×3, averaged down as it saw them: for the
    reference row that does without diffusion.

    There are none without a prior, or for one whose images nobody has. Raises UserError where `size` does not divide
    theirs.
    """
    if card is None or card["data"] is None:
        return np.empty((0, size, size, 3), np.uint8)
    images, _ = training_images(card, data_root)
    count, side = images.shape[:2]
    if side % size:
        raise UserError(f"the pictures of {card['data']} have {side} pixels, which {size} does not divide")
    blocks = images.reshape(count, size, side // size, size, side // size, 3)
    return blocks.mean((2, 4), dtype=np.float32).round().astype(np.uint8)
