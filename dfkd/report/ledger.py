"""The text of `CLAIMS.md`: every claim with its verdict, and the numbers and records that it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dfkd.identity import Run
from dfkd.report import columns
from dfkd.report.claims import (
    CLOCK_NOISE,
    FAILS,
    HOLDS,
    NOT_RUN,
    TIMES,
    UNCLEAR,
    UNTESTABLE,
    VERDICTS,
    Claim,
    Comparison,
    Finding,
    Verdict,
    planned,
)
from dfkd.report.columns import LEFT, Column
from dfkd.report.markdown import plain
from dfkd.report.papers import POINT
from dfkd.report.ranking import SEEDS
from dfkd.report.statistics import Result
from dfkd.units import duration

HEAD = """\
# Claims

Generated from `benchmarks/claims.yaml` and `results/records` by `python bench.py leaderboard`; do not edit.

What the papers say, as comparisons between rows of one table, and what the records say of it. Every verdict is of the
protocol beside it, and of the methods as [built here](../docs/reproduction.md): only `paper` has the papers' budgets
and networks, so a claim that does not hold under another is not refuted.
"""
RULES = f"""\
| verdict | meaning |
|:--|:--|
| {HOLDS} | true at every pair that has been run |
| {FAILS} | false at one pair or more |
| {UNCLEAR} | within seed noise, or fewer than {SEEDS} seeds (n), of which it is not known; times: within their \
noise, or on different hardware |
| {NOT_RUN} | the tables ask for the rows, and some have no record of today's code |
| {UNTESTABLE} | a data set, a protocol or a recipe is missing |

Scores are compared by the 95 % interval of their difference after the last step: paired over common seeds, else
Welch's. *No less* allows half a point ({POINT / 100:.1%} of the range). Times are compared on one class of hardware,
run by run, and differ if every run of one side is beyond every run of the other by a factor of {CLOCK_NOISE}; for them
one seed is enough. The protocol is the first of the claim's own for which there are records. Evidence: the source was
*read*, only a third party's *summary* of it was, or the claim is *inferred*, our reading of what was read.
"""


def render(verdicts: Sequence[Verdict]) -> str:
    """The page."""
    counts = Counter(verdict.word for verdict in verdicts)
    said = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word])
    parts = [HEAD, f"{len(verdicts)} claims: {said}.\n", columns.table(OVERVIEW, verdicts)] if verdicts else [HEAD]
    return "\n".join([*parts, RULES, *map(_section, verdicts)])


def _word(verdict: Verdict) -> str:
    """With n where noise is the reason, and at how many of the pairs."""
    word = f"{verdict.word} ({_noise(verdict)})" if verdict.word == UNCLEAR else verdict.word
    if verdict.protocol is None or verdict.word == NOT_RUN:
        return word
    run, asked = sum(verdict.places.values()) - verdict.places.get(NOT_RUN, 0), sum(verdict.places.values())
    return f"{word}, `{verdict.protocol}`, {run} of {asked} pair{'s' * (asked > 1)}"


def _noise(verdict: Verdict) -> str:
    """Why scores, or else times, cannot be told apart."""
    unclear = {finding.comparison.quantity for finding in verdict.findings if finding.verdict == UNCLEAR}
    if "score" not in unclear:
        return "within the noise of times"
    return f"{'too few seeds' if verdict.seeds < SEEDS else 'within seed noise'}, n = {verdict.seeds}"


OVERVIEW = (
    Column("claim", "", LEFT, lambda verdict: f"[{verdict.claim.name}](#{verdict.claim.name})"),
    Column("verdict", "", LEFT, _word),
    Column("says", "", LEFT, lambda verdict: plain(verdict.claim.says)),
    Column("evidence", "", LEFT, lambda verdict: verdict.claim.evidence),
)


def _section(verdict: Verdict) -> str:
    claim = verdict.claim
    parts = [f"## {claim.name}\n", f"{plain(claim.paper)}: {plain(claim.says)}\n", f"**{_word(verdict)}**\n"]
    facts = [f"Source ({claim.evidence}): {plain(claim.source)}"]
    facts += [f"Comparison: {'; '.join(map(_asked, claim.comparisons))}"]
    facts += [f"On {', '.join(claim.data)} under {_protocols(claim)}"]
    facts += [plain(claim.remark)] if claim.remark else []
    facts += [f"Not testable on {plain(each)}" for each in verdict.untested]
    counts = [f"{count} {word}" for word, count in verdict.places.items()]
    facts += [f"Pairs: {', '.join(counts)}"] if verdict.findings else []
    parts.append("".join(f"- {fact}\n" for fact in facts))
    return "\n".join([*parts, columns.table(FINDINGS, verdict.findings)] if verdict.findings else parts)


def _protocols(claim: Claim) -> str:
    """Those of the tables, and those for which somebody has to run the rows without being asked to."""
    asked = planned(claim)
    others = [f"`{name}`" for name in claim.protocols if name not in asked]
    by_hand = [f"{', '.join(others)} (by hand: no table asks for all the rows)"] if others else []
    return ", ".join([*(f"`{name}`" for name in asked), *by_hand])


def _asked(comparison: Comparison) -> str:
    if comparison.quantity == "score":
        return f"score of `{comparison.row}` {comparison.relation} than that of `{comparison.than}`"
    times = f"{comparison.factor:g} × " if comparison.factor != 1 else ""
    name = {"total": "total time", "synthesis": "time of synthesis"}[comparison.quantity]
    return f"{times}{name} of `{comparison.row}` less than that of `{comparison.than}`"


def _side(finding: Finding, index: int) -> str:
    result = finding.results[index]
    if finding.comparison.quantity == "score":
        text = columns.summary(result.last, result.metric)
    elif finding.costs is None:
        text = "on other hardware"
    else:
        cost = finding.costs[index]
        text = f"{duration(cost.means[TIMES[finding.comparison.quantity]])} ({cost.n})"
    return f"{_records(result)} {text}" + (" (stale)" if result.state == "stale" else "")


def _records(result: Result) -> str:
    """The name of a row, with a link to each of its records."""
    data, protocol, teacher, student, method = result.cell
    runs = [Run(data, teacher, student, method, protocol, seed) for seed in sorted(result.scores)]
    links = " ".join(f"[{run.seed}](records/{run.name}.json)" for run in runs)
    return f"{plain(result.cell.method)} {links}:"


def _outcome(finding: Finding) -> str:
    first, second = finding.results
    if finding.comparison.quantity == "score":
        text = columns.signed(first.last.mean - second.last.mean, first.metric)
        if finding.difference is None:
            return text
        low, high = (columns.signed(end, first.metric) for end in finding.difference[1:3])
        return f"{text} \\[{low}, {high}\\], " + ("paired" if finding.difference.paired else "Welch")
    if finding.costs is None:
        return columns.NOTHING
    ours, theirs = (cost.means[TIMES[finding.comparison.quantity]] for cost in finding.costs)
    return f"{columns.figure(theirs / ours)} times less" if ours else columns.NOTHING


FINDINGS = (
    Column("where", "", LEFT, lambda finding: f"{plain(finding.place.data)}, `{finding.place.protocol}`, "
           + columns.names(finding.results[0])),
    Column("row", "", LEFT, lambda finding: _side(finding, 0)),
    Column("than", "", LEFT, lambda finding: _side(finding, 1)),
    Column("difference", "", LEFT, _outcome),
    Column("says", "", LEFT, lambda finding: finding.verdict),
)  # fmt: skip
