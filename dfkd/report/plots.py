"""`results/plots/<data>-<protocol>.png` and `.svg`: accuracy against the total time of every method.

One panel a pair. A figure is drawn again only if what it shows, or this file, has changed: the digest of both
stands in the metadata of the figure. matplotlib is imported only then.
"""

import hashlib
import io
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dfkd.files import replace_file
from dfkd.identity import Cell
from dfkd.report.statistics import Cost, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette without its pale yellow, then three of Paul Tol's: safe for the colour-blind.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#882255", "#999933", "#332288"),
)
MARKERS = "osD^vPX"
FORMATS = ("png", "svg")
GRIDS = "samples"  # the folder of sample grids, beside the figures
TICKS = (
    *((second, f"{second:g} s") for second in (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30)),
    *((60 * minute, f"{minute} m") for minute in (1, 2, 5, 10, 20, 30)),
    *((3600 * hour, f"{hour} h") for hour in (1, 2, 5, 10)),
    *((86400 * day, f"{day} d") for day in (1, 2, 5, 10, 30)),
)
# Where a label may stand, in points from its point, with the horizontal alignment of its text.
OFFSETS = (
    *((side * dx, dy, "left" if side > 0 else "right")
      for dx in (8, 18, 30, 44) for dy in (0, 9, -9, 18, -18, 30, -30, 44, -44) for side in (1, -1)),
    *((0, dy, "center") for dy in (12, -12, 22, -22, 34, -34, 48, -48)),
)  # fmt: skip


def name_of(cell: Cell) -> str:
    """File name, without its ending, of the figure in which the cell stands."""
    return f"{cell.data}-{cell.protocol}"


def grid_of(cell: Cell) -> str:
    """Path below `results/plots` of the grid of the cell's synthetic images, which `bench.py run` puts there."""
    return f"{GRIDS}/{cell.data}/{cell.protocol}/{cell.teacher}-{cell.student}-{cell.method}.png"


def drawable(result: Result) -> bool:
    """Whether the result is a point: finished, and no reference row. Those are lines, and alone make no figure."""
    return not result.reference and result.last is not None


def draw(results: Iterable[Result], folder: str | Path) -> list[Path]:
    """Draw the figures that are missing or show other numbers than `results`; returns the files written."""
    written = []
    for name, shown in _figures(results).items():
        paths = [Path(folder) / f"{name}.{ending}" for ending in FORMATS]
        digest = _digest(shown)
        if not all(_is_current(path, digest) for path in paths):
            for path, content in zip(paths, _draw(shown, digest), strict=True):
                replace_file(path, content)
            written += paths
    return written


def outdated(results: Iterable[Result], folder: str | Path) -> list[Path]:
    """Figures that are missing or show other numbers than `results`; `draw` makes them anew."""
    return [
        path
        for name, shown in _figures(results).items()
        for path in (Path(folder) / f"{name}.{ending}" for ending in FORMATS)
        if not _is_current(path, _digest(shown))
    ]


