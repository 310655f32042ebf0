"""What the tables and the plots say about a cell: seeds gathered, means, deviations, what compares."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dfkd.identity import Cell
from dfkd.markdown import code, plain
from dfkd.records import cells
from dfkd.units import duration

KD_BOUND = "kd-real"  # the bound from which every gap is taken
STATUSES = ("ok", "stale", "partial", "diverged", "failed")


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def sample_std(values: Sequence[float]) -> float | None:
    """The sample standard deviation (divisor n - 1); None for a single value, of which nothing is known."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


class Summary(NamedTuple):
    """Mean, sample standard deviation (None for one value) and number of values."""

    mean: float
    std: float | None
    n: int


def summarise(values: Iterable[float | None]) -> Summary | None:
    """The summary of the values that are there; None if none is."""
    known = [value for value in values if value is not None]
    return Summary(mean(known), sample_std(known), len(known)) if known else None


def across_seeds(records: Iterable[dict], group: str, key: str) -> Summary | None:
    """`record[group][key]` over the seeds, e.g. `across_seeds(records, "time", "scored")` in seconds."""
    return summarise(record[group][key] for record in records)


@dataclass(frozen=True)
class Cost:
    """What the runs of a cell cost on one class of hardware; means over `n` runs, times in seconds."""

    hardware: str
    n: int
    synthesis: float
    distillation: float
    scored: float
    once: float  # of `scored`: prior and shared stages, which serve every student of the teacher
    images: float
    steps: float
    memory: float | None  # bytes

    @property
    def per_student(self) -> float:
        """Seconds that every further student of the teacher would take."""
        return max(0.0, self.scored - self.once)


@dataclass(frozen=True)
class Diagnostics:
    """What the synthetic images of a cell are like (dfkd/engine/diagnostics.py); means over the runs that say so."""

    images: float
    agreement: float | None
    smallest: float  # share of the class that a run has fewest of
    largest: float
    diversity: float | None
    frechet: float


@dataclass(frozen=True)
class Result:
    """One cell over its seeds. Accuracies are None unless some run of it came to its end."""

    cell: Cell
    metric: str
    state: str  # one of STATUSES: that of the runs that the numbers are taken from
    inputs: tuple[str | None, str]  # digests of teacher and data, the same for all runs of the numbers
    status: str  # `state`, and what the other seeds of the cell came to
    reference: bool
    prior: str
    prior_notes: tuple[str, ...]  # what the prior was trained on, where it comes from and what it cost
    teacher: float | None
    last: Summary | None
    oracle: Summary | None
    costs: tuple[Cost, ...]  # one for each class of hardware
    changed: tuple[str, ...]  # what was changed in the data, as their manifest says
    note: str | None  # what the recipe says of itself, such as that it is a reconstruction
    comparable: bool  # with published numbers: whole data set, untouched test images
    diagnostics: Diagnostics | None
    report: Mapping[str, float]  # numbers by the method itself, means over the runs that have them

    @property
    def ranked(self) -> bool:
        """Whether the cell has a place among the methods."""
        return self.state == "ok" and not self.reference


def gather(records: Iterable[dict], current_digests: Mapping[Cell, Mapping[str, str]] | None = None) -> list[Result]:
    """One result for each cell; custom records are left out.

    `current_digests[cell]` has the digests `method` and `config` of the code at hand: a record with others is
    stale. A cell that is not named there, or no mapping at all, is taken as it is.
    """
    included = cells(record for record in records if not record["custom"])
    return [_result(cell, runs, (current_digests or {}).get(cell)) for cell, runs in included.items()]


def gap_to_kd(result: Result, results: Iterable[Result]) -> float | None:
    """Last accuracy less that of distillation on real data, same table, pair, teacher and data.

    None if either lacks, or if the bound is stale.
    """
    kd = next((other for other in results if other.cell == result.cell._replace(method=KD_BOUND)), None)
    if kd is None or kd is result or kd.last is None or result.last is None:
        return None
    if kd.inputs != result.inputs or kd.state != "ok":
        return None
    return result.last.mean - kd.last.mean


def is_comparable(data: Mapping[str, Any]) -> bool:
    """Whether published numbers hold for these data (`provenance.data`): whole, original test images."""
    if data.get("subset", False):
        return False
    return not data["changed"] or data.get("test_changed") is False


