"""What the tables and plots say about a cell: seeds gathered, means, deviations, what compares."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from dfkd.identity import Cell, Run
from dfkd.metrics import Metric, metric
from dfkd.records import SCHEMA
from dfkd.report.current import Digests, digests_of
from dfkd.report.curves import Point, mean_curve
from dfkd.report.markdown import code, plain
from dfkd.units import duration

if TYPE_CHECKING:
    import pandas

KD = "kd-real"  # the reference row from which every gap is taken
STATUSES = ("ok", "stale", "partial", "diverged", "failed", "unsupported")
CELL = list(Cell._fields)
HARDWARE = "provenance.hardware.class"
INPUTS = ["provenance.teacher.digest", "provenance.data.digest"]
ALIKE = [*INPUTS, "prior.digest", "metrics.name"]  # runs that differ in one of these are never averaged
CLASSES, CONFIDENCE = HISTOGRAMS = ("diagnostics.classes", "diagnostics.confidence")  # lists of shares, for figures
_OTHERS = ("config.class", "stale", "curve")
_OF_IMAGES = {"diagnostics.smallest": min, "diagnostics.largest": max}  # shares of a run's rarest, commonest class


def _keys(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of single values, each with its type; lists and objects of any content have none."""
    for key, part in schema.items():
        if "properties" in part:
            yield from _keys(part["properties"], f"{prefix}{key}.")
        elif part and part.get("type") not in ("array", "object"):
            yield prefix + key, part.get("type")


KEYS = {key.removeprefix("identity."): kind for key, kind in _keys({"identity": {}} | SCHEMA["properties"])}
NUMBERS = [key for key, kind in KEYS.items() if re.search("number|integer", str(kind))]


class Summary(NamedTuple):
    """Mean, sample standard deviation (None for one value) and number of values."""

    mean: float
    std: float | None
    n: int


Means = Mapping[str, float]  # over seeds, by dotted key of the record; a key that no run has a value for is not there


@dataclass(frozen=True)
class Cost:
    """What the runs of a cell cost on one class of hardware; times in seconds."""

    hardware: str
    n: int
    means: Means
    curve: tuple[Point, ...] = ()  # of the finished runs
    totals: tuple[float, ...] = ()  # scored seconds of each finished run
    syntheses: tuple[float, ...] = ()  # its seconds of synthesis

    @property
    def scored(self) -> float:
        return self.means["time.scored"]

    @property
    def once(self) -> float:
        """Of `scored`: prior and shared stages, which serve every student of the teacher."""
        return self.means["time.prior"] + self.means["time.shared"]

    @property
    def per_student(self) -> float:
        """What every further student of the teacher would take."""
        return max(0.0, self.scored - self.once)


@dataclass(frozen=True)
class Result:
    """One cell over its seeds. Scores, diagnostics and reports are of finished runs only."""

    cell: Cell
    metric: Metric
    state: str  # one of STATUSES: that of the runs that the numbers are taken from
    inputs: tuple[str | None, str]  # digests of teacher and data, the same for all runs of the numbers
    status: str  # `state`, and what the other seeds of the cell came to
    reference: bool
    prior: str
    prior_notes: tuple[str, ...]  # what the prior was trained on, where it comes from and what it cost
    family: str  # the method that the recipe is of
    ablates: str | None  # the recipe of which this one is an ablation or a control
    scores: Mapping[int, float]  # by seed, after the last step
    last: Summary | None
    oracle: Summary | None  # best on the way
    means: Means
    # By one of HISTOGRAMS: mean over the seeds; of images, so of methods only. Classes are those of each run from the
    # commonest to the rarest, since runs that prefer different classes would look balanced in the mean.
    histograms: Mapping[str, list[float]]
    costs: tuple[Cost, ...]  # one for each class of hardware
    changed: tuple[str, ...]  # what was changed in the data, as their manifest says
    note: str | None  # what the recipe says of itself, such as that it is a reconstruction
    error: str | None  # of a method that does not apply: the reason
    comparable: bool  # with published numbers: whole data set, untouched test images
    confined: bool  # no run is known to have had an audit hook alone between its method and real data

    @property
    def competes(self) -> bool:
        """Whether the cell has a place among the methods: neither reference row nor control nor ablation."""
        return self.state == "ok" and not self.reference and self.ablates is None

    @property
    def retention(self) -> float | None:
        """The student's last score over the teacher's."""
        teacher = self.means.get("metrics.teacher")
        return self.last.mean / teacher if self.last and teacher else None

    @property
    def report(self) -> Means:
        """The numbers by the method itself."""
        return {key.removeprefix("report."): mean for key, mean in self.means.items() if key.startswith("report.")}


