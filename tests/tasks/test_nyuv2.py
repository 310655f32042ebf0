"""NYUv2: what people have is converted exactly, or refused in one line that leaves the stored data alone."""

import os

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import bench
from dfkd.errors import UserError
from dfkd.tasks import nyuv2, prepare, store, task

COUNTS = {"train": 3, "test": 2}
NUMBERS = {"train": [2, 3, 5], "test": [1, 4]}  # from 1, mixed, as in the official split
WIDE, HIGH = 640, 480


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(nyuv2, "COUNTS", COUNTS)


def picture(number, height, width):
    """An image and its label 0 to 13 in blocks of 16, so that resizing leaves the blocks' insides as they are."""
    random = np.random.default_rng(number)
    blocks = (-(-height // 16), -(-width // 16))
    grow = np.ones((16, 16), np.uint8)
    image = np.stack([np.kron(random.integers(0, 256, blocks, np.uint8), grow) for _ in range(3)], axis=2)
    label = np.kron(random.integers(0, 14, blocks, np.uint8), grow)
    return image[:height, :width], label[:height, :width]


@pytest.fixture
def official(tmp_path):
    """The official file and its companions, five images long. Raw label 3 k is one of class k, 3 k + 1 is nobody's."""
    folder = tmp_path / "official"
    folder.mkdir()
    pairs = [picture(number, HIGH, WIDE) for number in range(1, 6)]
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.stack([image.T for image, _ in pairs])
        file["labels"] = np.stack([3 * label.T.astype(np.uint16) for _, label in pairs])
    savemat(folder / "splits.mat", {f"{split}Ndxs": np.array(NUMBERS[split])[:, None] for split in NUMBERS})
    # Raw label r (from 1) is class 41 - r // 3 of 40, which is class r // 3 of 13.
    to_40 = [41 - raw // 3 if raw % 3 == 0 else 0 for raw in range(1, 895)][:60]
    savemat(folder / "classMapping40.mat", {"mapClass": np.array(to_40, np.uint8)[None]})
    to_13 = [41 - forty if 1 <= 41 - forty <= 13 else 7 for forty in range(1, 41)]
    names = np.array(["a"], object)
    fields = {"labels13": np.array(to_13, np.uint8)[None], "className": names}
    savemat(folder / "class13Mapping.mat", {"classMapping13": fields})
    return folder


@pytest.fixture
def pictures(tmp_path):
    """pictures(layout, ...): a folder of image/label pairs; `change(number, image, label)` may spoil one."""

    def make(images="image/{}", labels="seg13/{}", size=(HIGH, WIDE), shift=False, change=None, ending="png"):
        folder = tmp_path / "pictures"
        for split, numbers in NUMBERS.items():
            for kind in (images, labels):
                (folder / kind.format(split)).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                image, label = picture(number, *size)
                label = label - np.uint8(1) if shift else label
                image, label = change(number, image, label) if change else (image, label)
                Image.fromarray(image).save(folder / images.format(split) / f"nyu_rgb_{number:04d}.{ending}")
                Image.fromarray(label).save(folder / labels.format(split) / f"new_nyu_class13_{number:04d}.png")
        return folder

    return make


def refused(source, root, message):
    """Nothing is stored, or what was stored stays, and the message is one line."""
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} if root.exists() else {}
    with pytest.raises(UserError, match=message) as caught:
        prepare("nyuv2", root, source)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_the_classes_and_the_specification():
    nyu = task("nyuv2")
    assert nyu.class_names[0] == "bed"
    assert nyu.class_names[12] == "window"
    assert (nyu.kind, nyu.metric, nyu.spec.classes) == ("segmentation", "miou", 13)
    assert nyu.spec.mean == nyu.spec.std == (0.5, 0.5, 0.5)


def test_the_official_file(official, tmp_path):
    manifest, line = prepare("nyuv2", tmp_path / "data", official)
    assert line == f"nyuv2: converted {official}, stored in {tmp_path / 'data'}"
    assert manifest["changed"] == ""
    assert task("nyuv2").problems(tmp_path / "data") == []
    for split, numbers in NUMBERS.items():
        images, labels = task("nyuv2").load(split, tmp_path / "data")
        assert images.shape == (len(numbers), 256, 341, 3)
        for found, found_label, number in zip(images, labels, numbers, strict=True):
            image, label = picture(number, HIGH, WIDE)
            # Golden pixels: the middle of the block of 16 at row 10, column 20, and of two near the corners.
            for row, column in ((10, 20), (1, 1), (28, 38)):
                y, x = 16 * row + 8, 16 * column + 8
                new_y, new_x = y * 256 // 480, x * 341 // 640
                assert np.array_equal(found[new_y, new_x], image[y, x])
                assert found_label[new_y, new_x] == (label[y, x] - 1 if label[y, x] else 255)
    # The file itself is named as well as its folder is.
    assert prepare("nyuv2", tmp_path / "again", official / "nyu_depth_v2_labeled.mat")[0] == manifest


def test_resizing_is_what_torchvision_does():
    import torch
    from torchvision.transforms.functional import InterpolationMode, resize, to_pil_image

    image, label = picture(1, HIGH, WIDE)
    found, found_label = nyuv2._reduce(image, label)
    expected = np.asarray(resize(to_pil_image(image), 256))
    assert np.array_equal(found, expected)
    nearest = resize(to_pil_image(label), 256, InterpolationMode.NEAREST)
    assert np.array_equal(found_label, np.asarray(nearest))
    # Antialiased: without that, stripes of one pixel do not become grey.
    stripes = np.tile(np.array([0, 255], np.uint8), (480, 320))[..., None].repeat(3, 2)
    assert nyuv2._reduce(stripes, stripes[..., 0])[0][128, 50:290].std() < 40
    plain = torch.nn.functional.interpolate(
        torch.tensor(stripes[None, ..., 0:1]).permute(0, 3, 1, 2).float(), (256, 341)
    )
    assert plain[0, 0, 128, 50:290].std() > 100


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("image/{}", "seg13/{}"),
        ("{}/images", "{}/labels"),
        ("nyu_{}_rgb", "nyuv2_{}_class13"),
    ],
)
def test_a_folder_of_pictures(pictures, official, tmp_path, images, labels, shift):
    """Each layout gives what the official file gives, whether labels count from 1 or from 0 already."""
    folder = pictures(images, labels, shift=shift)
    manifest, _ = prepare("nyuv2", tmp_path / "data", folder)
    assert manifest == prepare("nyuv2", tmp_path / "official_data", official)[0]


