"""The clock's categories add up, whatever is nested, interrupted or resumed. Time here is a number we move."""

import pytest
import torch

from dfkd.engine.clock import Clock
from dfkd.records import CATEGORIES


class Time:
    def __init__(self, start=1000.0):
        self.value = start

    def __call__(self):
        return self.value

    def passes(self, seconds):
        self.value += seconds


@pytest.fixture
def time():
    return Time()


def spent(clock):
    report = clock.report()
    return {category: report[category] for category in CATEGORIES if report[category]}


def test_time_goes_to_the_phase_it_passes_in(time):
    clock = Clock(now=time)
    time.passes(1)
    with clock.phase("setup"):
        time.passes(2)
    time.passes(4)
    with clock.phase("synthesis"):
        time.passes(8)
    with clock.phase("synthesis"):
        time.passes(16)
    assert spent(clock) == {"bookkeeping": 5, "setup": 2, "synthesis": 24}


def test_nested_phases_are_exclusive(time):
    clock = Clock(now=time)
    with clock.phase("distillation"):
        time.passes(1)
        with clock.phase("evaluation"):
            time.passes(2)
            with clock.phase("bookkeeping"):
                time.passes(4)
            time.passes(8)
        time.passes(16)
    assert spent(clock) == {"distillation": 17, "evaluation": 10, "bookkeeping": 4}


def test_categories_add_up_to_the_total(time):
    clock = Clock(now=time)
    for i, category in enumerate(CATEGORIES):
        time.passes(0.1)
        with clock.phase(category):
            time.passes(0.37 * (i + 1))
            with clock.phase("evaluation"), clock.aside("synthesis"):
                time.passes(0.013)
        assert clock.total == pytest.approx(time.value - 1000)
    report = clock.report()
    assert sum(report[category] for category in CATEGORIES) == pytest.approx(report["total"])
    assert report["total"] == pytest.approx(time.value - 1000, abs=1e-3)
    assert set(report) == {*CATEGORIES, "scored", "total", "resumes"}


def test_scored_leaves_out_evaluation_and_bookkeeping(time):
    clock = Clock(now=time)
    for i, category in enumerate(CATEGORIES):
        with clock.phase(category):
            time.passes(2**i)
    time.passes(1000)
    # setup 1, prior 2, synthesis 4, buffer 8, distillation 16; evaluation 32, bookkeeping 64 + 1000 are free.
    assert clock.scored == 31
    assert clock.report()["scored"] == 31
    assert clock.total == 127 + 1000


def test_total_and_scored_know_the_running_phase(time):
    clock = Clock(now=time)
    time.passes(1)
    with clock.phase("distillation"):
        time.passes(2)
        assert (clock.total, clock.scored) == (3, 2)
        with clock.phase("evaluation"):
            time.passes(4)
            assert (clock.total, clock.scored) == (7, 2)
        time.passes(8)
        assert (clock.total, clock.scored) == (15, 10)
    assert (clock.total, clock.scored) == (15, 10)


def test_a_phase_left_by_an_exception_is_charged_and_left(time):
    clock = Clock(now=time)
    with pytest.raises(RuntimeError), clock.phase("synthesis"):
        time.passes(1)
        raise RuntimeError
    time.passes(2)
    assert spent(clock) == {"synthesis": 1, "bookkeeping": 2}


def test_an_unknown_account_is_refused(time):
    clock = Clock(now=time)
    with clock.phase("setup"):
        with pytest.raises(ValueError, match="no category 'training'"), clock.phase("training"):
            pass
        time.passes(1)
    assert spent(clock) == {"setup": 1}


def test_aside_takes_from_the_surrounding_phase(time):
    clock = Clock(now=time)
    with clock.phase("distillation"):
        time.passes(1)
        with clock.aside("synthesis"):
            time.passes(2)
        time.passes(4)
    assert spent(clock) == {"distillation": 5, "synthesis": 2}


def test_a_resume_adds(time):
    clock = Clock(now=time)
    with clock.phase("distillation"):
        time.passes(10)
        state = clock.state_dict()  # saved in the middle of a phase
        time.passes(99)  # lost: done again after the resume
    later = Time(5.0)
    again = Clock(now=later)
    with again.phase("setup"):
        later.passes(3)  # building the run again costs what it costs
    with again.phase("bookkeeping"):
        again.load_state_dict(state)
        later.passes(1)
    with again.phase("distillation"):
        later.passes(5)
    report = again.report()
    assert (report["distillation"], report["setup"], report["bookkeeping"]) == (15, 3, 1)
    assert (report["total"], report["scored"], report["resumes"]) == (19, 18, 1)
    third = Clock(now=Time())
    third.load_state_dict(again.state_dict())
    assert third.report()["resumes"] == 2 and third.total == 19


def test_a_saved_state_does_not_go_on_counting(time):
    clock = Clock(now=time)
    state = clock.state_dict()
    time.passes(5)
    clock.report()
    assert sum(state["seconds"].values()) == 0


def test_state_is_plain(tmp_path, time):
    torch.save(Clock(now=time).state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["resumes"] == 0


def test_by_default_time_is_real():
    clock = Clock()
    with clock.phase("setup"):
        sum(range(10_000))
    assert 0 < clock.scored < 10


class Event:
    """A CUDA event that reads our clock where it is recorded."""

    time = None

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.time()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1000


def test_aside_on_a_gpu_never_waits_and_moves_its_share_at_the_next_boundary(monkeypatch, time):
    waits = []
    monkeypatch.setattr(Event, "time", time)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(device))
    clock = Clock("cuda", now=time)
    with clock.phase("distillation"):
        assert len(waits) == 1
        for _ in range(3):
            time.passes(1)
            with clock.aside("synthesis"):
                time.passes(2)
        assert len(waits) == 1, "aside waited for the device"
    assert len(waits) == 2
    assert spent(clock) == {"distillation": 3, "synthesis": 6}
    assert spent(clock) == {"distillation": 3, "synthesis": 6}, "the share moves once"
    assert clock.total == 9
