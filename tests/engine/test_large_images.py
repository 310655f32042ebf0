"""Every kind of method on a task of 224 pixels, stored at 256, with networks of torchvision; and without BatchNorm."""

import numpy as np
import pytest

from dfkd import records
from dfkd.engine import trial
from dfkd.engine.evaluation import on_device
from dfkd.engine.run import Options, run
from dfkd.synthesis.augment import augment_for
from dfkd.tables.resolve import resolve
from dfkd.tasks import store, task
from tests.conftest import TINY, latest

DATA, RESNET = "domainnet-sketch", "torchvision.resnet18"
BUDGET = ["training.steps=2", "training.batch=4", "rounds=1", "synthesis_batch=4", "evaluations=1", "precision=fp32"]
KINDS = {
    "fast-10": TINY["fast"],
    "deepinv": ["steps=2"],
    "dfad": TINY["dfad"],
    "cmi": TINY["cmi"],
    "dda": [*TINY["dda"], "bank_batch=4", "bank_calls=1"],
    "diffdfkd": [*TINY["diffdfkd"], "mixed=true"],
    "kd-real": [],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data root with a few random pictures as DomainNet's are stored."""
    root, random = tmp_path_factory.mktemp("data"), np.random.RandomState(0)
    splits = {
        split: (random.randint(0, 256, (count, 256, 256, 3), np.uint8), np.arange(count) % 10)
        for split, count in (("train", 12), ("test", 4))
    }
    store.write(root, DATA, splits, task(DATA).class_names)
    return root


def measured(tmp_path, data, method, *changes, teacher=RESNET, student=RESNET, prior=None):
    """The record of two student steps with a teacher of random weights."""
    cell = resolve(DATA, "paper", method, f"{teacher}-{student}", 0, latest(*BUDGET, *changes))
    path, card = trial.untrained(cell, tmp_path)
    options = Options(data, "cpu", work=tmp_path / "work", save_every=1e9)
    return run(cell, path, card, options, prior if cell.prior else None, records.validate)


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_each_kind_of_method_takes_two_steps_at_224(tmp_path, data, prior, method):
    record = measured(tmp_path, data, method, *KINDS[method], prior=prior)
    assert record["status"] == "ok"
    assert record["cost"]["student_steps"] == 2
    if not record["reference"]:
        assert record["cost"]["images_synthesised"] > 0


@pytest.mark.slow
def test_a_method_that_needs_statistics_declines_a_teacher_without(tmp_path, data):
    """Where nothing is matched the same teacher will do."""
    convnext = "timm.convnext_atto"
    record = measured(tmp_path, data, "fast-10", *KINDS["fast-10"], teacher=convnext)
    assert (record["status"], "no BatchNorm2d layer" in record["error"]) == ("unsupported", True)
    assert measured(tmp_path, data, "kd-noise", teacher=convnext)["status"] == "ok"


def test_a_training_split_is_not_copied_into_memory(data):
    images, labels = task(DATA).load("train", data)
    shown, _ = on_device(images, labels, "cpu")
    assert shown.shape == (12, 3, 256, 256)
    assert shown.data_ptr() == images.ctypes.data


def test_training_crops_anywhere_and_the_label_stays(data):
    import torch

    images, labels = task(DATA).load("train", data)
    whole = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(0)
    crops, found = augment_for(task(DATA)).pair(whole, torch.from_numpy(labels), generator)
    assert crops.shape == (12, 3, 224, 224) and found.tolist() == labels.tolist()
    places = [whole[0, :, y : y + 224, x : x + 224] for y in range(33) for x in range(33)]
    assert sum(torch.equal(crops[0], place) or torch.equal(crops[0], place.flip(2)) for place in places) == 1
