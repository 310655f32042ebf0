"""A panel of accuracy over scored seconds: a curve for each method, with a band over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dfkd.report.curves import GOAL, Point
from dfkd.report.figure import (
    Label,
    colour_of,
    dash_of,
    hardware_legend,
    name_of,
    place_labels,
    score_axis,
    time_axis,
)
from dfkd.report.statistics import KD, Cost, Result

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

ALONG = (0.2, 0.4, 0.6, 0.8)  # of the way from point to point that no name shall cover
HALF = 3  # of what a curve takes around each of its points, in points
GOAL_LINE = {"color": "0.45", "linestyle": (0, (1, 2)), "linewidth": 1.1}


def drawable(result: Result) -> bool:
    """Whether the result has a curve: a method that was evaluated more than once."""
    return not result.reference and any(len(cost.curve) > 1 for cost in result.costs)


def legend(pairs: Iterable[Sequence[Result]], markers: Mapping[str, str]) -> list[Any]:
    """What the dotted line, the bands and, of several classes of hardware, the markers stand for."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown = [result for pair in pairs for result in pair]
    several = any(point.std is not None for result in shown for cost in result.costs for point in cost.curve)
    goal = [Line2D([], [], label=f"{100 * GOAL:.0f} % of {KD}", **GOAL_LINE)]
    band = [Patch(color="0.5", alpha=0.25, linewidth=0, label="± one standard deviation over seeds")]
    hardware = hardware_legend(markers) if len(markers) > 1 else []
    return hardware + goal * any(result.cell.method == KD for result in shown) + band * several


def panel(axes: Axes, pair: Sequence[Result], markers: Mapping[str, str]) -> None:
    """Curves with bands, axes, reference rows and the line that time is measured to, of one pair.

    Each curve ends in the marker of its class of hardware.
    """
    curves = [(cost, result) for result in pair if drawable(result) for cost in result.costs if len(cost.curve) > 1]
    _curves(axes, curves)
    for hardware, marker in markers.items():
        ends = [(cost.curve[-1], colour_of(result.family)) for cost, result in curves if cost.hardware == hardware]
        if ends:
            x, y = [_seconds(point) for point, _ in ends], [point.mean for point, _ in ends]
            axes.scatter(x, y, c=[colour for _, colour in ends], marker=marker, s=30, linewidths=0, zorder=3)
    points = [point for cost, _ in curves for point in cost.curve]
    axes.set_xlabel("time without evaluation (log scale)")
    time_axis(axes, [point.seconds for point in points])
    references = [result for result in pair if result.reference]
    low, high = min(map(_low, points)), max(map(_high, points))
    score_axis(axes, low, high, references, pair)
    kd = [result for result in references if result.cell.method == KD]
    for result in kd:
        axes.axhline(GOAL * result.last.mean, zorder=1, **GOAL_LINE)
    labels = [Label(*cost.curve[-1][:2], name_of(result), colour_of(result.family)) for cost, result in curves]
    heights = [result.last.mean for result in references] + [GOAL * result.last.mean for result in kd]
    place_labels(axes, labels, _taken(axes, [cost for cost, _ in curves]), heights)


def _low(point: Point) -> float:
    return point.mean - (point.std or 0)


def _high(point: Point) -> float:
    return point.mean + (point.std or 0)


def _curves(axes: Axes, curves: Sequence[tuple[Cost, Result]]) -> None:
    """Lines, their points and their bands: few artists, because each of them takes its time."""
    from matplotlib.collections import LineCollection, PolyCollection

    results = [result for _, result in curves]
    lines = [[(_seconds(point), point.mean) for point in cost.curve] for cost, _ in curves]
    colours = [colour_of(result.family) for result in results]
    style = {"linestyles": [dash_of(result, results) for result in results], "zorder": 3}
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=1.7, **style), autolim=False)
    dots = [(*dot, colour) for line, colour in zip(lines, colours, strict=True) for dot in line]
    x, y, shades = zip(*dots, strict=True)
    axes.scatter(x, y, c=shades, s=8, linewidths=0, zorder=3)
    bands = [(_band(cost), colour) for (cost, _), colour in zip(curves, colours, strict=True) if cost.curve[0].std]
    style = {"facecolors": [colour for _, colour in bands], "alpha": 0.18, "linewidths": 0, "zorder": 2}
    axes.add_collection(PolyCollection([band for band, _ in bands], **style), autolim=False)


def _band(cost: Cost) -> list[tuple[float, float]]:
    """The outline of what lies within one standard deviation."""
    there = [(_seconds(point), _low(point)) for point in cost.curve]
    return there + [(_seconds(point), _high(point)) for point in reversed(cost.curve)]


def _seconds(point: Point) -> float:
    """What a logarithmic axis can show."""
    return max(point.seconds, 1e-3)


def _taken(axes: Axes, costs: Iterable[Cost]) -> np.ndarray:
    """The boxes around points of curves and along the way between them, in pixels."""
    import numpy as np

    places = []
    for cost in costs:
        pixels = axes.transData.transform([(_seconds(point), point.mean) for point in cost.curve])
        between = pixels[:-1, None] + np.array(ALONG)[:, None] * np.diff(pixels, axis=0)[:, None]
        places += [pixels, between.reshape(-1, 2)]
    half, around = HALF * axes.figure.dpi / 72, np.concatenate(places)
    return np.hstack([around - half, around + half])
