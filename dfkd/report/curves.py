"""Score over time: the curves of a cell's seeds joined into one, and how long it takes to reach a score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

GOAL = 0.9  # of the score of distillation on real data: what time is measured to


class Point(NamedTuple):
    """An evaluation: scored seconds, mean score, sample standard deviation over seeds (None for one seed)."""

    seconds: float
    mean: float
    std: float | None


def mean_curve(curves: Iterable[Sequence[dict[str, Any]]]) -> tuple[Point, ...]:
    """The curve of several seeds: at each step that all of them were evaluated at, mean seconds and scores.

    `curves` are those of records: lists of `step`, `seconds`, `value`.
    """
    by_step = [{each["step"]: each for each in curve if each["value"] is not None} for curve in curves]
    common = sorted(set.intersection(*map(set, by_step))) if by_step else []
    return tuple(_point([steps[step] for steps in by_step]) for step in common)


def _point(evaluations: Sequence[dict[str, Any]]) -> Point:
    values = [each["value"] for each in evaluations]
    mean = fmean(values)
    # As `statistics.stdev` has it, which counts in fractions: a campaign has tens of thousands of points.
    squares = math.fsum((value - mean) ** 2 for value in values)
    spread = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else None
    return Point(fmean([each["seconds"] for each in evaluations]), mean, spread)


def seconds_to(curve: Iterable[Point], score: float) -> float | None:
    """Scored seconds of the first evaluation at which the mean reaches `score`; None where none does."""
    return next((point.seconds for point in curve if point.mean >= score), None)
