"""The columns of all tables, in their order: each one entry, which also is its line in the legend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd.metrics import Metric
from dfkd.report import markdown, plots
from dfkd.report.curves import GOAL, seconds_to
from dfkd.report.markdown import plain
from dfkd.report.ranking import frontier, ranks
from dfkd.report.statistics import KD, Cost, Result, Summary, kd_of
from dfkd.units import duration, memory

REFERENCES = ("teacher", "student-real", KD)  # the order of reference rows; the rest by name
NOTHING = "–"
DISTURBED = 0.2  # processors of other work from which on a row says so
LEFT, RIGHT = "left", "right"


@dataclass(frozen=True)
class Row:
    """A line of a table: a result in its place, of the costs that on one class of hardware."""

    result: Result
    rank: int | None
    kd: float | None  # the last score of distillation on real data
    efficient: frozenset[str]  # classes of hardware on which it is on the Pareto frontier
    leads: bool = False  # of the first rank, with no method above it that has none
    cost: Cost | None = None
    plots: str = "plots"  # where they lie as seen from the page

    @property
    def gap(self) -> float | None:
        """The last score less that of distillation on real data."""
        return self.result.last.mean - self.kd if self.kd is not None and self.result.last else None

    def to_goal(self, cost: Cost) -> float | None:
        """Scored seconds, on one class of hardware, until the mean score was `GOAL` of that on real data."""
        own, last = self.result.cell.method == KD and self.result.state == "ok", self.result.last
        score = last.mean if own and last else self.kd
        seconds = None if score is None else seconds_to(cost.curve, GOAL * score)
        # The last evaluation has the harness's clock, the total the loop's, which ends a little before.
        return None if seconds is None else min(seconds, cost.scored)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header, meaning: its heading, and its line in the legend; without a meaning it has none.
        align: "left" or "right".
        value: what it shows of a row, as Markdown; None for nothing.
        common: whether it is said once, above the table, where every row that has a value has the same.
        needed: it stands only in tables of which some row makes this true.
    """

    header: str
    meaning: str
    align: str
    value: Callable[[Any], str | None]
    common: bool = False
    needed: Callable[[Any], object] = lambda row: True

    def is_in(self, rows: Sequence[Any]) -> bool:
        return any(map(self.needed, rows))

    def said_of(self, rows: Sequence[Any]) -> str | None:
        """What it says of all rows together."""
        values = {self.value(row) for row in rows} - {None} if self.common else set()
        return values.pop() if len(values) == 1 else None


def table(columns: Iterable[Column], rows: Sequence[Any]) -> str:
    """A Markdown table of the columns that these rows need, and that say different things of them."""
    shown = [column for column in columns if column.is_in(rows) and column.said_of(rows) is None]
    cells = [[column.value(row) or NOTHING for column in shown] for row in rows]
    return markdown.table([column.header for column in shown], cells, [column.align for column in shown])


def common(columns: Iterable[Column], rows: Sequence[Any]) -> list[str]:
    """What is said once of all rows: `teacher: 94.87`."""
    said = ((column.header, column.said_of(rows)) for column in columns if column.is_in(rows))
    return [f"{header}: {text}" for header, text in said if text is not None]


def legend(*parts: tuple[Iterable[Column], Sequence[Any]]) -> str:
    """What the columns mean that the rows of each part need."""
    shown = [column for columns, rows in parts for column in columns if column.meaning and column.is_in(rows)]
    return markdown.table(["column", "meaning"], [(each.header, each.meaning) for each in shown], [LEFT, LEFT])


def ordered(results: Iterable[Result]) -> list[Result]:
    """Reference rows first, then methods by their last score, each with its ablations below it, then those that have
    no score."""
    results = list(results)
    by_method = {result.cell.method: result for result in results}

    def place(result: Result) -> tuple:
        name = result.cell.method
        if result.reference:
            return (0, REFERENCES.index(name) if name in REFERENCES else len(REFERENCES), name)
        own = (1, -result.last.mean, name) if result.last else (2, result.state == "unsupported", name)
        of = by_method.get(result.ablates or "")
        return (*place(of), *own) if of and of.ablates is None else own

    return sorted(results, key=place)


def rows_of(results: Sequence[Result]) -> list[Row]:
    """The rows of one pair, ranked."""
    rank, efficient = ranks(results), frontier(results)
    unranked = [each.last.mean for each in results if each.competes and each.last and each.cell not in rank]

    def row(result: Result) -> Row:
        classes = frozenset(hardware for cell, hardware in efficient if cell == result.cell)
        kd = kd_of(result, results)
        leads = rank.get(result.cell) == 1 and all(result.last.mean >= score for score in unranked)
        return Row(result, rank.get(result.cell), kd.last.mean if kd else None, classes, leads)

    return list(map(row, ordered(results)))


