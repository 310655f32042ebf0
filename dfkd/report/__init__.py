"""What is published of the records: leaderboard, tables, plots, `all.csv`. Torch-free."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dfkd import paths, records
from dfkd.errors import UserError
from dfkd.files import copy_file, replace_file, unchanged
from dfkd.identity import Run
from dfkd.locks import alone
from dfkd.report import cells, claims, leaderboard, ledger, papers, plots
from dfkd.report.columns import Row
from dfkd.report.current import ablations, current_digests, done
from dfkd.report.papers import Place
from dfkd.report.published import read_published
from dfkd.report.statistics import HISTOGRAMS, Result, gather, tidy
from dfkd.tables.costs import on_reference
from dfkd.tables.definition import table_of

if TYPE_CHECKING:
    import pandas

PATIENCE = 600  # seconds that a process waits for others to write the tables
RENDER = "python bench.py leaderboard"


class Rendered(NamedTuple):
    """What the records give: path below `results` → text, results, one row for each record, which are broken, the
    tables' rows pair by pair, and the places of the papers' tables."""

    files: dict[str, str]
    results: list[Result]
    runs: pandas.DataFrame
    found: records.Found
    pairs: Sequence[Sequence[Row]]
    places: list[Place]


def write(data: str | None = None) -> tuple[list[Path], list[UserError]]:
    """Bring tables, plots and `all.csv` up to date, or the table of `data` alone: what was written, broken records.

    One process after the other, each with the records that there are when its turn comes.
    """
    with alone(paths.RESULTS / ".lock", "the leaderboard", time.monotonic() + PATIENCE):
        files, results, changed, problems = _wanted(data)
        for name in changed:
            if name in files:
                replace_file(paths.RESULTS / name, files[name])
            else:
                (paths.RESULTS / name).unlink()  # the table of a data set that has no record any more
        return [paths.RESULTS / name for name in changed] + plots.draw(results, paths.plots()), problems


def _wanted(data: str | None) -> tuple[dict[str, str], list[Result], list[str], list[UserError]]:
    """The files and the results to plot, of all data or one table alone; which files differ; broken records."""
    files, results, _, found, *_ = render()
    if data is None:
        return files, results, _differing(files), found.problems
    files = {name: text for name, text in files.items() if name == f"tables/{data}.md"}
    return files, [], [name for name in _differing(files) if name in files], found.problems


def told(data: str | None, protocol: str | None, kind: str | None, checking: bool) -> tuple[list[str], list[UserError]]:
    """What `export` gives where a kind is named, else `check` or `write` in words: a line for each file.

    Raises UserError for data that no table has, and a protocol without a kind.
    """
    if data is not None:
        table_of(data)
    if protocol is not None and kind is None:
        raise UserError("--protocol goes with --format")
    if kind is not None:
        text, problems = export(kind, data, protocol)
        return [text.removesuffix("\n")], problems
    if checking:
        differing, problems = check(data)
        return [f"results/{name} is not what the records give; run: {RENDER}" for name in differing], problems
    written, problems = write(data)
    return [f"wrote {path.relative_to(paths.RESULTS.parent)}" for path in written], problems


def check(data: str | None = None) -> tuple[list[str], list[UserError]]:
    """The files below `results` that are not what the records give, as `write` has them; and broken records."""
    _, results, differing, problems = _wanted(data)
    outdated = plots.outdated(results, paths.plots())
    return differing + [path.relative_to(paths.RESULTS).as_posix() for path in outdated], problems


def export(kind: str, data: str | None, protocol: str | None) -> tuple[str, list[UserError]]:
    """The tables of a data set, of a protocol or of all, as text: `csv` or `latex`; and which records are broken.

    Raises UserError where there is no such table.
    """
    rendered = render()
    pairs = cells.chosen(rendered.pairs, data, protocol)
    shown = cells.chosen_places(rendered.places, data, protocol)
    if not pairs and not shown:
        raise UserError(
            f"no record stands in a table{f' of {data}' * bool(data)}{f' under {protocol}' * bool(protocol)}"
        )
    text = cells.csv(pairs, rendered.places, shown) if kind == "csv" else cells.latex(pairs, shown)
    return text, rendered.found.problems


def after_run(record: Mapping, tables: bool = True) -> None:
    """Put the grid of samples beside the plots and renew the tables. What is wrong with others' records is told only:
    this run has its own."""
    grid = paths.WORK / record["work"] / "samples.png"
    if grid.is_file() and not record["reference"]:
        copy_file(grid, paths.plots() / plots.grid_of(Run.of(record).cell))
    try:
        problems = write()[1] if tables else []
    except UserError as error:
        problems = [error]
    for problem in problems:
        print(f"this run's record is written, but for the tables mend: {problem}; then: {RENDER}", file=sys.stderr)


@unchanged()
def render() -> Rendered:
    """Everything but the plots, of the records that there are now."""
    found, quotable = records.read_all(paths.records()), read_published(paths.published())
    digests = current_digests(found.records)
    runs = tidy(found.records, digests)
    results = gather(runs, ablations(found.records))
    places = papers.places(results, quotable, done(found.records, digests), on_reference)
    sheets = leaderboard.sheets_of(results)
    pairs = [rows for of in sheets.values() for rows in of]
    flat = [place for by_pair in places.values() for of in by_pair.values() for place in of]
    files = leaderboard.render(sheets, places, leaderboard.without_records(sheets))
    files["CLAIMS.md"] = ledger.render(claims.judged(results))
    files["all.csv"] = runs.drop(columns=["curve", *HISTOGRAMS]).to_csv(index=False, lineterminator="\n")
    files["cells.csv"] = cells.csv(pairs, flat, flat)
    return Rendered(files, results, runs, found, pairs, flat)


def _differing(files: Mapping[str, str]) -> list[str]:
    """Files whose text on disk is another one, and tables that no record stands behind."""

    def differs(name: str) -> bool:
        path = paths.RESULTS / name
        return not path.is_file() or path.read_bytes() != files[name].encode()

    tables = (path for path in paths.RESULTS.glob("tables/*.md") if path.is_file())
    present = (path.relative_to(paths.RESULTS).as_posix() for path in tables)
    return sorted([*filter(differs, files), *(name for name in present if name not in files)])
