"""`bench.py check`: it sees a difference, and draws the same numbers for any device."""

import pytest
import torch

from dfkd.engine import check
from dfkd.engine.check import OneRandomness, Outcome


def outcome(value: float, images: int = 7) -> Outcome:
    return Outcome(torch.full((2, 3, 4, 4), images, dtype=torch.uint8), torch.tensor([value, 0.0]).double(), 2.0)


def test_differences_are_shares_of_what_was_trained_and_of_the_range():
    text, good = check._differences(outcome(1.0), outcome(1.02, images=8), (0.02, 0.05))
    assert (text, good) == ("images 3.9e-03, student 1.0e-02", True)  # 1/255 and 0.02/2
    assert not check._differences(outcome(1.0), outcome(1.2), (0.02, 0.05))[1]
    assert not check._differences(outcome(1.0), outcome(1.0, images=17), (0.02, 0.05))[1]


def test_nothing_is_compared_by_count_alone():
    fewer = Outcome(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(2).double(), 2.0)
    assert check._differences(outcome(1.0), fewer, (1.0, 1.0)) == ("1 images, 2 on the CPU", False)


def test_a_weight_that_is_no_number_differs():
    assert not check._differences(outcome(1.0), outcome(float("nan")), (0.02, 0.05))[1]


def test_a_device_that_computes_otherwise_is_found(tmp_path, monkeypatch):
    """The second of the two runs gets a student that learns with another loss."""
    honest, runs = check._train, []

    def train(resolved, device, folder, **given):
        runs.append(device)
        if len(runs) == 2:
            monkeypatch.setattr("dfkd.synthesis.losses.kl", lambda t, s, tau: 2 * (t - s).square().mean(1))
        return honest(resolved, device, folder, **given)

    assert check._compare("fast", "digits", torch.device("cpu"), tmp_path).good
    runs.clear()
    monkeypatch.setattr(check, "_train", train)
    line = check._compare("fast", "digits", torch.device("cpu"), tmp_path)
    assert line.good is False and "student" in line.found


def test_an_error_on_the_device_is_a_line(tmp_path, monkeypatch):
    def fail(*args, **given):
        raise NotImplementedError("no such kernel\nand more")

    monkeypatch.setattr(check, "_train", fail)
    line = check._compare("fast", "digits", torch.device("cpu"), tmp_path)
    assert (line.good, line.found) == (False, "NotImplementedError: no such kernel")


@pytest.mark.parametrize("draw", ["torch.rand(3, generator=g)", "torch.empty(3).normal_(generator=g)"])
def test_the_same_numbers_are_drawn_whatever_the_device(draw):
    """The host's generator stands in: the one that was handed over is not drawn from."""
    g = torch.Generator().manual_seed(5)
    expected, before = eval(draw), g.manual_seed(5).get_state()
    with OneRandomness():
        first, second = eval(draw), eval(draw)
    assert torch.equal(first, expected) and not torch.equal(first, second)
    assert torch.equal(g.get_state(), before)


def test_dropout_is_drawn_on_the_host_and_keeps_the_mean():
    x = torch.ones(4000)
    with OneRandomness():
        torch.manual_seed(0)
        kept = torch.nn.functional.dropout(x, 0.25, True)
        torch.manual_seed(0)
        again = torch.nn.functional.dropout(x, 0.25, True)
        assert torch.equal(torch.nn.functional.dropout(x, 0.25, False), x)
    assert torch.equal(kept, again)
    assert sorted(set(kept.tolist())) == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_the_cpu_agrees_with_itself(capsys):
    """Every method on every kind of task, as on a GPU; here all differences are zero, except in bf16."""
    threads = torch.get_num_threads()
    try:
        assert check.show("cpu") == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()[1:-1]
    compared = [line for line in lines if "student 0.0e+00" in line]
    assert len(compared) >= 20
    assert not any("DIFFERS" in line for line in lines)


@pytest.mark.parametrize("method", ["fast-5", "kd-real"])
def test_a_profile_names_the_parts_of_a_step(method, tmp_path, monkeypatch):
    """Small sizes, and a reference row, which augments images with their labels."""
    from dfkd import catalog
    from dfkd.engine import profile, trial

    monkeypatch.setattr("dfkd.paths.WORK", tmp_path)
    monkeypatch.setattr(profile, "changes", lambda resolved: trial.small(catalog.entry(resolved.entry.name)))
    text = profile.show(method, "digits", "quick", check.KINDS["digits"], "fp32", "cpu")
    parts = [
        "teacher",
        "student",
        "optimizer",
        *(["generator", "augmentation"] if method == "fast-5" else []),
    ]  # a draw is no step
    assert all(f"| {part} " in text for part in parts)
    assert ("synthesis:" in text) == (method == "fast-5") and "student step:" in text
    assert len(list((tmp_path / "profiles").glob("*.json"))) == 1
