"""The published hyper-parameters as the specification prints them, against what the command line resolves.

Numbers are copied from baselines.md 1.2, 1.3, 1.5 and 1.6, from ssdkd.md 1.4, 1.5, 1.9 and 1.10 and from dda.md 1.2 to
1.4 and 3.3, never from the recipes.
"""

import pytest

from dfkd.tables import pipeline
from dfkd.tables.definition import table_of
from dfkd.tables.recipes import recipes
from dfkd.tables.resolve import resolve

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
    "meta": "fomaml",
    "bn": 10.0,
    "bn_momentum": 0.9,
    "nz": 256,
    "ngf": 64,
    "upsampling": "transposed",
    "warmup": 20,
    "reset_at": 140,
    "temperature": 20.0,
}
SSDKD = {
    "capacity": 5000,
    "gamma": 2.0,
    "beta": 0.4,
    "eps": 1e-6,
    "diversity": True,
    "difficulty": True,
    "phi_of": "target",
    "normalised": False,
    "phi_on": "oh",
    "phi_grad": False,
    "phi_kd": "none",
    "count": "buffer",
    "priority": "recursive",
    "importance": "raw",
    "replace": "oldest",
}
SSDKD_UNUSED = {"alpha"}  # only with another `priority`
DEEPINV = {
    "steps": 2000,
    "lr": 0.1,
    "beta1": 0.5,
    "beta2": 0.99,
    "bn": 10.0,
    "oh": 1.0,
    "adv": 1.0,
    "student_bn": 0.001,
    "clamp_js": False,
    "tv": 0.0,
    "l2": 0.0,
    "jitter": 0,
    "flip": True,
    "clip": True,
    "temperature": 20.0,
}


def resolved(data, recipe, pair):
    """The cell and every constructor argument it will run with."""
    cell = resolve(data, "paper", recipe, pair)
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


@pytest.mark.parametrize("data", ["digits", "cifar10"])
@pytest.mark.parametrize(
    "recipe, changes",
    [
        ("ssdkd-argmax", {"phi_of": "argmax", "importance": "max"}),
        ("ssdkd-no-phi", {"diversity": False, "difficulty": False}),
        ("ssdkd-uniform", {"priority": "uniform"}),
    ],
)
def test_ablations_of_ssdkd_differ_in_one_component(data, recipe, changes):
    whole, part = (resolve(data, "quick" if data == "digits" else "cpu", name) for name in ("ssdkd", recipe))
    arguments = [{**cell.entry.arguments, **cell.config["args"]} for cell in (whole, part)]
    assert {key: value for key, value in arguments[1].items() if value != arguments[0][key]} == changes
    assert recipes(table_of(data))[recipe]["ablates"] == "ssdkd"


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("pair", PAIRS)
def test_deepinv(data, pair):
    cell, arguments = resolved(data, "deepinv", pair)
    assert cell.entry.name == "deepinv"
    assert arguments == DEEPINV
    assert cell.config["training"] == training(200 * 400, lr=0.1)
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (200, 256)


# baselines.md 1.6: the regime of the table value and the numbers of the scripts, with Fast's generator.
CMI = {
    "steps": 200,
    "lr": 1e-3,
    "bn": 1.0,
    "oh": 1.0,
    "adv": 0.5,
    "cr": 0.8,
    "tau": 0.1,
    "memory": 40960,
    "negatives": 4096,
    "nz": 256,
    "ngf": 64,
    "bank_calls": 200,
    "calls": 1,
    "temperature": 20.0,
}
# dda.md 1.2 (bank and per epoch), 1.3, 1.4, 3.3.
DDA = {
    "steps": 200,
    "bank_steps": 500,
    "bank_calls": 400,
    "bank_batch": 200,
    "calls": 1,
    "lr": 1e-3,
    "bn": 1.0,
    "oh": 1.0,
    "adv": 0.0,
    "cr": 0.8,
    "tau": 0.2,
    "memory": 40000,
    "negatives": 4096,
    "nz": 256,
    "ngf": 64,
    "variants": 4,
    "strength": 0.4,
    "diffusion_steps": 25,
    "threshold": 0.6,
    "keep_ratio": 0.0,
    "centre": False,
    "rotation": 10.0,
    "head_scale": 1.0,
    "head_images": 0,
    "ce": 1.0,
    "hint": 30.0,
    "adapter_width": 2,
    "temperature": 20.0,
}
ARMS = {
    "dda": {},
    "dda-paper": {},
    "dda-released": {"cr": 0.0, "variants": 0},
    "dda-no-diffusion": {"variants": 0},
}


