"""Where a prior comes from: found, imported, trained, the hub, somebody's own folder; what is said if nowhere."""

import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dfkd import artifacts, paths
from dfkd.artifacts import PRIOR, cards, given_folders
from dfkd.artifacts.priors import KNOWN, WantedPrior
from dfkd.errors import UserError
from dfkd.files import file_digest
from dfkd.paths import ROOT
from dfkd.priors import digests_path, load
from dfkd.priors.folder import image_digests, write_digests
from dfkd.priors.recipes import HUB, recipes
from dfkd.tasks import pool, store
from tests.priors.conftest import TINY, pixel_unet, save_pixel


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A weights folder with the prior `tiny`, which has no card."""
    monkeypatch.setenv("DFKD_WEIGHTS", str(tmp_path / "weights"))
    return save_pixel(tmp_path / "weights" / "prior_tiny", pixel_unet())


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """ask(name): what is had for an `own` folder, a data root and a work folder of this test's."""
    monkeypatch.setattr(paths, "WORK", tmp_path / "work")
    monkeypatch.setattr(paths, "priors", lambda: tmp_path / "own")

    def call(name, **options):
        options = {"say": lambda line: None} | options
        if "/" in name:
            return artifacts.prior(name, tmp_path / "data", torch.device("cpu"), **options)
        return WantedPrior(name, tmp_path / "data", torch.device("cpu"), **options).provide()

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


def test_an_import_without_a_card_says_what_to_write(given, ask, tmp_path):
    with pytest.raises(UserError, match=r'prior_tiny has no card; write .*card\.json with at least \{"trained_on"'):
        ask("tiny")
    describe(given, trained_on="")
    with pytest.raises(UserError, match="must say under 'trained_on'"):
        ask("tiny")
    assert not (tmp_path / "own").exists()


def test_an_import_copies_the_model_card_and_digests(given, ask, tmp_path, arrays):
    describe(given, seconds=12, recipe={"steps": 5})
    write_digests(given / "images.npy", arrays)
    folder, card = ask("tiny")
    assert folder == tmp_path / "own" / "tiny"
    assert (card["origin"], card["trained_on"], card["seconds"]) == ("adopted", "a thousand cats", 12)
    assert (card["kind"], card["size"], card["name"]) == ("pixel", 8, "tiny")
    assert card == PRIOR.read(folder)
    assert np.array_equal(np.load(digests_path(folder)), np.load(given / "images.npy"))
    assert load(folder, card, "cpu", "fp32").size == 8
    shutil.rmtree(given)
    assert ask("tiny") == (folder, card)  # found


def test_a_fresh_clone_keeps_the_committed_card(given, ask):
    describe(given)
    folder, card = ask("tiny")
    kept = card | {"date": "2001-01-01", "trained_on": "cats, as committed"}
    PRIOR.write(folder, kept)
    shutil.rmtree(folder)
    assert ask("tiny") == (folder, kept)
    assert (folder / "config.json").is_file()


def test_what_is_no_model_is_not_imported(given, ask, tmp_path):
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
    digest = file_digest(PRIOR.weights(given))
    monkeypatch.setitem(KNOWN, digest, facts | {"data": "noise"})
    manifest = noise.manifest(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"trained on noise, .* must be known: .*; make it with: python bench.py data noise"
    ):
        ask("tiny")
    assert not (tmp_path / "own" / "tiny").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "data")
    folder, card = ask("tiny")
    assert (card["seconds"], card["recipe"], card["data"]) == (7201.0, facts["recipe"], "noise")
    assert card["data_digest"] == store.digest(manifest)
    assert card["images"] == {"count": 20, "height": 8, "width": 8}
    assert np.array_equal(np.load(digests_path(folder)), np.sort(image_digests(arrays)))


def test_known_weights_have_the_recipe_they_were_trained_by(given, ask, noise, monkeypatch):
    """The recipes of today are those of `noise`, and public32 is not among them."""
    (facts,) = KNOWN.values()
    monkeypatch.setitem(KNOWN, file_digest(PRIOR.weights(given)), facts | {"data": "noise"})
    assert ask("tiny")[1]["recipe"]["steps"] == 9862


