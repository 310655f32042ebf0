"""The columns of all tables, in their order: each one entry, which also is its line in the legend."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd.metrics import Metric
from dfkd.report import markdown, plots
from dfkd.report.markdown import plain
from dfkd.report.published import Quoted
from dfkd.report.statistics import KD, Cost, Result, gap_to_kd
from dfkd.units import duration, memory

REFERENCES = ("teacher", "student-real", KD)  # the order of reference rows; the rest by name
NOTHING = "–"
LEFT, RIGHT = "left", "right"


@dataclass(frozen=True)
class Row:
    """A line of a table: a result in its place, of the costs that on one class of hardware."""

    result: Result
    rank: int | None
    gap: float | None
    quoted: Quoted | None
    cost: Cost | None = None
    plots: str = "plots"  # where they lie as seen from the page


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
    """Reference rows first, then methods by their last score, then those that have none."""

    def place(result: Result) -> tuple:
        name = result.cell.method
        if result.reference:
            return (0, REFERENCES.index(name) if name in REFERENCES else len(REFERENCES), name)
        return (1, -result.last.mean, name) if result.last else (2, result.state == "unsupported", name)

    return sorted(results, key=place)


def rows_of(results: Sequence[Result], quoted: dict, plots_folder: str) -> list[Row]:
    """The rows of one pair, ranked."""
    ranks = itertools.count(1)

    def row(result: Result) -> Row:
        rank = next(ranks) if result.ranked else None
        return Row(result, rank, gap_to_kd(result, results), quoted.get(result.cell), plots=plots_folder)

    return list(map(row, ordered(results)))


def figure(number: float) -> str:
    """A number of which nothing is known: three significant digits, or all before the point."""
    whole = abs(number) < 1e15 and (abs(number) >= 1000 or number == round(number))
    return f"{number:,.0f}" if whole else f"{number:.3g}"


def _score(value: float | None, metric: Metric) -> str | None:
    return None if value is None else f"{value:.{metric.decimals}f}"


def _signed(value: float | None, metric: Metric) -> str | None:
    """With a sign that is as wide as a plus."""
    return None if value is None else f"{value:+.{metric.decimals}f}".replace("-", "−")


def _last(row: Row) -> str | None:
    last, metric = row.result.last, row.result.metric
    if last is None:
        return None
    spread = "" if last.std is None else f" ± {_score(last.std, metric)}"
    text = f"{_score(last.mean, metric)}{spread} ({last.n})"
    return f"**{text}**" if row.rank == 1 else text


def _last_mean(result: Result | None) -> str | None:
    return _score(result.last.mean, result.metric) if result and result.last else None


def _best(pair: Iterable[Result]) -> Result | None:
    return next((result for result in pair if result.ranked), None)


def _method(row: Row) -> str:
    name = plain(row.result.cell.method)
    return f"*{name}*" if row.result.reference else name


def _quoted(row: Row) -> str | None:
    if row.quoted is None:
        return None
    marks = ("" if row.quoted.verified else "†") + ("\\*" if row.quoted.note else "")
    return f"{_score(row.quoted.value, row.result.metric)} [{row.quoted.tag}]{marks}"


def _beyond_quoted(row: Row) -> str | None:
    oracle = row.result.means.get("metrics.oracle_best")
    if row.quoted is None or row.quoted.suspect or oracle is None:
        return None
    return _signed(oracle - row.quoted.value, row.result.metric)


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
    return lambda row: _score(row.result.means.get(key), row.result.metric)


_whole = "{:,.0f}".format


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


RESULTS = (
    Column("teacher", "score of the teacher", RIGHT, _score_of("metrics.teacher"), common=True),
    Column(
        "#", "rank within the pair, by `last`; `ref`: a reference row", RIGHT,
        lambda row: "ref" if row.result.reference else row.rank and str(row.rank),
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
        lambda row: _signed(row.gap, row.result.metric),
    ),
    Column(
        "paper", "published score [source]; † not verified in the source itself; * see the note", RIGHT, _quoted,
        needed=lambda row: row.quoted,
    ),
    Column(
        "oracle − paper", "ours less published, both chosen on the test set", RIGHT, _beyond_quoted,
        needed=lambda row: row.quoted,
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
    Column("images", "images synthesised", RIGHT, _mean("cost.images_synthesised", _whole)),
    Column("steps", "training steps of the student", RIGHT, _mean("cost.student_steps", _whole)),
    Column(
        "memory", "peak: device memory on CUDA, process memory on a CPU", RIGHT,
        _mean("cost.peak_memory_bytes", memory),
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
OVERVIEW = (  # of the ordered results of a pair
    Column("data", "", LEFT, lambda pair: f"[{pair[0].cell.data}](#{pair[0].cell.data})"),
    Column("protocol", "", LEFT, lambda pair: pair[0].cell.protocol),
    Column("pair", "", LEFT, lambda pair: names(pair[0])),
    Column(KD, "", RIGHT, lambda pair: _last_mean(next((each for each in pair if each.cell.method == KD), None))),
    Column("best method", "", LEFT, lambda pair: plain(best.cell.method) if (best := _best(pair)) else None),
    Column("last", "", RIGHT, lambda pair: _last_mean(_best(pair))),
    Column(
        "gap",
        "",
        RIGHT,
        lambda pair: _signed(gap_to_kd(best, pair), best.metric) if (best := _best(pair)) else None,
    ),
)


def names(result: Result) -> str:
    """`wrn40_2 → wrn16_1`."""
    return plain(f"{result.cell.teacher} → {result.cell.student}")
