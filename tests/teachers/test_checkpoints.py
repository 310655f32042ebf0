"""The public CIFAR checkpoints fit our networks and score what their authors' networks score."""

import os
from pathlib import Path

import pytest

from dfkd import artifacts
from dfkd.artifacts import TEACHER
from dfkd.artifacts.teachers import bring
from dfkd.engine.evaluation import score
from dfkd.networks.normalised import Normalised
from dfkd.tasks import task
from dfkd.tasks.store import data_root

pytestmark = pytest.mark.data

# Percent top-1 over all test images, measured apart from this project when the files were collected.
MEASURED = {
    ("cifar10", "resnet20"): 92.62,
    ("cifar10", "resnet56"): 94.36,
    ("cifar10", "wrn16_1"): 91.73,
    ("cifar10", "wrn28_1"): 92.90,
    ("cifar100", "resnet20"): 68.83,
    ("cifar100", "resnet56"): 72.62,
}
# Half a minute on two cores: measured on the first 1,000 images, within five points.
EXPENSIVE = ("resnet56",)


def weights(data, arch):
    path = TEACHER.find(f"{data}_{arch}", [Path(os.environ.get("DFKD_WEIGHTS", "nowhere"))])
    return path or pytest.skip(f"no {data}_{arch}.safetensors in DFKD_WEIGHTS")


@pytest.mark.parametrize(("data", "arch"), MEASURED)
def test_it_fits_and_its_origin_is_known(data, arch, tmp_path):
    given = weights(data, arch)
    card = TEACHER.read(bring(data, arch, given, tmp_path / given.name).path)
    assert card["address"].startswith("https://github.com/")
    constants = {"cifar10": [0.4914, 0.4822, 0.4465], "cifar100": [0.5070, 0.4865, 0.4409]}
    assert card["spec"]["mean"] == constants[data]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "arch"), MEASURED)
def test_it_scores_what_is_written(data, arch):
    path, root = weights(data, arch), data_root()
    if not (root / data / "manifest.json").is_file():
        pytest.skip(f"no {data} in DFKD_DATA")
    images, labels = task(data).load("test", root)
    count, tolerance = (1000, 5.0) if arch in EXPENSIVE else (len(labels), 0.05)
    spec = artifacts.spec_of(path, task(data).spec)
    network = Normalised(artifacts.load(path, arch, spec), spec)
    measured = score(network, task(data), images[:count], labels[:count], "cpu")
    assert measured == pytest.approx(MEASURED[data, arch], abs=tolerance)
