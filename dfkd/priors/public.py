"""The public pictures that a diffusion prior was trained on, for the reference row that does without diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.errors import UserError
from dfkd.priors.disjoint import training_images


def public_images(card: Mapping[str, Any] | None, size: int, data_root: Path) -> np.ndarray:
    """The training images of the prior of this card, uint8 N×size×size×3, averaged down as it saw them.

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