def figure(number: float) -> str:
    """A number of which nothing is known: three significant digits, or all before the point."""
    whole = abs(number) < 1e15 and (abs(number) >= 1000 or number == round(number))
    return f"{number:,.0f}" if whole else f"{number:.3g}"


def score(value: float | None, metric: Metric) -> str | None:
    return None if value is None else f"{value:.{metric.decimals}f}"


def signed(value: float | None, metric: Metric) -> str | None:
    """With a sign that is as wide as a plus."""
    return None if value is None else f"{value:+.{metric.decimals}f}".replace("-", "−")


def summary(of: Summary, metric: Metric) -> str:
    """Mean ± sample standard deviation (number of seeds)."""
    spread = "" if of.std is None else f" ± {score(of.std, metric)}"
    return f"{score(of.mean, metric)}{spread} ({of.n})"


def _last(row: Row) -> str | None:
    if row.result.last is None:
        return None
    text = summary(row.result.last, row.result.metric)
    return f"**{text}**" if row.leads else text


def _mean_last(row: Row) -> str | None:
    return score(row.result.last.mean, row.result.metric) if row.result.last else None


def _place(row: Row) -> str | None:
    if row.result.reference:
        return "ref"
    return "abl" if row.result.ablates else str(row.rank) if row.rank else None


def _best(rows: Iterable[Row]) -> list[Row]:
    """The methods of rank 1; where there are no ranks, the one that comes first."""
    competing = [row for row in rows if row.result.competes and row.result.last]
    return [row for row in competing if row.rank == 1] or competing[:1]


def _of_best(show: Callable[[Row], str | None]) -> Callable[[Sequence[Row]], str | None]:
    """Of the first and the last of those that share the first rank."""

    def value(rows: Sequence[Row]) -> str | None:
        shown = [text for row in _best(rows) if (text := show(row)) is not None]
        return " to ".join(dict.fromkeys((shown[0], shown[-1]))) if shown else None

    return value


def _names_of_best(rows: Sequence[Row]) -> str | None:
    best = _best(rows)
    if not best:
        return "all stale" if any(row.result.state == "stale" and not row.result.reference for row in rows) else None
    names = ", ".join(plain(row.result.cell.method) for row in best)
    return names if best[0].rank else f"{names} (no rank, n = {best[0].result.last.n})"


def _method(row: Row) -> str:
    name = plain(row.result.cell.method)
    if row.result.ablates:
        return f"↳ {name}"
    return f"*{name}*" if row.result.reference else name


def _to_goal(row: Row) -> str | None:
    seconds = row.to_goal(row.cost)
    return None if seconds is None else duration(seconds)


def _gap(row: Row) -> str | None:
    return signed(row.gap, row.result.metric)


def _hardware(row: Row) -> str:
    alone = len(row.result.costs) == 1
    return plain(row.cost.hardware) + ("" if alone else f" ({row.cost.n} seed{'s' * (row.cost.n > 1)})")


def _mean(key: str, show: Callable[[float], str]) -> Callable[[Row], str | None]:
    """The mean of a number in the records, of the row's hardware if it is a row of costs."""

    def value(row: Row) -> str | None:
        mean = (row.cost or row.result).means.get(key)
        return None if mean is None else show(mean)

    return value


def _score_of(key: str) -> Callable[[Row], str | None]:
    return lambda row: score(row.result.means.get(key), row.result.metric)


def _others(row: Row) -> float:
    return row.cost.means.get("provenance.others", 0.0)


_whole = "{:,.0f}".format


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


