"""Teachers of random weights and a few tiny runs: what the tests of engine and contract share."""

from __future__ import annotations

from pathlib import Path

import pytest

import bench
from dfkd import catalog, paths, records
from dfkd.networks import initialise
from dfkd.tables.definition import table_of
from dfkd.tables.recipes import recipes
from dfkd.tables.resolve import Resolved, resolve

PAIR = "resnet8-resnet8"
# A task of each kind, with a pair of tiny networks.
PAIRS = {"digits": PAIR, "digit-scenes": "deeplabv3plus_thin16-deeplabv3plus_thin16"}
# What makes a method cheap enough to run dozens of times; one that is not named here runs with its defaults.
TINY = {
    "fast": ["k=2", "warmup=1", "ngf=8", "nz=16"],
    "ssdkd": ["k=2", "warmup=1", "ngf=8", "nz=16", "capacity=20"],
    "deepinv": ["steps=3"],
    "dfad": ["kd=2", "ngf=8", "nz=16"],
    "dafl": ["kd=2", "ngf=8", "nz=16"],
    "zskt": ["kd=2", "ngf=8", "nz=16"],
    "dfq": ["kd=2", "ngf=8", "nz=16"],
    "nayer": ["k=2", "warmup=1", "warmup_calls=1", "calls=1", "rebuild_every=1", "noise=16", "ngf=8"],
    "template": ["steps=2"],
    "cmi": ["steps=2", "bank_calls=1", "ngf=8", "nz=16", "memory=20", "negatives=12"],
    # A bank of 12 images, two variants of each, of which half pass.
    "dda": [
        "steps=2",
        "bank_calls=2",
        "bank_steps=2",
        "bank_batch=6",
        "ngf=8",
        "nz=16",
        "memory=20",
        "negatives=12",
        "variants=2",
        "diffusion_steps=4",
        "strength=.5",
        "keep_ratio=.5",
    ],
    "diffdfkd": [
        "calls=2",
        "steps=5",
        "refresh_every=1",
        "refresh_steps=1",
        "adversarial_from=2",
        "synthesis_batch=10",
    ],
}
BUDGET = ["training.steps=4", "training.batch=8", "rounds=2", "synthesis_batch=8", "evaluations=2"]


def pytest_addoption(parser):
    text = "run the contract tests, and nothing else, on the methods of this file"
    parser.addoption("--dfkd-method", metavar="FILE", default=None, help=text)
    text = "at how many random moments the test of kills kills (30 to be sure)"
    parser.addoption("--kills", metavar="N", type=int, default=3, help=text)
    parser.addoption("--kills-from", metavar="N", type=int, default=0, help="the first of them")


def pytest_generate_tests(metafunc):
    """The contract tests' `method`: every registered one, or those of the file from outside."""
    if metafunc.module.__name__.endswith("test_every_method") and "method" in metafunc.fixturenames:
        file = metafunc.config.getoption("--dfkd-method")
        known = catalog.entries()
        metafunc.parametrize("method", sorted(known if file is None else catalog.entries(file).keys() - known.keys()))


def pytest_collection_modifyitems(config, items):
    if config.getoption("--dfkd-method") is not None:
        # Only the contract tests have that name; others may be parametrised by a method of their own.
        items[:] = [item for item in items if "outside" in item.fixturenames and "test_every_method" in item.nodeid]


@pytest.fixture
def outside(request):
    """The file of `--dfkd-method`, or None."""
    return request.config.getoption("--dfkd-method")


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """By data set: (weights file, card) of a network that has learnt nothing."""
    from dfkd.artifacts import TEACHER, save
    from dfkd.tasks import task

    made = {}
    for data, pair in PAIRS.items():
        arch, spec = pair.split("-")[0], task(data).spec
        path = tmp_path_factory.mktemp("teachers") / f"{data}_{arch}.safetensors"
        card = TEACHER.new(data, arch, spec=spec.to_dict(), origin="trained", accuracy=0.1)
        made[data] = path, save(initialise(arch, spec, 0), path, card)
    return made


