"""The published hyper-parameters as the specification prints them, against what the command line resolves.

Numbers are copied from baselines.md 1.2, 1.3 and 1.5 and from ssdkd.md 1.4, 1.5, 1.9 and 1.10, never from the recipes.
"""

import pytest

from dfkd import protocols

DATA = ["cifar10", "cifar100"]  # "identical"

# baselines.md 1.3, left half: adv, oh.
PAIRS = {
    "resnet34-resnet18": (1.33, 0.5),
    "vgg11-resnet18": (1.0, 0.5),
    "wrn40_2-wrn16_1": (1.1, 0.4),
    "wrn40_2-wrn40_1": (1.1, 0.4),
    "wrn40_2-wrn16_2": (1.1, 0.4),
}
# Right half: class, k, lr_g, lr_z, outer lr; student steps. SSD-KD is Fast10 with 100 steps an epoch, not 400.
RECIPES = {
    "fast-2": ("fast", 2, 5e-3, 0.015, 1e-2, 200 * 400),
    "fast-5": ("fast", 5, 3e-3, 0.01, 1.5e-2, 200 * 400),
    "fast-10": ("fast", 10, 2e-3, 0.01, 2e-2, 200 * 400),
    "ssdkd": ("ssdkd", 10, 2e-3, 0.01, 2e-2, 200 * 100),
}
# Fast, whatever the pair and k. No switch for the augmentation: it is the task's.
COMMON = {
    "meta": "fomaml", "bn": 10.0, "bn_momentum": 0.9, "nz": 256, "ngf": 64, "warmup": 20, "reset_at": 140,
    "temperature": 20.0,
}
SSDKD = {
    "capacity": 5000, "gamma": 2.0, "beta": 0.4, "eps": 1e-6, "diversity": True, "difficulty": True,
    "phi_on": "oh", "phi_grad": False, "priority": "recursive", "replace": "oldest",
}
SSDKD_UNUSED = {"alpha"}  # only with another `priority`
DEEPINV = {
    "steps": 2000, "lr": 0.1, "beta1": 0.5, "beta2": 0.99, "bn": 10.0, "oh": 1.0, "adv": 1.0,
    "student_bn": 0.001, "clamp_js": False, "tv": 0.0, "l2": 0.0, "jitter": 0, "flip": True, "clip": True,
    "temperature": 20.0,
}


def resolved(data, recipe, pair):
    """The cell and every constructor argument it will run with."""
    cell = protocols.resolve(data, "paper", recipe, pair)
    return cell, {**cell.entry.arguments, **cell.config["args"]}


def training(steps, lr):
    return {
        "steps": steps,
        "batch": 256,
        "optimizer": {"type": "SGD", "lr": lr, "momentum": 0.9, "weight_decay": 1e-4},
        "schedule": {"type": "CosineAnnealingLR", "per": "round", "eta_min": 2e-4},
    }


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_arguments_of_fast_and_ssdkd(data, recipe, pair):
    name, k, lr_g, lr_z, outer, _ = RECIPES[recipe]
    adv, oh = PAIRS[pair]
    cell, arguments = resolved(data, recipe, pair)
    assert cell.entry.name == name
    expected = COMMON | {"k": k, "lr_g": lr_g, "lr_z": lr_z, "adv": adv, "oh": oh}
    if name == "ssdkd":
        expected |= SSDKD
        arguments = {key: value for key, value in arguments.items() if key not in SSDKD_UNUSED}
    assert arguments == expected
    assert arguments["lr_g"] * arguments["k"] == pytest.approx(outer)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_student_training_of_fast_and_ssdkd(data, recipe, pair):
    config = resolved(data, recipe, pair)[0].config
    assert config["training"] == training(RECIPES[recipe][-1], lr=0.2)
    assert (config["rounds"], config["synthesis_batch"], config["precision"]) == (200, 256, "fp32")


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("pair", PAIRS)
def test_deepinv(data, pair):
    cell, arguments = resolved(data, "deepinv", pair)
    assert cell.entry.name == "deepinv"
    assert arguments == DEEPINV
    assert cell.config["training"] == training(200 * 400, lr=0.1)
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (200, 256)


NYUV2 = "deeplabv3_resnet50-deeplabv3_mobilenetv2"
# baselines.md 1.5: 300 epochs x 50 iterations x 5 student steps, batch 64.
DFAD_STUDENT = {
    "batch": 64,
    "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-5},
    "schedule": {"type": "StepLR", "per": "round", "step_size": 100, "gamma": 0.3},
}


def test_dfad_on_nyuv2():
    cell, arguments = resolved("nyuv2", "dfad", NYUV2)
    assert arguments == {
        "objective": "log", "kd": 5, "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "decay": 0.3, "decay_every": 100,
        "nz": 256, "ngf": 64,
    }
    assert cell.config["training"] == DFAD_STUDENT | {"steps": 300 * 50 * 5}
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (300, 64)


@pytest.mark.parametrize("recipe", ["fast-10", "ssdkd"])
def test_fast_and_ssdkd_on_nyuv2(recipe):
    """ssdkd.md 1.10: 250 calls of 64, the first 20 without KD, then 50 steps of 64 an epoch; τ 1."""
    cell, arguments = resolved("nyuv2", recipe, NYUV2)
    expected = COMMON | {"k": 10, "lr_g": 2e-3, "lr_z": 0.01, "bn": 0.1, "oh": 0.1, "adv": 1.0, "temperature": 1.0}
    if recipe == "ssdkd":
        expected |= SSDKD | {"capacity": 16000}
    assert {key: arguments[key] for key in expected} == expected
    assert cell.config["training"] == DFAD_STUDENT | {"steps": 230 * 50}
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (230, 64)


@pytest.mark.parametrize("data", ["nyuv2", "digit-scenes"])
def test_segmentation_is_distilled_at_temperature_1(data):
    cells = [protocols.resolve(d, p, m, pair) for d, p, pair, m, _ in protocols.span() if d == data]
    distilling = [cell for cell in cells if "temperature" in cell.entry.arguments]
    assert {cell.entry.name for cell in distilling} >= {"kd-real", "kd-noise", "fast", "ssdkd"}
    assert all(cell.config["args"]["temperature"] == 1.0 for cell in distilling)


def test_the_teacher_of_nyuv2():
    teacher = protocols.protocols("nyuv2")["paper"]["teacher"]
    assert teacher == {
        "encoder": "imagenet_resnet50", "epochs": 200, "batch": 16, "lr": 0.05, "momentum": 0.9,
        "weight_decay": 5e-4, "schedule": "multistep", "milestones": [100], "gamma": 0.1, "focal": 2.0,
    }