RESULTS = (
    Column("teacher", "score of the teacher", RIGHT, _score_of("metrics.teacher"), common=True),
    Column(
        "#", "rank within the pair; `ref`: a reference row; `abl`: an ablation or control of what is above it", RIGHT,
        _place,
    ),
    Column("method", "", LEFT, _method),
    Column(
        "prior", "what the method knows besides the teacher", LEFT,
        lambda row: None if row.result.reference else plain(row.result.prior),
    ),
    Column("last", "score after the last step: mean ± sample standard deviation (number of seeds)", RIGHT, _last),
    Column("oracle", "best test score of each run, mean over seeds", RIGHT, _score_of("metrics.oracle_best")),
    Column(
        "gap", f"`last` less the `last` of `{KD}`, which is distillation on the real training data", RIGHT,
        _gap,
    ),
    Column(
        "retention", "`last` over the score of the teacher", RIGHT,
        lambda row: None if row.result.retention is None else _percent(row.result.retention),
    ),
    Column(
        "isolation",
        "`audit-hook`: only a hook in Python kept the method from real data; –: the kernel did, or an older record",
        LEFT, lambda row: None if row.result.confined else "audit-hook", needed=lambda row: not row.result.confined,
    ),
    Column(
        "status",
        "`stale`: method or configuration changed since; `n/a`: does not apply, see note; only `ok` ranks", LEFT,
        lambda row: "n/a" if row.result.state == "unsupported" else row.result.status, common=True,
    ),
)  # fmt: skip
COSTS = (
    Column("method", "", LEFT, _method),
    Column("synthesis", "time spent on making images", RIGHT, _mean("time.synthesis", duration)),
    Column("distillation", "time spent on training the student", RIGHT, _mean("time.distillation", duration)),
    Column(
        "total", "all time but evaluation and bookkeeping: set-up, prior and buffer included", RIGHT,
        lambda row: duration(row.cost.scored),
    ),
    Column(
        "once per teacher",
        "of `total`: training of the prior, in full in every row, and stages that serve every student", RIGHT,
        lambda row: duration(row.cost.once), needed=lambda row: row.cost.once,
    ),
    Column(
        "per student", "the rest of `total`, paid again for every further student", RIGHT,
        lambda row: duration(row.cost.per_student), needed=lambda row: row.cost.once,
    ),
    Column(
        f"to {GOAL:.0%}", f"total time until an evaluation first saw {GOAL:.0%} of the mean score of `{KD}`", RIGHT,
        _to_goal, needed=lambda row: row.kd is not None,
    ),
    Column(
        "Pareto", "●: no other method of the pair is better in as little time on that hardware", RIGHT,
        lambda row: "●" if row.cost.hardware in row.efficient else None, needed=lambda row: row.efficient,
    ),
    Column("images", "images synthesised", RIGHT, _mean("cost.images_synthesised", _whole)),
    Column("steps", "training steps of the student", RIGHT, _mean("cost.student_steps", _whole)),
    Column(
        "memory", "peak: device memory on CUDA, process memory on a CPU", RIGHT,
        _mean("cost.peak_memory_bytes", memory),
    ),
    Column(
        "others", "processors that other work kept busy meanwhile, on average: such times may be too long", RIGHT,
        lambda row: f"{_others(row):.1f}" if _others(row) >= DISTURBED else None,
        needed=lambda row: _others(row) >= DISTURBED,
    ),
    Column("hardware", "class of the machine; number of seeds if there are several", LEFT, _hardware, common=True),
)  # fmt: skip
IMAGES = (
    Column("method", "", LEFT, lambda row: _method(row) + (" (stale)" if row.result.state == "stale" else "")),
    Column(
        "images", "how many were looked at: what the run ended with, at most 4,096", RIGHT,
        _mean("diagnostics.images", _whole),
    ),
    Column(
        "agreement", "share that the teacher gives the class they were made for; –: made for no class", RIGHT,
        _mean("diagnostics.agreement", _percent),
    ),
    Column(
        "rarest class", "its share of the teacher's decisions (one an image, or one a pixel)", RIGHT,
        _mean("diagnostics.smallest", _percent),
    ),
    Column("commonest class", "its share of them", RIGHT, _mean("diagnostics.largest", _percent)),
    Column(
        "difficulty", "1 less the teacher's probability of its decision, mean", RIGHT,
        _mean("diagnostics.difficulty", "{:.3f}".format),
        needed=lambda row: "diagnostics.difficulty" in row.result.means,
    ),
    Column(
        "diversity", "mean distance of two images over that of two real ones: 1 is as diverse as real, 0 all the same",
        RIGHT, _mean("diagnostics.diversity", "{:.2f}".format),
    ),
    Column(
        "Fréchet",
        "Fréchet distance to the real images, 0 is closest; higher for fewer images; each teacher has its scale",
        RIGHT, _mean("diagnostics.frechet", figure),
    ),
    Column(
        "samples", "the newest images; in segmentation each is followed by the teacher's and the student's label map",
        LEFT, lambda row: f"[grid]({row.plots}/{plots.grid_of(row.result.cell)})",
    ),
)  # fmt: skip
OVERVIEW = (  # of the rows of a pair
    Column("data", "", LEFT, lambda rows: f"[{rows[0].result.cell.data}](#{rows[0].result.cell.data})"),
    Column("protocol", "", LEFT, lambda rows: rows[0].result.cell.protocol),
    Column("pair", "", LEFT, lambda rows: names(rows[0].result)),
    Column(KD, "", RIGHT, lambda rows: next((_mean_last(row) for row in rows if row.result.cell.method == KD), None)),
    Column("best method", "", LEFT, _names_of_best),
    Column("last", "", RIGHT, _of_best(_mean_last)),
    Column("gap", "", RIGHT, _of_best(_gap)),
)
ACROSS = (  # of a method and its ranks in all pairs where it has one
    Column("method", "", LEFT, lambda group: plain(group[0])),
    Column("mean rank", "", RIGHT, lambda group: f"{sum(group[1]) / len(group[1]):.2f}"),
    Column("pairs", "", RIGHT, lambda group: str(len(group[1]))),
    Column("first in", "", RIGHT, lambda group: str(group[1].count(1))),
)


def names(result: Result) -> str:
    """`wrn40_2 → wrn16_1`."""
    return plain(f"{result.cell.teacher} → {result.cell.student}")
