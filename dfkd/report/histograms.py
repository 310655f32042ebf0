"""`results/plots/<data>-<protocol>-images.png`: how balanced and how hard the synthetic images are.

Each pair has two panels with a line for each method: shares of the classes among the teacher's decisions, from the
commonest to the rarest, and shares of its confidence (SSD-KD's Figure 2; ssdkd.md 6). matplotlib is imported only when
a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dfkd.report import figure
from dfkd.report.statistics import CLASSES, CONFIDENCE, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def drawable(result: Result) -> bool:
    """Whether there is something to draw: a method whose record has both histograms."""
    return not result.reference and result.histograms.keys() >= {CLASSES, CONFIDENCE}


def render(pairs: Sequence[Sequence[Result]], digest: str) -> bytes:
    """A row of two panels for each pair, as PNG."""
    from matplotlib.figure import Figure

    cell = pairs[0][0].cell
    with figure.drawing():
        page = Figure(figsize=(13.0, 0.8 + 3.4 * len(pairs)), dpi=120, layout="constrained")
        for (left, right), pair in zip(page.subplots(len(pairs), 2, squeeze=False), pairs, strict=True):
            _row(left, right, [result for result in pair if drawable(result)])
        page.suptitle(f"{cell.data}, protocol {cell.protocol}: synthetic images", fontweight="bold")
        return figure.saved(page, digest)


def _row(left: Axes, right: Axes, shown: Sequence[Result]) -> None:
    for result in shown:
        style = {"color": figure.colour_of(result.family), "linestyle": figure.dash_of(result, shown)}
        # Shares of few images are less even than those of many by chance alone.
        label = f"{figure.name_of(result)}, {result.means['diagnostics.images']:,.0f} images"
        style |= {"label": label, "linewidth": 1.4, "alpha": 0.85}
        shares = result.histograms[CLASSES]
        left.stairs(shares, [0.5 + i for i in range(len(shares) + 1)], **style)
        bins = result.histograms[CONFIDENCE]
        right.stairs(bins, [i / len(bins) for i in range(len(bins) + 1)], **style)
    left.axhline(1 / len(shown[0].histograms[CLASSES]), color="0.45", linestyle=":", linewidth=0.9)
    left.set_title(f"{shown[0].cell.teacher} → {shown[0].cell.student}", fontsize=10)
    left.xaxis.get_major_locator().set_params(integer=True)
    _axes(left, "class, from the commonest to the rarest (dotted: equal shares)")
    _axes(right, "the teacher's confidence in its decision")
    right.set_xlim(0, 1)
    right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)


def _axes(axes: Axes, title: str) -> None:
    axes.set_xlabel(title)
    axes.set_ylabel("share of the decisions")
    axes.set_ylim(0, None)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
