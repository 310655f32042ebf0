"""Scenes of digits: the same everywhere, no digit in both splits, labels that fit what is drawn."""

import numpy as np
import pytest

from dfkd.engine.guard import DataFreeViolation, guard
from dfkd.errors import UserError
from dfkd.tasks import digit_scenes, task

SHA256 = {
    "train": (
        "80a1bb3bcba1b66b7ad24af529fa417573010ee7ec658f6c2121bdcb0ae855c0",
        "747addb90a5e2ce2196f49cfbdb11244f9b19ff473bb606c47936ee3d82f0f26",
    ),
    "test": (
        "5c5a569682d1dac1b79924ec943dac3b37b0a543efcd70456e03721872730e5d",
        "2d10ed8152a78098a482319404193e3ec1808a0b6a1a65737ecd4f2c7921f321",
    ),
}


@pytest.fixture(scope="module")
def scenes():
    return {split: task("digit-scenes").load(split) for split in ("train", "test")}


def test_the_scenes_are_fixed():
    splits = task("digit-scenes").manifest()["splits"]
    found = {split: (entry["images_sha256"], entry["labels_sha256"]) for split, entry in splits.items()}
    assert found == SHA256


def test_shapes_and_classes(scenes):
    for split, count in (("train", 600), ("test", 200)):
        images, labels = scenes[split]
        assert images.shape == (count, 64, 80, 3)
        assert images.dtype == np.uint8
        assert labels.shape == (count, 64, 80)
        assert labels.dtype == np.int64
        shares = np.bincount(labels.reshape(-1), minlength=4) / labels.size
        assert len(shares) == 4
        # Mostly background, and no digit rare.
        assert 0.75 < shares[0] < 0.9
        assert shares[1:].min() > 0.01
    with pytest.raises(UserError, match="unknown split of digit-scenes 'val'"):
        task("digit-scenes").load("val")


def test_no_digit_is_in_both_splits(monkeypatch):
    given = {}

    def note(scans, digits, random):
        given[split].update(scan.tobytes() for scan in scans)
        return 0, 0

    monkeypatch.setattr(digit_scenes, "_scene", note)
    for split in ("train", "test"):
        given[split] = set()
        digit_scenes._rendered.__wrapped__(split, digit_scenes.COUNTS[split])
        scans, digits = task("digits").load(split)
        own = {scan[..., 0].astype(np.int64).tobytes() for scan in scans[np.isin(digits, digit_scenes.SHOWN)]}
        assert given[split] <= own
        assert len(given[split]) > 0.7 * len(own)
    assert not given["train"] & given["test"]


def test_strokes_stand_out_from_their_surroundings(scenes):
    """In nearly every scene the labelled pixels are clearly darker, or clearly lighter, than the others."""
    images, labels = scenes["test"]
    grey = images.mean(axis=3)
    differences = [abs(g[m].mean() - g[~m].mean()) / g[~m].std() for g, m in zip(grey, labels > 0, strict=True)]
    assert np.mean(np.array(differences) > 2) > 0.95


def test_one_digit_gets_its_label_where_its_ink_is(monkeypatch):
    random = np.random.RandomState(0)
    scan = np.zeros((16, 16), np.int64)
    scan[4:12, 4:12] = 255
    monkeypatch.setattr(digit_scenes, "SIZES", (32, 32))
    image, label = digit_scenes._scene(scan[None], np.array([4]), random)
    rows, columns = np.nonzero(label)
    assert set(np.unique(label)) == {0, 3}  # the last of the three
    # The square of half the scan's side, at twice its size.
    assert rows.max() - rows.min() == columns.max() - columns.min() == 15
    assert len(rows) == 16 * 16
    inside = image[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()].astype(int)
    # One colour, but for the noise of up to 8.
    assert (np.ptp(inside, axis=(0, 1)) <= 16).all()


def test_a_digit_covers_only_a_few_pixels_of_another(monkeypatch):
    """However many there are: a fourth full square finds no place without hiding the others."""
    monkeypatch.setattr(digit_scenes, "SIZES", (36, 36))
    scans = np.full((12, 16, 16), 255, np.int64)
    _, label = digit_scenes._scene(scans, np.arange(12) % 10, np.random.RandomState(0))
    areas = np.bincount(label.reshape(-1))[1:]
    assert areas[areas > 0].min() >= 36 * 36 - digit_scenes.COVERED * 3
    assert 1 <= (areas > 0).sum() <= 3


def test_enlarging_is_bilinear_in_integers():
    found = digit_scenes._enlarge(np.array([[0, 100], [200, 100]]), 4, 4)
    assert found.tolist() == [[0, 25, 75, 100], [50, 62, 87, 100], [150, 137, 112, 100], [200, 175, 125, 100]]


def test_a_run_cannot_load_them():
    with (
        pytest.raises(DataFreeViolation, match=r"digits\.csv\.gz"),
        guard.seal(),
    ):
        task("digit-scenes").load("test")
