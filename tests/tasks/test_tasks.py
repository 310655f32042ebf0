"""Tasks: fixed splits, the field's constants, downloads that fail in one line, and no torch."""

import pickle
import subprocess
import sys
import tarfile
import types
import zlib
from http.client import IncompleteRead
from urllib.error import URLError

import numpy as np
import pytest

from dfkd import tasks
from dfkd.errors import UserError, nearest, unknown
from dfkd.tasks import IGNORE, InputSpec, cifar, store, task

DIGITS_SHA256 = {
    "train": (
        "2e00023e1e7760b59ac91ec2f9ec10d0386cd815c9672c86cc957d9ea861e665",
        "5a36ac9e12f205db31125c892ed2ed8b298eb6083a4c758d03452d0ef908afad",
    ),
    "test": (
        "6caf92211f9716db24fab45532d23a627f95b079a1db283e3204a1c1a2223bf9",
        "159a12dd1d349002c9db3f8c4f86d0f394a4abfa42848f28243810972aa5a0e3",
    ),
}


def test_names_need_no_torch():
    code = "import sys, dfkd.tasks, dfkd.networks, dfkd.artifacts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_split_of_the_digits_is_fixed():
    splits = task("digits").manifest(None)["splits"]
    found = {split: (entry["images_sha256"], entry["labels_sha256"]) for split, entry in splits.items()}
    assert found == DIGITS_SHA256


def test_digits_are_real_scans_in_three_equal_channels():
    from sklearn.datasets import load_digits

    (train, train_labels), (test, test_labels) = (task("digits").load(split, None) for split in ("train", "test"))
    assert train.shape == (1297, 16, 16, 3)
    assert test.shape == (500, 16, 16, 3)
    assert train.dtype == np.uint8
    assert train_labels.dtype == np.int64
    assert np.array_equal(train[..., 0], train[..., 2])
    # Doubling keeps each scan's mean grey up to rounding, so every scan is found once, on one side.
    greys = np.concatenate([train, test]).mean(axis=(1, 2, 3)) * 16 / 255
    np.testing.assert_allclose(np.sort(greys), np.sort(load_digits().images.mean(axis=(1, 2))), atol=0.03)
    counts = np.bincount(test_labels) / np.bincount(np.concatenate([train_labels, test_labels]))
    np.testing.assert_allclose(counts, 500 / 1797, atol=0.01)


def test_doubling_aligns_pixel_centres():
    from dfkd.tasks.digits import _bilinear

    assert np.array_equal(_bilinear(3) @ [0.0, 4.0, 8.0], [0, 1, 3, 5, 7, 8])


def test_augmentation_suits_the_data():
    assert (task("digits").padding, task("digits").flip) == (2, False)
    assert (task("cifar10").padding, task("cifar10").flip) == (4, True)
    assert (task("digit-scenes").padding, task("digit-scenes").flip) == (8, False)
    assert (task("nyuv2").padding, task("nyuv2").flip, task("nyuv2").spec.size) == (16, True, 128)
    assert (task("domainnet-real").spec.size, task("domainnet-real").stored) == (224, 256)
    assert [len(t.class_names) for t in tasks.TASKS.values()] == [t.spec.classes for t in tasks.TASKS.values()]


def test_unknown_names_get_the_nearest():
    known = ", ".join(sorted(tasks.TASKS))
    assert known.startswith("cifar10, cifar100, digit-scenes, digits, domainnet-clipart, ")
    with pytest.raises(UserError, match=rf"unknown data 'cifar-10' \(nearest: 'cifar10'; there are: {known}\)"):
        task("cifar-10")
    with pytest.raises(UserError, match="unknown split of digits 'val'"):
        task("digits").load("val", None)
    assert nearest("zzz", ["abc"]) is None
    assert str(unknown("thing", "zzz", ["abc"])) == "unknown thing 'zzz' (there are: abc)"


def test_input_specification_round_trip():
    spec = task("cifar100").spec
    assert InputSpec.from_dict(spec.to_dict()) == spec
    for wrong in ({"mean": ["x"] * 3}, {"std": [1.0]}, {"size": None}):
        with pytest.raises(UserError, match="not an input specification"):
            InputSpec.from_dict({**spec.to_dict(), **wrong})


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        ("cifar10", [0, 10], "cifar10, test: label 10 found; there are 0 to 9"),
        ("cifar10", [0, 255], "cifar10, test: label 255 found; there are 0 to 9"),
        ("cifar10", [0], r"cifar10, test: labels \[1\] for images \[2, 32, 32, 3\]"),
        (
            "nyuv2",
            np.full((2, 160, 128), 13),
            "nyuv2, test: label 13 found; there are 0 to 12 and 255 .ignored.",
        ),
        (
            "nyuv2",
            np.zeros((2, 128, 160)),
            r"nyuv2, test: labels \[2, 128, 160\] for images \[2, 160, 128, 3\]",
        ),
        ("nyuv2", [0, 1], r"nyuv2, test: labels \[2\] for images \[2, 160, 128, 3\]"),
    ],
)
def test_labels_that_cannot_be_are_one_line(tmp_path, data, labels, message):
    side = (160, 128) if data == "nyuv2" else (32, 32)
    split = np.zeros((2, *side, 3), np.uint8), np.array(labels)
    store.write(tmp_path, data, {"test": split}, task(data).class_names)
    with pytest.raises(UserError, match=f"{message}$"):
        task(data).load("test", tmp_path)


