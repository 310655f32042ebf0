"""What papers claim, as comparisons between rows (`benchmarks/claims.yaml`), and what the records say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfkd import documents, paths
from dfkd.identity import Cell
from dfkd.optimizers import POSITIVE, mapping, one_of
from dfkd.report.papers import POINT
from dfkd.report.ranking import Difference, difference
from dfkd.report.statistics import Cost, Result
from dfkd.tables.definition import MEANINGS, NAMED, Table, owners
from dfkd.tables.recipes import recipes

HOLDS, FAILS, UNCLEAR = "holds", "does not hold", "cannot be told"
NOT_RUN, UNTESTABLE = "not run", "not testable here"
VERDICTS = (HOLDS, FAILS, UNCLEAR, NOT_RUN, UNTESTABLE)
TIMES = {"total": "time.scored", "synthesis": "time.synthesis"}  # quantity → key of the record
CLOCK_NOISE = 1.1  # two times that differ by less than this factor are the same

_TEXT = {"type": "string", "minLength": 1, "maxLength": 600}
_NAMES = {"type": "array", "items": NAMED, "minItems": 1, "uniqueItems": True}
_ROWS = {"row": NAMED, "than": NAMED, "quantity": {"type": "string"}}
_TIME = mapping("row than quantity is", **_ROWS, **{"is": {"enum": ["less"]}}, factor=POSITIVE)
_SCORE = mapping("row than quantity is", **_ROWS, **{"is": {"enum": ["more", "no less"]}})
CLAIM = mapping(
    "paper says source evidence data protocols all",
    paper=_TEXT,
    says=_TEXT,
    source=_TEXT,
    # The source itself was read; a third party's summary of it was; or the claim is our reading of what was.
    evidence={"enum": ["read", "summarised", "inferred"]},
    data=_NAMES,
    protocols={"type": "array", "items": {"enum": list(MEANINGS)}, "minItems": 1, "uniqueItems": True},
    all={"type": "array", "minItems": 1, "items": one_of({"score": _SCORE, **dict.fromkeys(TIMES, _TIME)}, "quantity")},
    remark=_TEXT,
)
SCHEMA = {
    "title": "What papers claim: benchmarks/claims.yaml",
    "type": "object",
    "propertyNames": NAMED,
    "additionalProperties": CLAIM,
}


@dataclass(frozen=True)
class Comparison:
    """One row against another: `row` has `less` (of a time, divided by `factor`), `more` or `no less` (of the score)
    than `than`."""

    row: str
    than: str
    quantity: str
    relation: str
    factor: float = 1.0


@dataclass(frozen=True)
class Claim:
    """An entry of the file; all its comparisons must hold. `protocols` are those that can test it, the best first."""

    name: str
    paper: str
    says: str
    source: str
    evidence: str
    data: Sequence[str]
    protocols: Sequence[str]
    comparisons: Sequence[Comparison]
    remark: str = ""

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(name for each in self.comparisons for name in (each.row, each.than)))


@dataclass(frozen=True)
class Finding:
    """A comparison at one place: what each side came to, and what that says.

    `difference` is of scores, where both sides have seeds enough; `costs` are on the same class of hardware.
    """

    comparison: Comparison
    place: Cell  # of `row`
    results: tuple[Result, Result]
    verdict: str
    difference: Difference | None = None
    costs: tuple[Cost, Cost] | None = None


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim under one protocol, place by place: pair of networks by pair."""

    claim: Claim
    word: str
    protocol: str | None
    places: Mapping[str, int]  # how many came to which verdict
    seeds: int  # the fewest of any row that was compared
    findings: tuple[Finding, ...]
    untested: tuple[str, ...] = ()  # data sets where it cannot be tested, with what is missing there


def read(path: Path | None = None) -> list[Claim]:
    """The claims in the order of the file. Raises UserError naming file and key.

    Data sets, recipes and protocols that there are not make a claim untestable, and are named in its verdict.
    """
    found = documents.read_checked(path or paths.claims(), SCHEMA)
    return [_claim(name, content) for name, content in found.items()]


def _claim(name: str, content: Mapping[str, Any]) -> Claim:
    asked = [{"relation" if key == "is" else key: value for key, value in each.items()} for each in content["all"]]
    given = {key: value for key, value in content.items() if key != "all"}
    return Claim(name, **given, comparisons=[Comparison(**each) for each in asked])


def judge(claim: Claim, results: Iterable[Result]) -> Verdict:
    """The verdict under the first of the claim's protocols for which there are records, else why there is none."""
    measured = {result.cell: result for result in results}
    of_data = owners()
    found = {
        data: list(_places(claim, data, of_data[data], measured)) if data in of_data else [] for data in claim.data
    }
    places = [place for each in found.values() for place in each]
    untested = _untested(claim, [data for data, each in found.items() if not each])
    if not places:
        return Verdict(claim, UNTESTABLE, None, {}, 0, (), untested)
    by_protocol = {name: _under(claim, name, places, measured) for name in claim.protocols}
    run = [verdict for verdict in by_protocol.values() if verdict.word != NOT_RUN]
    shown = [verdict for verdict in by_protocol.values() if verdict.findings]
    verdict = next(iter([*run, *shown]), Verdict(claim, NOT_RUN, None, {NOT_RUN: len(places)}, 0, ()))
    return replace(verdict, untested=untested)


