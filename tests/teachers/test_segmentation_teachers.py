"""Teachers of segmentation: crops with labels, the focal loss, an encoder that starts from other weights, mIoU."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfkd import artifacts, doctor, paths
from dfkd.artifacts import teachers as wanted
from dfkd.engine.evaluation import on_device, score
from dfkd.errors import UserError
from dfkd.networks import build, initialise
from dfkd.synthesis import losses
from dfkd.tables.resolve import resolve
from dfkd.tasks import IGNORE, task
from dfkd.teachers.recipes import check
from dfkd.teachers.training import train

SCENES = task("digit-scenes")
RECIPE = {
    "epochs": 1,
    "batch": 2,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "focal": 2.0,
}


@pytest.fixture
def arrays(monkeypatch):
    monkeypatch.setattr("dfkd.tasks.digit_scenes.COUNTS", {"train": 5, "test": 3})
    return SCENES.load("train", None)


def trained(arrays, recipe, seed=0):
    network = initialise("deeplabv3plus_thin16", SCENES.spec, 0)
    train(network, *arrays, SCENES, recipe, seed=seed)
    return network.state_dict()


def test_the_recipe_decides_and_a_last_single_image_is_left_out(arrays):
    """Five images in twos: alone, the fifth would have no variance where ASPP pools to 1x1."""
    one, again = trained(arrays, RECIPE), trained(arrays, RECIPE)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert one["head.0.weight"].ne(trained(arrays, RECIPE | {"focal": 0.0})["head.0.weight"]).any()
    assert one["decoder.block1.1.num_batches_tracked"] == 2


def test_the_loss_is_focal_over_labelled_pixels_of_crops(arrays, monkeypatch):
    """Of the first batch, against the formula written out."""
    seen = []

    def focal(logits, labels, gamma):
        values = original(logits, labels, gamma)
        seen.append((logits.detach(), labels, values.mean()))
        return values

    original = losses.focal
    monkeypatch.setattr(losses, "focal", focal)
    images, labels = arrays
    labels = labels.copy()
    labels[:, :30] = IGNORE
    trained((images, labels), RECIPE)
    logits, crops, value = seen[0]
    assert logits.shape == (2, 4, 64, 64) and crops.shape == (2, 64, 64)
    p = logits.double().softmax(1).gather(1, crops.clamp_max(3)[:, None])[:, 0]
    each = -((1 - p) ** 2) * p.log()
    expected = sum(each[i][crops[i] != IGNORE].mean() for i in range(2)) / 2
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("wrong", [{"focal": "two"}, {"encoder": 3}, {"focl": 2.0}])
def test_a_wrong_key_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        check(RECIPE | wrong)


def test_the_score_is_the_mean_iou_of_whole_images(arrays):
    class Background(nn.Module):
        def forward(self, images):
            assert images.shape[1:] == (3, 64, 80)
            return torch.eye(5)[torch.zeros(len(images), 64, 80, dtype=torch.int64)].permute(0, 3, 1, 2)

    _, labels = on_device(*arrays, "cpu")
    present = labels.unique()
    share = (labels == 0).float().mean().item()
    assert score(Background(), SCENES, *arrays, "cpu") == pytest.approx(share / len(present), rel=1e-5)


def test_the_encoder_starts_from_the_named_file_and_the_card_says_so(arrays, tmp_path, monkeypatch):
    source = build("deeplabv3plus_mobilenetv2", 11).encoder.state_dict()
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(source, folder / "some_encoder.safetensors")
    monkeypatch.setattr(wanted, "train", lambda *arguments, **options: 1.0)
    monkeypatch.setattr(paths, "WORK", tmp_path / "work")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    recipe = RECIPE | {"encoder": "some_encoder"}
    asked = ("digit-scenes", "deeplabv3plus_mobilenetv2", recipe, tmp_path, torch.device("cpu"))
    path, card = artifacts.teacher(*asked, source=folder, say=lambda line: None)
    assert card["recipe"]["encoder"] == "some_encoder"
    encoder = artifacts.load(path, "deeplabv3plus_mobilenetv2", SCENES.spec).encoder.state_dict()
    assert all(torch.equal(encoder[key], source[key]) for key in source)
    monkeypatch.delenv("DFKD_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=r"starts from some_encoder\.safetensors"):
        artifacts.teacher(*asked, say=lambda line: None, anew=True)


@pytest.mark.parametrize(("data", "pair"), [("digits", "resnet8-deeplabv3plus_thin16"), ("nyuv2", "resnet8-resnet8")])
def test_a_network_of_the_other_kind_is_refused(data, pair):
    with pytest.raises(UserError, match=rf"does not fit {data}, a task of (classification|segmentation); there are:"):
        resolve(data, "quick" if data == "digits" else "cpu", "teacher", pair)


def test_the_doctor_knows_a_fraction_from_a_percentage(teachers, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {})
    for data, expected in (("digits", "0.10 %"), ("digit-scenes", "0.100")):
        weights, _ = teachers[data]
        lines = [line for _, line in doctor.examine(weights.parent, weights.parent, weights.parent)]
        assert f"teacher {weights.name}: trained, {expected}" in lines
