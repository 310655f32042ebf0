"""What papers print beside what is measured here: every pair and method of the tables of the `paper` protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dfkd import catalog
from dfkd.identity import Cell, Run
from dfkd.metrics import Metric, metric
from dfkd.report import columns, published
from dfkd.report.columns import LEFT, RIGHT, Column
from dfkd.report.markdown import plain
from dfkd.report.published import PAPER, Quoted
from dfkd.report.statistics import Result
from dfkd.tables.definition import Protocol, Table, tables
from dfkd.tables.recipes import recipes
from dfkd.tasks import task
from dfkd.units import duration

POINT = 0.5  # what counts as equal, in hundredths of the metric's range: half a point of accuracy
COMPARABLE = (
    "`other data`: a subset, or data changed in a way that may touch the test images: the scores do not compare."
)
NO_REFERENCE, MATCHES, ABOVE, BELOW, OTHER_DATA = "no reference", "matches", "above", "below", "other data"


@dataclass(frozen=True)
class Place:
    """A place in a paper's table.

    Attributes:
        quoted: what is printed there; None where nothing is known to be.
        family: the method behind its recipe, if there is one here.
        result: what is measured here, if anything is.
        spanned: whether the table has the recipe; else its method is not run here.
        open: runs that are still to be made.
        seconds: what one of them is predicted to take; None where nobody knows.
    """

    cell: Cell
    metric: Metric
    quoted: Quoted | None
    family: catalog.Entry | None
    result: Result | None
    spanned: bool
    open: int
    seconds: float | None

    @property
    def reference(self) -> bool:
        """Whether its row is one to compare with, and no method."""
        return self.family is not None and self.family.reference

    @property
    def difference(self) -> float | None:
        """Ours less theirs, both the best on the test set; None where the two do not compare."""
        if self.quoted is None or self.quoted.suspect or self.result is None or not self.result.comparable:
            return None
        return self.result.oracle.mean - self.quoted.value if self.result.oracle else None

    @property
    def word(self) -> str | None:
        """How ours compares with theirs: equal within half a point or two standard deviations. None while open."""
        if self.quoted is None or self.quoted.suspect:
            return NO_REFERENCE
        if self.result is None or self.result.oracle is None:
            return None
        if self.difference is None:
            return OTHER_DATA
        tolerance = max(POINT * (self.metric.high - self.metric.low) / 100, 2 * (self.result.oracle.std or 0))
        if abs(self.difference) <= tolerance + 1e-9:
            return MATCHES
        return ABOVE if self.difference > 0 else BELOW


def places(
    results: Iterable[Result],
    quotable: Sequence[Mapping[str, str]],
    done: Collection[Run] = (),
    predict: Callable[[Run], float | None] | None = None,
) -> dict[str, dict[str, list[Place]]]:
    """By data set and pair: the rows of every table that has the `paper` protocol, and whatever else papers print of
    its pairs. `predict` gives the seconds of a run; without it none are predicted."""
    measured = {result.cell: result for result in results}
    found: dict[str, dict[str, list[Place]]] = {}
    for table in tables().values():
        protocol = table.protocols.get(PAPER)
        families = _families(table) if protocol else {}
        for data in table.data if protocol else ():
            cells = {pair: list(_cells(data, pair, protocol, quotable)) for pair in protocol.pairs}
            score = metric(task(data).metric)
            quoted = published.quote([cell for of in cells.values() for cell in of], score.name, quotable)

            found[data] = {
                pair: [
                    Place(
                        *(cell, score, quoted.get(cell), families.get(cell.method), measured.get(cell)),
                        *_open(cell, protocol, done, predict),
                    )
                    for cell in of
                ]
                for pair, of in cells.items()
            }
    return found


def _families(table: Table) -> dict[str, catalog.Entry]:
    """The method of each recipe of a table, and of each that has none."""
    methods = catalog.entries()
    made_by = {name: name for name in methods} | {name: recipe["method"] for name, recipe in recipes(table).items()}
    return {name: methods[method] for name, method in made_by.items() if method in methods}


def _open(
    cell: Cell, protocol: Protocol, done: Collection[Run], predict: Callable[[Run], float | None] | None
) -> tuple[bool, int, float | None]:
    """Whether the table spans the cell, how many of its runs are open, and the predicted seconds of one."""
    spanned = cell.method in protocol.recipes
    runs = [Run(cell.data, *cell[2:], PAPER, seed) for seed in protocol.seeds if spanned]
    left = [run for run in runs if run not in done]
    return spanned, len(left), predict(left[0]) if left and predict else None


def _cells(data: str, pair: str, protocol: Protocol, quotable: Sequence[Mapping[str, str]]) -> Iterator[Cell]:
    """The recipes of the table in its order, then what else papers print."""
    teacher, student = pair.split("-")
    for method in dict.fromkeys([*protocol.recipes, *published.methods_of(data, pair, quotable)]):
        yield Cell(data, PAPER, teacher, student, method)


def _name(place: Place) -> str:
    """In italics that of a reference row, as in the other tables."""
    name = plain(place.cell.method)
    return f"*{name}*" if place.reference else name


def _quoted(place: Place) -> str | None:
    if place.quoted is None:
        return None
    marks = ("" if place.quoted.verified else "†") + ("\\*" if place.quoted.note else "")
    return f"{columns.score(place.quoted.value, place.metric)} [{place.quoted.tag}]{marks}"


def ours(place: Place) -> str:
    """The best test score that is measured here, or why there is none."""
    if place.result is not None and place.result.oracle is not None:
        stale = " (stale)" if place.result.state == "stale" else ""
        return columns.summary(place.result.oracle, place.metric) + stale
    if place.result is not None and place.result.state in ("unsupported", "diverged"):
        return "n/a" if place.result.state == "unsupported" else "diverged"
    return "open" if place.spanned else "not run here"


PLACES = (
    Column("method", "", LEFT, _name),
    Column("paper", "published score [source]; † not verified in the source itself; * see the note", RIGHT, _quoted),
    Column("ours", "best test score; `open`: to be run; `not run here`: no such recipe in the table", RIGHT, ours),
    Column(
        "ours − paper", "both chosen on the test set", RIGHT,
        lambda place: columns.signed(place.difference, place.metric),
        needed=lambda place: place.difference is not None,
    ),
    Column(
        "verdict", "`matches`, `above` or `below`; `no reference`: nothing published, or doubtful in its own source",
        LEFT, lambda place: place.word,
    ),
    Column(
        "to run", "runs that are open × predicted time of one, on the first of `benchmarks/devices.json`", RIGHT,
        lambda place: _to_run(place) if place.open else None,
        needed=lambda place: place.open,
    ),
)  # fmt: skip


def _to_run(place: Place) -> str:
    return f"{place.open}" if place.seconds is None else f"{place.open} × {duration(place.seconds)}"


def _predicted(places: Sequence[Place]) -> str | None:
    """The time of all runs that are open; "and more" where that of some is not known."""
    open_ = [place for place in places if place.open]
    known = [place.open * place.seconds for place in open_ if place.seconds is not None]
    more = " and more" if len(known) < len(open_) else ""
    return f"{duration(sum(known))}{more}" if known else None


def _counted(word: str) -> Column:
    return Column(word, "", RIGHT, lambda group: str(Counter(place.word for place in group[1])[word]))


SUMMARY = (  # of data and its places
    Column("data", "", LEFT, lambda group: f"[{group[0]}](tables/{group[0]}.md#published-numbers)"),
    Column("places", "", RIGHT, lambda group: str(len(group[1]))),
    Column("published", "", RIGHT, lambda group: str(sum(place.quoted is not None for place in group[1]))),
    Column("measured", "", RIGHT, lambda group: str(sum(_is_measured(place) for place in group[1]))),
    *map(_counted, (MATCHES, ABOVE, BELOW)),
    Column("open runs", "", RIGHT, lambda group: str(sum(place.open for place in group[1]))),
    Column("predicted", "", RIGHT, lambda group: _predicted(group[1])),
)


def _is_measured(place: Place) -> bool:
    return place.result is not None and place.result.state == "ok"


def section(by_pair: Mapping[str, Sequence[Place]]) -> str:
    """The text of a data set's published numbers, pair by pair, with its sources."""
    shown = [place for of in by_pair.values() for place in of]
    parts = ["### Published numbers\n"]
    for of in by_pair.values():
        parts += [f"#### {plain(f'{of[0].cell.teacher} → {of[0].cell.student}')}, papers\n", columns.table(PLACES, of)]
    quoted = {place.cell: place.quoted for place in shown if place.quoted is not None}
    notes = published.notes(quoted)
    if any(place.word == OTHER_DATA for place in shown):
        notes.append(COMPARABLE)
    return "\n".join([*parts, *(["".join(f"- {note}\n" for note in notes)] if notes else [])])


def summary(found: Mapping[str, Mapping[str, Sequence[Place]]]) -> str:
    """How far the tables of the papers are measured, a line for each data set; nothing where there is none."""
    groups = [(data, [place for of in by_pair.values() for place in of]) for data, by_pair in found.items()]
    return columns.table(SUMMARY, groups) if groups else ""