def tidy(records: Iterable[dict], current: Digests | None = None) -> pandas.DataFrame:
    """One row for each record: every single value by its dotted key, its curve, and whether it is stale.

    `current[cell]` has the digests of method and configuration at hand: a record with others is stale. A cell that is
    not named there, or no mapping at all, is taken as it is.
    """
    import pandas

    rows = [_row(record, current or {}) for record in sorted(records, key=lambda record: _place(Run.of(record)))]
    reported = {key for row in rows for key in row if key.startswith("report.")}
    columns = [*KEYS, *_OTHERS, *_OF_IMAGES, *sorted(reported), *HISTOGRAMS]
    return pandas.DataFrame(rows, columns=columns, dtype=object)


def gather(runs: pandas.DataFrame, ablations: Mapping[Cell, str] | None = None) -> list[Result]:
    """One result for each cell of the rows that `tidy` makes; custom records are left out.

    `ablations[cell]` is the recipe of which the cell's is an ablation; a cell that is not there has none.
    """
    runs = runs[~runs["custom"].astype(bool)]
    if runs.empty:
        return []
    state = runs["status"].mask((runs["status"] == "ok") & runs["stale"].astype(bool), "stale")
    runs = runs.assign(state=state, order=state.map(STATUSES.index))
    # Numbers of different states are never averaged: finished runs of today's code come first.
    chosen = runs[runs["order"] == runs.groupby(CELL)["order"].transform("min")]
    alike = chosen[_commonest(chosen)]
    scores = ("metrics.last", "metrics.oracle", "diagnostics.", "report.")
    finished = [key for key in runs if key.startswith(scores) and key not in HISTOGRAMS]
    numbers = [*NUMBERS, *(key for key in finished if key not in NUMBERS)]
    values = alike[numbers].astype(float).fillna({"time.shared": 0.0})
    values[finished] = values[finished].where(alike["status"] == "ok")
    keys = [alike[key] for key in CELL]
    means = _known(values.groupby(keys).mean())
    costs: dict[tuple, dict[str, Means]] = {}
    for (*cell, hardware), mean in _known(values.groupby([*keys, alike[HARDWARE]]).mean()).items():
        costs.setdefault(tuple(cell), {})[hardware] = mean
    states: dict[tuple, Counter] = {}
    for *cell, each in runs[[*CELL, "state"]].itertuples(index=False):
        states.setdefault(tuple(cell), Counter())[each] += 1
    rows: dict[tuple, list[dict]] = {}
    for row in alike.to_dict("records"):
        rows.setdefault(tuple(row[key] for key in CELL), []).append(row)
    ablations = ablations or {}
    return [
        _result(Cell(*cell), of, states[cell], means[cell], costs[cell], ablations.get(Cell(*cell)))
        for cell, of in rows.items()
    ]


def kd_of(result: Result, results: Iterable[Result]) -> Result | None:
    """Distillation on real data in the same table, of the same pair, teacher and data, which every gap is taken from.

    None if it lacks or is stale, and for that row itself.
    """
    kd = next((other for other in results if other.cell == result.cell._replace(method=KD)), None)
    if kd is None or kd.cell == result.cell or kd.last is None or kd.inputs != result.inputs or kd.state != "ok":
        return None
    return kd


def _place(run: Run) -> tuple:
    return (*run.cell, run.seed)


def _row(record: dict, current: Digests) -> dict[str, Any]:
    row = {}
    for key in KEYS:
        value: Any = record
        for part in (f"identity.{key}" if key in Run._fields else key).split("."):
            value = value.get(part) if isinstance(value, dict) else None
        row[key] = value
    found = record.get("diagnostics") or {}
    row |= {key: found.get(key.removeprefix("diagnostics.")) for key in HISTOGRAMS}
    row |= {key: choose(found["classes"]) for key, choose in _OF_IMAGES.items() if found}
    row |= {f"report.{name}": value for name, value in (record.get("report") or {}).items()}
    row |= {"config.class": str(record["config"].get("class", row["method"])), "curve": record["metrics"]["curve"]}
    made_with = digests_of(record)
    return row | {"stale": current.get(Run.of(record).cell, made_with) != made_with}


