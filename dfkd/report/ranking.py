"""Which methods of a pair can be told apart, and which of them waste nothing: ranks as groups, the Pareto frontier.

Two methods are told apart by a t-test of their last scores: paired over the seeds that both have, since a seed stands
for the same first weights of the student; Welch's where fewer than `SEEDS` are common.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, variance
from typing import NamedTuple

from dfkd.identity import Cell
from dfkd.report.statistics import Result

SEEDS = 3  # fewer make an order, and no rank
CONFIDENCE = 0.95

Scores = Mapping[int, float]  # by seed


class Difference(NamedTuple):
    """Mean of one method's scores less another's, the 95 % interval of that, and how it was found."""

    mean: float
    low: float
    high: float
    paired: bool
    n: int  # seeds: common ones where paired, else the fewer of the two

    @property
    def told(self) -> bool:
        """Whether the two can be told apart."""
        return not self.low <= 0 <= self.high


def difference(one: Scores, other: Scores) -> Difference | None:
    """`one` less `other`, of scores by seed; None where a side has fewer than `SEEDS`."""
    if min(len(one), len(other)) < SEEDS:
        return None
    common = sorted(one.keys() & other.keys())
    if len(common) >= SEEDS:
        gaps = [one[seed] - other[seed] for seed in common]
        mean, half = fmean(gaps), _half(variance(gaps) / len(gaps), len(gaps) - 1)
        return Difference(mean, mean - half, mean + half, True, len(common))
    sides = [list(side.values()) for side in (one, other)]
    errors = [variance(side) / len(side) for side in sides]
    # Welch and Satterthwaite's degrees of freedom.
    parts = sum(error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True))
    freedom = sum(errors) ** 2 / parts if parts else 1.0
    mean, half = fmean(sides[0]) - fmean(sides[1]), _half(sum(errors), freedom)
    return Difference(mean, mean - half, mean + half, False, min(map(len, sides)))


def interval(scores: Scores) -> tuple[float, float] | None:
    """The 95 % interval of the mean by Student's t; None for fewer than two scores."""
    values = list(scores.values())
    if len(values) < 2:
        return None
    mean, half = fmean(values), _half(variance(values) / len(values), len(values) - 1)
    return mean - half, mean + half


def _half(error: float, freedom: float) -> float:
    """Half the interval of a mean by Student's t, from its squared standard error.

    As `scipy.stats` has it, whose tests take a hundred times as long; a table of many methods has thousands of them.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error**0.5


def ranks(results: Iterable[Result]) -> dict[Cell, int]:
    """The rank of each competing method of one pair that has `SEEDS` seeds, best first.

    Methods that cannot be told apart share one, and so do those between them: a new rank begins only where everything
    above can be told from everything below. It is one more than the number of methods with a better rank.
    """
    able = [result for result in results if result.competes and result.last and result.last.n >= SEEDS]
    able.sort(key=lambda result: (-result.last.mean, result.cell))

    @functools.cache
    def told(i: int, j: int) -> bool:
        found = difference(able[i].scores, able[j].scores)
        return found is not None and found.told

    found: dict[Cell, int] = {}
    begun, places = 0, range(len(able))
    for i in places:
        if all(told(above, below) for above in places[:i] for below in places[i:]):
            begun = i
        found[able[i].cell] = begun + 1
    return found


def frontier(results: Sequence[Result]) -> set[tuple[Cell, str]]:
    """Cells and classes of hardware on which no other method of the pair is as good in as little time, and better in
    one of the two. Finished methods only, none that is stale, each class of hardware for itself."""
    points = [
        (result.last.mean, cost.scored, cost.hardware, result.cell)
        for result in results
        if result.last and result.state != "stale" and not result.reference and result.ablates is None
        for cost in result.costs
    ]
    return {
        (cell, hardware)
        for score, seconds, hardware, cell in points
        if not any(
            other == hardware and better >= score and faster <= seconds and (better, faster) != (score, seconds)
            for better, faster, other, _ in points
        )
    }
