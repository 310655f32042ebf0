"""The memory bound: one synthesis step of the largest CIFAR-10 cell that a small machine is to carry."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dfkd.paths import ROOT

GIB = 2**30
# One inner step and two student steps are the whole of a run's memory: nothing grows from step to step but the bank.
CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from dfkd.engine.run import Options, run
from dfkd.tables.resolve import resolve
from dfkd.tasks import store, task
from dfkd.artifacts import TEACHER, save
from dfkd.networks import initialise

root = Path(sys.argv[1])
rng = np.random.default_rng(0)
def split(count):
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count)
store.write(root / "data", "cifar10", {"train": split(300), "test": split(300)}, task("cifar10").class_names)
spec = task("cifar10").spec
weights = root / "cifar10_wrn40_2.safetensors"
facts = {"spec": spec.to_dict(), "origin": "trained", "accuracy": 10.0}
card = save(initialise("wrn40_2", spec, 0), weights, TEACHER.new("cifar10", "wrn40_2", **facts))
changes = ["k=1", "warmup=0", "rounds=1", "training.steps=2", "evaluations=1"]
cell = resolve("cifar10", "paper", "fast-10", "wrn40_2-wrn16_1", 0, changes)
assert cell.config["synthesis_batch"] == cell.config["training"]["batch"] == 256
record = run(cell, weights, card, Options(root / "data", "cpu", work=root / "work"))
print(json.dumps([record["status"], record["cost"]]))
"""


@pytest.mark.slow
def test_synthesis_of_256_images_with_wrn40_2_stays_within_three_gib(tmp_path):
    """The images' gradients run through the saved activations of teacher and student, 2.0 GiB of them; the lower
    bound shows that the counter sees these."""
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status, cost = json.loads(done.stdout.splitlines()[-1])
    assert status == "ok"
    assert (cost["images_synthesised"], cost["student_steps"]) == (256, 2)
    assert 1.5 * GIB < cost["peak_memory_bytes"] <= 3 * GIB
