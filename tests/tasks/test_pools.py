"""Pools of public images: glyphs drawn on the fly, natural images from the official Tiny-ImageNet archive."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from dfkd import tasks
from dfkd.errors import UserError
from dfkd.tasks import POOLS, pool, task, tiny_imagenet
from dfkd.tasks.glyphs import CHARACTERS, COPIES, FONTS


@pytest.fixture(scope="module")
def glyphs():
    return pool("glyphs").load("train")


def test_pools_are_no_tasks():
    assert set(POOLS) == {"public_images", "glyphs"}
    assert not POOLS.keys() & tasks.TASKS.keys()
    with pytest.raises(UserError, match=r"unknown pool 'glyph' .nearest: 'glyphs'"):
        pool("glyph")
    with pytest.raises(UserError, match=r"unknown data 'public_image' .nearest: 'public_images'"):
        tasks.prepare("public_image", None)
    with pytest.raises(UserError, match="unknown data 'glyphs'"):
        task("glyphs")


def test_glyphs_are_every_character_of_every_font(glyphs):
    images, labels = glyphs
    assert images.shape == (len(FONTS) * 62 * COPIES, 16, 16, 3)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert np.bincount(labels).tolist() == [len(FONTS) * COPIES] * 62
    assert CHARACTERS[:11] == "0123456789A"
    assert np.array_equal(images[..., 0], images[..., 1]) and np.array_equal(images[..., 0], images[..., 2])
    assert not pool("glyphs").flip


def test_glyphs_are_drawn_alike_each_time(glyphs):
    again, _ = pool("glyphs").load("train")
    assert np.array_equal(again, glyphs[0])
    manifest, line = tasks.prepare("glyphs", None)
    assert manifest["splits"]["train"]["images_sha256"] == hashlib.sha256(glyphs[0]).hexdigest()
    assert "nothing to fetch" in line


def test_no_two_copies_of_a_glyph_are_equal(glyphs):
    images = glyphs[0].reshape(-1, COPIES, 16 * 16 * 3)
    assert len(np.unique(glyphs[0].reshape(len(glyphs[0]), -1), axis=0)) > 0.99 * len(glyphs[0])
    assert (images[:, 0] != images[:, 1]).any(1).all()


def test_glyphs_look_like_the_digits_and_are_none_of_them(glyphs):
    """Equal ground, brightness, share of ink, and extent, within a few percent; no scan is among them."""
    scans = np.concatenate([task("digits").load(split)[0] for split in ("train", "test")])
    drawn, real = glyphs[0][..., 0], scans[..., 0]
    for measure in (lambda x: x.mean() / 255, lambda x: (x > 127).mean(), lambda x: (x < 8).mean()):
        assert measure(drawn) == pytest.approx(measure(real), abs=0.05)
    for axis in (1, 2):
        extents = [(x > 64).any(3 - axis).sum(1).mean() for x in (drawn, real)]
        assert extents[0] == pytest.approx(extents[1], abs=1)
    assert not {x.tobytes() for x in glyphs[0]} & {x.tobytes() for x in scans}


def archive(path, classes=8, each=2):
    """A zip laid out as the official one, with `classes` for 200; its images, labels and class ids."""
    random, images, rows = np.random.RandomState(0), [], []
    ids = [f"n{9000 - i:08d}" for i in range(classes)]  # not in sorted order
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny-imagenet-200/wnids.txt", "\n".join(ids) + "\n")
        words = [f"{i}\tname of {i}, another name" for i in (*ids, "n00000001")]
        file.writestr("tiny-imagenet-200/words.txt", "\n".join(words) + "\n")
        for number in range(classes * each):
            grey = number % 5 == 0
            image = Image.fromarray(random.randint(0, 256, (64, 64) if grey else (64, 64, 3), np.uint8))
            data = io.BytesIO()
            image.save(data, "JPEG")
            images.append(np.asarray(Image.open(data).convert("RGB")))
            wordnet_id = ids[random.randint(classes)]
            rows.append((f"val_{number}.JPEG\t{wordnet_id}\t0\t0\t63\t63", sorted(ids).index(wordnet_id)))
            file.writestr(f"tiny-imagenet-200/val/images/val_{number}.JPEG", data.getvalue())
        lines = [row for row, _ in rows]
        file.writestr("tiny-imagenet-200/val/val_annotations.txt", "\n".join(lines[::-1]) + "\n")
    return np.stack(images), np.array([label for _, label in rows]), sorted(ids)


@pytest.fixture
def download(tmp_path, monkeypatch):
    """The archive in its place, as somebody put it there; what the pool is to be."""
    path = tmp_path / "public_images" / "download" / "tiny-imagenet-200.zip"
    path.parent.mkdir(parents=True)
    images, labels, ids = archive(path)
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path, images, labels, ids


def test_the_pool_is_what_the_fifty_classes_leave(download, tmp_path):
    path, images, labels, ids = download
    manifest, line = tasks.prepare("public_images", tmp_path)
    assert "stored in" in line and not path.parent.exists()
    found, found_labels = pool("public_images").load("train", tmp_path)
    kept = labels % 4 != 0
    assert 0 < kept.sum() < len(kept)
    assert np.array_equal(found, images[kept])
    assert manifest["classes"] == [f"name of {i}" for n, i in enumerate(ids) if n % 4]
    names = [manifest["classes"][label] for label in found_labels]
    assert names == [f"name of {ids[label]}" for label in labels[kept]]
    assert manifest["changed"] == "validation images of 150 Tiny-ImageNet classes"
    assert "intact" in tasks.prepare("public_images", tmp_path)[1]


def test_another_archive_is_named_and_kept(download, tmp_path, monkeypatch):
    path = download[0]
    for content in (b"not a zip", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(content).hexdigest())
        with pytest.raises(UserError, match=r"tiny-imagenet-200\.zip is not the official archive"):
            tasks.prepare("public_images", tmp_path)
        assert path.read_bytes() == content


@pytest.mark.parametrize("there", [False, True])
def test_offline_is_one_line(there, tmp_path, monkeypatch):
    from torchvision.datasets import utils

    def no_network(url, root, md5):
        from urllib.error import URLError

        (root / "half").parent.mkdir(parents=True, exist_ok=True)
        (root / "half").write_bytes(b"half")
        raise URLError("no route to host")

    monkeypatch.setattr(utils, "download_url", no_network)
    folder = tmp_path / "public_images" / "download"
    if there:
        folder.mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"cannot download \(no route to host\); fetch http.*zip, put it into"
    ) as caught:
        tasks.prepare("public_images", tmp_path)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert folder.exists() == there
