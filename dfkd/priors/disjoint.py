"""The rule that a prior has seen no image of the task, in any split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.errors import UserError
from dfkd.priors.cards import image_digests
from dfkd.tasks import Task


def check_disjoint(card: Mapping[str, Any], digests: Path | None, task: Task, data_root: Path) -> None:
    """Raise UserError if any image of the task was among the training images of the prior.

    Images are compared byte by byte (by digest), so only equal copies in equal resolution are found. Without `digests`,
    as with Stable Diffusion, nothing is known and nothing compared; the card says what it was trained on.
    """
    if digests is None:
        return
    try:
        seen = np.load(digests)
        if seen.dtype != np.uint64 or seen.ndim != 1:
            raise ValueError(f"{seen.dtype} {seen.shape}")
    except (OSError, ValueError) as error:
        raise UserError(f"{digests} holds no image digests ({error})") from None
    shape = card["images"] and (card["images"]["height"], card["images"]["width"])
    for split in task.splits:
        images, _ = task.load(split, data_root)
        if shape and images.shape[1:3] != shape:
            continue  # other bytes, whatever they show
        shared = int(np.isin(image_digests(images), seen).sum())
        if shared:
            raise UserError(
                f"{shared} images of the {split} split of {task.name} were in the training set of prior "
                f"{card['name']}; choose a prior that has not seen them"
            )
