"""The harness overhead: a whole run's distillation throughput against a bare loop's, in one process."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from conftest import BATCH, SPEC

from dfkd.artifacts import TEACHER, save
from dfkd.networks import initialise
from dfkd.tables.resolve import resolve
from dfkd.tasks import store, task

BOUND = 0.95
PAIR = "resnet20-resnet8"
# (steps of a block, pairs of blocks): a block is half a second to a second on two cores, and some 0.1 s on a GPU.
BLOCKS = {"cpu": (3, 24), "cuda": (50, 30)}


@pytest.fixture
def files(tmp_path):
    """(folder of data, weights file, card): a test split of noise and a teacher that has learnt nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (100, SPEC.size, SPEC.size, 3), dtype=np.uint8)
    split = (noise, np.arange(100) % SPEC.classes)
    store.write(tmp_path / "data", "cifar10", {"test": split}, task("cifar10").class_names)
    path = tmp_path / "cifar10_resnet20.safetensors"
    card = TEACHER.new("cifar10", "resnet20", spec=SPEC.to_dict(), origin="trained", accuracy=10.0)
    return tmp_path / "data", path, save(initialise("resnet20", SPEC, 0), path, card)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.benchmark(group="overhead")
def test_harness_overhead(files, device, precision, tmp_path, benchmark, tell_ratio):
    from dfkd.engine.method import METHODS
    from dfkd.engine.precision import chosen
    from dfkd.engine.run import Options, run

    if benchmark.enabled and precision == "bf16" and chosen(device) != "bf16":
        pytest.skip("this machine is not faster in bf16")
    data_root, teacher, card = files
    block, pairs = BLOCKS[device.type] if benchmark.enabled else (1, 2)
    method = str(Path(__file__).with_name("alternating.py"))
    # One step more than the blocks: the draw that begins it closes the last pair.
    budget = [f"block={block}", f"training.steps={pairs * block + 1}", f"training.batch={BATCH}"]
    changes = [*budget, "rounds=1", "evaluations=1"]
    cell = resolve("cifar10", "cpu", "alternating", PAIR, 0, changes, method, precision)
    # In this process, where the method leaves what it measured; in a worker a step is the same.
    options = Options(data_root, device=str(device), work=tmp_path / "work", apart=False)
    record = benchmark.pedantic(run, (cell, teacher, card, options), rounds=1)

    measured = METHODS.get("alternating").last
    pairs_measured = list(zip(measured.bare, measured.harness, strict=True))
    ratios = [bare.wall / harness.wall for bare, harness in pairs_measured]
    more = {
        "processor_ratio": statistics.median(b.processor / h.processor for b, h in pairs_measured),
        "harness_ms": 1000 * statistics.median(took.wall for took in measured.harness) / block,
        "bare_ms": 1000 * statistics.median(took.wall for took in measured.bare) / block,
    }
    tell_ratio(
        f"harness overhead in {precision}: run / bare loop",
        ratios,
        BOUND,
        f"{len(ratios)} pairs of {block} steps",
        **more,
    )
    assert record["status"] == "ok" and len(ratios) == pairs
