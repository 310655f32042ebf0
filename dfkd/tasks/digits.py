"""scikit-learn's handwritten digits: 1,797 real scans that come with the library, so nothing is downloaded.

Alpaydin and Kaynak, "Optical recognition of handwritten digits" (UCI, 1998). 8 x 8 pixels of 17 grey
levels, brought to 16 x 16 bilinearly and repeated over three channels, as the field's networks need.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dfkd.errors import UserError
from dfkd.tasks.base import InputSpec, Made

TEST = 500


class Digits(Made):
    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = np.loadtxt(_file(), delimiter=",")  # 64 grey levels and the label
        scans, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
        # Shuffled (by numpy's frozen generator), sorted by class, then evenly spaced picks: stratified.
        shuffled = np.random.RandomState(0).permutation(len(labels))
        by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
        test = np.zeros(len(labels), bool)
        test[by_class[np.arange(TEST) * len(labels) // TEST]] = True
        chosen = test if split == "test" else ~test
        return enlarge(scans[chosen]), labels[chosen]


def _file() -> Path:
    """The library's file, found without importing the library, which takes longer than a start of everything else."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UserError("scikit-learn is not installed, which brings the digits")
    return Path(spec.origin).parent.joinpath("datasets", "data", "digits.csv.gz")


def enlarge(scans: np.ndarray) -> np.ndarray:
    """Grey levels 0 to 16, N x H x W, as images of twice that size: uint8, N x 2H x 2W x 3."""
    # Every value below is a multiple of 1/256 or an integer, so that the result is the same on every machine.
    weights = _bilinear(scans.shape[1])
    enlarged = np.rint(weights @ scans @ weights.T * 255 / 16).astype(np.uint8)
    return np.repeat(enlarged[..., None], 3, axis=3)


def _bilinear(size: int) -> np.ndarray:
    """The 2 `size` x `size` matrix that doubles a signal: pixel centres aligned, borders repeated."""
    weights = np.zeros((2 * size, size))
    for i in range(2 * size):
        near, other = i // 2, i // 2 + (1 if i % 2 else -1)
        weights[i, near] += 0.75
        weights[i, min(max(other, 0), size - 1)] += 0.25
    return weights


DIGITS = Digits(
    name="digits",
    spec=InputSpec(size=16, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, classes=10),
    class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    padding=2,
    flip=False,
)
