"""`--compile`: what runs compiled, and what happens where nothing can be."""

import pytest
import torch

from dfkd.engine import compiling
from dfkd.networks import build
from dfkd.networks.capture import outputs
from dfkd.networks.normalised import Normalised
from dfkd.tasks import task


@pytest.fixture
def network(monkeypatch):
    """A network whose compiled pass gives zeros."""
    monkeypatch.setattr(torch, "compile", lambda forward, **options: lambda images: torch.zeros(len(images), 10))
    return Normalised(build("resnet8", 10, 16), task("digits").spec).eval()


def test_a_pass_is_compiled_within_a_student_step_alone(network):
    images = torch.rand(2, 3, 16, 16)
    plain, names = network(images), set(network.state_dict())
    with compiling.compiled(network):
        assert network(images).count_nonzero() == 0
    assert torch.equal(network(images), plain) and set(network.state_dict()) == names


def test_a_pass_into_which_a_hook_looks_is_not(network):
    images = torch.rand(2, 3, 16, 16)
    with compiling.compiled(network), outputs(network.network, network.network.stages[-1:]) as found:
        assert torch.equal(network(images), network(images)) and len(found) == 1
        assert network(images).count_nonzero()


def test_where_nothing_can_be_compiled_the_reason_is_a_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiling.impossible() == "there is no C++ compiler (no-such-compiler)"
    monkeypatch.setenv("CXX", "python3")
    monkeypatch.setenv("DFKD_ISOLATION", "audit-hook")
    assert compiling.impossible() == "without Landlock a run may start no compiler"


@pytest.mark.slow
@pytest.mark.skipif(compiling.impossible() is not None, reason="needs a compiler and Landlock")
def test_a_confined_run_compiles_and_learns_the_same(tiny, execute, tmp_path):
    from dataclasses import replace

    from safetensors.torch import load_file

    run, students = tiny("kd-noise", "training.steps=2", "rounds=1", "evaluations=1"), []
    for cell in (run, replace(run, custom=True, compiled=True)):
        record = execute(cell, apart=True)
        students.append(load_file(tmp_path / "work" / record["work"] / "student.safetensors"))
        assert (record["status"], record["provenance"]["compiled"]) == ("ok", cell.compiled)
    for name, weight in students[0].items():
        torch.testing.assert_close(students[1][name], weight, atol=1e-4, rtol=1e-3)
