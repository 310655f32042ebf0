"""A teacher of random weights and a few tiny runs: what the tests of engine and contract share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfkd import protocols

PAIR = "resnet8-resnet8"
# What makes a method cheap enough to run dozens of times; one that is not named here runs with its defaults.
TINY = {
    "fast": ["k=2", "warmup=1", "ngf=8", "nz=16"],
    "ssdkd": ["k=2", "warmup=1", "ngf=8", "nz=16", "capacity=20"],
    "deepinv": ["steps=3"],
    "template": ["steps=2"],
}
BUDGET = ["training.steps=4", "training.batch=8", "rounds=2", "synthesis_batch=8", "evaluations=2"]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """(weights file, card) of a ResNet-8 for digits that has learnt nothing."""
    from dfkd.tasks import task
    from dfkd.teachers import cards, weights
    from dfkd.teachers.training import initialise

    spec = task("digits").spec
    path = tmp_path_factory.mktemp("teachers") / cards.weights_name("digits", "resnet8")
    card = cards.new_card("digits", "resnet8", spec, "trained", accuracy=10.0)
    return path, weights.save(initialise("resnet8", spec, 0), path, card)


@pytest.fixture
def tiny():
    """tiny(method, *changes, seed=0, extra=None): the cell of a run of four student steps on digits."""

    def make(method: str, *changes: str, seed: int = 0, extra: str | None = None) -> protocols.ResolvedCell:
        base = TINY.get(protocols.recipes("digits").get(method, {}).get("method", method), [])
        return protocols.resolve("digits", "quick", method, PAIR, seed, [*base, *BUDGET, *changes], extra)

    return make


@pytest.fixture
def execute(teacher, tmp_path):
    """execute(cell, **options): the record of a run in a folder of this test's own."""

    def run_cell(cell: protocols.ResolvedCell, **options) -> dict:
        from dfkd.engine.run import Options, run

        options = {"work": tmp_path / "work", "data_root": tmp_path / "data", "save_every": 1e9, **options}
        return run(cell, *teacher, Options(device="cpu", **options))

    return run_cell


def outcome(record: dict) -> dict:
    """A record less what may differ between two equal runs: times, memory, date, versions."""
    kept = {key: record[key] for key in ("status", "identity", "config", "reference", "prior")}
    metrics = dict(record["metrics"])
    metrics["curve"] = [{k: v for k, v in point.items() if k != "seconds"} for point in metrics["curve"]]
    cost = {key: value for key, value in record["cost"].items() if key != "peak_memory_bytes"}
    return {**kept, "metrics": metrics, "cost": cost}


def student_digest(record: dict, tmp_path: Path) -> str:
    """sha256 of the weights that the run left."""
    from dfkd.teachers import file_digest

    return file_digest(tmp_path / "work" / record["work"] / "student.safetensors")
