"""What all figures share: one panel a pair, one colour a method, axes of time, reference rows as lines, labels that
cover nothing. matplotlib is imported only when something is drawn."""

from __future__ import annotations

import gc
import hashlib
import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from dfkd.report.statistics import Cost, Result

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

# Okabe and Ito's palette without its pale yellow, then Paul Tol's muted one: safe for the colour-blind. A method has
# its colour in all figures, and its recipes differ in dashes; one that is not named here gets one by its name.
COLOURS = {
    "ssdkd": "#0072B2",
    "fast": "#D55E00",
    "diffdfkd": "#009E73",
    "dda": "#CC79A7",
    "cmi": "#E69F00",
    "deepinv": "#56B4E9",
    "dfad": "#000000",
    "nayer": "#882255",
    "dafl": "#999933",
    "zskt": "#332288",
    "dfq": "#44AA99",
}
MARKERS = "osD^vPX"  # of classes of hardware
LONGEST = 60  # signs of a name in the legend
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (2, 2)))
STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a dollar in the name of a machine is a dollar
}
# In inches: a panel's axes, what stands around them (axis labels; names of reference rows on the right), the page.
WIDTH, HEIGHT = 4.1, 2.8
LEFT, RIGHT, BELOW, ABOVE = 0.65, 1.45, 0.55, 0.35
HEAD, FOOT = 0.4, 0.3
LINE, LETTER, HANDLE = 0.19, 0.068, 0.6  # of a legend: a row, a letter, what stands beside a name
BESIDE, UNDER = 0.42, 0.25  # from a panel's axes to their labels
TICKS = (
    *((second, f"{second:g} s") for second in (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30)),
    *((60 * minute, f"{minute} m") for minute in (1, 2, 5, 10, 20, 30)),
    *((3600 * hour, f"{hour} h") for hour in (1, 2, 5, 10)),
    *((86400 * day, f"{day} d") for day in (1, 2, 5, 10, 30)),
)
# Where a label may stand, in points from its point, and the share of its width that lies left of there.
OFFSETS = (
    *((side * dx, dy, 0.0 if side > 0 else 1.0)
      for dx in (8, 18, 30, 44) for dy in (0, 9, -9, 18, -18, 30, -30, 44, -44) for side in (1, -1)),
    *((0, dy, 0.5) for dy in (12, -12, 22, -22, 34, -34, 48, -48)),
)  # fmt: skip
PAD = 3  # pixels between two labels in a line
ALIGNED = {0.0: "left", 0.5: "center", 1.0: "right"}


class Label(NamedTuple):
    """A text that belongs to a point."""

    x: float
    y: float
    text: str
    colour: str  # darkened that of the text, and of the line that leads to it where it stands far off


Panel = Callable[["Axes", Sequence[Result]], None]


def colour_of(family: str) -> str:
    """The colour of a method, the same everywhere."""
    names = list(COLOURS.values())
    return COLOURS.get(family) or names[hashlib.sha256(family.encode()).digest()[0] % len(names)]


def dash_of(result: Result, among: Iterable[Result]) -> Any:
    """How the line of a recipe is dashed, so that it differs from those of other recipes of its method."""
    recipes = sorted({other.cell.method for other in among if other.family == result.family})
    return DASHES[recipes.index(result.cell.method) % len(DASHES)]


def name_of(result: Result) -> str:
    """As a figure names it."""
    return result.cell.method + (" (stale)" if result.state == "stale" else "")


def one_class(pair: Sequence[Result]) -> list[Result]:
    """The results of a pair, each with the costs of one class of hardware, so that it stands at one place.

    Of those on which a row has run that is the one with most rows of the pair, for times compare within a class only.
    The tables have all of them.
    """
    rows = Counter(cost.hardware for result in pair if not result.reference for cost in result.costs)

    def order(cost: Cost) -> tuple[bool, int, int, str]:
        return bool(cost.curve), rows[cost.hardware], cost.n, cost.hardware

    return [replace(result, costs=tuple(sorted(result.costs, key=order)[-1:])) for result in pair]


def markers_of(pairs: Sequence[Sequence[Result]]) -> dict[str, str]:
    """The marker of each class of hardware in a figure."""
    classes = {cost.hardware for pair in pairs for result in pair if not result.reference for cost in result.costs}
    return dict(zip(sorted(classes), itertools.cycle(MARKERS), strict=False))


def hardware_legend(markers: Mapping[str, str]) -> list[Any]:
    """What the markers stand for."""
    from matplotlib.lines import Line2D

    grey = {"color": "0.35", "linestyle": ""}
    return [Line2D([], [], marker=marker, label=name[:LONGEST], **grey) for name, marker in markers.items()]


