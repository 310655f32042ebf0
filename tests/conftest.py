"""Teachers of random weights and a few tiny runs: what the tests of engine and contract share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfkd import protocols

PAIR = "resnet8-resnet8"
# A task of each kind, with a pair of tiny networks.
PAIRS = {"digits": PAIR, "digit-scenes": "deeplabv3plus_thin16-deeplabv3plus_thin16"}
# What makes a method cheap enough to run dozens of times; one that is not named here runs with its defaults.
TINY = {
    "fast": ["k=2", "warmup=1", "ngf=8", "nz=16"],
    "ssdkd": ["k=2", "warmup=1", "ngf=8", "nz=16", "capacity=20"],
    "deepinv": ["steps=3"],
    "dfad": ["kd=2", "ngf=8", "nz=16"],
    "template": ["steps=2"],
}
BUDGET = ["training.steps=4", "training.batch=8", "rounds=2", "synthesis_batch=8", "evaluations=2"]


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """By data set: (weights file, card) of a network that has learnt nothing."""
    from dfkd.tasks import task
    from dfkd.teachers import cards, weights
    from dfkd.teachers.training import initialise

    made = {}
    for data, pair in PAIRS.items():
        arch, spec = pair.split("-")[0], task(data).spec
        path = tmp_path_factory.mktemp("teachers") / cards.weights_name(data, arch)
        card = cards.new_card(data, arch, spec, "trained", accuracy=0.1)
        made[data] = path, weights.save(initialise(arch, spec, 0), path, card)
    return made


@pytest.fixture(scope="session")
def teacher(teachers):
    """That for digits, a ResNet-8."""
    return teachers["digits"]


@pytest.fixture
def tiny():
    """tiny(method, *changes, seed=0, extra=None, data="digits"): the cell of a run of four student steps."""

    def make(
        method: str, *changes: str, seed: int = 0, extra: str | None = None, data: str = "digits"
    ) -> protocols.ResolvedCell:
        base = TINY.get(protocols.recipes(data).get(method, {}).get("method", method), [])
        return protocols.resolve(data, "quick", method, PAIRS[data], seed, [*base, *BUDGET, *changes], extra)

    return make


@pytest.fixture
def execute(teachers, tmp_path, monkeypatch):
    """execute(cell, **options): the record of a run in a folder of this test's own; scenes are few there."""
    monkeypatch.setattr("dfkd.tasks.digit_scenes.COUNTS", {"train": 12, "test": 4})

    def run_cell(cell: protocols.ResolvedCell, **options) -> dict:
        from dfkd.engine.run import Options, run

        options = {"work": tmp_path / "work", "data_root": tmp_path / "data", "save_every": 1e9, **options}
        return run(cell, *teachers[cell.identity["data"]], Options(device="cpu", **options))

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