def features(pair):
    """A ResNet-34's features are those of its four stages."""
    return {"features": "stages" if pair.startswith("resnet34") else "bn"}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("recipe", "steps"), [("cmi", 200), ("cmi-500", 500)])
def test_cmi(data, pair, recipe, steps):
    """Of one pair the script is known that gave the tables' value: oh .5, batches of 128; all end at a rate of 0."""
    known = pair == "wrn40_2-wrn16_1"
    cell, arguments = resolved(data, recipe, pair)
    assert cell.entry.name == "cmi"
    assert arguments == CMI | features(pair) | {"steps": steps, "oh": 0.5 if known else 1.0}
    expected = training(40 * 2000, lr=0.1) | {"batch": 128 if known else 256}
    expected["schedule"] = expected["schedule"] | {"eta_min": 0.0}
    assert cell.config["training"] == expected
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (40, 256)
    assert arguments["bank_calls"] * cell.config["synthesis_batch"] == pytest.approx(50_000, rel=0.03)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("arm", ARMS)
def test_dda(data, pair, arm):
    cell, arguments = resolved(data, arm, pair)
    assert cell.entry.name == "dda"
    assert arguments == DDA | features(pair) | ARMS[arm]
    expected = training(200 * 2000, lr=0.1) | {"batch": 128}
    expected["schedule"] = expected["schedule"] | {"eta_min": 0.0}
    assert cell.config["training"] == expected
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (200, 400)
    assert arguments["bank_calls"] * arguments["bank_batch"] == 80_000
    assert cell.config["prior"] == ("sd-image-variations" if arguments["variants"] else "none")


@pytest.mark.parametrize("protocol, changed", [("paper", {}), ("scaled", {"hint": 5.0}), ("cpu", {"hint": 5.0})])
def test_a_recipe_whose_base_is_its_own_name_differs_from_its_base_tables_in_what_it_says(protocol, changed):
    base, own = (resolve(data, protocol, "dda", "resnet34-resnet18").config for data in ("cifar10", "cifar100"))
    assert own["args"] == base["args"] | changed
    assert all(own[key] == base[key] for key in ("method", "rounds", "synthesis_batch", "training", "prior"))


@pytest.mark.parametrize("data, protocol", [("cifar10", "cpu"), ("digits", "quick")])
def test_the_arms_of_dda_differ_in_what_they_are_named_for(data, protocol):
    arms = {arm: resolve(data, protocol, arm).config for arm in ARMS}
    full = arms["dda-paper"]
    for arm, config in arms.items():
        assert config["args"] == full["args"] | ARMS[arm]
        rest = [{**each, "args": None, "method": None, "prior": None} for each in (config, full)]
        assert rest[0] == rest[1]
        assert (config["prior"] == "none") == ("variants" in ARMS[arm])


# diffdfkd.md 1.4 (option defaults), 1.5 (10 visits of all classes), 2.1 and 2.2 (CIFAR-10), 5.
DIFFDFKD = {
    "steps": 50,
    "guidance": 3.0,
    "bn": 0.1,
    "oh": 1.0,
    "adv": 1.0,
    "eta": 1.0,
    "cutmix": 5,
    "cutmix_draw": "beta",
    "intermediate": True,
    "mixed": False,
    "floor": 0.005,
    "cap": None,
    "through_unet": True,
    "warm_steps": 0,
    "published_end": False,
    "prompt": "A realistic photo",
    "class_names": False,
    "msarc": 0.0,
    "temperature": 30.0,
}