def render(pairs: Sequence[Sequence[Result]], panel: Panel, legend: Sequence[Any], digest: str) -> bytes:
    """A figure of one panel a pair as PNG. `legend` holds artists with labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with drawing():
        columns = min(3, len(pairs))
        rows = -(-len(pairs) // columns)
        width = columns * (LEFT + WIDTH + RIGHT)
        beside, lines = _legend_shape([artist.get_label() for artist in legend], width)
        foot = FOOT + lines * LINE
        size = width, HEAD + foot + rows * (ABOVE + HEIGHT + BELOW)
        figure = Figure(figsize=size, dpi=110)
        FigureCanvasAgg(figure)  # measures text, so that labels can be kept apart
        for index, pair in enumerate(pairs):
            panel(_axes(figure, index, columns, pair[0]), pair)
        cell = pairs[0][0].cell
        figure.text(0.5, 1 - 0.5 * HEAD / size[1], f"{cell.data}, protocol {cell.protocol}", ha="center", va="center",
                    fontweight="bold", fontsize=11)  # fmt: skip
        if legend:
            figure.legend(handles=legend, loc="lower center", ncols=beside, frameon=False, borderaxespad=0.3)
        return saved(figure, digest)


def _legend_shape(names: Sequence[str], width: float) -> tuple[int, int]:
    """As many columns as fit on a page so wide, and the rows that this makes.

    matplotlib fills one column after the other, and the first ones have one name more where it does not come out even.
    """
    for columns in range(min(4, len(names)), 0, -1):
        least, more = divmod(len(names), columns)
        starts = [column * least + min(column, more) for column in range(columns + 1)]
        widest = [max(map(len, names[start:end])) for start, end in itertools.pairwise(starts)]
        if columns == 1 or sum(HANDLE + LETTER * letters for letters in widest) <= width:
            return columns, least + bool(more)
    return 1, 0


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib with our style, and without the collection of garbage, which takes a fifth of the time: a figure is
    made of thousands of small objects, and all of them live as long as it does."""
    import matplotlib

    collects = gc.isenabled()
    gc.disable()
    try:
        with matplotlib.rc_context(STYLE):
            yield
    finally:
        if collects:
            gc.enable()


def saved(figure: Figure, digest: str) -> bytes:
    """A figure as PNG, with the digest of what it shows inside."""
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None, "Description": digest})
    return png.getvalue()


def _axes(figure: Figure, index: int, columns: int, result: Result) -> Axes:
    """Fixed places: to let matplotlib measure all texts for a layout takes longer than to draw the figure."""
    width, height = figure.get_size_inches()
    row, column = divmod(index, columns)
    left = column * (LEFT + WIDTH + RIGHT) + LEFT
    bottom = height - HEAD - (row + 1) * (ABOVE + HEIGHT + BELOW) + BELOW
    axes = figure.add_axes((left / width, bottom / height, WIDTH / width, HEIGHT / height))
    # At fixed places, too: else all that stands around the panel is measured for them.
    axes.set_title(f"{result.cell.teacher} → {result.cell.student}", fontsize=10, y=1.0)
    axes.set_ylabel(result.metric.axis)
    axes.yaxis.set_label_coords(-BESIDE / WIDTH, 0.5)
    axes.xaxis.set_label_coords(0.5, -UNDER / HEIGHT)
    axes.locator_params(axis="y", nbins=6)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def time_axis(axes: Axes, seconds: Collection[float]) -> None:
    """Logarithmic, with ticks where a clock has them, and never narrower than a factor of four."""
    axes.set_xscale("log")
    low, high = max(min(seconds), 1e-3), max(*seconds, 1e-3)
    widen = max(1.6, (high / low) ** 0.12, (4 * low / high) ** 0.5)
    axes.set_xlim(low / widen, high * widen)
    low, high = axes.get_xlim()
    ticks: dict[float, str] = {}
    for second, text in TICKS:
        apart = not ticks or math.log(second / max(ticks)) > 0.1 * math.log(high / low)  # room for the text
        if low <= second <= high and apart:
            ticks[second] = text
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)


