"""The text of `LEADERBOARD.md` and `tables/<data>.md`: a function of results, published numbers and tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dfkd.identity import Cell
from dfkd.report import columns, plots, published
from dfkd.report.columns import COSTS, IMAGES, RESULTS, Row
from dfkd.report.markdown import plain
from dfkd.report.statistics import Result
from dfkd.tables.definition import MEANINGS, tables

HEAD = """\
# Leaderboard

Generated from `results/records` by `python bench.py leaderboard`; do not edit. `all.csv` beside it has one line for
each record.

- **`last` ranks**: the student after its last step. Without data there is nothing to choose a better one by.
- **`oracle`** is the best test score seen on the way, which is what papers print. It ranks nothing.
- **Compare within one table only** (one data set, one protocol), and times only within one class of hardware.
- *Italic rows marked `ref`* are reference rows, not competitors: teacher, student and KD on real data, KD on noise.
"""
TABLE_HEAD = """\
# {data}

Generated from `results/records` by `python bench.py leaderboard`; do not edit.
How to read it: [columns](../LEADERBOARD.md#columns).

"""
EMPTY = "No records yet: `make reproduce` makes the quick table.\n"
COLUMNS = "## Columns\n\nWhat is the same in all rows is said above the table, and has no column there.\n\n"
COLUMNS_OF_IMAGES = """
## Synthetic images

Measured after the run by the evaluator, who has the real test images and charges nobody; nothing ranks by it. All is
in the teacher's eyes: its decisions, and its pooled penultimate features (a segmentation network's: its encoder's).
With several seeds: means.

"""
COMPARABLE = (
    "No published numbers beside runs on a subset, or on data changed in a way that may touch the test images: the "
    "scores would not be comparable."
)
HARDWARE = "Several classes of hardware: compare times and memory only between rows of one class."
STALE = "Stale: the method or its configuration has changed since the run; run it again."


def render(results: Iterable[Result], quotable: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Path below `results/` → text, for the leaderboard and the table of each data set."""
    sheets, files, sections, shown = _sheets(results), {}, [], []
    abouts = {data: f"{table.about}\n\n" for table in tables().values() for data in table.data}
    for data, group in itertools.groupby(sheets, key=lambda key: key[0]):
        keys, about = list(group), abouts.get(data, "")
        body = "\n".join(_sheet(sheets[key], quotable, "../plots")[0] for key in keys)
        files[f"tables/{data}.md"] = TABLE_HEAD.format(data=data) + about + body
        written = [_sheet(sheets[key], quotable, "plots") for key in keys]
        sections.append(f"## {data}\n\n{about}" + "\n".join(text for text, _ in written))
        shown += [row for _, rows in written for row in rows]
    pairs = [columns.ordered(pair) for key in sheets for pair in sheets[key]]
    overview = columns.table(columns.OVERVIEW, pairs) if pairs else EMPTY
    files["LEADERBOARD.md"] = "\n".join([HEAD, overview, *sections, _legend(shown)])
    return files


def _sheets(results: Iterable[Result]) -> dict[tuple[str, str], list[list[Result]]]:
    """The pairs of each data set under each protocol, in the order of the tables.

    A method that declines has a row where the same pair has other results.
    """
    owners = {data: table for table in tables().values() for data in table.data}

    def place(cell: Cell) -> tuple:
        protocols = owners[cell.data].protocols if cell.data in owners else {}
        pairs = protocols[cell.protocol].pairs if cell.protocol in protocols else ()
        known = (owners, cell.data), (protocols, cell.protocol), (pairs, cell.pair)
        return *((_index(names, name), name) for names, name in known), cell

    sheets: dict[tuple[str, str], list[list[Result]]] = {}
    everything = sorted(results, key=lambda result: place(result.cell))
    for (data, protocol, *_), group in itertools.groupby(everything, key=lambda result: result.cell[:4]):
        pair = list(group)
        if any(result.state != "unsupported" for result in pair):
            sheets.setdefault((data, protocol), []).append(pair)
    return sheets


def _index(names: Iterable[str], name: str) -> int:
    """The place of a name, for a list that lacks it the end."""
    return [*names, name].index(name)


def _sheet(pairs: Sequence[Sequence[Result]], quotable: Sequence, folder: str) -> tuple[str, list[Row]]:
    """Heading, pairs, plot and notes of one data set under one protocol; and the rows. `folder` is that of plots."""
    results = [result for pair in pairs for result in pair]
    quoted, protocol = published.quote(results, quotable), results[0].cell.protocol
    rows = [columns.rows_of(pair, quoted, folder) for pair in pairs]
    meaning = f" {MEANINGS[protocol]}." if protocol in MEANINGS else ""
    parts = [f"### {protocol}\n\n{results[0].metric.sentence}.{meaning}\n", *map(_pair, rows)]
    if any(map(plots.drawable, results)):
        parts.append(f"![accuracy against total time]({folder}/{plots.name_of(results[0].cell)}.png)\n")
    if plots.has_histograms(results):
        name = plots.histograms.ENDING
        parts.append(f"![classes and confidence of the images]({folder}/{plots.name_of(results[0].cell)}{name}.png)\n")
    notes = _notes(results) + published.notes(quoted)
    parts += [_list(notes)] if notes else []
    return "\n".join(parts), [row for pair in rows for row in pair]


def _pair(rows: Sequence[Row]) -> str:
    """What one pair came to, what that cost, what the synthetic images are like."""
    costs, images = _of_costs(rows), _of_images(rows)
    said = " · ".join([*columns.common(RESULTS, rows), *columns.common(COSTS, costs)])
    parts = [f"#### {columns.names(rows[0].result)}\n", *([f"{said}\n"] if said else []), columns.table(RESULTS, rows)]
    parts += ["**Costs**\n", columns.table(COSTS, costs)]
    parts += ["**Synthetic images**\n", columns.table(IMAGES, images)] if images else []
    notes = [f"`{row.result.cell.method}` does not apply: {plain(row.result.error)}" for row in rows if row.result.error
             and row.result.state == "unsupported"]  # fmt: skip
    for result in (row.result for row in rows if row.result.report):
        numbers = ", ".join(f"{plain(name)} {columns.figure(value)}" for name, value in result.report.items())
        notes.append(f"`{result.cell.method}` reports {numbers}")
    return "\n".join([*parts, _list(notes)] if notes else parts)


def _notes(results: Sequence[Result]) -> list[str]:
    notes = [f"Data: {plain(text)}" for text in sorted({text for result in results for text in result.changed})]
    notes += sorted({note for result in results for note in result.prior_notes if result.state != "unsupported"})
    said = {(result.cell.method, result.note) for result in results if result.note}
    notes += [f"`{method}`: {plain(note)}" for method, note in sorted(said)]
    if results[0].cell.protocol == published.PAPER and not all(result.comparable for result in results):
        notes.append(COMPARABLE)
    notes += [HARDWARE] if len({cost.hardware for result in results for cost in result.costs}) > 1 else []
    return notes + ([STALE] if any("stale" in result.status for result in results) else [])


def _legend(rows: Sequence[Row]) -> str:
    """What the columns mean, as far as there are such."""
    images = _of_images(rows)
    text = COLUMNS + columns.legend((RESULTS, rows), (COSTS, _of_costs(rows)))
    return text + (COLUMNS_OF_IMAGES + columns.legend((IMAGES, images)) if images else "")


def _of_costs(rows: Iterable[Row]) -> list[Row]:
    return [replace(row, cost=cost) for row in rows for cost in row.result.costs]


def _of_images(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if "diagnostics.images" in row.result.means and not row.result.reference]


def _list(notes: Iterable[str]) -> str:
    return "".join(f"- {note}\n" for note in notes)
