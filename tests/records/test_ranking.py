"""Methods that seeds cannot tell apart share a rank; who is beaten in score and time is off the frontier."""

from __future__ import annotations

import pytest
from scipy import stats

from dfkd.report import ranking
from dfkd.report.curves import Point, mean_curve, seconds_to
from tests.records.conftest import gathered

ONE, OTHER = {0: 90.0, 1: 91.0, 2: 92.5}, {0: 89.5, 1: 90.6, 2: 91.7}


def test_common_seeds_are_paired():
    found = ranking.difference(ONE, OTHER)
    low, high = stats.ttest_rel(list(ONE.values()), list(OTHER.values())).confidence_interval(0.95)
    assert (found.paired, found.n, found.told) == (True, 3, True)  # differences .5, .4, .8 against a spread of 1.2
    assert (found.mean, found.low, found.high) == pytest.approx((1.7 / 3, low, high))


def test_other_seeds_are_not():
    moved = {seed + 2: score for seed, score in OTHER.items()}  # one seed in common
    found = ranking.difference(ONE, moved)
    low, high = stats.ttest_ind(list(ONE.values()), list(OTHER.values()), equal_var=False).confidence_interval(0.95)
    assert (found.paired, found.told) == (False, False)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_two_seeds_tell_nothing():
    assert ranking.difference({0: 90.0, 1: 90.1}, ONE) is None


def test_a_difference_without_spread_is_told_where_there_is_one():
    same = ranking.difference(ONE, ONE)
    assert (same.mean, same.told) == (0.0, False)
    assert ranking.difference(ONE, {seed: score - 1 for seed, score in ONE.items()}).told


def ranked(record, **scores):
    runs = [record(name, last, seed=seed) for name, lasts in scores.items() for seed, last in enumerate(lasts)]
    return {cell.method: rank for cell, rank in ranking.ranks(gathered(runs)).items()}


def test_a_rank_begins_where_all_above_is_told_from_all_below(record):
    tight, noisy = [90.0, 90.1, 90.05], [80.0, 95.0, 86.0]
    assert ranked(record, a=tight, b=[88.0, 88.2, 88.1], c=[70.0, 70.3, 70.1]) == {"a": 1, "b": 2, "c": 3}
    # c cannot be told from a, so that b, which can, shares their rank.
    assert ranked(record, a=tight, b=[88.0, 88.2, 88.1], c=noisy) == {"a": 1, "b": 1, "c": 1}
    assert ranked(record, a=tight, b=[90.1, 90.0, 89.9], c=[70.0, 70.3, 70.1]) == {"a": 1, "b": 1, "c": 3}
    assert ranked(record, a=tight, b=[99.0, 99.1]) == {"a": 1}


def test_reference_rows_ablations_and_stale_rows_have_none(record):
    runs = [record("a", 90.0 + seed / 10, seed=seed) for seed in range(3)]
    runs += [record("kd-real", 95.0 + seed / 10, seed=seed, reference=True) for seed in range(3)]
    runs += [record("a-less", 80.0 + seed / 10, seed=seed) for seed in range(3)]
    results = gathered(runs, None, {result.cell: "a" for result in gathered(runs) if result.cell.method == "a-less"})
    assert {cell.method for cell in ranking.ranks(results)} == {"a"}
    assert {cell.method for cell, _ in ranking.frontier(results)} == {"a"}
    stale = gathered(runs, {result.cell: ("new", "c1") for result in results})
    assert ranking.ranks(stale) == {}


def test_the_frontier_is_of_each_class_of_hardware(record):
    runs = [record("fast", 80.0, synthesis=10.0), record("good", 90.0, synthesis=500.0)]
    runs += [record("beaten", 79.0, synthesis=20.0), record("alone", 50.0, synthesis=900.0, hardware="CPU")]
    found = {(cell.method, hardware) for cell, hardware in ranking.frontier(gathered(runs))}
    assert found == {("fast", "NVIDIA H200"), ("good", "NVIDIA H200"), ("alone", "CPU")}


def test_the_interval_is_students(record):
    low, high = ranking.interval({0: 1.0, 1: 2.0, 2: 6.0})
    half = 4.302653 * (7 / 3) ** 0.5  # t of 2 degrees of freedom; variance 7
    assert (low, high) == pytest.approx((3 - half, 3 + half))
    assert ranking.interval({0: 1.0}) is None and ranking.interval({0: 1.0, 1: 1.0}) == (1.0, 1.0)


def test_the_curve_of_several_seeds_is_their_mean_at_common_steps():
    def curve(*points):
        return [{"step": step, "seconds": seconds, "value": value} for step, seconds, value in points]

    joined = mean_curve(
        [curve((1, 10.0, 50.0), (2, 20.0, 80.0)), curve((1, 12.0, 54.0), (2, 22.0, None), (3, 30.0, 90.0))]
    )
    assert joined == (Point(11.0, 52.0, pytest.approx(8**0.5)),)
    alone = mean_curve([curve((1, 10.0, 50.0), (2, 20.0, 80.0), (3, 30.0, 70.0))])
    assert [point.std for point in alone] == [None] * 3
    assert (seconds_to(alone, 60.0), seconds_to(alone, 81.0), mean_curve([])) == (20.0, None, ())
