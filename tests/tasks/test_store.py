"""The array store keeps what it was given, or says what is wrong with which file."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from dfkd import files
from dfkd.errors import UserError
from dfkd.tasks import store


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {
        split: (random.integers(0, 256, (count, 8, 8, 3), np.uint8), random.integers(0, 4, count))
        for split, count in (("train", 12), ("test", 5))
    }


@pytest.fixture
def root(tmp_path, arrays):
    store.write(tmp_path, "toy", arrays, ["a", "b", "c", "d"], "made up")
    return tmp_path


def test_round_trip(root, arrays):
    for split, (images, labels) in arrays.items():
        stored_images, stored_labels = store.read(root, "toy", split)
        assert isinstance(stored_images, np.memmap)
        assert stored_images.dtype == stored_labels.dtype == np.uint8
        assert np.array_equal(stored_images, images)
        assert np.array_equal(stored_labels, labels)
    names = sorted(path.name for path in (root / "toy").iterdir())
    expected = ["manifest.json", "test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy"]
    assert names == expected


def test_the_manifest_says_what_the_layout_promises(root, arrays):
    manifest = json.loads((root / "toy" / "manifest.json").read_text())
    assert {key: manifest[key] for key in ("name", "classes", "changed")} == {
        "name": "toy",
        "classes": ["a", "b", "c", "d"],
        "changed": "made up",
    }
    images, labels = arrays["test"]
    assert manifest["splits"]["test"] == {
        "images": [5, 8, 8, 3],
        "labels": [5],
        "images_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
        "labels_sha256": hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest(),
    }


def test_the_digest_is_of_the_content_not_of_the_spelling(root):
    manifest = store.manifest(root, "toy")
    reordered = dict(reversed(manifest.items()))
    assert store.digest(reordered) == store.digest(manifest)
    assert store.digest({**manifest, "changed": ""}) != store.digest(manifest)


def test_a_damaged_array_is_named_with_both_digests(root):
    path = root / "toy" / "test_images.npy"
    expected = store.manifest(root, "toy")["splits"]["test"]["images_sha256"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=f"test_images.npy is damaged: sha256 {expected} expected, [0-9a-f]{{64}} found"
    ):
        store.read(root, "toy", "test")
    store.read(root, "toy", "train")


def test_a_truncated_or_foreign_array_is_named(root):
    path = root / "toy" / "train_images.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"train_images\.npy cannot be read"):
        store.read(root, "toy", "train")
    np.save(path, np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"train_images\.npy is damaged: uint8 \[12, 8, 8, 3\] expected"):
        store.read(root, "toy", "train")


def test_what_is_missing_is_named_with_the_command_that_makes_it(root):
    (root / "toy" / "train_labels.npy").unlink()
    with pytest.raises(UserError, match=r"train_labels\.npy is missing; make it with: python bench\.py data toy"):
        store.read(root, "toy", "train")
    with pytest.raises(UserError, match=r"manifest\.json is missing; make it with: python bench\.py data other"):
        store.read(root, "other", "train")
    with pytest.raises(UserError, match="lists no split 'validation'"):
        store.read(root, "toy", "validation")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_leaves_nothing_behind(tmp_path, arrays, monkeypatch):
    def full(path, mode):
        return open("/dev/full" if path.name.startswith("test_images") else path, mode.replace("x", "w"))

    monkeypatch.setattr(files, "open", full, raising=False)
    large = (np.zeros((100, 32, 32, 3), np.uint8), np.zeros(100, np.int64))
    with pytest.raises(UserError, match=r"cannot write .*test_images\.npy: No space left on device"):
        store.write(tmp_path, "toy", {**arrays, "test": large}, ["a"])
    assert list((tmp_path / "toy").iterdir()) == []


def test_an_interrupted_write_keeps_the_former_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), store.replacing(path) as file:
        file.write(b"after")
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"before"


def test_the_root_is_the_option_else_the_environment_else_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DFKD_DATA", str(tmp_path))
    assert store.data_root() == tmp_path
    assert store.data_root("elsewhere") == Path("elsewhere")
    monkeypatch.delenv("DFKD_DATA")
    assert store.data_root() == Path.home() / ".cache" / "dfkd" / "data"
