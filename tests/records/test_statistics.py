import pytest

from dfkd.identity import Run
from dfkd.report import statistics
from dfkd.report.statistics import tidy
from tests.records.conftest import diagnostics, gathered, prior


@pytest.mark.parametrize(
    ("scores", "summary"),
    [
        # Squares of the differences: 4 + 1 + 9 = 14, divided by n - 1 = 2.
        ([1.0, 2.0, 6.0], (3.0, pytest.approx(7**0.5), 3)),
        ([1.0, 3.0], (2.0, pytest.approx(2**0.5), 2)),
        ([5.1], (5.1, None, 1)),
    ],
)
def test_mean_and_sample_deviation_by_hand(record, scores, summary):
    (result,) = gathered([record(last=score, seed=seed) for seed, score in enumerate(scores)])
    assert result.last == summary


def test_means_leave_out_what_is_not_there(record):
    runs = [record(seed=seed) for seed in range(3)]
    for run, size in zip(runs, (100, None, 300), strict=True):
        run["cost"]["peak_memory_bytes"] = size
    assert gathered(runs)[0].means["cost.peak_memory_bytes"] == 200.0
    assert "cost.peak_memory_bytes" not in gathered(runs[1:2])[0].means


def test_cells_gather_seeds_in_order_of_their_names(record):
    made = [record("ssdkd", seed=1), record("fast-2"), record("ssdkd", seed=0), record("ssdkd", protocol="cpu")]
    results = [(result.cell.method, result.cell.protocol, result.last.n) for result in gathered(made)]
    assert results == [("ssdkd", "cpu", 1), ("fast-2", "paper", 1), ("ssdkd", "paper", 2)]
    assert list(tidy(made)["seed"]) == [0, 0, 0, 1]


def test_seeds_are_gathered(record):
    lasts = [88.0, 90.0, 92.0]
    runs = [record(last=last, seed=seed, synthesis=10.0 * last) for seed, last in enumerate(lasts)]
    (result,) = gathered(runs)
    assert result.last == (90.0, 2.0, 3)
    assert result.costs[0].means["time.synthesis"] == 900.0
    assert result.costs[0].n == 3


def test_times_of_different_hardware_are_never_averaged(record):
    runs = [record(seed=0, synthesis=10, hardware="CPU 2 cores")]
    runs += [record(seed=1, synthesis=2, hardware="NVIDIA H200")]
    (result,) = gathered(runs)
    assert [(cost.hardware, cost.n, cost.means["time.synthesis"]) for cost in result.costs] == [
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
    (result,) = gathered(runs, {Run.of(runs[0]).cell: ("m1", "c1")})
    assert (result.last, result.state, result.status) == ((90.0, None, 1), "ok", "ok, 2 stale, 1 diverged")
    assert result.competes


@pytest.mark.parametrize("status", ["diverged", "failed", "partial"])
def test_what_did_not_finish_has_costs_but_no_accuracy(record, status):
    (result,) = gathered([record(status=status)])
    assert (result.last, result.status, result.competes) == (None, status, False)
    assert "metrics.oracle_best" not in result.means
    assert result.costs[0].means["time.distillation"] == 600.0


def test_custom_records_are_left_out(record):
    assert gathered([record(custom=True)]) == []


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
def test_what_published_numbers_hold_for(record, data, comparable):
    assert gathered([record(**data)])[0].comparable is comparable


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        (prior(), "Prior `public32` (imported), trained on: 7,500 images; its training took 2 h 00 m"),
        (
            prior(name="glyphs16", trained_on="Letters.", origin="trained", seconds=90.0),
            "Prior `glyphs16`, trained on: Letters; its training took 1 m 30 s",
        ),
        (
            prior(name="stable-diffusion-v1-5", trained_on="LAION-5B", origin="foreign", seconds=0),
            "Prior `stable-diffusion-v1-5` (user-provided), trained on: LAION-5B; training time unknown, billed 0",
        ),
    ],
)
def test_the_prior_says_what_it_was_trained_on_where_it_is_from_and_what_it_cost(record, facts, note):
    (result,) = gathered([record(prior=facts, seed=seed) for seed in (0, 1)])
    assert (result.prior, result.prior_notes) == (facts["name"], (note,))


def test_a_prior_beside_class_names_and_priors_that_are_no_model(record):
    both = prior() | {"kind": "diffusion, class names"}
    names = {"kind": "class names", "trained_on": None, "digest": None}
    shown = [gathered([record(prior=facts)])[0] for facts in (both, names, None)]
    assert [result.prior for result in shown] == ["public32, class names", "class names", "none"]
    assert [len(result.prior_notes) for result in shown] == [1, 0, 0]


