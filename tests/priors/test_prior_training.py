"""The trainer: the recipe is followed, the seed decides, a stop changes nothing, and it learns."""

import json

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper

from dfkd import paths
from dfkd.artifacts import PRIOR
from dfkd.artifacts.priors import WantedPrior
from dfkd.engine.clock import Clock
from dfkd.errors import UserError
from dfkd.priors import digests_path, load, training
from dfkd.priors.folder import image_digests
from dfkd.priors.recipes import changed, check, recipe_for, recipes
from dfkd.signals import Stopped
from tests.priors.conftest import TINY


@pytest.fixture
def run(noise, tmp_path, monkeypatch):
    """run(where, **changes to the recipe): folder and card of a trained prior."""

    def train(where="own", say=lambda line: None, seed=0, resume=True, **changes):
        monkeypatch.setattr(paths, "priors", lambda: tmp_path / where)
        options = {"recipe": TINY | changes, "seed": seed, "resume": resume, "say": say}
        return WantedPrior("tiny", tmp_path / "data", torch.device("cpu"), **options).train()

    return train


def test_the_rate_rises_stays_and_falls():
    recipe = TINY | {"steps": 10, "lr": 1.0, "warmup": 2, "decay": 0.4}
    found = [training.rate(recipe, step) for step in range(10)]
    assert found[:7] == [0.5, 1, 1, 1, 1, 1, 1]
    assert found[7:] == pytest.approx([0.02 + 0.98 * share for share in (0.853553, 0.5, 0.146447)], abs=1e-5)
    assert training.rate(recipe | {"decay": 0}, 9) == 1


def test_what_is_left_behind(run, tmp_path, arrays):
    told = []
    torch.rand(1)
    folder, card = run(say=told.append)
    assert folder == tmp_path / "own" / "tiny"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tiny", "tiny.images.npy", "tiny.json"]
    assert card == PRIOR.read(folder)
    assert card["trained_on"] == "noise: 20 images of nothing, at 4 pixels"
    assert card["images"] == {"count": 20, "height": 8, "width": 8}
    assert (card["origin"], card["kind"], card["size"], card["seed"]) == ("trained", "pixel", 4, 0)
    assert card["recipe"] == TINY and card["seconds"] > 0
    assert np.array_equal(np.load(digests_path(folder)), np.sort(image_digests(arrays)))
    assert told[-1].startswith("prior tiny: step 6/6, loss ") and told[-1].endswith("left")
    prior = load(folder, card, "cpu", "fp32")
    assert prior.latent_shape == (3, 4, 4) and prior.unet.config.sample_size == 4
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["beta_schedule"], scheduler["clip_sample"]) == ("scaled_linear", False)
    assert not list((tmp_path / "work").rglob("*.pt"))


def test_the_seed_decides(run):
    one, again, other = (run(where, seed=seed)[1]["digest"] for where, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert one == again != other


def test_stopped_and_gone_on_with_is_the_same_bit_for_bit(run, tmp_path, interrupt):
    straight = run("straight")[1]["digest"]
    undo = interrupt(4)
    with pytest.raises(Stopped, match="stopped by SIGINT at step 4/6; the same with --resume"):
        run()
    undo()
    assert not (tmp_path / "own").exists()
    told = []
    assert run(say=told.append)[1]["digest"] == straight
    assert told[0].endswith("from step 4")


def test_without_resume_no_state_is_lost(run, interrupt):
    undo, told = interrupt(4), []
    with pytest.raises(Stopped):
        run()
    undo()
    with pytest.raises(UserError, match="is a saved state of this training: pass --resume to go on from it, or remove"):
        run(resume=False)
    run(say=told.append)
    assert not told[0].endswith("from step 0")


def test_another_recipe_does_not_go_on_with_this_one_s_state(run, interrupt):
    undo, told = interrupt(4), []
    with pytest.raises(Stopped):
        run()
    undo()
    run(lr=2e-3, say=told.append)
    assert told[0].endswith("from step 0")


def test_a_damaged_state_is_named(run, tmp_path, interrupt):
    undo = interrupt(4)
    with pytest.raises(Stopped):
        run()
    undo()
    (state,) = (tmp_path / "work" / "priors" / "tiny").glob("*.pt")
    state.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"\.pt cannot be read .*; delete it to start this run afresh"):
        run()