def test_images_smaller_than_the_crop_are_one_line(tmp_path):
    split = np.zeros((2, 160, 127, 3), np.uint8), np.zeros((2, 160, 127))
    store.write(tmp_path, "nyuv2", {"train": split}, task("nyuv2").class_names)
    with pytest.raises(UserError, match="nyuv2, train: images of 127 x 160 are smaller than the crop of 128"):
        task("nyuv2").load("train", tmp_path)


def test_segmentation_labels_are_a_class_a_pixel_or_ignored(tmp_path):
    labels = np.arange(160 * 128).reshape(1, 160, 128) % 14
    labels[labels == 13] = IGNORE
    split = np.zeros((1, 160, 128, 3), np.uint8), labels
    store.write(tmp_path, "nyuv2", {"test": split}, task("nyuv2").class_names)
    images, found = task("nyuv2").load("test", tmp_path)
    assert images.shape == (1, 160, 128, 3)
    assert found.dtype == np.int64
    assert np.array_equal(found, labels)


class Source:
    """Stands in for torchvision's CIFAR-10: twelve images, or a failure."""

    url = "https://example.org/cifar.tar.gz"
    classes = ["a", "b", "c"]
    failure = None

    def __init__(self, root, train, download):
        if self.failure:
            root.mkdir(parents=True, exist_ok=True)
            (root / "half").write_bytes(b"half")
            raise self.failure
        root.mkdir(parents=True, exist_ok=True)
        (root / "archive").write_bytes(b"archive")
        self.data = np.full((12, 32, 32, 3), int(train), np.uint8)
        self.targets = [0, 1, 2] * 4


@pytest.fixture
def source(monkeypatch):
    monkeypatch.setattr(Source, "failure", None)
    datasets = types.SimpleNamespace(CIFAR10=Source, CIFAR100=Source)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=datasets))
    return Source


def test_a_download_ends_in_the_store_without_its_archive(source, tmp_path):
    manifest, line = tasks.prepare("cifar10", tmp_path)
    assert "stored in" in line
    assert manifest == store.manifest(tmp_path, "cifar10")
    assert manifest["changed"] == ""
    assert not (tmp_path / "cifar10" / "download").exists()
    images, labels = task("cifar10").load("train", tmp_path)
    assert images.max() == 1
    assert labels.dtype == np.int64
    assert "intact" in tasks.prepare("cifar10", tmp_path)[1]


def test_damaged_data_are_fetched_again(source, tmp_path):
    tasks.prepare("cifar10", tmp_path)
    (tmp_path / "cifar10" / "test_labels.npy").unlink()
    assert "stored in" in tasks.prepare("cifar10", tmp_path)[1]
    assert task("cifar10").problems(tmp_path) == []


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            URLError("no route to host"),
            r"cannot download \(no route to host\); fetch https://.*gz, put it into .*download",
        ),
        (RuntimeError("File not found or corrupted."), r"cannot download \(File not found or corrupted\.\)"),
        (OSError(28, "No space left on device"), "no space left under"),
        (PermissionError(13, "Permission denied", "x"), r"cannot download \(.*Permission denied"),
        (IncompleteRead(b"half"), r"cannot download \(IncompleteRead"),
        (TimeoutError("timed out"), r"cannot download \(timed out\)"),
        (tarfile.ReadError("not\na gzip file"), r"cifar\.tar\.gz is not the official archive \(not a gzip"),
        (zlib.error("Error -3"), r"cifar\.tar\.gz is not the official archive \(Error -3\)"),
        (EOFError(), r"cifar\.tar\.gz is not the official archive \(EOFError\)"),
        (pickle.UnpicklingError("pickle data was truncated"), "is not the official archive"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(source, tmp_path, monkeypatch, failure, message):
    monkeypatch.setattr(source, "failure", failure)
    with pytest.raises(UserError, match=message) as caught:
        cifar.CIFAR10.fetch(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cifar10" / "download").exists()


def test_somebodys_own_archive_survives_a_failure(source, tmp_path, monkeypatch):
    archive = tmp_path / "cifar10" / "download" / "archive"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"theirs")
    monkeypatch.setattr(source, "failure", RuntimeError("corrupted"))
    with pytest.raises(UserError):
        cifar.CIFAR10.fetch(tmp_path)
    assert archive.read_bytes() == b"theirs"


def test_embedded_data_need_nothing(tmp_path):
    manifest, line = tasks.prepare("digits", tmp_path)
    assert manifest["name"] == "digits"
    assert "nothing to fetch" in line
    assert list(tmp_path.iterdir()) == []


def test_only_what_can_be_converted_takes_files(tmp_path):
    for name in ("digits", "digit-scenes", "cifar10"):
        with pytest.raises(UserError, match=f"{name}: nothing to convert; leave out --from somewhere"):
            tasks.prepare(name, tmp_path, "somewhere")
