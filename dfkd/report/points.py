"""A panel of accuracy against total time: a point for each method, and the frontier of those that waste nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dfkd.report.figure import Label, colour_of, hardware_legend, name_of, place_labels, score_axis, time_axis
from dfkd.report.ranking import frontier
from dfkd.report.statistics import Cost, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HALF = 4  # of a marker, in points
FRONTIER = {"color": "0.6", "linewidth": 1.4, "alpha": 0.7}


def drawable(result: Result) -> bool:
    """Whether the result is a point: finished, and no reference row. Those are lines, and alone make no figure."""
    return not result.reference and result.last is not None


def legend(pairs: Iterable[Sequence[Result]], markers: Mapping[str, str]) -> list[Any]:
    """What markers, error bars and the frontier stand for."""
    from matplotlib.lines import Line2D

    several = any(result.last.std is not None for pair in pairs for result in pair if drawable(result))
    bar = {"color": "0.35", "linestyle": "", "marker": "|", "markersize": 9, "markeredgewidth": 1.5}
    spread = [Line2D([], [], label="± one standard deviation over seeds (no bar: one seed)", **bar)]
    what = "Pareto frontier" + " on the hardware of most points" * (len(markers) > 1)
    return [*hardware_legend(markers), *spread * several, Line2D([], [], label=what, **FRONTIER)]


def panel(axes: Axes, pair: Sequence[Result], markers: Mapping[str, str]) -> None:
    """Points with error bars, the frontier, axes and reference rows of one pair.

    The frontier is that of the class of hardware with most points: that of a few others would run on below points that
    beat it, for a row stands at one place though it may have run on several.
    """
    methods = [result for result in pair if drawable(result)]
    points = [(cost, result) for result in methods for cost in result.costs]
    for hardware, marker in markers.items():
        _points(axes, [(cost, result) for cost, result in points if cost.hardware == hardware], marker)
    axes.set_ylabel(f"{pair[0].metric.axis} after the last step")
    once = any(cost.once for cost, _ in points)
    axes.set_xlabel("total time without evaluation (log scale)" + "; line: spent once per teacher" * once)
    time_axis(axes, [second for cost, _ in points for second in _tail(cost)])
    low = min(result.last.mean - (result.last.std or 0) for result in methods)
    high = max(result.last.mean + (result.last.std or 0) for result in methods)
    references = [result for result in pair if result.reference]
    score_axis(axes, low, high, references, pair)
    for hardware, _ in Counter(cost.hardware for cost, _ in points).most_common(1):
        _frontier(axes, pair, hardware)
    labels = [
        Label(cost.scored, result.last.mean, name_of(result), colour_of(result.family)) for cost, result in points
    ]
    place_labels(axes, labels, _taken(axes, points), [result.last.mean for result in references])


def _points(axes: Axes, points: Sequence[tuple[Cost, Result]], marker: str) -> None:
    """Those of one class of hardware, hollow where stale, each with its error bar and the line of what is paid once;
    few artists, because each of them takes its time."""
    from matplotlib.collections import LineCollection

    colours = [colour_of(result.family) for _, result in points]
    faces = [
        "white" if result.state == "stale" else colour for (_, result), colour in zip(points, colours, strict=True)
    ]
    places = [(cost.scored, result.last.mean) for cost, result in points]
    if places:
        axes.scatter(*zip(*places, strict=True), marker=marker, s=50, c=faces, edgecolors=colours, zorder=3)
    spreads = [result.last.std or 0 for _, result in points]
    bars = [[(x, y - std), (x, y + std)] for (x, y), std in zip(places, spreads, strict=True)]
    axes.add_collection(LineCollection(bars, colors=colours, linewidths=1.5, zorder=2.5), autolim=False)
    tails = [[(_tail(cost)[0], y), (x, y)] for (cost, _), (x, y) in zip(points, places, strict=True) if cost.once]
    shades = [colour for (cost, _), colour in zip(points, colours, strict=True) if cost.once]
    axes.add_collection(LineCollection(tails, colors=shades, linewidths=1.2, alpha=0.6, zorder=2), autolim=False)
    if tails:
        starts = [tail[0] for tail in tails]
        axes.scatter(*zip(*starts, strict=True), marker="|", s=40, c=shades, alpha=0.6, zorder=2)


def _frontier(axes: Axes, pair: Sequence[Result], hardware: str) -> None:
    """Steps from each point that nothing beats to the next better one, and on to the border."""
    on = {cell for cell, where in frontier(pair) if where == hardware}
    costs = [(cost.scored, result.last.mean) for result in pair if result.cell in on for cost in result.costs
             if cost.hardware == hardware]  # fmt: skip
    if costs:
        seconds, scores = map(list, zip(*sorted(costs), strict=True))
        axes.step([*seconds, axes.get_xlim()[1]], [*scores, scores[-1]], where="post", zorder=1.5, **FRONTIER)


def _tail(cost: Cost) -> tuple[float, float]:
    """From what a further student would take to what this one took, prior and shared stages included."""
    return max(cost.per_student, 1e-3), cost.scored


def _taken(axes: Axes, points: Sequence[tuple[Cost, Result]]) -> list[tuple[float, ...]]:
    """The boxes of markers and of the lines that lead to them, in pixels."""
    half = HALF * axes.figure.dpi / 72
    boxes: list[tuple[float, ...]] = []
    for cost, result in points:
        (left, _), (x, y) = axes.transData.transform([(second, result.last.mean) for second in _tail(cost)])
        boxes += [(x - half, y - half, x + half, y + half), (left, y - 2, x, y + 2)]
    return boxes