def test_other_weights_than_asked_for_are_not_imported(given, ask, tmp_path):
    describe(given, recipe=TINY)
    with pytest.raises(UserError, match="prior_tiny was trained by another recipe; remove it, or take another name"):
        ask("tiny", recipe=TINY | {"steps": 7})
    assert not (tmp_path / "own").exists()
    assert ask("tiny", recipe=TINY)[1]["origin"] == "adopted"


def test_an_import_that_fails_loses_no_digests(given, ask, tmp_path, noise, arrays):
    digests = tmp_path / "own" / "tiny.images.npy"
    write_digests(digests, arrays)
    describe(given, data="public_images")  # which is not there
    with pytest.raises(UserError, match="which images these are must be known"):
        ask("tiny")
    assert len(np.load(digests)) == 20


def test_digests_that_nobody_has_are_none(given, ask):
    """An empty file, so that one which is lost is noticed."""
    describe(given)
    assert len(np.load(digests_path(ask("tiny")[0]))) == 0


def test_a_second_process_waits_for_the_first(noise, ask, monkeypatch):
    monkeypatch.delenv("DFKD_WEIGHTS", raising=False)
    told, given, spoken = [], [], threading.Event()

    def hear(line):
        told.append(line)
        spoken.set()

    second = threading.Thread(target=lambda: given.append(ask("noise4", say=hear)))

    def first(line):
        if second.ident is None:
            second.start()
            assert spoken.wait(60)

    made = ask("noise4", say=first)
    second.join(60)
    assert told == ["prior noise4: waiting for another process that makes it"]
    assert given == [made]


@pytest.mark.parametrize("way", ["adopted", "trained"])
def test_a_kill_before_the_card_leaves_nothing_in_the_way(given, noise, ask, monkeypatch, way):
    name, write = {"adopted": "tiny", "trained": "noise4"}[way], cards.replace_file
    describe(given)

    def killed(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(cards, "replace_file", killed)
    with pytest.raises(KeyboardInterrupt):
        ask(name)
    monkeypatch.setattr(cards, "replace_file", write)
    folder, card = ask(name)
    assert card["origin"] == way and PRIOR.read(folder) == card
    assert not folder.with_name(f"{name}.partial").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a b"])
def test_a_name_that_is_none(ask, tmp_path, name):
    (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match=f"a prior's name has letters and digits, .* unlike '{re.escape(name)}'"):
        ask(name)


def test_a_damaged_prior_is_refused_when_it_is_loaded(given, ask):
    describe(given)
    folder, card = ask("tiny")
    path = PRIOR.weights(folder)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"is damaged, or its card is another's: sha256 .* expected, .* found"):
        load(folder, card, "cpu", "fp32")


