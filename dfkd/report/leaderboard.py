"""The text of `LEADERBOARD.md` and `tables/<data>.md`: a function of results, published numbers and tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dfkd.identity import Cell
from dfkd.report import columns, papers, plots
from dfkd.report.columns import ACROSS, COSTS, IMAGES, OVERVIEW, RESULTS, Row
from dfkd.report.markdown import plain
from dfkd.report.papers import Place
from dfkd.report.ranking import SEEDS
from dfkd.report.statistics import Result
from dfkd.tables.costs import reference
from dfkd.tables.definition import MEANINGS, owners

HEAD = """\
# Leaderboard

Generated from `results/records` by `python bench.py leaderboard`; do not edit. `all.csv` beside it has one line for
each record, `cells.csv` one for each row, with 95 % intervals.
"""
RULES = """\
- **`last` ranks**: the score after the last step, since without data no better step can be chosen.
- **A new rank begins** only where a t-test over seeds tells everything above from everything below (paired over common
  seeds, else Welch's; 95 %). Of two methods that share one the test may tell the two apart, and not those between them.
  With fewer than three seeds there is an order and no rank. Ablations and controls stand below their method, unranked.
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
PUBLISHED = """\
## Published numbers

Every pair and method of the papers' tables, measured here or open; `matches` is within half a point or two standard
deviations. `predicted` is the time of all open runs by counted operations, most of them Stable Diffusion's, on the
first device of `benchmarks/devices.json`: {device}. The verdicts on what papers claim: [CLAIMS.md](CLAIMS.md).
"""
RANKS = """\
Mean rank of each method over the pairs where not all have the same; a first place may be shared. Tables span different
methods: compare where the numbers of pairs are equal.
"""
NOT_RUN = "Without a record so far: {names}; `python bench.py plan` says what their runs would take.\n"
OPEN = "No record yet of {count} rows that the table asks for: {names}"
HARDWARE = "Several classes of hardware: compare times and memory only between rows of one class."
STALE = "Stale: the method or its configuration has changed since the run; run it again."


Sheets = Mapping[tuple[str, str], Sequence[Sequence[Row]]]  # by data and protocol, the rows of each pair


def render(
    sheets: Sheets, places: Mapping[str, Mapping[str, Sequence[Place]]], lacking: Sequence[str] = ()
) -> dict[str, str]:
    """Path below `results/` → text, for the leaderboard and the table of each data set.

    `places` are those of the papers' tables: the table of a data set has all of them, the leaderboard has those of
    pairs of which something has been run. `lacking` are data sets of which nothing has.
    """
    files, sections = {}, []
    for data in dict.fromkeys([*(data for data, _ in sheets), *places]):
        run, printed = [pairs for key, pairs in sheets.items() if key[0] == data], places.get(data, {})
        files[f"tables/{data}.md"] = TABLE_HEAD.format(data=data) + _body(data, run, printed, "../plots")
        if run:
            printed = {pair: each for pair, each in printed.items() if any(place.result for place in each)}
            sections.append(f"## {data}\n\n" + _body(data, run, printed, "plots"))
    pairs = [rows for of in sheets.values() for rows in of]
    parts = [HEAD, columns.table(OVERVIEW, pairs) if pairs else EMPTY, RULES, *_across(pairs)]
    parts += [NOT_RUN.format(names=", ".join(f"`{data}`" for data in lacking))] if lacking else []
    parts += [PUBLISHED.format(device=reference()[0]), papers.summary(places)] if places else []
    everything = [place for by_pair in places.values() for of in by_pair.values() for place in of]
    legend = _legend([row for rows in pairs for row in rows], everything)
    files["LEADERBOARD.md"] = "\n".join([*parts, *sections, legend])
    return files


def _body(data: str, run: Sequence[Sequence[Sequence[Row]]], printed: Mapping, folder: str) -> str:
    """What there is of a data set, below its heading: a sheet for each protocol, then what papers print."""
    table = owners().get(data)
    about = f"{table.about}\n\n" if table else ""
    parts = [_sheet(pairs, folder) for pairs in run]
    return about + "\n".join([*parts, papers.section(printed)] if printed else parts)


def without_records(sheets: Sheets) -> list[str]:
    """The data sets of the tables of which nothing has been run."""
    run = {data for data, _ in sheets}
    return [data for data in owners() if data not in run]


def _across(pairs: Iterable[Sequence[Row]]) -> list[str]:
    """The mean rank of each method over all pairs of all tables where it has one, and others have another."""
    ranks: dict[str, list[int]] = {}
    decided = [rows for rows in pairs if len({row.rank for row in rows if row.rank}) > 1]
    for row in (row for rows in decided for row in rows if row.rank):
        ranks.setdefault(row.result.cell.method, []).append(row.rank)
    groups = sorted(ranks.items(), key=lambda group: (sum(group[1]) / len(group[1]), group[0]))
    return [RANKS, columns.table(ACROSS, groups)] if groups else []


def sheets_of(results: Iterable[Result]) -> dict[tuple[str, str], list[list[Row]]]:
    """The rows of the pairs of each data set under each protocol, in the order of the tables.

    A method that declines has a row where the same pair has other results.
    """
    of_data = owners()

    def place(cell: Cell) -> tuple:
        protocols = of_data[cell.data].protocols if cell.data in of_data else {}
        pairs = protocols[cell.protocol].pairs if cell.protocol in protocols else ()
        known = (of_data, cell.data), (protocols, cell.protocol), (pairs, cell.pair)
        return *((_index(names, name), name) for names, name in known), cell

    sheets: dict[tuple[str, str], list[list[Row]]] = {}
    everything = sorted(results, key=lambda result: place(result.cell))
    for (data, protocol, *_), group in itertools.groupby(everything, key=lambda result: result.cell[:4]):
        pair = list(group)
        if any(result.state != "unsupported" for result in pair):
            sheets.setdefault((data, protocol), []).append(columns.rows_of(pair))
    return sheets


def _index(names: Iterable[str], name: str) -> int:
    """The place of a name, for a list that lacks it the end."""
    return [*names, name].index(name)


def _sheet(pairs: Sequence[Sequence[Row]], folder: str) -> str:
    """Heading, pairs, plots and notes of one data set under one protocol. `folder` is that of plots."""
    results = [row.result for rows in pairs for row in rows]
    protocol = results[0].cell.protocol
    meaning = f" {MEANINGS[protocol]}." if protocol in MEANINGS else ""
    parts = [f"### {protocol}\n\n{results[0].metric.sentence}.{meaning}\n"]
    parts += [_pair([replace(row, plots=folder) for row in rows]) for rows in pairs]
    parts += [f"![{text}]({folder}/{name}.png)\n" for name, text in plots.of(results)]
    notes = _open(pairs) + _notes(results)
    return "\n".join([*parts, _list(notes)] if notes else parts)


def _open(pairs: Sequence[Sequence[Row]]) -> list[str]:
    """What the table asks for, of pairs of which something has been run, and has not."""
    lacking: list[str] = []
    for rows in pairs:
        cell, there = rows[0].result.cell, {row.result.cell.method for row in rows}
        of = f" ({columns.names(rows[0].result)})" if len(pairs) > 1 else ""
        lacking += [f"`{name}`{of}" for name in asked(cell.data, cell.protocol) if name not in there]
    return [OPEN.format(count=len(lacking), names=", ".join(lacking))] if lacking else []


def asked(data: str, protocol: str) -> Sequence[str]:
    """The rows that a table spans."""
    table = owners().get(data)
    return table.protocols[protocol].recipes if table and protocol in table.protocols else ()


def _pair(rows: Sequence[Row]) -> str:
    """What one pair came to, what that cost, what the synthetic images are like."""
    costs, images = _of_costs(rows), _of_images(rows)
    said = " · ".join([*columns.common(RESULTS, rows), *columns.common(COSTS, costs)])
    parts = [f"#### {columns.names(rows[0].result)}\n", *([f"{said}\n"] if said else []), columns.table(RESULTS, rows)]
    parts += ["**Costs**\n", columns.table(COSTS, costs)]
    parts += ["**Synthetic images**\n", columns.table(IMAGES, images)] if images else []
    notes = [f"`{row.result.cell.method}` does not apply: {plain(row.result.error)}" for row in rows if row.result.error
             and row.result.state == "unsupported"]  # fmt: skip
    few = [row.result for row in rows if row.result.competes and row.result.last and row.rank is None]
    seeds = ", ".join(f"`{result.cell.method}` ({result.last.n})" for result in few)
    notes += [f"No rank, for want of {SEEDS} seeds: {seeds}"] if few else []
    for result in (row.result for row in rows if row.result.report):
        numbers = ", ".join(f"{plain(name)} {columns.figure(value)}" for name, value in result.report.items())
        notes.append(f"`{result.cell.method}` reports of itself, as its page in docs/methods says: {numbers}")
    return "\n".join([*parts, _list(notes)] if notes else parts)


def _notes(results: Sequence[Result]) -> list[str]:
    notes = [f"Data: {plain(text)}" for text in sorted({text for result in results for text in result.changed})]
    notes += sorted({note for result in results for note in result.prior_notes if result.state != "unsupported"})
    said = {(result.cell.method, result.note) for result in results if result.note}
    notes += [f"`{method}`: {plain(note)}" for method, note in sorted(said)]
    notes += [HARDWARE] if len({cost.hardware for result in results for cost in result.costs}) > 1 else []
    return notes + ([STALE] if any("stale" in result.status for result in results) else [])


def _legend(rows: Sequence[Row], places: Sequence[Place]) -> str:
    """What the columns mean, as far as there are such."""
    images = _of_images(rows)
    text = COLUMNS + columns.legend((RESULTS, rows), (COSTS, _of_costs(rows)), (papers.PLACES, places))
    return text + (COLUMNS_OF_IMAGES + columns.legend((IMAGES, images)) if images else "")


def _of_costs(rows: Iterable[Row]) -> list[Row]:
    return [replace(row, cost=cost) for row in rows for cost in row.result.costs]


def _of_images(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if "diagnostics.images" in row.result.means and not row.result.reference]


def _list(notes: Iterable[str]) -> str:
    return "".join(f"- {note}\n" for note in notes)
