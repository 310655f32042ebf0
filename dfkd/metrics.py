"""Metrics: each one object that knows its name, its range, how people read it and how it is computed.

A metric is a function of one confusion matrix over the whole test set, so that batches, devices and precisions cannot
change its value. Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfkd.errors import named

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255  # the label of pixels that neither train nor count


@dataclass(frozen=True)
class Metric:
    """A score of a network on a test set; higher is better.

    Attributes:
        name: the key in records.
        sentence: what it is, below the heading of a table.
        column: its heading in a table.
        axis: its label in a plot.
        decimals: as many as are shown.
        unit: what follows a single score in a line of text.
        low, high: its range; a record with a value outside is refused.
        of: the score of a confusion matrix, int64 C x C, rows true and columns predicted classes.
    """

    name: str
    sentence: str
    column: str
    axis: str
    decimals: int
    unit: str
    low: float
    high: float
    of: Callable[[Tensor], float]

    def text(self, value: float | None) -> str:
        """A score for people, with its unit: `92.62 %`, `0.412`, `none`."""
        return "none" if value is None else f"{value:.{self.decimals}f}{self.unit}"


def _top1(confusion: Tensor) -> float:
    return 100.0 * confusion.diag().sum().item() / confusion.sum().item()


def _miou(confusion: Tensor) -> float:
    """A class without a pixel in labels and predictions is left out of the mean (DFAD's convention; the CMI and Fast
    programs count it as 0)."""
    confusion = confusion.double()
    hits = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - hits
    return (hits[union > 0] / union[union > 0]).mean().item()


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", "Top-1 accuracy in percent", "top-1, %", "top-1 accuracy (%)", 2, " %", 0, 100, _top1),
        Metric("miou", "Mean IoU as a fraction", "mIoU", "mean IoU", 3, "", 0, 1, _miou),
    )
}


def metric(name: str) -> Metric:
    """The metric of that name. Raises UserError naming the nearest one."""
    return named("metric", name, METRICS)


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How often each class (row) was taken for each (column), int64 C x C, on the device and without waiting for it.

    `predicted` and `truth` are int64 of one shape; labels `IGNORE` do not count.
    """
    import torch

    counted = truth != IGNORE
    # What is ignored is added to cell 0 with weight 0: to leave it out would make the host wait for its number.
    cells = torch.where(counted, truth * classes + predicted, 0).flatten()
    matrix = torch.zeros(classes * classes, dtype=torch.int64, device=truth.device)
    return matrix.scatter_add_(0, cells, counted.flatten().long()).view(classes, classes)