def test_labels_of_40_classes_beside_those_of_13_are_left_alone(pictures, tmp_path):
    folder = pictures("image/{}", "seg13/{}")
    expected, _ = prepare("nyuv2", tmp_path / "data", folder)
    pictures("image/{}", "seg40/{}", change=lambda number, image, label: (image, label * 0 + 40))
    assert prepare("nyuv2", tmp_path / "data", folder)[0] == expected


def test_smaller_images_keep_their_size_and_say_so(pictures, tmp_path):
    manifest, _ = prepare("nyuv2", tmp_path, pictures(size=(192, 256), ending="jpg"))
    assert manifest["changed"] == "images of 256 x 192 instead of 640 x 480; images compressed as JPEG"
    _, labels = task("nyuv2").load("train", tmp_path)
    expected = np.stack([picture(number, 192, 256)[1] - np.uint8(1) for number in NUMBERS["train"]])
    assert np.array_equal(labels, expected)


def spoil(number, do):
    return lambda found, image, label: do(image, label) if found == number else (image, label)


@pytest.mark.parametrize(
    ("shift", "value", "message"),
    [
        (False, 14, r"class13_0004\.png: label 14 found; allowed: 0 \(unlabelled\) to 13"),
        (False, 254, r"class13_0004\.png: label 254 found; allowed: 0 \(unlabelled\) to 13"),
        (True, 13, r"class13_0004\.png: label 13 found; allowed: 0 to 12 and 255, as the other labels of test are"),
        # One 255 among labels that count from 1: then 13 cannot be.
        (False, 255, r"label 13 found; allowed: 0 to 12 and 255"),
    ],
)
def test_a_label_that_is_no_class(pictures, tmp_path, shift, value, message):
    def do(image, label):
        label = label.copy()
        label[5, 5] = value
        return image, label

    refused(pictures(shift=shift, change=spoil(4, do)), tmp_path / "data", message)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (None, None, "no label of train is 13 and none is 255; allowed are 0 .unlabelled. to 13, or 0 to 12"),
        # What one split tells says nothing of the other.
        (13, None, "no label of test is 13 and none is 255; allowed are"),
        (255, None, "no label of test is 13 and none is 255; allowed are"),
        (None, 13, "no label of train is 13 and none is 255; allowed are"),
        (255, 13, "train has labels 0 to 12 and 255 but test has labels 0 .unlabelled. to 13; number both alike"),
        (13, 255, "train has labels 0 .unlabelled. to 13 but test has labels 0 to 12 and 255; number both alike"),
    ],
)
def test_a_numbering_that_cannot_be_told_is_not_guessed(pictures, tmp_path, train, test, message):
    """Labels 0 to 12 of which none is ignored might count from 0 or from 1: a wrong guess would shift every class."""

    def change(number, image, label):
        telling = train if number in NUMBERS["train"] else test
        label = np.minimum(label, 12)
        if telling is not None:
            label[:8, :8] = telling
        return image, label

    refused(pictures(change=change), tmp_path / "data", message)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda i, y: (i, y[:240]), r"rgb_0004\.png: image of 640 x 480, label of 640 x 240"),
        (lambda i, y: (i[:240], y[:240]), r"rgb_0004\.png: 640 x 240, but those before are 640 x 480"),
        (lambda i, y: (i, i), r"class13_0004\.png: a label has one channel, this has 3"),
        (
            lambda i, y: (i, y.astype(np.uint16) + 300),
            r"class13_0004\.png: label 3\d\d found; a label is at most 255",
        ),
    ],
)
def test_a_picture_that_does_not_fit(pictures, tmp_path, do, message):
    refused(pictures(change=spoil(4, do)), tmp_path / "data", message)


