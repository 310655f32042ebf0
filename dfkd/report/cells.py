"""`results/cells.csv`: a line for each row of the tables, in plain numbers; and single tables as CSV or LaTeX."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from dfkd import catalog, documents, paths
from dfkd.report.columns import NOTHING, Row, score, summary
from dfkd.report.papers import Place, ours
from dfkd.report.published import PAPER
from dfkd.report.ranking import interval
from dfkd.report.statistics import Cost
from dfkd.units import duration

Pairs = Iterable[Sequence[Row]]
# A cell that ran on several classes of hardware has a line for each, which differ in what it cost.
_OF_COST: Mapping[str, Callable[[Row, Cost], Any]] = {
    "hardware": lambda row, cost: cost.hardware,
    "seconds": lambda row, cost: cost.scored,
    "seconds_once_per_teacher": lambda row, cost: cost.once,
    "seconds_synthesis": lambda row, cost: cost.means.get("time.synthesis"),
    "seconds_distillation": lambda row, cost: cost.means.get("time.distillation"),
    "seconds_to_90": lambda row, cost: row.to_goal(cost),
    "pareto": lambda row, cost: cost.hardware in row.efficient,
    "images": lambda row, cost: cost.means.get("cost.images_synthesised"),
    "steps": lambda row, cost: cost.means.get("cost.student_steps"),
    "memory_bytes": lambda row, cost: cost.means.get("cost.peak_memory_bytes"),
}


def lines(pairs: Pairs, places: Iterable[Place] = ()) -> list[dict[str, Any]]:
    """The lines of `cells.csv`; None for what there is not."""
    printed = {place.cell: place for place in places}
    return [
        _scores(row, printed.get(row.result.cell))
        | {name: value(row, cost) if cost else None for name, value in _OF_COST.items()}
        for rows in pairs
        for row in rows
        for cost in row.result.costs or (None,)
    ]


def _scores(row: Row, place: Place | None) -> dict[str, Any]:
    result = row.result
    last, oracle, (low, high) = result.last, result.oracle, interval(result.scores) or (None, None)
    return {
        **result.cell._asdict(),
        "class": result.family,
        "ablates": result.ablates,
        "reference": result.reference,
        "prior": result.prior,
        "state": result.state,
        "metric": result.metric.name,
        "n": last.n if last else 0,
        "last": last and last.mean,
        "last_std": last and last.std,
        "last_low95": low,
        "last_high95": high,
        "oracle": oracle and oracle.mean,
        "oracle_std": oracle and oracle.std,
        "teacher_score": result.means.get("metrics.teacher"),
        "retention": result.retention,
        "gap": row.gap,
        "rank": row.rank,
        **_printed(place),
    }


def csv(pairs: Pairs, places: Iterable[Place] = (), shown: Iterable[Place] = ()) -> str:
    """The text of `cells.csv`, or of the part of it that these pairs are; then the places of papers' tables that are to
    be shown though nothing has been measured there."""
    import pandas

    unmeasured = [_unmeasured(place) for place in shown if place.result is None]
    found = pandas.DataFrame(lines(pairs, places) + unmeasured, dtype=object)
    for name in ("n", "rank"):
        found[name] = found[name].astype("Int64") if name in found else None
    return found.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def _unmeasured(place: Place) -> dict[str, Any]:
    return {
        **place.cell._asdict(),
        "reference": place.reference,
        "state": ours(place),
        "metric": place.metric.name,
        "n": 0,
        **_printed(place),
    }


def _printed(place: Place | None) -> dict[str, Any]:
    """What a paper prints, and how ours compares."""
    return {
        "paper": place.quoted.value if place and place.quoted else None,
        "paper_source": place.quoted.source if place and place.quoted else None,
        "paper_verdict": place.word if place else None,
    }


def latex(pairs: Pairs, places: Iterable[Place] = ()) -> str:
    """A LaTeX table (booktabs) for each pair and for each pair of a paper's table, then the BibTeX of the methods in
    them."""
    pairs = list(pairs)
    by_pair = [list(of) for _, of in itertools.groupby(places, key=lambda place: place.cell[:4])]
    methods = [row.result.family for rows in pairs for row in rows]
    methods += [place.family.name for of in by_pair for place in of if place.family]
    return "\n".join([*map(_latex, pairs), *map(_latex_of_paper, by_pair), bibtex(methods)])


def _latex_of_paper(places: Sequence[Place]) -> str:
    """What a paper prints beside what is measured, both the best on the test set."""
    cell, metric = places[0].cell, places[0].metric
    body = [
        (
            place.cell.method,
            score(place.quoted.value if place.quoted else None, metric) or NOTHING,
            ours(place),
            place.word or NOTHING,
        )
        for place in places
    ]
    title = f"% {cell.data}, {cell.teacher} -> {cell.student}: best test score, published and ours\n"
    return title + _tabular(body, ("Method", "Paper", "Ours", "Verdict"))


def _latex(rows: Sequence[Row]) -> str:
    cell, metric = rows[0].result.cell, rows[0].result.metric
    head = ("Method", metric.column, "Retention", "Rank", "Time")
    body = [
        (
            ("-- " if row.result.ablates else "") + row.result.cell.method,
            summary(row.result.last, metric) if row.result.last else NOTHING,
            NOTHING if row.result.retention is None else f"{row.result.retention:.1%}",
            str(row.rank or NOTHING),
            ", ".join(duration(cost.scored) for cost in row.result.costs) or NOTHING,
        )
        for row in rows
    ]
    title = f"% {cell.data}, protocol {cell.protocol}, {cell.teacher} -> {cell.student}: mean, deviation (seeds)\n"
    return title + _tabular(body, head)


def _tabular(body: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    align = ("left", *["right"] * (len(head) - 1))
    table = tabulate(body, head, tablefmt="latex_booktabs", colalign=align, disable_numparse=True)
    return table.replace("±", r"$\pm$").replace("–", "--") + "\n"


def bibtex(methods: Iterable[str]) -> str:
    """The entries of `docs/references.bib` that these methods cite, in the order of their keys."""
    known = catalog.entries()
    keys = {key for name in methods if name in known for key in known[name].cites}
    found = references()
    return "\n".join(f"{found[key]}\n" for key in sorted(keys & found.keys()))


def references() -> dict[str, str]:
    """The entries of the bibliography by key."""
    text = documents.text_of(paths.references())
    return {entry[1]: entry[0] for entry in re.finditer(r"^@\w+\{([\w-]+),\n.*?^\}", text, re.MULTILINE | re.DOTALL)}


def chosen(pairs: Pairs, data: str | None, protocol: str | None) -> list[Sequence[Row]]:
    """The pairs of one data set, of one protocol, or of all."""
    cells = ((rows, rows[0].result.cell) for rows in pairs)
    return [rows for rows, cell in cells if data in (None, cell.data) and protocol in (None, cell.protocol)]


def chosen_places(places: Iterable[Place], data: str | None, protocol: str | None) -> list[Place]:
    """The places of the papers' tables of one data set, or of all; they belong to the protocol `paper`."""
    return [place for place in places if data in (None, place.cell.data) and protocol in (None, PAPER)]