@pytest.fixture(scope="session")
def teacher(teachers):
    """That for digits, a ResNet-8."""
    return teachers["digits"]


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    """(folder, card) of a diffusion model of 16-pixel images that has learnt nothing."""
    from dfkd.engine.trial import untrained_prior

    folder, card = untrained_prior(tmp_path_factory.mktemp("priors"))
    card |= {"data": "dots", "trained_on": "twenty random images"}
    return folder, card


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(*arguments): (exit status, output, error stream) of bench.py, in folders of this test's own."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "WORK", tmp_path / "work")
    monkeypatch.delenv("DFKD_WEIGHTS", raising=False)
    monkeypatch.setenv("DFKD_DATA", str(tmp_path / "data"))

    def call(*arguments) -> tuple[int, str, str]:
        status = bench.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def tiny(outside):
    """tiny(method, *changes, seed=0, extra=None, data="digits"): the cell of a run of four student steps."""

    def make(method: str, *changes: str, seed: int = 0, extra: str | None = None, data: str = "digits") -> Resolved:
        base = TINY.get(recipes(table_of(data)).get(method, {}).get("method", method), [])
        joined = latest(*BUDGET, *base, *changes)
        # In fp32, so that a test says the same on every machine.
        precision = None if any(change.startswith("precision=") for change in joined) else "fp32"
        return resolve(data, "quick", method, PAIRS[data], seed, joined, extra or outside, precision)

    return make


@pytest.fixture
def dots(tmp_path, monkeypatch):
    """The pool that the card of `prior` names: twenty random images in this test's data root."""
    import numpy as np

    from dfkd.tasks import POOLS, InputSpec, Task, store

    monkeypatch.setitem(
        POOLS, "dots", Task("dots", InputSpec(16, 3, (0.5,) * 3, (0.5,) * 3, 1), ("dot",), splits=("train",))
    )
    images = np.random.RandomState(0).randint(0, 256, (20, 16, 16, 3), np.uint8)
    store.write(tmp_path / "data", "dots", {"train": (images, np.zeros(20))}, ("dot",), "random images")
    return images


@pytest.fixture
def execute(teachers, dots, request, tmp_path, monkeypatch):
    """execute(cell, keep=records.validate, **options): the record of a run in a folder of this test's own; scenes are
    few there. The method runs in the test's process, which is quicker; `apart=True` gives it its own.
    """
    monkeypatch.setattr("dfkd.tasks.digit_scenes.COUNTS", {"train": 12, "test": 4})

    def run_cell(cell: Resolved, **options) -> dict:
        from dfkd.engine.run import Options, run

        keep = options.pop("keep", records.validate)
        options = {
            "work": tmp_path / "work",
            "data_root": tmp_path / "data",
            "save_every": 1e9,
            "apart": False,
            **options,
        }
        prior = request.getfixturevalue("prior") if cell.prior else None
        return run(cell, *teachers[cell.run.data], Options(device="cpu", **options), prior, keep)

    return run_cell


def latest(*changes: str) -> list[str]:
    """Changes for `--set`, which takes no key twice: of each key the last."""
    return list({change.partition("=")[0]: change for change in changes}.values())


def outcome(record: dict) -> dict:
    """A record less what may differ between two equal runs: times, memory, date, versions."""
    kept = {key: record[key] for key in ("status", "identity", "config", "reference", "prior", "report", "diagnostics")}
    metrics = dict(record["metrics"])
    metrics["curve"] = [{k: v for k, v in point.items() if k != "seconds"} for point in metrics["curve"]]
    cost = {key: value for key, value in record["cost"].items() if not key.endswith(("memory_bytes", "seconds"))}
    return {**kept, "metrics": metrics, "cost": cost}


def student_digest(record: dict, tmp_path: Path) -> str:
    """sha256 of the weights that the run left."""
    from dfkd.files import file_digest

    return file_digest(tmp_path / "work" / record["work"] / "student.safetensors")