def test_what_macos_leaves_beside_a_picture_is_none(pictures, tmp_path):
    folder = pictures()
    expected, _ = prepare("nyuv2", tmp_path / "data", folder)
    for path in list(folder.rglob("*.png")):
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    assert prepare("nyuv2", tmp_path / "again", folder)[0] == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "no regular file"),
        (os.mkdir, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)), ""),
        (lambda path: path.write_text("<html>"), "cannot identify image file"),
        (lambda path: path.write_bytes(b""), "cannot identify image file"),
        (lambda path: Image.new("1", (20_000, 10_000)).save(path), "decompression bomb"),
    ],
)
@pytest.mark.parametrize("kind", ["image", "seg13"])
def test_a_picture_that_is_none(pictures, tmp_path, make, message, kind):
    folder = pictures()
    (path,) = (folder / kind / "test").glob("*_0004.png")
    path.unlink()
    make(path)
    refused(folder, tmp_path / "data", rf"{path.name} cannot be read \(.*{message}")


def test_pictures_too_small_for_the_crop(pictures, tmp_path):
    message = "nyuv2, train: images of 120 x 100 are smaller than the crop of 128"
    refused(pictures(size=(100, 120)), tmp_path / "data", message)


def test_what_is_missing_among_pictures(pictures, tmp_path):
    folder, root = pictures(), tmp_path / "data"
    prepare("nyuv2", root, folder)  # must survive all that follows
    (folder / "seg13" / "test" / "new_nyu_class13_0004.png").rename(tmp_path / "away.png")
    refused(folder, root, "number 4 of test has an image or a label, not both")
    (folder / "image" / "test" / "nyu_rgb_0004.png").unlink()
    refused(folder, root, "pictures: 1 images in the test split, 2 expected")
    (folder / "image" / "test").rename(tmp_path / "image_away")
    refused(
        folder,
        root,
        r"no pictures in a folder such as image/test \(.* must name the split and one of: image, rgb\)",
    )
    (folder / "image" / "train" / "nyu_rgb_0005.png").write_bytes(b"no picture")
    (tmp_path / "image_away").rename(folder / "image" / "test")
    (tmp_path / "away.png").rename(folder / "seg13" / "test" / "new_nyu_class13_0004.png")
    Image.new("RGB", (WIDE, HIGH)).save(folder / "image" / "test" / "4.PNG")
    refused(folder, root, r"nyu_rgb_0005\.png cannot be read")
    Image.new("RGB", (WIDE, HIGH)).save(folder / "image" / "test" / "image_04.png")
    refused(folder, root, r"4\.PNG and image_04\.png have the same number")
    (folder / "image" / "test" / "image_04.png").unlink()
    (folder / "images_13" / "train").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "images_13" / "train" / "1.png")
    refused(folder, root, "image/train and images_13/train might both be meant; leave one of them there")
    assert task("nyuv2").problems(root) == []


@pytest.mark.parametrize("name", ["splits.mat", "classMapping40.mat", "class13Mapping.mat"])
def test_a_companion_that_is_missing_or_broken(official, tmp_path, name):
    place = nyuv2.PLACES[name]
    (official / name).write_bytes(b"MATLAB 5.0 MAT-file, cut off")
    refused(official, tmp_path / "data", rf"{name} cannot be read \(")
    savemat(official / name, {"another": 1})
    refused(official, tmp_path / "data", rf"{name} cannot be read \(KeyError: '.*'\)")
    (official / name).unlink()
    refused(official, tmp_path / "data", f"{name} is missing; published at {place}")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([2, 3], [1, 4], r"splits\.mat: 2 images in the train split, 3 expected"),
        ([2, 3, 5], [1, 4, 6], r"splits\.mat: 3 images in the test split, 2 expected"),
        ([2, 3, 5], [1, 5], r"splits\.mat: not every image from 1 on is in one split"),
        ([2, 3, 6], [1, 4], r"splits\.mat: not every image from 1 on is in one split"),
    ],
)
def test_a_split_that_is_not_the_official_one(official, tmp_path, train, test, message):
    savemat(official / "splits.mat", {"trainNdxs": train, "testNdxs": test})
    refused(official, tmp_path / "data", message)