def _result(cell: Cell, runs: list[dict], current: Mapping[str, str] | None) -> Result:
    by_state: dict[str, list[dict]] = {}
    for run in runs:
        by_state.setdefault(_state(run, current), []).append(run)
    # Numbers of different states are never averaged: finished runs of today's code come first.
    state = next(state for state in STATUSES if state in by_state)
    chosen, others = _alike(by_state[state])
    finished = chosen if state in ("ok", "stale") else []
    first = chosen[0]
    excluded = f", {others} on another teacher, prior or data" if others else ""
    teachers = summarise(run["metrics"]["teacher"] for run in chosen)
    return Result(
        cell=cell,
        metric=first["metrics"]["name"],
        state=state,
        status=_status(state, by_state) + excluded,
        inputs=_inputs(first),
        reference=first["reference"],
        prior=_prior(first),
        prior_notes=tuple(sorted({note for run in chosen if (note := _prior_note(run))})),
        teacher=teachers.mean if teachers else None,
        last=across_seeds(finished, "metrics", "last"),
        oracle=across_seeds(finished, "metrics", "oracle_best"),
        costs=_costs(chosen),
        changed=tuple(sorted({run["provenance"]["data"]["changed"] or "" for run in chosen} - {""})),
        note=first.get("note"),
        comparable=all(is_comparable(run["provenance"]["data"]) for run in chosen),
        diagnostics=_diagnostics(finished),
        report=_report(finished),
    )


def _inputs(run: dict) -> tuple[str | None, str]:
    return run["provenance"]["teacher"]["digest"], run["provenance"]["data"]["digest"]


def _alike(runs: list[dict]) -> tuple[list[dict], int]:
    """The runs that share the most frequent teacher, prior and data, and how many do not: they are never averaged."""

    def given(run: dict) -> tuple:
        return (*_inputs(run), run["prior"]["digest"], run["metrics"]["name"])

    common, count = Counter(map(given, runs)).most_common(1)[0]
    return [run for run in runs if given(run) == common], len(runs) - count


def _state(run: dict, current: Mapping[str, str] | None) -> str:
    provenance = run["provenance"]
    made_with = (provenance["code"]["method"], provenance["config"])
    if run["status"] == "ok" and current is not None and made_with != (current["method"], current["config"]):
        return "stale"
    return run["status"]


def _prior(run: dict) -> str:
    """`public32`, or the kind where the prior is no model: `class names`, `none`."""
    prior = run["prior"]
    return prior["kind"].replace("diffusion", prior.get("name") or "diffusion")


def _prior_note(run: dict) -> str | None:
    """What everybody should know of the prior who compares its row with others, as Markdown."""
    prior = run["prior"]
    if prior["trained_on"] is None:
        return None
    name, trained_on = prior.get("name") or prior["kind"], prior["trained_on"].rstrip(". ")
    origin = {"adopted": " (adopted)", "foreign": " (foreign weights)"}.get(prior.get("origin"), "")
    seconds = prior.get("seconds") or run["time"]["prior"]
    training = f"its training took {duration(seconds)}" if seconds else "training time unknown, billed 0"
    return f"Prior {code(name)}{origin}, trained on: {plain(trained_on)}; {training}"


def _status(state: str, by_state: Mapping[str, list[dict]]) -> str:
    others = Counter({other: len(runs) for other, runs in by_state.items() if other != state})
    return ", ".join([state, *(f"{others[other]} {other}" for other in STATUSES if other in others)])


def _costs(runs: list[dict]) -> tuple[Cost, ...]:
    by_hardware: dict[str, list[dict]] = {}
    for run in runs:
        by_hardware.setdefault(run["provenance"]["hardware"]["class"], []).append(run)
    return tuple(_cost(hardware, by_hardware[hardware]) for hardware in sorted(by_hardware))


def _cost(hardware: str, runs: list[dict]) -> Cost:
    memory = across_seeds(runs, "cost", "peak_memory_bytes")
    return Cost(
        hardware=hardware,
        n=len(runs),
        synthesis=mean([run["time"]["synthesis"] for run in runs]),
        distillation=mean([run["time"]["distillation"] for run in runs]),
        scored=mean([run["time"]["scored"] for run in runs]),
        once=mean([run["time"]["prior"] + run["time"].get("shared", 0.0) for run in runs]),
        images=mean([run["cost"]["images_synthesised"] for run in runs]),
        steps=mean([run["cost"]["student_steps"] for run in runs]),
        memory=memory.mean if memory else None,
    )


def _diagnostics(runs: list[dict]) -> Diagnostics | None:
    found = [run["diagnostics"] for run in runs if run.get("diagnostics")]
    if not found:
        return None
    agreement, diversity = (summarise(each[key] for each in found) for key in ("agreement", "diversity"))
    return Diagnostics(
        images=mean([each["images"] for each in found]),
        agreement=agreement.mean if agreement else None,
        smallest=mean([min(each["classes"]) for each in found]),
        largest=mean([max(each["classes"]) for each in found]),
        diversity=diversity.mean if diversity else None,
        frechet=mean([each["frechet"] for each in found]),
    )


def _report(runs: list[dict]) -> dict[str, float]:
    """Mean of each number that a method reports, by its name."""
    reports = [run.get("report", {}) for run in runs]
    names = sorted(set().union(*reports))
    return {name: mean([report[name] for report in reports if name in report]) for name in names}