def _figures(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Name of each figure → finished results of one table, with a method among them."""
    figures: dict[str, list[Result]] = {}
    for result in results:
        if result.last is not None:
            figures.setdefault(name_of(result.cell), []).append(result)
    return {name: shown for name, shown in figures.items() if any(map(drawable, shown))}


def _digest(shown: list[Result]) -> str:
    numbers = [
        [result.cell, result.metric.name, result.state, result.reference, result.last]
        + [[cost.hardware, cost.n, cost.scored, cost.once] for cost in result.costs]
        for result in shown
    ]
    content = json.dumps(numbers).encode() + Path(__file__).read_bytes()
    return f"dfkd-plot-{hashlib.sha256(content).hexdigest()[:32]}"


def _is_current(path: Path, digest: str) -> bool:
    return path.is_file() and digest.encode() in path.read_bytes()


def _draw(shown: list[Result], digest: str) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    pairs = [list(group) for _, group in itertools.groupby(shown, key=lambda result: result.cell[:4])]
    pairs = [pair for pair in pairs if any(map(drawable, pair))]
    points = [result for pair in pairs for result in pair if drawable(result)]
    methods = sorted({result.cell.method for result in points})
    colours = dict(zip(methods, itertools.cycle(COLOURS), strict=False))
    classes = sorted({cost.hardware for result in points for cost in result.costs})
    markers = dict(zip(classes, itertools.cycle(MARKERS), strict=False))
    style = {"svg.hashsalt": "dfkd", "svg.fonttype": "path", "font.size": 9, "font.family": "DejaVu Sans"}
    style |= {"text.parse_math": False}  # a dollar in the name of a machine is a dollar
    with matplotlib.rc_context(style):
        columns = min(3, len(pairs))
        rows = -(-len(pairs) // columns)
        figure = Figure(figsize=(1.2 + 5.4 * columns, 1.0 + 3.6 * rows), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)  # measures text, so that labels can be kept apart
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel in panels[len(pairs) :]:
            panel.remove()
        for panel, pair in zip(panels, pairs, strict=False):
            _panel(panel, pair, colours, markers)
        figure.suptitle(f"{shown[0].cell.data}, protocol {shown[0].cell.protocol}", fontweight="bold")
        grey = {"color": "0.35", "linestyle": ""}
        legend = [Line2D([], [], marker=markers[name], label=name, **grey) for name in classes]
        figure.legend(handles=legend, loc="outside lower center", ncols=4, frameon=False, title="hardware")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what is measured now stays where it is
        for panel, pair in zip(panels, pairs, strict=False):
            _label_points(panel, pair)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None, "Description": digest})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Description": digest})
    return png.getvalue(), svg.getvalue()


def _panel(axes: "Axes", pair: list[Result], colours: dict[str, str], markers: dict[str, str]) -> None:
    """Points, error bars, axes and the lines of the reference rows; points are named once the layout stands."""
    methods = [result for result in pair if drawable(result)]
    for result in methods:
        colour = colours[result.cell.method]
        face, edge = ("white", colour) if result.state == "stale" else (colour, "white")
        style = {"color": colour, "markerfacecolor": face, "markeredgecolor": edge, "markersize": 7.5}
        style |= {"capsize": 3, "zorder": 3}
        for cost in result.costs:
            axes.errorbar(cost.scored, result.last.mean, result.last.std, fmt=markers[cost.hardware], **style)
            if cost.once:
                line = {"color": colour, "linewidth": 1.2, "alpha": 0.6, "zorder": 2}
                axes.plot(_tail(cost), [result.last.mean] * 2, marker="|", markevery=[0], **line)
    axes.set_xscale("log")
    once = any(cost.once for result in methods for cost in result.costs)
    axes.set_xlabel("total time without evaluation (log scale)" + "; line: spent once per teacher" * once)
    _time_axis(axes, [second for result in methods for cost in result.costs for second in _tail(cost)])
    axes.set_ylabel(methods[0].metric.axis)
    axes.set_title(f"{methods[0].cell.teacher} → {methods[0].cell.student}", fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _references(axes, methods, [result for result in pair if result.reference])


def _tail(cost: Cost) -> tuple[float, float]:
    """From what a further student would take to what this one took, prior and shared stages included."""
    return max(cost.per_student, 1e-3), cost.scored


def _time_axis(axes: "Axes", seconds: list[float]) -> None:
    """Logarithmic, with ticks where a clock has them, and never narrower than a factor of four."""
    low, high = max(min(seconds), 1e-3), max(*seconds, 1e-3)
    widen = max(1.6, (high / low) ** 0.12, (4 * low / high) ** 0.5)
    axes.set_xlim(low / widen, high * widen)
    low, high = axes.get_xlim()
    ticks: dict[float, str] = {}
    for second, text in TICKS:
        apart = not ticks or math.log(second / max(ticks)) > 0.08 * math.log(high / low)  # room for the text
        if low <= second <= high and apart:
            ticks[second] = text
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)


def _references(axes: "Axes", methods: list[Result], references: list[Result]) -> None:
    """A dashed line and a name in the right margin for each reference row; one far below all methods is only named.

    Noise at 10 % would otherwise press the methods at 90 % into one line.
    """
    low = min(result.last.mean - (result.last.std or 0) for result in methods)
    high = max(result.last.mean + (result.last.std or 0) for result in methods)
    metric = methods[0].metric
    least = 0.04 * (metric.high - metric.low)
    reach = max(high - low, least)
    values = [each.last.mean for each in references if each.last.mean >= low - reach]
    low, high = min([low, *values]), max([high, *values])
    margin = 0.1 * max(high - low, least)
    low, high = low - margin, high + margin
    axes.set_ylim(low, high)
    references = sorted(references, key=lambda each: (each.last.mean, each.cell.method))
    places = _apart([max((each.last.mean - low) / (high - low), 0.0) for each in references])
    for each, place in zip(references, places, strict=True):
        value = each.last.mean
        if value >= low:
            axes.axhline(value, color="0.45", linestyle="--", linewidth=0.9, zorder=1)
        name = f"{each.cell.method} {value:.{metric.decimals}f}" + ("" if value >= low else " ↓")
        style = {"va": "center", "fontsize": 8, "color": "0.3", "style": "italic"}
        axes.text(1.015, place, name, transform=axes.transAxes, **style)


def _apart(places: list[float], line: float = 0.055) -> list[float]:
    """Rising places, as fractions of the panel, moved apart until a line of text fits between any two."""
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + line)
    top = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top)
        top = places[i] - line
    return places


def _label_points(axes: "Axes", pair: list[Result]) -> None:
    """Name every point near it, where the name touches no name, point, line or border if it can be so."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()
    methods = [result for result in pair if drawable(result)]
    points = [(cost, result.last.mean, result) for result in methods for cost in result.costs]
    points.sort(key=lambda point: (-point[1], point[0].scored, point[2].cell))
    scale = axes.figure.dpi / 72  # pixels of a point
    half = 5 * scale  # of a marker
    pixels = axes.transData.transform([(cost.scored, y) for cost, y, _ in points])
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in pixels]
    tails = [axes.transData.transform((_tail(cost)[0], y))[0] for cost, y, _ in points]
    taken += [Bbox.from_extents(left, y - 2, x, y + 2) for left, (x, y) in zip(tails, pixels, strict=True)]
    heights = [result.last.mean for result in pair if result.reference]
    lines = [axes.transData.transform((points[0][0].scored, height))[1] for height in heights]
    frame = axes.bbox

    def moved(box: Bbox, offset: tuple[float, float, str]) -> Bbox:
        """The box of a text that begins at its point, elsewhere: measured once, for that takes long."""
        dx, dy, align = offset
        return box.translated(scale * dx - {"left": 0, "center": 0.5, "right": 1}[align] * box.width, scale * dy)

    def badness(box: Bbox, offset: tuple[float, float, str]) -> float:
        beyond = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
        covered = sum(box.overlaps(other) for other in taken) + beyond
        crossed = sum(box.y0 < line < box.y1 for line in lines)
        return 1000 * covered + 3 * crossed + math.hypot(*offset[:2])

    for cost, y, result in points:
        point = (cost.scored, y)
        label = axes.annotate(
            result.cell.method + (" (stale)" if result.state == "stale" else ""),
            point, xytext=(0, 0), textcoords="offset points", va="center", fontsize=8.5, color="0.1",
            zorder=4, path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        box = label.get_window_extent(renderer)
        best = min(OFFSETS, key=lambda offset: badness(moved(box, offset), offset))
        label.set(position=best[:2], horizontalalignment=best[2])
        taken.append(moved(box, best))
        if math.hypot(*best[:2]) > 15:  # too far to be seen as belonging together
            leader = {"arrowstyle": "-", "linewidth": 0.6, "color": "0.5", "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", point, best[:2], textcoords="offset points", arrowprops=leader, zorder=2)
