"""`results/plots/<data>-<protocol>[-curves|-images].png`: accuracy against total time, and over it; what the synthetic
images are like.

A figure is drawn again only if what it shows, or the code that draws it, has changed: the digest of both stands in the
metadata of the figure.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

from dfkd import paths
from dfkd.files import replace_file
from dfkd.identity import Cell
from dfkd.report import figure, histograms, lines, points
from dfkd.report.statistics import Result

GRIDS = "samples"  # the folder of sample grids, beside the figures
CURVES, IMAGES = "-curves", "-images"
TEXTS = {
    "": "accuracy against total time",
    CURVES: "accuracy over time",
    IMAGES: "classes and confidence of the images",
}
FEW = 6  # figures that are drawn sooner than another process has started
Pairs = Sequence[Sequence[Result]]


def name_of(cell: Cell) -> str:
    """File name, without its ending, of the figure in which the cell is a point; with `CURVES`, one in which it is a
    curve; with `IMAGES`, one of its images."""
    return f"{cell.data}-{cell.protocol}"


def grid_of(cell: Cell) -> str:
    """Path below `results/plots` of the grid of the cell's synthetic images, which `bench.py run` puts there."""
    return f"{GRIDS}/{cell.data}/{cell.protocol}/{cell.teacher}-{cell.student}-{cell.method}.png"


def of(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The figures of one table: names without their ending, and what they show in words."""
    return [(name, TEXTS[_kind(name)]) for name in _figures(results)]


def draw(results: Iterable[Result], folder: str | Path) -> list[Path]:
    """Draw the figures that are missing or show other numbers than `results`; returns the files written."""
    wanted = [(name, pairs, _digest(name, pairs)) for name, pairs in _figures(results).items()]
    lacking = [each for each in wanted if not _is_current(_path(each[0], folder), each[2])]
    written = [_path(name, folder) for name, *_ in lacking]
    for path, content in zip(written, _drawn(lacking), strict=True):
        replace_file(path, content)
    return written


def _drawn(figures: Sequence[tuple[str, Pairs, str]]) -> Iterator[bytes]:
    """Each figure as PNG; many are drawn by several processes."""
    workers = min(os.cpu_count() or 1, len(figures) // FEW)
    if workers < 2:
        yield from itertools.starmap(_draw, figures)
        return
    # A fork server imports once for all of them; it looks for modules in the working folder first.
    served = "forkserver" in get_all_start_methods() and Path.cwd() == paths.ROOT
    context = get_context("forkserver" if served else "spawn")
    if served:
        context.set_forkserver_preload([__name__, "matplotlib.backends.backend_agg"])
    with ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(_draw, *zip(*figures, strict=True))


def outdated(results: Iterable[Result], folder: str | Path) -> list[Path]:
    """Figures that are missing or show other numbers than `results`; `draw` makes them anew."""
    found = [(_path(name, folder), _digest(name, pairs)) for name, pairs in _figures(results).items()]
    return [path for path, digest in found if not _is_current(path, digest)]


def _path(name: str, folder: str | Path) -> Path:
    return Path(folder) / f"{name}.png"


def _figures(results: Iterable[Result]) -> dict[str, Pairs]:
    """Name of each figure → finished results of one table, pair by pair, with something to draw in each.

    Ablations and controls are in the tables alone: beside the method of which they are variants they would hide it.
    """
    tables: dict[str, list[Result]] = {}
    for result in results:
        if result.last is not None and result.ablates is None:
            tables.setdefault(name_of(result.cell), []).append(result)
    figures: dict[str, Pairs] = {}
    for name, shown in tables.items():
        groups = itertools.groupby(shown, key=lambda result: result.cell[:4])
        pairs = [figure.one_class(list(group)) for _, group in groups]
        for ending, drawable in (("", points.drawable), (CURVES, lines.drawable), (IMAGES, histograms.drawable)):
            able = [pair for pair in pairs if any(map(drawable, pair))]
            if able:
                figures[name + ending] = able
    return figures


def _draw(name: str, pairs: Pairs, digest: str) -> bytes:
    if _kind(name) == IMAGES:
        return histograms.render(pairs, digest)
    markers = figure.markers_of(pairs)
    if _kind(name) == CURVES:
        panel, legend = lines.panel, lines.legend(pairs, markers)
    else:
        panel, legend = points.panel, points.legend(pairs, markers)
    return figure.render(pairs, functools.partial(panel, markers=markers), legend, digest)


def _kind(name: str) -> str:
    return next((ending for ending in (CURVES, IMAGES) if name.endswith(ending)), "")


def _digest(name: str, pairs: Pairs) -> str:
    numbers = _histograms if _kind(name) == IMAGES else _numbers
    content = json.dumps([numbers(result) for pair in pairs for result in pair]) + name
    return f"dfkd-plot-{hashlib.sha256(content.encode() + _code()).hexdigest()[:32]}"


def _numbers(result: Result) -> list[Any]:
    costs = [[cost.hardware, cost.n, cost.scored, cost.once, cost.curve] for cost in result.costs]
    return [*_row(result), result.last, costs]


def _histograms(result: Result) -> list[Any]:
    return [*_row(result), result.means.get("diagnostics.images"), dict(result.histograms)]


def _row(result: Result) -> list[Any]:
    return [result.cell, result.metric.name, result.state, result.reference, result.family]


@functools.cache
def _code() -> bytes:
    """The text of the modules that draw."""
    return b"".join(Path(module.__file__).read_bytes() for module in (figure, histograms, lines, points))


def _is_current(path: Path, digest: str) -> bool:
    return path.is_file() and digest.encode() in path.read_bytes()