def _commonest(runs: pandas.DataFrame) -> pandas.Series:
    """Which runs have what most of their cell's have: teacher, prior and data; what the first of them has in a tie."""
    groups, keys = runs.groupby([*CELL, *ALIKE], dropna=False, sort=False), [runs[key] for key in CELL]
    size = groups["seed"].transform("size")
    number = groups.ngroup().where(size == size.groupby(keys).transform("max"))
    return number == number.groupby(keys).transform("min")


def _mean_histograms(runs: list[dict]) -> dict[str, list[float]]:
    """Of the finished runs that have one."""
    found = {key: [run[key] for run in runs if run["status"] == "ok" and run[key]] for key in HISTOGRAMS}
    found[CLASSES] = [sorted(shares, reverse=True) for shares in found[CLASSES]]
    return {key: [sum(part) / len(part) for part in zip(*each, strict=True)] for key, each in found.items() if each}


def _known(means: pandas.DataFrame) -> dict[tuple, Means]:
    """By key of the row, without what no run has."""
    rows = means.to_dict("index")
    return {key: {name: mean for name, mean in row.items() if mean == mean} for key, row in rows.items()}


def _result(
    cell: Cell, runs: list[dict], states: Counter, means: Means, costs: Mapping[str, Means], ablates: str | None
) -> Result:
    first, finished = runs[0], [run for run in runs if run["status"] == "ok"]
    excluded = states[first["state"]] - len(runs)
    others = [f"{states[state]} {state}" for state in STATUSES if state in states and state != first["state"]]
    others += [f"{excluded} on another teacher, prior or data"] if excluded else []
    return Result(
        cell=cell,
        metric=metric(first["metrics.name"]),
        state=first["state"],
        status=", ".join([first["state"], *others]),
        inputs=(first[INPUTS[0]], first[INPUTS[1]]),
        reference=first["reference"],
        # `public32`, or the kind where the prior is no model: `class names`, `none`.
        prior=first["prior.kind"].replace("diffusion", first["prior.name"] or "diffusion"),
        prior_notes=tuple(sorted({note for run in runs if (note := _prior_note(run))})),
        family=first["config.class"],
        ablates=ablates,
        scores={run["seed"]: run["metrics.last"] for run in finished},
        last=_summary([run["metrics.last"] for run in finished]),
        oracle=_summary([run["metrics.oracle_best"] for run in finished]),
        means=means,
        histograms=_mean_histograms(runs),
        costs=tuple(_cost(name, runs, of) for name, of in costs.items()) if first["state"] != "unsupported" else (),
        changed=tuple(sorted({run["provenance.data.changed"] or "" for run in runs} - {""})),
        note=first["note"],
        error=first["error"],
        comparable=all(map(_is_comparable, runs)),
        confined=all(run["provenance.isolation"] != "audit-hook" for run in runs),
    )


def _summary(values: Collection[float]) -> Summary | None:
    return Summary(fmean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None


def _cost(hardware: str, runs: Iterable[dict], means: Means) -> Cost:
    on = [run for run in runs if run[HARDWARE] == hardware]
    finished = [run for run in on if run["status"] == "ok"]
    totals, syntheses = (tuple(run[key] for run in finished) for key in ("time.scored", "time.synthesis"))
    return Cost(hardware, len(on), means, mean_curve(run["curve"] for run in finished), totals, syntheses)


def _is_comparable(run: Mapping[str, Any]) -> bool:
    """Whether published numbers hold for the data of a run: whole, original test images."""
    if run["provenance.data.subset"]:
        return False
    return not run["provenance.data.changed"] or run["provenance.data.test_changed"] is False


def _prior_note(run: Mapping[str, Any]) -> str | None:
    """What everybody should know of the prior who compares its row with others, as Markdown."""
    if run["prior.trained_on"] is None:
        return None
    name, trained_on = run["prior.name"] or run["prior.kind"], run["prior.trained_on"].rstrip(". ")
    origin = {"adopted": " (imported)", "foreign": " (user-provided)"}.get(run["prior.origin"], "")
    if "diffusion" not in (run["prior.kind"] or ""):
        return f"Images of the prior {code(name)}: {plain(trained_on)}; a run on them pays nothing for its training"
    seconds = run["prior.seconds"] or run["time.prior"]
    training = f"its training took {duration(seconds)}" if seconds else "training time unknown, billed 0"
    return f"Prior {code(name)}{origin}, trained on: {plain(trained_on)}; {training}"
