"""What a task is: a data set, the input specification of its networks, a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.errors import UserError, unknown
from dfkd.tasks import store


@dataclass(frozen=True)
class InputSpec:
    """What a network takes, and how many classes it tells apart; belongs to the teacher's checkpoint.

    Images of `size` x `size` pixels with `channels`, in [0, 1] before `mean` and `std` normalise them.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as JSON has them."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """The inverse of `to_dict`. Raises UserError for a missing key or a value that is no number."""
        try:
            size, channels, classes = (int(values[key]) for key in ("size", "channels", "classes"))
            mean, std = (tuple(float(x) for x in values[key]) for key in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"not an input specification: {error!r}") from None
        if not len(mean) == len(std) == channels:
            raise UserError(f"not an input specification: mean {mean}, std {std} for {channels} channels")
        return cls(size, channels, mean, std, classes)


@dataclass(frozen=True)
class Task:
    """A data set kept in the array store, and how it is used.

    `padding` (pixels) and `flip` are the field's augmentation for it; `embedded` means that nothing has to be
    fetched. Nothing here caches: each load opens the data anew, so that whoever guards `open` sees it.
    """

    name: str
    spec: InputSpec
    class_names: tuple[str, ...]
    kind: str = "classification"
    metric: str = "top1"
    padding: int = 4
    flip: bool = True
    embedded: bool = False
    splits: tuple[str, ...] = ("train", "test")

    def load(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        """The images (uint8, N x H x W x 3) and labels (int64, N) of one split, verified.

        Raises UserError for an unknown split and for missing or damaged arrays.
        """
        if split not in self.splits:
            raise unknown(f"split of {self.name}", split, self.splits)
        images, labels = store.read(root, self.name, split)
        return images, labels.astype(np.int64)

    def manifest(self, root: Path) -> dict[str, Any]:
        """Shapes, classes, digests and the note `changed`; nothing of the data themselves is read."""
        return store.manifest(root, self.name)

    def fetch(self, root: Path) -> dict[str, Any]:
        """Make the arrays under `root`; returns the manifest."""
        raise UserError(f"{self.name}: no download is known; put its arrays into {Path(root) / self.name}")
