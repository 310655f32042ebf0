"""Names, cards and digests; torch is not needed for any of it."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from dfkd.artifacts import PRIOR
from dfkd.errors import UserError
from dfkd.priors import digests_path
from dfkd.priors.folder import kind_of, write_digests

FACTS = {"kind": "pixel", "trained_on": "cats", "origin": "trained", "size": 8, "digest": "ab" * 32}


def test_names_and_cards_need_no_torch():
    code = (
        "import sys, dfkd.artifacts, dfkd.priors.recipes; sys.exit(bool({'torch', 'diffusers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_round_trip(tmp_path):
    card = PRIOR.new("mine", **FACTS, seconds=3)
    PRIOR.write(tmp_path / "mine", card)
    found = PRIOR.read(tmp_path / "mine")
    assert found == card
    assert list(found) == list(PRIOR.schema["properties"])
    assert found["recipe"] is None


def test_a_prior_made_again_is_billed_by_its_own_seconds(tmp_path):
    """Its training is in a run's time, which a teacher's is not."""
    card = PRIOR.new("mine", **FACTS, seconds=3, date="2001-01-01")
    for again, kept in (card | {"date": "2002-02-02"}, card), (card | {"seconds": 4}, card | {"seconds": 4}):
        PRIOR.write(tmp_path / "mine", card)
        PRIOR.write(tmp_path / "mine", again)
        assert PRIOR.read(tmp_path / "mine") == kept


def test_the_card_inside_goes_before_the_one_beside(tmp_path):
    (tmp_path / "mine").mkdir()
    assert PRIOR.card_path(tmp_path / "mine") == tmp_path / "mine.json"
    (tmp_path / "mine" / "card.json").write_text("{}")
    assert PRIOR.card_path(tmp_path / "mine") == tmp_path / "mine" / "card.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "gan"}, "kind: unknown value 'gan'"),
        ({"origin": "found"}, "origin: unknown value 'found'"),
        ({"size": "8"}, "size: '8' is not of type 'integer'"),
        ({"seed": True}, "seed: True is not of type 'integer', 'null'"),
        ({"seconds": -1}, "seconds: -1 is less than"),
        ({"seconds": float("inf")}, "inf is no number"),
        ({"seconds": float("nan")}, "nan is no number"),
        ({"images": {"count": 3, "height": 8}}, "images: 'width' is a required property"),
        ({"images": {"count": 3, "height": 8, "width": "8"}}, "images.width: '8' is not"),
        ({"images": {"count": 3, "height": 8, "width": 8, "depth": 3}}, "images: unknown key 'depth'"),
        ({"recipe": {"lr": float("nan")}}, "nan is no number"),
    ],
)
def test_a_wrong_card_is_named(tmp_path, change, message):
    card = PRIOR.new("mine", **FACTS)
    (tmp_path / "mine.json").write_text(json.dumps(card | change))
    with pytest.raises(UserError, match=message):
        PRIOR.read(tmp_path / "mine")


def test_a_missing_or_broken_card_is_named(tmp_path):
    with pytest.raises(UserError, match=r"mine\.json is missing: the card of the prior mine"):
        PRIOR.read(tmp_path / "mine")
    wrong = {
        "{": "cannot be read: Expecting property name",
        "[]": "is not of type 'object'",
        "{}": "'name' is a required property",
        "[" * 100_000: "nested too deeply",
        '{"name": "a", "name": "b"}': "'name' stands there twice",
    }
    for text, message in wrong.items():
        (tmp_path / "mine.json").write_text(text)
        with pytest.raises(UserError, match=message):
            PRIOR.read(tmp_path / "mine")


def test_image_digests(tmp_path, arrays):
    write_digests(tmp_path / "images.npy", arrays)
    found = np.load(tmp_path / "images.npy")
    heads = sorted(hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in arrays)
    assert [f"{digest:016x}" for digest in found] == heads
    assert found.dtype == np.uint64


def test_where_digests_lie(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    assert digests_path(folder) is None
    for path in (tmp_path / "mine.images.npy", folder / "images.npy"):
        path.touch()
        assert digests_path(folder) == path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is no prior: neither config.json nor model_index.json"),
        (
            {"config.json": {"_class_name": "AutoencoderKL"}},
            "holds a AutoencoderKL; a prior is one of: UNet2DModel",
        ),
        ({"model_index.json": {"_class_name": "FluxPipeline"}}, "holds a FluxPipeline"),
        ({"config.json": {}}, "holds a None"),
    ],
)
def test_a_folder_that_is_none_is_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        kind_of(tmp_path)