def test_an_official_file_that_is_not_as_published(official, tmp_path):
    path, root = official / "nyu_depth_v2_labeled.mat", tmp_path / "data"
    prepare("nyuv2", root, official)  # must survive all that follows

    def change(name, do):
        with h5py.File(path, "a") as file:
            values = do(file[name][:])
            del file[name]
            file[name] = values

    def label(values, raw):
        values[3, 0, 0] = raw
        return values

    change("labels", lambda values: label(values, 61))
    refused(official, root, r"number 4: label 61 found; the mapping has 0 to 60")
    change("labels", lambda values: label(values, 1)[:, :, ::2])
    refused(official, root, r"number 2: image of 640 x 480, label of 640 x 240")
    change("labels", lambda values: -values.astype(np.int32))
    refused(official, root, r"number 2: label -\d+ found; the mapping has 0 to 60")
    change("labels", lambda values: -values / 1.0)
    refused(official, root, r"nyu_depth_v2_labeled\.mat cannot be read \(.*integer")
    change("labels", lambda values: values.astype(np.uint16))
    change("images", lambda values: values / 255)
    refused(official, root, r"number 2: float64 \[480, 640, 3\] is no picture in colours")
    change("images", lambda values: (values * 255).astype(np.uint8)[:, :1])
    refused(official, root, r"number 2: uint8 \[480, 640, 1\] is no picture in colours")
    change("images", lambda values: values.repeat(3, 1))
    change("labels", lambda values: values[:4])
    refused(official, root, "5 images and 4 labels, 5 of each expected")
    with h5py.File(path, "a") as file:
        del file["labels"]
    refused(official, root, r"nyu_depth_v2_labeled\.mat cannot be read \(.*labels.*published at cs\.nyu\.edu")
    savemat(official / "classMapping40.mat", {"mapClass": np.full((1, 60), 41)})
    refused(official, root, "the class mappings do not lead to 40 and then to 13 classes")
    path.write_bytes(b"<html>not found</html>")
    refused(official, root, r"nyu_depth_v2_labeled\.mat is no HDF5 file, .*published at")
    assert task("nyuv2").problems(root) == []


def test_the_command(official, tmp_path, capsys):
    root = tmp_path / "data"

    def command(*arguments):
        status = bench.main(["data", "nyuv2", f"--data-root={root}", *arguments])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    status, out, err = command()
    assert (status, out, len(err)) == (2, [], 1)
    for text in (*nyuv2.PLACES, *nyuv2.PLACES.values(), "python bench.py data nyuv2 --from FOLDER"):
        assert text in err[0]
    assert not root.exists()
    assert command("--from=nowhere") == (2, [], ["bench.py: nyuv2: there is no nowhere"])
    copy = tmp_path / "manifest.json"
    assert command(f"--from={official}", f"--manifest={copy}")[::2] == (0, [])
    assert command()[1] == [f"nyuv2: already in {root}, intact"]
    assert '"digest"' in copy.read_text()


@pytest.mark.parametrize(
    ("splits", "value", "message"),
    [
        (("train",), 1, "lists no split 'test'"),
        (("train", "test"), 13, "nyuv2, train: label 13 found; there are 0 to 12 and 255"),
    ],
)
def test_stored_arrays_that_a_run_could_not_use_are_not_called_intact(splits, value, message, tmp_path, capsys):
    arrays = np.zeros((2, 130, 130, 3), np.uint8), np.full((2, 130, 130), value, np.uint8)
    store.write(tmp_path, "nyuv2", {split: arrays for split in splits}, task("nyuv2").class_names)
    assert bench.main(["data", "nyuv2", f"--data-root={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "--from FOLDER" in line
    assert message in task("nyuv2").problems(tmp_path)[0]


# The 192 x 256 arrays of the data at hand and the official counts, where they are.
@pytest.mark.data
def test_the_stored_data_set(monkeypatch):
    monkeypatch.setattr(nyuv2, "COUNTS", {"train": 795, "test": 654})
    root = store.data_root()
    if not (root / "nyuv2").is_dir():
        pytest.skip("no nyuv2 under DFKD_DATA")
    for split, count in nyuv2.COUNTS.items():
        images, labels = task("nyuv2").load(split, root)
        assert len(images) == len(labels) == count
        assert set(np.unique(labels)) == {*range(13), 255}
