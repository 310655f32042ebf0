"""`results/site/index.html`: the records as one HTML file, which needs no network and no file beside it. Torch-free.

The tables are those of the generated Markdown. Records travel whole, compressed; charts and cards are drawn from them
in the browser. What comes from records is escaped by the Markdown renderer and the template, or set as text by the
scripts; the page's own policy forbids any other script, and any request.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.resources
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from dfkd import paths, records, report
from dfkd.errors import UserError
from dfkd.files import replace_file
from dfkd.identity import Run
from dfkd.metrics import METRICS
from dfkd.report import figure, plots
from dfkd.report.site.grids import grids
from dfkd.report.site.markup import Part, document
from dfkd.report.statistics import Result

SCRIPTS = ("dom.js", "chart.js", "card.js", "page.js")  # one module, in this order
LIBRARY = ("itables", "html/dt_bundle")  # DataTables and jQuery with their styles


def write() -> tuple[Path, list[UserError]]:
    """Write the page; returns its path and which records are broken."""
    rendered = report.render()
    replace_file(paths.site(), _page(rendered))
    return paths.site(), rendered.found.problems


def _page(rendered: report.Rendered) -> str:
    shown = [record for record in rendered.found.records if not record["custom"]]
    galleries = _galleries(rendered.results)
    anchors = {picture["anchor"] for pictures in galleries.values() for picture in pictures}
    places = {Run.of(record).cell.name for record in shown} | anchors
    sheets = {Path(name).stem: text for name, text in rendered.files.items() if name.startswith("tables/")}
    board = document(rendered.files["LEADERBOARD.md"], "Overview", places, anchored=False)
    script = "\n".join(_asset(name) for name in SCRIPTS)
    environment = Environment(
        loader=PackageLoader("dfkd.report", "site"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        board=board,
        overview=list(itertools.takewhile(lambda part: part.title not in sheets, board.parts)),
        guide=_after(board.parts, sheets),
        sheets=[document(text, data, places) for data, text in sheets.items()],
        claims=document(rendered.files["CLAIMS.md"], "Claims", places),
        grids=galleries,
        counts={
            "runs": len(shown),
            "methods": len({result.cell.method for result in rendered.results if not result.reference}),
            "tables": len({(result.cell.data, result.cell.protocol) for result in rendered.results}),
        },
        newest=max((record["provenance"]["date"][:10] for record in shown), default=None),
        problems=[str(problem) for problem in rendered.found.problems],
        style=_bundle("css") + _asset("page.css"),
        script=script,
        digest=base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode(),
        library=_packed(_bundle("js")),
        data=_packed(json.dumps(_data(shown, rendered), separators=(",", ":"), allow_nan=False)),
    )


def _data(shown: Iterable[Mapping], rendered: report.Rendered) -> dict[str, Any]:
    """What the scripts draw charts and cards from."""
    fields = [*Run._fields, "stale"]
    stale = {Run(*run): flag for *run, flag in rendered.runs[fields].itertuples(index=False)}
    return {
        "runs": [
            {
                "name": (run := Run.of(record)).name,
                "cell": run.cell.name,
                "state": "stale" if record["status"] == "ok" and stale[run] else record["status"],
                "command": f"python bench.py run {run.command} --again",
                "record": record,
            }
            for record in shown
        ],
        "results": [
            {
                "cell": result.cell.name,
                "method": result.cell.method,
                "place": f"{result.cell.data}/{result.cell.protocol}/{result.cell.pair}",
                "metric": result.metric.name,
                "state": result.state,
                "reference": result.reference,
                "last": result.last,
                "costs": [[cost.hardware, cost.n, cost.scored, cost.once] for cost in result.costs],
            }
            for result in rendered.results
        ],
        "metrics": {
            name: {"axis": metric.axis, "decimals": metric.decimals, "unit": metric.unit}
            for name, metric in METRICS.items()
        },
        "categories": records.CATEGORIES,
        "free": records.FREE_CATEGORIES,
        "ticks": figure.TICKS,
        "looks": _looks(rendered.results),
    }


def _looks(results: Iterable[Result]) -> dict[str, list]:
    """Colour and dashes of every recipe, those that it has in the figures."""
    shown = [result for result in results if not result.reference]
    return {r.cell.method: [figure.colour_of(r.family), _dashes(figure.dash_of(r, shown))] for r in shown}


def _dashes(style: str | tuple[int, tuple[float, ...]]) -> str:
    """matplotlib's line style as SVG's dash array, for a line of one and a half pixels."""
    return "" if isinstance(style, str) else " ".join(f"{1.5 * length:g}" for length in style[1])


def _galleries(results: Iterable[Result]) -> dict[tuple[str, str, str], list[dict[str, str]]]:
    """By place of a pair: the grids of samples of its methods."""
    found: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    results = sorted(results, key=lambda result: result.state != "ok")  # not all fit if there are many
    for cell, image in grids(result.cell for result in results if not result.reference).items():
        anchor = plots.grid_of(cell).removesuffix(".png")
        picture = {"method": cell.method, "anchor": anchor, "image": image}
        found.setdefault((cell.data, cell.protocol, cell.pair), []).append(picture)
    return found


def _after(parts: Iterable[Part], sheets: Mapping[str, str]) -> list[Part]:
    """What follows the tables."""
    rest = list(itertools.dropwhile(lambda part: part.title not in sheets, parts))
    return [part for part in rest if part.title not in sheets]


def _packed(text: str) -> str:
    """Compressed and in letters that mean nothing to HTML; the same for the same text."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _asset(name: str) -> str:
    return importlib.resources.files("dfkd.report.site").joinpath(name).read_text(encoding="utf-8")


def _bundle(ending: str) -> str:
    package, name = LIBRARY
    return importlib.resources.files(package).joinpath(f"{name}.{ending}").read_text(encoding="utf-8")