def test_a_batch_is_averaged_and_flipped(noise, arrays):
    made = training.Denoising(TINY | {"batch": 20}, 0, images=arrays, flip=noise.flip, clock=Clock())
    batch = made.draw()
    assert batch.shape == (20, 3, 4, 4)
    small = torch.from_numpy(arrays).float().reshape(20, 4, 2, 4, 2, 3).mean((2, 4)).permute(0, 3, 1, 2) / 127.5 - 1
    matches = [((small - x).abs().amax((1, 2, 3)) < 1e-5) for x in batch]
    mirrored = [((small.flip(3) - x).abs().amax((1, 2, 3)) < 1e-5) for x in batch]
    assert sorted((a | b).nonzero().item() for a, b in zip(matches, mirrored, strict=True)) == list(range(20))
    assert 0 < sum(m.any().item() for m in mirrored) < 20
    straight = training.Denoising(TINY | {"batch": 20}, 0, images=arrays, flip=False, clock=Clock()).draw()
    assert all(((small - x).abs().amax((1, 2, 3)) < 1e-5).any() for x in straight)


def test_it_learns_and_averages(noise, arrays):
    """One picture, whose noise a network soon tells from it; the averaged weights lag behind."""
    recipe = TINY | {"steps": 80, "batch": 16, "lr": 1e-2, "ema": 0.99}
    made, losses = training.Denoising(recipe, 0, images=arrays[:1] // 255 * 255, flip=noise.flip, clock=Clock()), []
    optimizer = OptimWrapper(
        torch.optim.AdamW(made.parameters(), 1e-2, (0.9, 0.99), weight_decay=recipe["weight_decay"])
    )
    made.trained.train()
    for made.progress.student_steps in range(80):
        made.train_step(made.draw(), optimizer)
        losses.append(made.mean_loss.item())
    assert losses[-1] < 0.7 * losses[0]
    last = next(made.unet.parameters()).detach().clone()
    assert not torch.allclose(next(made.averaged().parameters()), last)


def test_a_diverging_loss_stops(run):
    with pytest.raises(UserError, match="training diverged before step 6/6: the loss is not finite; lower lr"):
        run(lr=1e30, warmup=0)


def test_a_size_that_does_not_divide(run):
    with pytest.raises(UserError, match="noise has 8 pixels, which 6 does not divide"):
        run(size=6)


def test_a_disk_that_refuses_is_one_line(run, monkeypatch):
    from diffusers import UNet2DModel
    from safetensors import SafetensorError

    for error in (OSError(28, "No space left on device"), SafetensorError("No space left on device")):

        def save(self, folder, error=error):
            raise error

        monkeypatch.setattr(UNet2DModel, "save_pretrained", save)
        with pytest.raises(UserError, match=r"cannot write .*tiny\.partial: .*No space left on device$"):
            run()


def test_recipes_of_the_project_are_sound():
    assert {"public32", "glyphs16"} <= recipes().keys()
    for name, recipe in recipes().items():
        check(recipe)
        assert recipe_for(recipe["data"], recipe["size"]) == (name, recipe)


def test_a_size_without_a_recipe_has_the_pool_s():
    name, recipe = recipe_for("public_images", 16)
    assert (name, recipe) == ("public16", recipes()["public32"] | {"size": 16})
    with pytest.raises(UserError, match=r"unknown pool 'public' .nearest: 'public_images'"):
        recipe_for("public", 32)


def test_a_pool_without_a_recipe(noise, tmp_path):
    with pytest.raises(UserError, match=r"no recipe for the auxiliary images glyphs; write one into .*priors\.yaml"):
        recipe_for("glyphs", 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stepz=3", "unknown --set key 'stepz' .nearest: 'steps'"),
        ("size=8", "unknown --set key 'size'"),
        ("steps", "--set takes key=value"),
        ("steps=many", "--set steps takes a value of type int, not 'many'"),
        ("steps=1.5", "type int, not '1.5'"),
        ("steps=0", "steps: 0 is less than the minimum of 1"),
        ("steps=[1", "is not a value"),
        ("lr=-1", "lr: -1.0 is less than or equal to the minimum of 0"),
        ("lr=.nan", "--set lr: '.nan' is not a value: 0: nan is no number"),
        ("ema=1.5", "ema: 1.5 is greater than the maximum of 1"),
        ("channels=[12]", "channels.0: 12 is not a multiple of 8"),
        ("channels=[]", "channels: .. should be non-empty"),
        ("channels=[8,8,8,8,8,8,8]", "6 halvings do not divide a 'size' of 32"),
        ("batch=true", "type int, not 'true'"),
        ("steps=010", "type int, not '010'"),
    ],
)
def test_a_bad_value_is_named(change, message):
    with pytest.raises(UserError, match=message):
        changed(recipes()["public32"], [change])


def test_values_as_yaml_and_people_write_them():
    found = changed(recipes()["public32"], ["lr=1e-3", "channels=[16, 32]", "steps=7"])
    assert (found["lr"], found["channels"], found["steps"]) == (1e-3, [16, 32], 7)