def score_axis(axes: Axes, low: float, high: float, references: Sequence[Result], pair: Sequence[Result]) -> None:
    """A range of scores, and a dashed line with a name in the right margin for each reference row; one far below all
    methods is only named: noise at 10 % would otherwise press the methods at 90 % into one line."""
    metric = pair[0].metric
    least = 0.04 * (metric.high - metric.low)
    reach = max(high - low, least)
    values = [each.last.mean for each in references if each.last.mean >= low - reach]
    low, high = min([low, *values]), max([high, *values])
    margin = 0.1 * max(high - low, least)
    low, high = low - margin, high + margin
    axes.set_ylim(low, high)
    references = sorted(references, key=lambda each: (each.last.mean, each.cell.method))
    places = apart([max((each.last.mean - low) / (high - low), 0.0) for each in references])
    for each, place in zip(references, places, strict=True):
        value = each.last.mean
        if value >= low:
            axes.axhline(value, color="0.45", linestyle="--", linewidth=0.9, zorder=1)
        name = f"{each.cell.method} {value:.{metric.decimals}f}" + ("" if value >= low else " ↓")
        style = {"va": "center", "fontsize": 8, "color": "0.3", "style": "italic"}
        axes.text(1.015, place, name, transform=axes.transAxes, **style)


def apart(places: list[float], line: float = 0.055) -> list[float]:
    """Rising places, as fractions of the panel, moved apart until a line of text fits between any two."""
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + line)
    top = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top)
        top = places[i] - line
    return places


def place_labels(axes: Axes, labels: Iterable[Label], taken: ArrayLike, heights: Iterable[float]) -> None:
    """Write every label near its point, where it touches no other, no point, no border and no line if it can be so.

    `taken` are boxes in pixels (left, bottom, right, top); `heights` the lines in data coordinates.
    """
    import numpy as np
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.5, foreground="white")]  # a line behind a label must not strike it through
    renderer, scale = axes.figure.canvas.get_renderer(), axes.figure.dpi / 72  # pixels of a point
    labels = sorted(labels, key=lambda label: (-label.y, label.x, label.text))
    pixels = axes.transData.transform([label[:2] for label in labels])
    lines = axes.transData.transform([(labels[0].x, height) for height in heights] or np.empty((0, 2)))[:, 1]
    boxes, offsets = np.asarray(taken, float).reshape(-1, 4), np.array(OFFSETS)
    leaders: list[tuple[np.ndarray, str]] = []
    for label, point in zip(labels, pixels, strict=True):
        text = axes.text(*label[:3], va="center", fontsize=8.5, color=_ink(label.colour), zorder=4, path_effects=halo)
        moved = _moved(text.get_window_extent(renderer).extents, offsets, scale)
        best = int(np.argmin(_badness(moved, boxes, lines, axes.bbox.extents) + np.hypot(*offsets[:, :2].T)))
        dx, dy, share = OFFSETS[best]
        to = point + scale * np.array([dx, dy])
        text.set(position=axes.transData.inverted().transform(to), horizontalalignment=ALIGNED[share])
        boxes = np.vstack([boxes, moved[best] + (-PAD, 0, PAD, 0)])
        if math.hypot(dx, dy) > 15:  # too far to be seen as belonging together
            near = point + (to - point) * 4 / math.hypot(dx, dy)
            leaders.append((axes.transData.inverted().transform([near, to]), label.colour))
    ends, colours = [ends for ends, _ in leaders], [colour for _, colour in leaders]
    axes.add_collection(LineCollection(ends, linewidths=0.8, colors=colours, zorder=2), autolim=False)


def _ink(colour: str) -> tuple[float, ...]:
    """A colour dark enough for letters on white."""
    from matplotlib.colors import to_rgb

    return tuple(0.65 * part for part in to_rgb(colour))


def _moved(box: np.ndarray, offsets: np.ndarray, scale: float) -> np.ndarray:
    """The box of a text that begins at its point, at each offset: measured once, for that takes long."""
    import numpy as np

    x = scale * offsets[:, 0] - offsets[:, 2] * (box[2] - box[0])
    y = scale * offsets[:, 1]
    return box + np.stack([x, y, x, y], axis=1)


def _badness(moved: np.ndarray, boxes: np.ndarray, lines: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """A thousand for each box or border that a place covers, three for each line that crosses it."""
    left, bottom, right, top = moved.T[:, :, None]
    covered = (left < boxes[:, 2]) & (right > boxes[:, 0]) & (bottom < boxes[:, 3]) & (top > boxes[:, 1])
    beyond = (moved[:, :2] < frame[:2]).any(1) | (moved[:, 2:] > frame[2:]).any(1)
    crossed = ((bottom < lines) & (lines < top)).sum(1)
    return 1000.0 * (covered.sum(1) + beyond) + 3 * crossed
