import pytest

from dfkd import statistics
from dfkd.records import cell_of


def test_mean_and_sample_deviation_by_hand():
    assert statistics.mean([1.0, 2.0, 6.0]) == 3.0
    # Squares of the differences: 4 + 1 + 9 = 14, divided by n - 1 = 2.
    assert statistics.sample_std([1.0, 2.0, 6.0]) == pytest.approx(7**0.5)
    assert statistics.sample_std([5.0]) is None


def test_summary_leaves_out_what_is_not_there():
    assert statistics.summarise([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5), 2)
    assert statistics.summarise([4.0]) == (4.0, None, 1)
    assert statistics.summarise([None]) is None


def test_seeds_are_gathered(record):
    lasts = [88.0, 90.0, 92.0]
    runs = [record(last=last, seed=seed, synthesis=10.0 * last) for seed, last in enumerate(lasts)]
    (result,) = statistics.gather(runs)
    assert result.last == (90.0, 2.0, 3)
    assert result.costs[0].synthesis == 900.0
    assert result.costs[0].n == 3


def test_times_of_different_hardware_are_never_averaged(record):
    runs = [record(seed=0, synthesis=10, hardware="CPU 2 cores")]
    runs += [record(seed=1, synthesis=2, hardware="NVIDIA H200")]
    (result,) = statistics.gather(runs)
    assert [(cost.hardware, cost.n, cost.synthesis) for cost in result.costs] == [
        ("CPU 2 cores", 1, 10),
        ("NVIDIA H200", 1, 2),
    ]
    assert result.last.n == 2


def test_only_finished_runs_of_todays_code_count_where_there_are_some(record):
    runs = [
        record(last=90.0, seed=0),
        record(last=50.0, seed=1, method_digest="old"),
        record(last=50.0, seed=2, config_digest="old"),
        record(seed=3, status="diverged"),
    ]
    (result,) = statistics.gather(runs, {cell_of(runs[0]): {"method": "m1", "config": "c1"}})
    assert (result.last, result.state, result.status) == ((90.0, None, 1), "ok", "ok, 2 stale, 1 diverged")
    assert result.ranked


@pytest.mark.parametrize("status", ["diverged", "failed", "partial"])
def test_what_did_not_finish_has_costs_but_no_accuracy(record, status):
    (result,) = statistics.gather([record(status=status)])
    assert (result.last, result.oracle, result.status, result.ranked) == (None, None, status, False)
    assert result.costs[0].distillation == 600.0


def test_custom_records_are_left_out(record):
    assert statistics.gather([record(custom=True)]) == []


@pytest.mark.parametrize(
    ("data", "comparable"),
    [
        ({"changed": None}, True),
        ({"changed": ""}, True),
        ({"changed": "re-encoded"}, False),
        ({"changed": "re-encoded", "test_changed": True}, False),
        ({"changed": "training images re-encoded", "test_changed": False}, True),
        ({"changed": "half of it", "test_changed": False, "subset": True}, False),
        ({"changed": None, "subset": True}, False),
    ],
)
def test_what_published_numbers_hold_for(data, comparable):
    assert statistics.is_comparable(data) is comparable


def test_the_prior_says_what_it_was_trained_on_and_whether_it_is_foreign(record):
    ours = record(prior={"kind": "diffusion model", "trained_on": "digits", "digest": "d"})
    ours["time"]["prior"] = 100.0
    foreign = record(prior={"kind": "diffusion model", "trained_on": "LAION-5B", "digest": "d"}, seed=1)
    assert statistics.gather([ours])[0].prior == "diffusion model (digits)"
    assert statistics.gather([foreign])[0].prior == "diffusion model (LAION-5B), foreign weights"


def test_seeds_with_other_teachers_are_not_averaged(record):
    runs = [record(last=last, seed=seed) for seed, last in enumerate([80.0, 82.0, 10.0])]
    runs[2]["provenance"]["teacher"]["digest"] = "another"
    (result,) = statistics.gather(runs)
    assert result.last.n == 2 and result.last.mean == 81.0
    assert result.status == "ok, 1 on another teacher or data"


def test_no_gap_to_a_bound_of_another_teacher_or_a_stale_one(record):
    run, kd = record("fast-10", 80.0), record("kd-real", 90.0, reference=True)
    results = statistics.gather([run, kd])
    assert statistics.gap_to_kd(results[0], results) == -10.0
    stale = statistics.gather([run, kd], {cell_of(kd): {"method": "m2", "config": "c1"}})
    assert statistics.gap_to_kd(stale[0], stale) is None
    kd["provenance"]["data"]["digest"] = "another"
    results = statistics.gather([run, kd])
    assert statistics.gap_to_kd(results[0], results) is None
