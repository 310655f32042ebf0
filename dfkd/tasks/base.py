"""What a task is: a data set, the input specification of its networks, a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.errors import UserError, unknown
from dfkd.metrics import IGNORE
from dfkd.tasks import store


@dataclass(frozen=True)
class InputSpec:
    """What a network takes, and how many classes it tells apart; belongs to the teacher's checkpoint.

    Images of `size` x `size` pixels with `channels`, in [0, 1] before `mean` and `std` normalise them. In
    segmentation that is the side of the crops for training and synthesis; the evaluated images are whole.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return self.channels, self.size, self.size

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as JSON has them."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """The inverse of `to_dict`. Raises UserError for a missing key or a value that cannot be."""
        try:
            size, channels, classes = (int(values[key]) for key in ("size", "channels", "classes"))
            mean, std = (tuple(float(x) for x in values[key]) for key in ("mean", "std"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"not an input specification: {error!r}") from None
        if not len(mean) == len(std) == channels:
            raise UserError(f"not an input specification: mean {mean}, std {std} for {channels} channels")
        if not all(abs(x) <= 1e6 for x in mean) or not all(1e-6 <= x <= 1e6 for x in std):  # so nan is refused
            raise UserError(f"not an input specification: mean {mean} must be finite and std {std} above 0")
        return cls(size, channels, mean, std, classes)


@dataclass(frozen=True)
class Task:
    """A data set kept in the array store, and how it is used.

    `kind` is "classification" or "segmentation". `padding` (pixels) and `flip` are the field's augmentation of images
    of `spec.size`: zero padding, random crop, flip. Larger ones (the training split in segmentation, and where `stored`
    says so) are cropped to `spec.size` at random, label maps alike and without padding, then flipped where `flip`
    allows. `stored` is the side of a classification task's stored images where that is not `spec.size`; test images
    are then cropped at the centre. `embedded` means that nothing has to be fetched. Nothing here caches: each load
    opens the data anew, so that whoever guards `open` sees it.
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
    stored: int | None = None

    @property
    def side(self) -> int:
        """Of the stored images, in pixels, where they are square."""
        return self.stored or self.spec.size

    @property
    def training_images(self) -> int | None:
        """How many images the training split has as published, for those who plan without the data; None: unknown."""
        return None

    def load(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        """The images (uint8, N x H x W x 3) and labels of one split, verified; test images at the size of evaluation.

        Labels are int64: N in classification, N x H x W with `IGNORE` for pixels that do not count in segmentation.
        Raises UserError for an unknown split, for missing or damaged arrays and for labels that cannot be.
        """
        if split not in self.splits:
            raise unknown(f"split of {self.name}", split, self.splits)
        images, labels = store.read(root, self.name, split)
        try:
            self.verify(split, images, labels)
        except UserError as error:
            raise UserError(f"{Path(root) / self.name}: {error}") from None
        if split == "test" and self.stored:
            first = (self.stored - self.spec.size) // 2
            images = images[:, first : first + self.spec.size, first : first + self.spec.size]
        return images, labels.astype(np.int64)

    def verify(self, split: str, images: np.ndarray, labels: np.ndarray) -> None:
        """Raises UserError, in one line, where labels do not fit the images or either do not fit this task."""
        where, dense = f"{self.name}, {split}", self.kind == "segmentation"
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != self.spec.channels:
            expected = f"uint8 [N, height, width, {self.spec.channels}]"
            raise UserError(f"{where}: {expected} expected for images, {images.dtype} {list(images.shape)} found")
        if labels.shape != images.shape[: 3 if dense else 1]:
            raise UserError(f"{where}: labels {list(labels.shape)} for images {list(images.shape)}")
        (height, width), size = images.shape[1:3], self.spec.size
        if dense and min(height, width) < size:
            raise UserError(f"{where}: images of {width} x {height} are smaller than the crop of {size}")
        if not dense and (height, width) != (self.side, self.side):
            raise UserError(f"{where}: images of {width} x {height}, {self.side} x {self.side} expected")
        allowed = np.zeros(256, bool)
        allowed[: self.spec.classes] = True
        allowed[IGNORE] |= dense
        wrong = np.flatnonzero((np.bincount(labels.reshape(-1), minlength=256) > 0) & ~allowed)
        if len(wrong):
            ignored = f" and {IGNORE} (ignored)" if dense else ""
            raise UserError(f"{where}: label {wrong[0]} found; there are 0 to {self.spec.classes - 1}{ignored}")

    def expect_counts(self, where: object, labels: np.ndarray, expected: Sequence[int]) -> None:
        """Raises UserError where a class has not as many images as `expected`, one number a class."""
        counts = np.bincount(labels, minlength=self.spec.classes)
        for name, count, wanted in zip(self.class_names, counts, expected, strict=True):
            if count != wanted:
                raise UserError(f"{where}: {count} images of {name}, {wanted} expected")

    def problems(self, root: Path) -> list[str]:
        """What is wrong with the stored arrays, a line each; an empty list where every split can be loaded."""
        problems = []
        for split in self.splits:
            try:
                self.load(split, root)
            except UserError as error:
                problems.append(str(error))
        return list(dict.fromkeys(problems))  # a missing manifest is one problem

    def manifest(self, root: Path) -> dict[str, Any]:
        """Shapes, classes, digests and the note `changed`; nothing of the data themselves is read."""
        return store.manifest(root, self.name)

    def fetch(self, root: Path) -> dict[str, Any]:
        """Make the arrays under `root`; returns the manifest."""
        raise UserError(f"{self.name}: no download is known; put its arrays into {Path(root) / self.name}")

    def convert(self, source: Path, root: Path) -> dict[str, Any]:
        """Make the arrays under `root` from files somebody has (`--from`); returns the manifest."""
        raise UserError(f"{self.name}: nothing to convert; leave out --from {source}")


@dataclass(frozen=True)
class Made(Task):
    """A data set whose arrays are made at each call anew, of what comes with the packages; no `root` is used."""

    embedded: bool = True
    changed: str = ""

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """What `load` gives."""
        raise NotImplementedError

    def load(self, split: str, root: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
        if split not in self.splits:
            raise unknown(f"split of {self.name}", split, self.splits)
        return self.arrays(split)

    def manifest(self, root: Path | None = None) -> dict[str, Any]:
        """As `Task.manifest`, computed from the arrays: labels count as uint8, as in the store."""
        made = {split: self.arrays(split) for split in self.splits}
        splits = {split: (images, labels.astype(np.uint8)) for split, (images, labels) in made.items()}
        return store.describe(self.name, splits, self.class_names, self.changed)

    def fetch(self, root: Path) -> dict[str, Any]:
        return self.manifest(root)