@pytest.mark.parametrize(("data", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_diffdfkd(data, classes):
    cell, arguments = resolved(data, "diffdfkd", "wrn40_2-wrn16_2")
    assert cell.entry.name == "diffdfkd" and cell.config["prior"] == "stable-diffusion-v1-5"
    assert {key: arguments[key] for key in DIFFDFKD} == DIFFDFKD
    assert arguments["refresh_every"] == 10 * classes and arguments["adversarial_from"] == 10 * classes + 1
    trajectories = cell.config["synthesis_batch"] // 5
    assert trajectories >= 2, "or CutMix is the identity"
    images = arguments["calls"] * cell.config["synthesis_batch"]
    assert images == pytest.approx(250_000, rel=0.05)
    expected = training(cell.config["training"]["steps"], lr=0.2)
    expected["optimizer"]["weight_decay"] = 5e-4
    expected["schedule"] = {"type": "MultiStepLR", "per": "round", "milestones": [152, 182, 212], "gamma": 0.1}
    assert cell.config["training"] == expected
    assert cell.config["rounds"] == 240
    assert expected["steps"] * 256 / 240 == pytest.approx(images, rel=0.05), "an epoch is a pass over the set"


# baselines.md 1.6: steps of the student for one of the generator, code.
GENERATIVE = {"dafl": (5, 512), "zskt": (5, 256), "dfad": (5, 256), "dfq": (10, 256)}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("recipe", GENERATIVE)
def test_the_generative_baselines(data, pair, recipe):
    cell, arguments = resolved(data, recipe, pair)
    assert (arguments["kd"], arguments["nz"]) == GENERATIVE[recipe]
    assert (arguments["lr"], arguments["beta1"], arguments["beta2"]) == (1e-3, 0.5, 0.999)
    assert arguments.get("temperature", 20.0) == 20.0 and arguments.get("opponent", "student") == "student"
    assert cell.config["training"] == training(200 * 400, lr=0.1)
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (200, 256)
    run, as_run = resolved(data, f"{recipe}-as-run", pair)
    assert run.config["training"] == cell.config["training"]
    # Q1 and Q2 of baselines.md: the teacher for the student, and τ 1.
    changed = {"dafl": {"temperature"}, "dfad": {"opponent"}}.get(recipe, {"temperature", "opponent"})
    assert {key for key in arguments if as_run[key] != arguments[key]} == changed
    assert as_run.get("temperature", 1.0) == 1.0 and as_run.get("opponent", "teacher") == "teacher"


@pytest.mark.parametrize(("data", "k"), [("cifar10", 30), ("cifar100", 40)])
def test_nayer(data, k):
    cell, arguments = resolved(data, "nayer", "wrn40_2-wrn16_2")
    assert arguments == {
        "text_encoder": "clip-vit-base-patch32",
        "prompt": "a image of {}",
        "k": k,
        "lr": 4e-3,
        "bn": 10.0,
        "oh": 0.5,
        "adv": 1.33,
        "bn_momentum": 0.9,
        "noise": 1000,
        "ngf": 64,
        "warmup": 20,
        "warmup_calls": 10,
        "calls": 2,
        "rebuild_every": 10,
        "temperature": 20.0,
    }
    assert cell.config["training"] == training(300 * 400, lr=0.2) | {"batch": 512}
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (300, 400)


# `scaled` divides by 16: student steps, buffer.
SCALED = {"kd-real": (5000, None), "fast-2": (5000, None), "fast-5": (5000, None), "fast-10": (5000, None)}
SCALED |= {"ssdkd": (1250, 312), "deepinv": (5000, None), "cmi": (5000, None)}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("recipe", SCALED)
def test_scaled_keeps_the_published_proportions(data, recipe):
    steps, capacity = SCALED[recipe]
    cell, full = resolve(data, "scaled", recipe), resolve(data, "paper", recipe, "resnet34-resnet18")
    scaled, paper = ({**c.entry.arguments, **c.config["args"]} for c in (cell, full))
    assert cell.config["training"] == full.config["training"] | {"steps": steps}
    assert full.config["training"]["steps"] == 16 * steps
    if capacity:
        assert scaled["capacity"] == capacity == paper["capacity"] // 16
    if cell.entry.name in ("fast", "ssdkd"):
        images = [
            (arguments["warmup"] + config["rounds"]) * config["synthesis_batch"]
            for arguments, config in ((scaled, cell.config), (paper, full.config))
        ]
        assert 16 * images[0] == pytest.approx(images[1], rel=0.02)
        assert 16 * (scaled["reset_at"] - scaled["warmup"]) * 128 == (140 - 20) * 256
        assert scaled["k"] == paper["k"] and scaled["lr_g"] == paper["lr_g"]


# Student steps, batch, rounds, images of a synthesis step, and where there are some the images made in all, each a
# sixteenth of what is published (baselines.md 1.6, dda.md 1.2, diffdfkd.md 1.5) but for rounding.
DIVIDED = {
    "dafl": (5000, 256, 25, 256, None),
    "zskt": (5000, 256, 25, 256, None),
    "dfad": (5000, 256, 25, 256, None),
    "dfq": (5000, 256, 25, 256, None),
    "nayer": (7500, 512, 25, 300, 320_000),
    "dda-paper": (25_000, 128, 25, 200, 160_000),
    "dda-no-diffusion": (25_000, 128, 25, 200, 160_000),
    "diffdfkd": (14_640, 256, 240, 20, 250_000),
}


@pytest.mark.parametrize("recipe", DIVIDED)
def test_scaled_divides_what_recipes_set_themselves(recipe):
    steps, batch, rounds, images, made = DIVIDED[recipe]
    cell, full = resolve("cifar10", "scaled", recipe), resolve("cifar10", "paper", recipe, "resnet34-resnet18")
    training = cell.config["training"]
    assert (training["steps"], training["batch"]) == (steps, batch)
    assert training == full.config["training"] | {"steps": steps}
    assert 16 * steps == pytest.approx(full.config["training"]["steps"], rel=0.01)
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (rounds, images)
    scaled, paper = ({**c.entry.arguments, **c.config["args"]} for c in (cell, full))
    totals = {
        "nayer": lambda a, c: (a["warmup"] * a["warmup_calls"] + c["rounds"] * a["calls"]) * c["synthesis_batch"],
        "dda": lambda a, c: a["bank_calls"] * a["bank_batch"] + c["rounds"] * c["synthesis_batch"],
        "diffdfkd": lambda a, c: a["calls"] * c["synthesis_batch"],
    }
    if made:
        total = totals[cell.entry.name]
        assert total(paper, full.config) == made
        assert 16 * total(scaled, cell.config) == pytest.approx(made, rel=0.02)
    if recipe == "diffdfkd":
        assert 16 * scaled["calls"] // scaled["refresh_every"] * scaled["refresh_steps"] == pytest.approx(
            paper["calls"] // paper["refresh_every"] * paper["refresh_steps"], rel=0.01
        )
    if recipe == "dda-paper":
        assert 16 * scaled["memory"] == paper["memory"] and scaled["variants"] == paper["variants"] == 4
    assert cell.prior == ("public32" if recipe in ("dda-paper", "diffdfkd") else None)


@pytest.mark.parametrize("protocol", ["paper", "scaled"])
def test_kd_on_a_tenth_has_as_many_real_images_as_the_buffer_has_synthetic_ones(protocol):
    synthetic, real = (resolve("cifar10", protocol, name) for name in ("ssdkd", "kd-real-10"))
    capacity = {**synthetic.entry.arguments, **synthetic.config["args"]}["capacity"]
    assert round(real.config["args"]["share"] * 50_000) == capacity


def test_ablations_change_what_they_are_named_for():
    """The claims of the papers, each as one recipe that says what it is an ablation of."""
    from dfkd.tables.recipes import recipes

    changes = {
        "fast-10-no-meta": ("fast-10", {"meta": "none"}),
        "dda-no-diffusion": ("dda-paper", {"variants": 0}),
        "dda-no-filter": ("dda-paper", {"threshold": -1.0}),
        "dda-centred": ("dda-paper", {"centre": True}),
        "diffdfkd-unguided": ("diffdfkd", {"bn": 0.0, "oh": 0.0, "adv": 0.0}),
        "diffdfkd-no-cutmix": ("diffdfkd", {"cutmix_draw": "none"}),
        "diffdfkd-final-only": ("diffdfkd", {"intermediate": False}),
        "diffdfkd-msarc": ("diffdfkd", {"msarc": 10.0}),
    }
    book = recipes(table_of("cifar10"))
    for name, (whole, expected) in changes.items():
        assert book[name]["ablates"] == whole
        for protocol in ("cpu", "paper"):
            config, other = (resolve("cifar10", protocol, recipe).config for recipe in (name, whole))
            assert config["args"] == other["args"] | expected
            differs = {key for key in other if config[key] != other[key]} - {"method", "args"}
            assert differs <= {"prior", "synthesis_batch"}
            if "synthesis_batch" in differs:  # as many trajectories, of one image instead of five
                assert name == "diffdfkd-final-only" and 5 * config["synthesis_batch"] == other["synthesis_batch"]
    assert not {"dda-paper", "diffdfkd", "fast-10"} & {name for name in book if "ablates" in book[name]}
    assert resolve("cifar100", "cpu", "diffdfkd-msarc").config["args"]["msarc"] == 100.0


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
        "opponent": "student",
        "objective": "log",
        "kd": 5,
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "decay": 0.3,
        "decay_every": 100,
        "nz": 256,
        "ngf": 64,
    }
    assert cell.config["training"] == DFAD_STUDENT | {"steps": 300 * 50 * 5}
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (300, 64)


