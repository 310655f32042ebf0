"""`results/plots/<data>-<protocol>-images.png` and `.svg`: how balanced and how hard the synthetic images are.

Each pair has two panels with a line for each method: shares of the classes among the teacher's decisions, from the
commonest to the rarest, and shares of its confidence (SSD-KD's Figure 2; ssdkd.md 6). matplotlib is imported only when
a figure is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dfkd.report.statistics import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDING = "-images"
CLASSES, CONFIDENCE = "diagnostics.classes", "diagnostics.confidence"


def described(result: Result) -> bool:
    """Whether there is something to draw: a method whose record has both histograms."""
    return not result.reference and result.histograms.keys() >= {CLASSES, CONFIDENCE}


def numbers(shown: list[Result]) -> list:
    """What the figure shows, to be hashed."""
    return [[result.cell, result.state, result.histograms] for result in shown]


def draw(shown: list[Result], colours: Mapping[str, str]) -> Figure:
    """A row of two panels for each pair."""
    from matplotlib.figure import Figure

    pairs = [list(group) for _, group in itertools.groupby(shown, key=lambda result: result.cell[:4])]
    figure = Figure(figsize=(11.5, 0.8 + 3.4 * len(pairs)), dpi=120, layout="constrained")
    for (left, right), pair in zip(figure.subplots(len(pairs), 2, squeeze=False), pairs, strict=True):
        for result in pair:
            style = {"color": colours[result.cell.method], "linewidth": 1.4, "alpha": 0.85}
            style |= {"label": result.cell.method + (" (stale)" if result.state == "stale" else "")}
            style |= {"linestyle": "--"} if result.state == "stale" else {}
            shares = sorted(result.histograms[CLASSES], reverse=True)
            left.stairs(shares, [0.5 + i for i in range(len(shares) + 1)], **style)
            bins = result.histograms[CONFIDENCE]
            right.stairs(bins, [i / len(bins) for i in range(len(bins) + 1)], **style)
        count = len(pair[0].histograms[CLASSES])
        left.axhline(1 / count, color="0.45", linestyle=":", linewidth=0.9)
        left.set_title(f"{pair[0].cell.teacher} → {pair[0].cell.student}", fontsize=10)
        _axes(left, "class, from the commonest to the rarest (dotted: equal shares)")
        _axes(right, "the teacher's confidence in its decision")
        right.set_xlim(0, 1)
        right.legend(frameon=False, fontsize=8, loc="upper left")
    figure.suptitle(f"{shown[0].cell.data}, protocol {shown[0].cell.protocol}: synthetic images", fontweight="bold")
    return figure


def _axes(axes: Axes, title: str) -> None:
    axes.set_xlabel(title)
    axes.set_ylabel("share of the decisions")
    axes.set_ylim(0, None)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
