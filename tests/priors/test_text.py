"""Class names as vectors: what letters tell apart, and CLIP's text encoder from a folder."""

import pytest
import torch

from dfkd.errors import UserError
from dfkd.priors import text
from dfkd.priors.untrained import tokenizer
from dfkd.tasks import task


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "digits"])
def test_letters_tell_every_class_apart(data):
    vectors = text.letters(task(data).class_names)
    assert vectors.shape == (task(data).spec.classes, 512) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    cosines = vectors @ vectors.T - torch.eye(len(vectors))
    assert cosines.max() < 0.95


def test_names_that_share_letters_are_near_whatever_they_mean():
    maple, apple, otter = text.letters(("maple", "apple", "otter"))
    assert maple @ apple > 0.3 > maple @ otter


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A weights folder with a text encoder of random weights, `text_tiny`."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    place = tmp_path_factory.mktemp("weights")
    words = tokenizer(place / "words")
    ids = dict(bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    sizes = dict(hidden_size=32, intermediate_size=37, projection_dim=24, num_hidden_layers=2, num_attention_heads=4)
    config = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, **sizes, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPTextModelWithProjection(config).save_pretrained(place / "text_tiny")
    words.save_pretrained(place / "text_tiny")
    return place


def test_a_text_encoder_is_found_by_name_and_by_path(encoder, monkeypatch):
    monkeypatch.setenv("DFKD_WEIGHTS", str(encoder))
    texts = ["a photo", "a toad", "a photo"]
    vectors = text.clip(texts, "tiny")
    assert vectors.shape == (3, 24) and not vectors.requires_grad
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert torch.equal(vectors[0], vectors[2]) and not torch.allclose(vectors[0], vectors[1])
    # A text alone, without the padding of a batch, means the same.
    torch.testing.assert_close(text.clip(["a photo"], str(encoder / "text_tiny"))[0], vectors[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "clip-vit-base-patch32",
            "run: hf download openai/clip-vit-base-patch32 --local-dir text_clip-vit-base-patch32",
        ),
        ("/nowhere/at/all", "there is no folder"),
        ("..", "a text encoder's name"),
    ],
)
def test_one_that_is_not_there_is_told_in_one_line(name, words, encoder, monkeypatch):
    monkeypatch.setenv("DFKD_WEIGHTS", str(encoder))
    with pytest.raises(UserError) as error:
        text.clip(["a"], name)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_holds_none_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no CLIP text encoder") as error:
        text.clip(["a"], str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_confined_run_may_read_its_text_encoder(encoder, tiny, execute, monkeypatch, tmp_path):
    """By a path that is relative to where the command is given; the worker works elsewhere."""
    monkeypatch.chdir(encoder.parent)
    record = execute(tiny("nayer", f"text_encoder={encoder.name}/text_tiny"), apart=True)
    assert (record["status"], record["prior"]["kind"]) == ("ok", "class names, text encoder")