def planned(claim: Claim) -> list[str]:
    """Those of the claim's protocols under which some table asks for all its rows; in others they are run by hand."""
    spans = [table.protocols for data, table in owners().items() if data in claim.data]
    return [
        name for name in claim.protocols
        if any(name in of and set(claim.rows) <= set(of[name].recipes) for of in spans)
    ]  # fmt: skip


def _places(claim: Claim, data: str, table: Table, measured: Mapping[Cell, Result]) -> Iterator[Cell]:
    """Pairs under each protocol where every row of the claim is asked for or has been run."""
    for name in claim.protocols:
        protocol = table.protocols.get(name)
        for pair in protocol.pairs if protocol else ():
            teacher, student = pair.split("-")
            cells = [Cell(data, name, teacher, student, row) for row in claim.rows]
            if all(cell.method in protocol.recipes or cell in measured for cell in cells):
                yield cells[0]


def _untested(claim: Claim, names: Iterable[str]) -> tuple[str, ...]:
    """Data sets with what is missing there, those that lack the same together."""
    lacking: dict[str, list[str]] = {}
    for data in names:
        lacking.setdefault(_lacking(claim, owners().get(data)), []).append(data)
    return tuple(f"{', '.join(found)}: {reason}" for reason, found in lacking.items())


def _lacking(claim: Claim, table: Table | None) -> str:
    """What is missing in a table for the claim to be tested."""
    if table is None:
        return "there is no such table"
    protocols = [table.protocols[name] for name in claim.protocols if name in table.protocols]
    if not protocols:
        return f"the table has no protocol {' or '.join(claim.protocols)}"
    book = recipes(table)
    spanned = {name for protocol in protocols for name in protocol.recipes}
    lacking = [f"{'the table does not ask for' if row in book else 'there is no recipe'} {row}" for row in claim.rows
               if row not in spanned]  # fmt: skip
    return ", ".join(lacking) or "no protocol asks for all its rows together"


def _under(claim: Claim, protocol: str, places: Iterable[Cell], measured: Mapping[Cell, Result]) -> Verdict:
    """The verdict of one protocol: it does not hold where it fails at one place, and holds where it does at all that
    have been run."""
    words: Counter[str] = Counter()
    findings: list[Finding] = []
    for place in (place for place in places if place.protocol == protocol):
        found = [finding for each in claim.comparisons if (finding := _compare(each, place, measured))]
        findings += found
        words[_joined([finding.verdict for finding in found], len(claim.comparisons))] += 1
    word = next((word for word in (FAILS, UNCLEAR, HOLDS) if words[word]), NOT_RUN)
    told = [finding for finding in findings if finding.verdict != NOT_RUN]
    seeds = min((result.last.n for finding in told for result in finding.results), default=0)
    return Verdict(claim, word, protocol, words, seeds, tuple(findings))


def _joined(words: Sequence[str], asked: int) -> str:
    """The verdict of several comparisons that must all hold."""
    if FAILS in words:
        return FAILS
    if NOT_RUN in words or len(words) < asked:
        return NOT_RUN
    return UNCLEAR if UNCLEAR in words else HOLDS


def _compare(comparison: Comparison, place: Cell, measured: Mapping[Cell, Result]) -> Finding | None:
    """None where a side has no score. What is stale, or had another teacher or data, is shown and tells nothing."""
    sides = [measured.get(place._replace(method=name)) for name in (comparison.row, comparison.than)]
    if any(side is None or side.last is None for side in sides):
        return None
    first, second = sides
    tells = {first.state, second.state} == {"ok"} and first.inputs == second.inputs
    if comparison.quantity == "score":
        found = difference(first.scores, second.scores)
        word = _of_scores(comparison, found, first)
        return Finding(comparison, place, (first, second), word if tells else NOT_RUN, found)
    costs = _same_hardware(first, second)
    word = _of_times(comparison, *costs) if costs else UNCLEAR
    return Finding(comparison, place, (first, second), word if tells else NOT_RUN, None, costs)


def _of_scores(comparison: Comparison, found: Difference | None, result: Result) -> str:
    """By the 95 % interval of the difference; half a point less is still no less."""
    if found is None:
        return UNCLEAR
    point = POINT * (result.metric.high - result.metric.low) / 100
    least = 0.0 if comparison.relation == "more" else -point
    if found.low > least:
        return HOLDS
    return FAILS if found.high <= least else UNCLEAR


def _of_times(comparison: Comparison, first: Cost, second: Cost) -> str:
    """Every run of one side against every run of the other: seeds say little of times."""
    ours, theirs = (_times(comparison, cost) for cost in (first, second))
    if max(ours) * comparison.factor * CLOCK_NOISE <= min(theirs):
        return HOLDS
    return FAILS if min(ours) * comparison.factor >= max(theirs) * CLOCK_NOISE else UNCLEAR


def _times(comparison: Comparison, cost: Cost) -> tuple[float, ...]:
    return cost.totals if comparison.quantity == "total" else cost.syntheses


def _same_hardware(first: Result, second: Result) -> tuple[Cost, Cost] | None:
    by_class = {cost.hardware: cost for cost in second.costs if cost.totals}
    pairs = [(cost, by_class[cost.hardware]) for cost in first.costs if cost.totals and cost.hardware in by_class]
    return max(pairs, key=lambda pair: min(each.n for each in pair), default=None)


def judged(results: Sequence[Result], path: Path | None = None) -> list[Verdict]:
    """The verdict of every claim."""
    return [judge(claim, results) for claim in read(path)]
