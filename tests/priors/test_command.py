"""`bench.py prior`, and `data` and `doctor` where they concern priors and pools."""

import json

import pytest
import yaml
from PIL import Image

import bench
from dfkd import doctor, paths
from dfkd.artifacts import PRIOR
from dfkd.paths import ROOT
from tests.priors.conftest import TINY


@pytest.fixture
def command(command, noise):
    """As everywhere, with the auxiliary images `noise`."""
    return command


TRAIN = ("prior", "--data=noise", "--size=4", "--device=cpu")


def test_a_prior_is_trained_once(command, tmp_path):
    status, out, _ = command(*TRAIN)
    assert status == 0 and "step 6/6" in out
    folder = tmp_path / "results" / "priors" / "noise4"
    assert f"{folder}: trained, noise: 20 images of nothing, at 4 pixels; samples in" in out
    grid = tmp_path / "results" / "plots" / "priors" / "noise4.png"
    assert Image.open(grid).size == (12 * 66 - 2, 6 * 66 - 2)
    card = PRIOR.read(folder)
    status, out, _ = command(*TRAIN)
    assert status == 0 and "step" not in out and PRIOR.read(folder) == card


def test_a_changed_recipe_has_a_name_of_its_own(command, tmp_path):
    status, _, err = command(*TRAIN, "--set=steps=2")
    assert status == 2 and err == "bench.py: noise4 is another prior; choose a --name of its own\n"
    assert command(*TRAIN, "--set=steps=2", "--name=mine")[0] == 0
    assert PRIOR.read(tmp_path / "results" / "priors" / "mine")["recipe"]["steps"] == 2
    status, _, err = command(*TRAIN, "--set=steps=3", "--name=mine")
    assert status == 2 and "mine was trained by another recipe" in err


def test_a_stopped_training_can_be_gone_on_with(command, interrupt):
    undo = interrupt(4)
    status, _, err = command(*TRAIN)
    assert status == bench.EXIT_PARTIAL
    assert err == "bench.py: stopped by SIGINT at step 4/6; the same with --resume goes on\n"
    undo()
    status, out, _ = command(*TRAIN, "--resume")
    assert status == 0 and "from step 4" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("prior", "--data=nois", "--size=4"), "unknown pool 'nois' (nearest: 'noise'"),
        (("prior", "--data=noise", "--size=3"), "1 halvings do not divide a 'size' of 3"),
        (("prior", "--data=noise", "--size=6"), "noise has 8 pixels, which 6 does not divide"),
        (("prior", "--data=noise", "--size=0"), "size: 0 is less than the minimum of 1"),
        (("prior", "--data=noise", "--size=four"), "argument --size: a whole number from 0"),
        (("prior", "--data=noise"), "--size"),
        ((*TRAIN, "--name=a/b"), "argument --name: a name has letters"),
        ((*TRAIN, "--name=stable-diffusion-v1-5"), "is another prior"),
        ((*TRAIN, "--name=other"), "other is another prior; choose a --name of its own"),
        ((*TRAIN, "--set=stepz=1"), "unknown --set key 'stepz' (nearest: 'steps'"),
        ((*TRAIN, "--weights=nowhere"), "there is no weights folder nowhere"),
        ((*TRAIN, "--data-root=nowhere"), "make it with: python bench.py data noise"),
        (("data", "nois"), "unknown data 'nois' (nearest: 'noise'"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, arguments, part):
    (tmp_path / "priors.yaml").write_text(json.dumps({"noise4": TINY, "other": TINY | {"steps": 9}}))
    status, _, err = command(*arguments)
    assert status == 2 and part in err and err.count("\n") == 1
    assert not [path for path in (tmp_path / "results").rglob("*") if path.is_file()]


def test_an_unwritable_folder_is_found_before_the_training(command, tmp_path):
    (tmp_path / "results").write_text("")
    status, out, err = command(*TRAIN)
    assert status == 2 and err.count("\n") == 1
    assert err.startswith(f"bench.py: cannot write to {paths.priors()}: ")
    assert "training" not in out


def test_stages_of_priors_go_on():
    """Two hours of training; a stage that was stopped runs the same command again."""
    for path in (ROOT / "dvc.yaml", ROOT / "benchmarks" / "dvc.yaml"):
        stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
        assert "--resume" in stages["prior"]["do"]["cmd"].split()


def test_pools_have_manifests(command, tmp_path):
    status, out, _ = command("data", "noise", "--manifest", tmp_path / "manifest.json")
    assert status == 0 and "noise: already in" in out
    assert json.loads((tmp_path / "manifest.json").read_text())["changed"] == "images of nothing"


def test_the_doctor_looks_at_pools_and_priors(command, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {})

    def lines():
        return dict(reversed(line) for line in doctor.examine(tmp_path / "data", tmp_path, paths.priors()))

    found = lines()
    assert found["data noise: intact"] is True
    assert found["data glyphs: comes with the packages"] is True
    assert found["data public_images: not there; python bench.py data public_images"] is None
    assert found["prior noise4: not there; python bench.py prior --data noise --size 4"] is None
    assert found["prior stable-diffusion-v1-5: not there; docs/priors.md"] is None
    command(*TRAIN)
    assert lines()["prior noise4: trained, noise: 20 images of nothing, at 4 pixels"] is True
    weights = PRIOR.weights(paths.priors() / "noise4")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    (damaged,) = (line for line in lines() if line.startswith(f"prior noise4: {weights} is damaged"))
    assert lines()[damaged] is False
    weights.unlink()
    assert lines()[f"prior noise4: {weights} is missing"] is False
    weights.write_bytes(whole)
    (paths.priors() / "noise4.json").write_text("{}")
    assert [good for line, good in lines().items() if line.startswith("prior noise4")] == [False]