@pytest.mark.parametrize("recipe", ["fast-10", "ssdkd"])
def test_fast_and_ssdkd_on_nyuv2(recipe):
    """ssdkd.md 1.10: 250 calls of 64, the first 20 without KD, then 50 steps of 64 an epoch; τ 1. Upsampling: ours
    (baselines.md 1.5)."""
    cell, arguments = resolved("nyuv2", recipe, NYUV2)
    expected = COMMON | {
        "upsampling": "nearest",
        "k": 10,
        "lr_g": 2e-3,
        "lr_z": 0.01,
        "bn": 0.1,
        "oh": 0.1,
        "adv": 1.0,
        "temperature": 1.0,
    }
    if recipe == "ssdkd":
        expected |= SSDKD | {"capacity": 16000}
    assert {key: arguments[key] for key in expected} == expected
    assert cell.config["training"] == DFAD_STUDENT | {"steps": 230 * 50}
    assert (cell.config["rounds"], cell.config["synthesis_batch"]) == (230, 64)


@pytest.mark.parametrize("data", ["nyuv2", "digit-scenes"])
def test_segmentation_is_distilled_at_temperature_1(data):
    cells = [resolve(run.data, run.protocol, run.method, run.pair) for run in pipeline.span() if run.data == data]
    distilling = [cell for cell in cells if "temperature" in cell.entry.arguments]
    assert {cell.entry.name for cell in distilling} >= {"kd-real", "kd-noise", "fast", "ssdkd"}
    assert all(cell.config["args"]["temperature"] == 1.0 for cell in distilling)


def test_the_teacher_of_nyuv2():
    teacher = table_of("nyuv2").protocol("paper").teacher
    assert teacher == {
        "encoder": "imagenet_resnet50",
        "epochs": 200,
        "batch": 16,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "multistep",
        "milestones": [100],
        "gamma": 0.1,
        "focal": 2.0,
    }


def test_a_teacher_of_another_schedule_keeps_nothing_of_the_one_it_replaces():
    taken = table_of("tiny_imagenet").protocol("cpu").teacher
    assert set(taken) == {"schedule", "encoder", "encoder_sha256", "encoder_classes"}
    trained = table_of("tiny_imagenet50").protocol("cpu").teacher
    assert (trained["encoder"], trained["epochs"], taken["encoder"]) == (
        "cifar100_resnet20",
        12,
        "imagenet_efficientnet_lite0",
    )
