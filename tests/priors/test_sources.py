"""Where a prior comes from: found, adopted, trained, the hub, somebody's own folder; what is said if nowhere."""

import json
import shutil

import numpy as np
import pytest

from dfkd.errors import UserError
from dfkd.priors import cards, digests_path, load, provide
from dfkd.priors.recipes import HUB, recipes
from dfkd.priors.sources import KNOWN, find
from dfkd.tasks import store
from dfkd.teachers import file_digest
from tests.priors.conftest import TINY, pixel_unet, save_pixel


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A weights folder with the prior `tiny`, which has no card."""
    monkeypatch.setenv("DFKD_WEIGHTS", str(tmp_path / "weights"))
    return save_pixel(tmp_path / "weights" / "prior_tiny", pixel_unet())


@pytest.fixture
def ask(tmp_path):
    """ask(name): what `provide` gives for an `own` folder and a data root of this test's."""

    def call(name, **options):
        options = {"say": lambda line: None} | options
        return provide(name, tmp_path / "own", tmp_path / "data", "cpu", **options)

    return call


def describe(folder, **facts):
    (folder / "card.json").write_text(json.dumps({"trained_on": "a thousand cats"} | facts))


def test_an_unknown_name_gets_the_nearest(ask, monkeypatch):
    monkeypatch.delenv("DFKD_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=r"unknown prior 'public23' .nearest: 'public32'") as caught:
        ask("public23")
    for name in (*recipes(), *HUB):
        assert name in str(caught.value)


def test_a_weights_folder_that_is_not_there(ask, tmp_path):
    with pytest.raises(UserError, match="there is no weights folder"):
        ask("tiny", source=tmp_path / "nowhere")


def test_adoption_without_a_card_says_what_to_write(given, ask, tmp_path):
    with pytest.raises(
        UserError, match=r'prior_tiny has no card; write .*card\.json with at least \{"trained_on"'
    ):
        ask("tiny")
    describe(given, trained_on="")
    with pytest.raises(UserError, match="must say under 'trained_on'"):
        ask("tiny")
    assert not (tmp_path / "own").exists()


def test_adoption_copies_the_model_card_and_digests(given, ask, tmp_path, arrays):
    describe(given, seconds=12, recipe={"steps": 5})
    cards.write_digests(given / "images.npy", arrays)
    folder, card = ask("tiny")
    assert folder == tmp_path / "own" / "tiny"
    assert (card["origin"], card["trained_on"], card["seconds"]) == ("adopted", "a thousand cats", 12)
    assert (card["kind"], card["size"], card["name"]) == ("pixel", 8, "tiny")
    assert card == cards.read_card(folder)
    assert np.array_equal(np.load(digests_path(folder)), np.load(given / "images.npy"))
    assert load(folder, card, "cpu", "fp32").size == 8
    shutil.rmtree(given)
    assert ask("tiny") == (folder, card)  # found


def test_a_fresh_clone_keeps_the_committed_card(given, ask):
    describe(given)
    folder, card = ask("tiny")
    kept = card | {"date": "2001-01-01", "trained_on": "cats, as committed"}
    cards.write_card(folder.parent / "tiny.json", kept)
    shutil.rmtree(folder)
    assert ask("tiny") == (folder, kept)
    assert (folder / "config.json").is_file()


def test_what_is_no_model_is_not_adopted(given, ask, tmp_path):
    describe(given)
    for content in (b"nothing", b""):
        (given / "diffusion_pytorch_model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="prior_tiny holds no UNet2DModel with a scheduler") as caught:
            ask("tiny")
        assert "\n" not in str(caught.value)
    (given / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors is missing"):
        ask("tiny")
    assert not (tmp_path / "own").exists()


def test_a_model_without_its_schedule_is_refused(given, ask):
    describe(given)
    shutil.rmtree(given / "scheduler")
    with pytest.raises(UserError, match="holds no UNet2DModel with a scheduler"):
        ask("tiny")


def test_known_weights_need_no_card_but_their_pool(given, ask, tmp_path, noise, monkeypatch, arrays):
    facts = KNOWN["2003502f4a524091eb7adcbdbd7c8d10da4a61d1349314f51ef860b49ca4bba5"]
    digest = file_digest(cards.weights_path(given))
    monkeypatch.setitem(KNOWN, digest, facts | {"data": "noise", "recipe": "noise4"})
    manifest = noise.manifest(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"trained on noise, .* must be known: .*; make it with: python bench.py data noise"
    ):
        ask("tiny")
    assert not (tmp_path / "own" / "tiny").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "data")
    folder, card = ask("tiny")
    assert (card["seconds"], card["recipe"], card["data"]) == (7201.0, TINY, "noise")
    assert card["data_digest"] == store.digest(manifest)
    assert card["images"] == {"count": 20, "height": 8, "width": 8}
    assert np.array_equal(np.load(digests_path(folder)), np.sort(cards.image_digests(arrays)))


def test_a_damaged_prior_is_refused_when_it_is_loaded(given, ask):
    describe(given)
    folder, card = ask("tiny")
    path = cards.weights_path(folder)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"is damaged: sha256 .* expected, .* found"):
        load(folder, card, "cpu", "fp32")


def test_a_folder_of_our_own_without_a_card(given, ask, tmp_path):
    shutil.copytree(given, tmp_path / "own" / "tiny")
    with pytest.raises(
        UserError, match="tiny has no card; remove it, or move it to a folder that DFKD_WEIGHTS names"
    ):
        ask("tiny")


def test_somebody_s_folder_is_used_where_it_lies(given, ask, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        ask(str(tmp_path / "nowhere" / "x"))
    describe(given)
    folder, card = ask(str(given))
    assert (folder, card["origin"], card["seconds"], card["name"]) == (given, "foreign", 0.0, "prior_tiny")
    assert digests_path(folder) is None
    assert load(folder, card, "cpu", "fp32").size == 8
    assert not (tmp_path / "own").exists()


def test_a_wrong_value_on_somebody_s_card_is_named(given, ask):
    describe(given, seconds="long")
    with pytest.raises(UserError, match=r"card\.json is no card of a prior: 'seconds' is 'long'"):
        ask(str(given))


def test_a_pipeline_is_recognised(stable_diffusion_folder, ask, tmp_path, monkeypatch):
    monkeypatch.setenv("DFKD_WEIGHTS", str(tmp_path / "weights"))
    target = tmp_path / "weights" / "prior_stable-diffusion-v1-5"
    shutil.copytree(stable_diffusion_folder, target)
    folder, card = ask("stable-diffusion-v1-5")
    assert folder == target  # not copied
    assert (card["kind"], card["origin"], card["size"], card["seconds"]) == (
        "stable-diffusion",
        "foreign",
        16,
        0.0,
    )
    assert "LAION" in card["trained_on"] and card["address"].endswith(
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
    describe(target, trained_on="a fine-tuned one")
    assert ask("stable-diffusion-v1-5")[1]["trained_on"] == "a fine-tuned one"


@pytest.mark.parametrize("name", HUB)
def test_offline_and_absent_says_what_to_download_and_where_to_put_it(name, ask, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("DFKD_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=f"prior {name} is neither here nor") as caught:
        ask(name)
    line = str(caught.value)
    assert "\n" not in line and f"--local-dir prior_{name}" in line and "DFKD_WEIGHTS" in line
    assert f"hf download {HUB[name]['repository']}" in line
    assert ("--revision v2.0" in line) == (name == "sd-image-variations")


def test_what_the_hub_gives_is_used(stable_diffusion_folder, ask, monkeypatch):
    from diffusers import DiffusionPipeline

    asked = []
    monkeypatch.delenv("DFKD_WEIGHTS", raising=False)

    def download(repository, **options):
        asked.append((repository, options))
        return str(stable_diffusion_folder)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    folder, card = ask("stable-diffusion-v1-5")
    assert folder == stable_diffusion_folder and card["kind"] == "stable-diffusion"
    repository = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert asked == [(repository, {"revision": None, "safety_checker": None})]


def test_what_is_nowhere_is_trained_by_its_recipe(noise, ask, monkeypatch):
    monkeypatch.delenv("DFKD_WEIGHTS", raising=False)
    folder, card = ask("noise4")
    assert (card["origin"], card["recipe"]) == ("trained", TINY)
    assert ask("noise4") == (folder, card)
    with pytest.raises(
        UserError, match="noise4 was trained by another recipe; remove it, or take another name"
    ):
        ask("noise4", recipe=TINY | {"steps": 3})


def test_names_are_looked_up_in_the_weights_folder_alone(given, tmp_path):
    assert find("tiny") == given
    assert find("other") is None


@pytest.mark.data
def test_the_shared_prior_of_natural_images_is_known(tmp_path):
    try:
        given = find("public32")
    except UserError:
        given = None
    if given is None or store.check(store.data_root(), "public_images"):
        pytest.skip("prior_public32 or public_images is not there")
    folder, card = provide("public32", tmp_path, store.data_root(), "cpu", say=lambda line: None)
    assert (card["seconds"], card["data"], card["size"]) == (7201.0, "public_images", 32)
    assert card["images"] == {"count": 7500, "height": 64, "width": 64}
    assert len(np.load(digests_path(folder))) == 7500