def test_a_run_on_the_images_of_a_prior_names_them_and_no_training_of_unknown_length(record):
    (result,) = gathered([record("kd-public", prior=prior(seconds=0.0) | {"kind": "public images"})])
    note = "Images of the prior `public32`: 7,500 images; a run on them pays nothing for its training"
    assert result.prior_notes == (note,)


def test_a_prior_without_a_name_says_what_was_billed(record):
    facts = {"kind": "diffusion", "trained_on": "digits", "digest": "d"}
    run = record(prior=facts)
    run["time"]["prior"] = 100.0
    (result,) = gathered([run])
    assert result.prior == "diffusion"
    assert result.prior_notes == ("Prior `diffusion`, trained on: digits; its training took 1 m 40 s",)


def test_seeds_with_other_priors_are_not_averaged(record):
    runs = [record(last=last, seed=seed, prior=prior()) for seed, last in enumerate([80.0, 82.0, 10.0])]
    runs[2]["prior"]["digest"] = "another"
    (result,) = gathered(runs)
    assert (result.last.n, result.status) == (2, "ok, 1 on another teacher, prior or data")
    kd = record("kd-real", 90.0, reference=True)
    assert statistics.kd_of(result, [result, *gathered([kd])]).last.mean == 90.0


def test_prior_and_shared_stages_are_paid_once_per_teacher(record):
    runs = [record(prior=prior(seconds=1000), shared=shared, seed=int(shared)) for shared in (30.0, 50.0)]
    (cost,) = gathered(runs)[0].costs
    assert (cost.once, cost.scored, cost.per_student) == (1040.0, 1662.0, 622.0)
    (cost,) = gathered([record()])[0].costs
    assert (cost.once, cost.per_student) == (0.0, cost.scored)


def test_diagnostics_are_means_over_the_seeds_that_have_them(record):
    found = [
        diagnostics(0.5, [0.1, 0.9], 0.5, 1.0, images=100),
        diagnostics(None, [0.6, 0.4], None, 3.0, images=200),
    ]
    runs = [record(seed=seed, diagnostics=each) for seed, each in enumerate([*found, None])]
    (result,) = gathered(runs)
    # The rarest class of each run, not of all together, in which 0.35 and 0.65 would look balanced.
    means = [result.means[f"diagnostics.{key}"] for key in ("images", "agreement", "smallest", "largest")]
    assert means == [150.0, 0.5, 0.25, 0.75]
    assert (result.means["diagnostics.diversity"], result.means["diagnostics.frechet"]) == (0.5, 2.0)
    assert not [key for key in gathered([record()])[0].means if key.startswith("diagnostics.")]


def test_diagnostics_and_reports_are_those_of_the_runs_that_count(record):
    runs = [record(diagnostics=diagnostics(frechet=1.0), report={"kept": 0.5, "rounds": 3})]
    runs += [record(seed=1, diagnostics=diagnostics(frechet=9.0), report={"kept": 0.1}, config_digest="old")]
    runs += [record(seed=2, status="diverged", report={"kept": 0.0})]
    runs += [record(seed=3, report={"kept": 0.7})]
    (result,) = gathered(runs, {Run.of(runs[0]).cell: ("m1", "c1")})
    assert result.means["diagnostics.frechet"] == 1.0
    assert result.report == {"kept": 0.6, "rounds": 3.0}


def test_seeds_with_other_teachers_are_not_averaged(record):
    runs = [record(last=last, seed=seed) for seed, last in enumerate([80.0, 82.0, 10.0])]
    runs[2]["provenance"]["teacher"]["digest"] = "another"
    (result,) = gathered(runs)
    assert result.last.n == 2 and result.last.mean == 81.0
    assert result.status == "ok, 1 on another teacher, prior or data"


def test_no_gap_to_a_reference_row_of_another_teacher_or_a_stale_one(record):
    run, kd = record("fast-10", 80.0), record("kd-real", 90.0, reference=True)
    results = gathered([run, kd])
    assert statistics.kd_of(results[0], results).last.mean == 90.0
    stale = gathered([run, kd], {Run.of(kd).cell: ("m2", "c1")})
    assert statistics.kd_of(stale[0], stale) is None
    kd["provenance"]["data"]["digest"] = "another"
    results = gathered([run, kd])
    assert statistics.kd_of(results[0], results) is None