def spoiled(folder, key, value):
    """The weights of a pixel model with one number changed."""
    path = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state[key].view(-1)[0] = value
    save_file(state, path, {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_imported(given, ask, tmp_path, value):
    describe(given)
    spoiled(given, "conv_in.weight", value)
    for name in ("tiny", str(given)):
        with pytest.raises(UserError, match=r"prior_tiny: 'conv_in\.weight' holds nan or infinity"):
            load(*ask(name), "cpu", "fp32")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_every_network_of_a_pipeline_is_looked_at(stable_diffusion_folder, tmp_path, ask, part):
    folder = tmp_path / "pipeline"
    shutil.copytree(stable_diffusion_folder, folder)
    (path,) = (folder / part).glob("*.safetensors")
    state = load_file(path)
    key = next(key for key, value in state.items() if value.is_floating_point())
    state[key].view(-1)[0] = float("nan")
    save_file(state, path, {"format": "pt"})
    describe(folder)
    with pytest.raises(UserError, match=rf"pipeline/{part}: '.*' holds nan or infinity"):
        load(*ask(str(folder)), "cpu", "fp32")


def test_the_card_of_another_prior_is_named(given, ask, tmp_path):
    describe(given)
    folder, card = ask("tiny")
    PRIOR.write(folder, card | {"name": "other"})
    with pytest.raises(UserError, match=r"tiny\.json is the card of other, not of tiny"):
        ask("tiny")


@pytest.mark.parametrize("where", ["own/tiny", "weights/prior_tiny"])
def test_what_is_no_folder_is_named(ask, tmp_path, monkeypatch, where):
    monkeypatch.setenv("DFKD_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    for make in (Path.touch, lambda path: path.symlink_to("nowhere")):
        path = tmp_path / where
        path.parent.mkdir(exist_ok=True)
        make(path)
        with pytest.raises(UserError, match=f"{path.name} is no folder, where a prior is expected"):
            ask("tiny")
        path.unlink()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("card.json", "[]", "is not of type 'object'"),
        ("card.json", "[" * 100_000, "nested too deeply"),
        ("card.json", '{"trained_on": 3}', "trained_on: 3 is not of type 'string'"),
        ("card.json", '{"trained_on": "cats", "recipe": 3}', "recipe: 3 is not of type"),
        ("config.json", "[]", "is not of type 'object'"),
        ("config.json", '{"_class_name": "UNet2DModel"}', "'sample_size' is a required property"),
        ("config.json", '{"_class_name": ["UNet2DModel"], "sample_size": 8}', "_class_name: .* not of type 'string'"),
        ("config.json", "{" + '"a": 1, ' * 9 + '"b": 1}', "'a' stands there twice"),
    ],
)
def test_a_bad_card_or_configuration_is_named(given, ask, name, content, message):
    describe(given)
    (given / name).write_text(content)
    for asked in ("tiny", str(given)):
        with pytest.raises(UserError, match=message) as caught:
            ask(asked)
        assert str(given / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_home_of_nobody(ask):
    with pytest.raises(UserError, match="~nobody-here/prior"):
        ask("~nobody-here/prior")


def test_a_folder_of_our_own_without_a_card(given, ask, tmp_path):
    shutil.copytree(given, tmp_path / "own" / "tiny")
    with pytest.raises(UserError, match="tiny has no card; remove it, or move it to a folder that DFKD_WEIGHTS names"):
        ask("tiny")


def test_somebody_s_folder_is_used_where_it_lies(given, ask, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        ask(str(tmp_path / "nowhere" / "x"))
    describe(given, seconds=12)
    folder, card = ask(str(given))
    assert (folder, card["origin"], card["seconds"], card["name"]) == (given, "foreign", 0.0, "prior_tiny")
    assert digests_path(folder) is None
    assert load(folder, card, "cpu", "fp32").size == 8
    assert not (tmp_path / "own").exists()


def test_a_wrong_value_on_somebody_s_card_is_named(given, ask):
    describe(given, seconds="long")
    with pytest.raises(UserError, match=r"card\.json is no card of a prior: seconds: 'long' is not of type 'number'"):
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
    assert "LAION" in card["trained_on"] and card["address"].endswith("stable-diffusion-v1-5/stable-diffusion-v1-5")
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
    (command,) = re.findall(f"hf download .* --local-dir prior_{name}", line)
    assert command in " ".join((ROOT / "docs" / "priors.md").read_text().replace("\\\n", " ").split())


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
    with pytest.raises(UserError, match="noise4 was trained by another recipe; remove it, or take another name"):
        ask("noise4", recipe=TINY | {"steps": 3})


def test_names_are_looked_up_in_the_weights_folder_alone(given, tmp_path):
    folders = given_folders()
    assert PRIOR.find("tiny", folders) == given
    assert PRIOR.find("other", folders) is None


@pytest.mark.data
def test_the_shared_prior_of_natural_images_is_known(ask, tmp_path):
    try:
        given = PRIOR.find("public32", given_folders())
    except UserError:
        given = None
    if given is None or pool("public_images").problems(store.data_root()):
        pytest.skip("prior_public32 or public_images is not there")
    folder, card = WantedPrior("public32", store.data_root(), torch.device("cpu"), say=lambda line: None).provide()
    assert (card["seconds"], card["data"], card["size"]) == (7201.0, "public_images", 32)
    assert card["images"] == {"count": 7500, "height": 64, "width": 64}
    assert len(np.load(digests_path(folder))) == 7500
