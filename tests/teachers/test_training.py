"""Supervised training: the recipe is followed, the seed decides, and it learns."""

import pytest
import torch

from dfkd.engine.evaluation import on_device, score
from dfkd.errors import UserError
from dfkd.networks import initialise
from dfkd.networks.normalised import Normalised
from dfkd.tasks import task
from dfkd.teachers.recipes import check
from dfkd.teachers.training import rate, train

DIGITS = task("digits")
RECIPE = {
    "epochs": 2,
    "batch": 64,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
}
STEPS = RECIPE | {"schedule": "multistep", "milestones": [2, 3], "gamma": 0.1}


def test_learning_rates():
    cosine, steps = ([rate(recipe | {"epochs": 4}, epoch) for epoch in range(4)] for recipe in (RECIPE, STEPS))
    assert cosine == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], abs=1e-7)
    assert steps == pytest.approx([0.1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (RECIPE | {"schedule": "cosin"}, "schedule: unknown value 'cosin' .nearest: 'cosine'"),
        (RECIPE | {"weight_decy": 1}, "recipe: unknown key 'weight_decy' .nearest: 'weight_decay'"),
        (RECIPE | {"lr": "0.1"}, "lr: '0.1' is not of type 'number'"),
        (RECIPE | {"epochs": 0}, "epochs: 0 is less than the minimum of 1"),
        (RECIPE | {"batch": 1}, "batch: 1 is less than the minimum of 2"),
        (RECIPE | {"schedule": "multistep"}, "'milestones' is a required property"),
        (RECIPE | {"milestones": [2]}, "unknown key 'milestones'"),
        ({}, "'schedule' is a required property"),
    ],
)
def test_a_wrong_recipe_is_named(recipe, message):
    with pytest.raises(UserError, match=message):
        check(recipe)


@pytest.fixture(scope="module")
def arrays():
    images, labels = DIGITS.load("train", None)
    return images[:256], labels[:256]


def test_the_seed_decides_and_progress_is_told(arrays):
    def run(seed):
        torch.rand(1)  # the global stream must not matter
        network, told = initialise("resnet8", DIGITS.spec, 0), []
        assert train(network, *arrays, DIGITS, RECIPE, seed=seed, say=told.append) > 0
        assert told[-1].startswith("epoch 2/2, loss ") and told[-1].endswith(", about 0 s left")
        assert not network.training
        return network.fc.weight

    one, again, other = run(1), run(1), run(2)
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert not torch.equal(one, other)


def test_a_diverging_loss_stops(arrays):
    with pytest.raises(UserError, match="training diverged before epoch 1/2: the loss is not finite"):
        train(initialise("wrn16_1", DIGITS.spec, 0), *arrays, DIGITS, RECIPE | {"lr": 1e30}, seed=0)


def test_accuracy_by_hand_and_mode_untouched():
    images, labels = DIGITS.load("test", None)
    spec = DIGITS.spec
    network = Normalised(initialise("resnet8", spec, 0), spec).train()
    before = network.network.bn1.running_mean.clone()
    measured = score(network, DIGITS, images[:70], labels[:70], "cpu")
    assert network.training
    assert torch.equal(network.network.bn1.running_mean, before)
    tensors, truth = on_device(images[:70], labels[:70], "cpu")
    assert tensors.shape == (70, 3, 16, 16)
    assert tensors.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        hits = (network.eval()(tensors / 255).argmax(1) == truth).sum().item()
    assert measured == pytest.approx(100 * hits / 70)


@pytest.mark.slow
def test_it_learns_the_digits():
    network = initialise("resnet8", DIGITS.spec, 0)
    train(network, *DIGITS.load("train", None), DIGITS, RECIPE | {"epochs": 5}, seed=0)
    assert score(Normalised(network, DIGITS.spec), DIGITS, *DIGITS.load("test", None), "cpu") > 85
