"""Weights and cards: what is written can be read, what is wrong is named, nothing unsafe is loaded."""

import json
import math
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dfkd import artifacts
from dfkd.artifacts import TEACHER
from dfkd.artifacts.teachers import bring
from dfkd.errors import UserError
from dfkd.files import file_digest
from dfkd.networks import build, initialise
from dfkd.tasks import task

SPEC = task("digits").spec
NAMED = ("digits", "resnet8")


@pytest.fixture
def network():
    return initialise("resnet8", SPEC, seed=1)


def equal(one, other):
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.fixture
def saved(network, tmp_path):
    path = tmp_path / "own" / "digits_resnet8.safetensors"
    card = TEACHER.new(*NAMED, spec=SPEC.to_dict(), origin="trained", seed=1, accuracy=97.5, seconds=3.0)
    artifacts.save(network.to(memory_format=torch.channels_last), path, card)
    return path


def test_round_trip(network, saved):
    loaded = artifacts.load(saved, "resnet8", SPEC)
    assert equal(loaded, network)
    assert not loaded.training
    card = TEACHER.read(saved)
    assert card.keys() == TEACHER.schema["properties"].keys()
    assert (card["accuracy"], card["recipe"], card["address"]) == (97.5, None, None)
    assert card["digest"] == file_digest(saved)
    assert sorted(path.suffix for path in saved.parent.iterdir()) == [".json", ".safetensors"]
    with safe_open(saved, "pt") as file:
        assert file.metadata() == {"mean": "0.5 0.5 0.5", "std": "0.5 0.5 0.5"}


def test_weights_that_differ_from_their_card_are_refused(saved):
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    message = r"digits_resnet8\.safetensors is damaged, or its card is another's: sha256 .* expected, .* found"
    with pytest.raises(UserError, match=message):
        artifacts.load(saved, "resnet8", SPEC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": "high"}, "accuracy: 'high' is not of type"),
        ({"accuracy": -1}, "accuracy: -1 is less than"),
        ({"accuracy": math.nan}, "nan is no number"),
        ({"origin": "found"}, "origin: unknown value 'found'"),
        ({"spec": {}}, "spec: 'size' is a required property"),
        ({"spec": SPEC.to_dict() | {"std": [0.5, 0, 0.5]}}, r"spec: .* std \(0.5, 0.0, 0.5\) above 0"),
        ({"spec": SPEC.to_dict() | {"mean": [0.5, 1e300, 0.5]}}, r"spec: .* mean \(.*\) must be finite"),
        ({"spec": SPEC.to_dict() | {"mean": [0.5]}}, "spec: .* for 3 channels"),
        ({"spec": SPEC.to_dict() | {"size": 10**400}}, "an integer beyond 64 bits"),
        ({"recipe": {"epochs": "many"}}, "recipe.epochs: 'many' is not of type"),
        ({"seed": True}, "seed: True is not of type"),
        ({"digest": "ab"}, "digest: 'ab' does not match"),
    ],
)
def test_a_wrong_card_is_named(saved, change, message):
    path = TEACHER.card_path(saved)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        TEACHER.read(saved)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_missing_or_broken_card_is_named(saved):
    path = TEACHER.card_path(saved)
    wrong = {
        "{": "cannot be read",
        "[]": "is not of type 'object'",
        "{}": "'data' is a required property",
        "[" * 100_000: "nested too deeply",
    }
    for text, message in wrong.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            TEACHER.read(saved)
    path.unlink()
    with pytest.raises(UserError, match=r"digits_resnet8\.json is missing"):
        TEACHER.read(saved)


def test_folders_are_searched_in_order(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("DFKD_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    folders = [saved.parent, *artifacts.given_folders()]
    assert folders == [saved.parent, tmp_path / "weights"]
    assert TEACHER.find("digits_resnet8", folders) == saved
    assert TEACHER.find("digits_wrn16_1", folders) is None
    assert artifacts.given_folders(tmp_path) == [tmp_path]
    monkeypatch.delenv("DFKD_WEIGHTS")
    assert artifacts.given_folders() == []


def test_an_import_copies_measures_and_takes_the_file_s_normalisation(network, tmp_path):
    (tmp_path / "given").mkdir()
    given = tmp_path / "given" / "digits_resnet8.safetensors"
    save_file(network.state_dict(), given, metadata={"mean": "0.1 0.2 0.3", "std": "1 2 3"})
    seen = []
    own = tmp_path / "own" / given.name
    path, card = bring("digits", "resnet8", given, own, lambda n: seen.append(n.spec) or 12.5, "abc")
    assert path == own and card == TEACHER.read(path)
    assert (card["origin"], card["accuracy"], card["data_digest"]) == ("adopted", 12.5, "abc")
    assert card["address"] is None
    assert card["digest"] == file_digest(given)
    assert card["spec"] == {**SPEC.to_dict(), "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    assert seen[0].mean == (0.1, 0.2, 0.3)
    assert equal(artifacts.load(path, "resnet8", SPEC), network)


def test_what_does_not_fit_is_not_imported(network, tmp_path):
    given = tmp_path / "digits_resnet20.safetensors"
    save_file(network.state_dict(), given)
    with pytest.raises(UserError, match=r"does not fit resnet20 with 10 classes: .* no key 'layer1\.1\.conv1\.weight'"):
        bring("digits", "resnet20", given, tmp_path / "own" / given.name)
    assert not (tmp_path / "own").exists()


def test_a_user_s_checkpoint_of_tensors_is_read(network, tmp_path):
    path = tmp_path / "theirs.pth"
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)
    assert equal(artifacts.load_any(path, "resnet8", SPEC), network)
    assert artifacts.spec_of(path, SPEC) == SPEC


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_a_pickle_that_runs_code_is_refused_unread(network, tmp_path):
    path = tmp_path / "theirs.pth"
    for write in (lambda: torch.save({"w": Trap()}, path), lambda: path.write_bytes(pickle.dumps(Trap(), 2))):
        write()
        with pytest.raises(UserError, match=r"theirs\.pth is refused: a pickle .* could run code") as caught:
            artifacts.load_any(path, "resnet8", SPEC)
        assert "\n" not in str(caught.value)
    assert not Trap.sprung
    torch.save(network, path)
    with pytest.raises(UserError, match="is refused"):
        artifacts.load_any(path, "resnet8", SPEC)


def test_first_weights_depend_on_the_seed_alone():
    before = torch.random.get_rng_state()
    one, again, other = (initialise("resnet8", SPEC, seed) for seed in (1, 1, 2))
    assert equal(one, again)
    assert not equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert equal(one, build("resnet8", 10))
