"""Scenes of handwritten digits, labelled per pixel: segmentation with nothing to download.

One to three real digits (see `dfkd.tasks.digits`), of the three in `SHOWN`, on a textured background, each at a size,
in a colour and at a place of its own. They may touch, and a later one may cover a few pixels of an earlier one; one
that finds no place is left out. Class 0 is the background, class k the strokes of the k-th digit of `SHOWN`. Scenes
are 64 x 80; training and synthesis use crops of 64. Training scenes are made of the training split of the digits and
test scenes of its test split: no digit is in both.

Three digits that fill much of the scene, because with all ten at half the size no student came beyond a tenth of its
teacher's score within a quick budget, on real data either, and the table could not tell methods apart.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from dfkd.tasks.base import InputSpec, Made
from dfkd.tasks.digits import DIGITS

HEIGHT, WIDTH = 64, 80
COUNTS = {"train": 600, "test": 200}
SEEDS = {"train": 1, "test": 2}
SHOWN = (0, 1, 4)
DIGITS_PER_SCENE = (1, 3)
SIZES = (36, 56)  # of a digit's square, in pixels
COVERED = 12  # how many pixels of what is drawn already a digit may hide


class DigitScenes(Made):
    """Rendered once a process, while the digits are opened at each call (see `Task`)."""

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        DIGITS.load(split)  # whoever guards `open` sees it, rendered or not
        images, labels = _rendered(split, COUNTS[split])
        return images.copy(), labels.copy()


@cache
def _rendered(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """All scenes of a split. Integers throughout, and numpy's frozen generator: the same on every machine."""
    scans, digits = DIGITS.load(split)
    scans, digits = scans[np.isin(digits, SHOWN)], digits[np.isin(digits, SHOWN)]
    random = np.random.RandomState(SEEDS[split])
    images = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    labels = np.empty((count, HEIGHT, WIDTH), np.int64)
    for image, label in zip(images, labels, strict=True):
        chosen = random.randint(len(digits), size=random.randint(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1))
        image[:], label[:] = _scene(scans[chosen, :, :, 0].astype(np.int64), digits[chosen], random)
    return images, labels


def _scene(scans: np.ndarray, digits: np.ndarray, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """One image and its labels; `scans` are K x 16 x 16 grey levels of 0 to 255."""
    dark = random.randint(2) == 1
    image = _background(dark, random)
    label = np.zeros((HEIGHT, WIDTH), np.int64)
    for scan, digit in zip(scans, digits, strict=True):
        size = random.randint(SIZES[0], SIZES[1] + 1)
        # The contrast of the scan raised, so that faint strokes are full ink too, with an edge of about a pixel.
        ink = np.clip(3 * _enlarge(scan, size, size) - 216, 0, 255)
        strokes = ink >= 128
        colour = random.randint(180, 256, 3) if dark else random.randint(0, 76, 3)
        for _ in range(20):
            top, left = random.randint(HEIGHT - size + 1), random.randint(WIDTH - size + 1)
            window = np.s_[top : top + size, left : left + size]
            if (label[window][strokes] > 0).sum() <= COVERED:
                image[window] += (colour - image[window]) * ink[..., None] // 255
                label[window][strokes] = SHOWN.index(digit) + 1
                break
    image += random.randint(-8, 9, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _background(dark: bool, random: np.random.RandomState) -> np.ndarray:
    """Two colours blended by clouds of two scales and slanted stripes; H x W x 3, 0 to 255, int64."""
    coarse = _enlarge(random.randint(0, 256, (4, 5)), HEIGHT, WIDTH)
    fine = _enlarge(random.randint(0, 256, (16, 20)), HEIGHT, WIDTH)
    period = random.randint(6, 25)
    phase = (np.arange(HEIGHT)[:, None] * random.randint(-3, 4) + np.arange(WIDTH) * random.randint(-3, 4)) % period
    stripes = 255 * abs(2 * phase - period) // period
    shares = random.randint(1, 5, 3)
    blend = (shares[0] * coarse + shares[1] * fine + shares[2] * stripes) // shares.sum()
    first, second = random.randint(0, 131, (2, 3)) + (0 if dark else 125)
    return first + (second - first) * blend[..., None] // 255


def _enlarge(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resampling of an integer array, pixel centres aligned, borders repeated; the result is rounded down."""
    rows, columns = (_weights(old, new) for old, new in zip(grid.shape, (height, width), strict=True))
    return rows @ grid @ columns.T // 256**2


@cache
def _weights(old: int, new: int) -> np.ndarray:
    """The `new` x `old` matrix of bilinear weights, in 1/256."""
    centres = np.clip((2 * np.arange(new) + 1) * old * 128 // new - 128, 0, 256 * (old - 1))
    near, share = centres // 256, centres % 256
    weights = np.zeros((new, old), np.int64)
    np.add.at(weights, (np.arange(new), near), 256 - share)
    np.add.at(weights, (np.arange(new), np.minimum(near + 1, old - 1)), share)
    return weights


DIGIT_SCENES = DigitScenes(
    name="digit-scenes",
    spec=InputSpec(size=64, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, classes=1 + len(SHOWN)),
    class_names=("background", *(DIGITS.class_names[digit] for digit in SHOWN)),
    kind="segmentation",
    metric="miou",
    padding=8,
    flip=False,
)
