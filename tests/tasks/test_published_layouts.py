"""Tiny-ImageNet, PACS and DomainNet out of what their publishers hand out: small archives and folders like these."""

import io
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dfkd import tasks
from dfkd.errors import UserError
from dfkd.tasks import domainnet, pacs, store, task, tiny_imagenet


def jpeg(size, seed):
    """The bytes of a picture of random colours, (width, height), and what they decode to."""
    grid = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(grid).resize(size).save(data, "JPEG")
    return data.getvalue(), np.asarray(Image.open(data))


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def packed(folder, archive):
    """The files of a folder as a zip archive."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder).as_posix())
    return archive


# --- Tiny-ImageNet


IDS = [f"n{number:08d}" for number in (7, 3, 9, 1, 5, 2, 8, 4)]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The folder of an archive with eight classes, three training and two validation images of each."""
    root = tmp_path / "given" / "tiny-imagenet-200"
    monkeypatch.setattr(tiny_imagenet, "VALIDATION", 2)
    put(root / "wnids.txt", "\n".join(IDS) + "\n")
    put(root / "words.txt", "".join(f"{i}\tname of {i}, another\n" for i in IDS))
    for row, wordnet_id in enumerate(IDS):
        for number in range(3):
            put(
                root / "train" / wordnet_id / "images" / f"{wordnet_id}_{number}.JPEG",
                jpeg((64, 64), 10 * row + number)[0],
            )
    rows = []
    for number in range(16):
        put(root / "val" / "images" / f"val_{number}.JPEG", jpeg((64, 64), 1000 + number)[0])
        rows.append(f"val_{number}.JPEG\t{IDS[number % 8]}\t0\t0\t63\t63\n")
    put(root / "val" / "val_annotations.txt", "".join(rows[::-1]))
    return root.parent


def tiny_task(classes, **options):
    names = tuple(f"name of {i}" for i in sorted(IDS)[:: 8 // classes])
    spec = replace(task("tiny_imagenet").spec, classes=classes)
    return tiny_imagenet.TinyImageNet(name="tiny", spec=spec, class_names=names, **options)


@pytest.mark.parametrize("zipped", [False, True])
def test_tiny_imagenet_by_class_and_the_validation_images_by_number(tiny, tmp_path, zipped):
    whole = tiny_task(8, each=3)
    manifest = whole.convert(packed(tiny, tmp_path / "t.zip") if zipped else tiny, tmp_path / "data")
    images, labels = whole.load("train", tmp_path / "data")
    assert labels.tolist() == sorted(list(range(8)) * 3)
    row = IDS.index(sorted(IDS)[2])
    assert np.array_equal(images[2 * 3 + 1], jpeg((64, 64), 10 * row + 1)[1])
    images, labels = whole.load("test", tmp_path / "data")
    assert labels.tolist() == [sorted(IDS).index(IDS[number % 8]) for number in range(16)]
    assert np.array_equal(images[5], jpeg((64, 64), 1005)[1])
    assert manifest["classes"] == list(whole.class_names) and manifest["changed"] == ""


def test_some_classes_are_every_so_many_and_the_first_images(tiny, tmp_path):
    whole, part = tiny_task(8, each=3), tiny_task(2, step=4, each=2)
    whole.convert(tiny, tmp_path / "whole")
    part.convert(tiny, tmp_path / "part")
    (all_images, all_labels), (images, labels) = (
        t.load("train", tmp_path / n) for t, n in ((whole, "whole"), (part, "part"))
    )
    assert labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(images, all_images[np.isin(all_labels, (0, 4))][[0, 1, 3, 4]])
    images, labels = part.load("test", tmp_path / "part")
    test_images, test_labels = whole.load("test", tmp_path / "whole")
    assert np.array_equal(images, test_images[test_labels % 4 == 0])
    assert np.array_equal(labels, test_labels[test_labels % 4 == 0] // 4)


def test_arrays_that_were_handed_on_become_the_task(tiny, tmp_path):
    part = tiny_task(2, step=4, each=2)
    made = part.convert(tiny, tmp_path / "one")
    assert part.convert(tmp_path / "one" / "tiny", tmp_path / "two") == made
    with pytest.raises(UserError, match="its classes are not those of tiny"):
        replace(part, class_names=("a", "b")).convert(tmp_path / "one" / "tiny", tmp_path / "three")
    with pytest.raises(UserError, match="2 images of name of n00000001, 3 expected"):
        replace(part, each=3).convert(tmp_path / "one" / "tiny", tmp_path / "three")
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "wnids.txt").unlink(), "wnids.txt cannot be read"),
        (lambda root: put(root / "wnids.txt", "\n".join(IDS[:7])), "7 classes, 8 expected"),
        (lambda root: (root / "train" / IDS[0] / "images" / f"{IDS[0]}_1.JPEG").unlink(), "_1.JPEG cannot be read"),
        (lambda root: put(root / "val" / "images" / "val_3.JPEG", b"no picture"), "val_3.JPEG cannot be read"),
        (lambda root: put(root / "val" / "images" / "val_3.JPEG", jpeg((32, 64), 0)[0]), "32 x 64, 64 x 64 expected"),
        (lambda root: shutil.rmtree(root), "no folder tiny-imagenet-200 in it"),
    ],
)
def test_what_is_wrong_with_tiny_imagenet_is_one_line_and_nothing_changes(tiny, tmp_path, spoil, message):
    whole, data = tiny_task(8, each=3), tmp_path / "data"
    whole.convert(tiny, data)
    before = (data / "tiny" / "manifest.json").read_bytes()
    spoil(tiny / "tiny-imagenet-200")
    with pytest.raises(UserError, match=message):
        whole.convert(tiny, data)
    assert (data / "tiny" / "manifest.json").read_bytes() == before
    assert [path.name for path in data.iterdir()] == ["tiny"]
    whole.load("train", data)


def test_the_fifty_classes_are_every_fourth():
    assert task("tiny_imagenet50").class_names == task("tiny_imagenet").class_names[::4]
    assert len(task("tiny_imagenet").class_names) == len(set(task("tiny_imagenet").class_names)) == 200


# --- PACS


@pytest.fixture
def drawings(tmp_path, monkeypatch):
    """A folder of two domains with ten to sixteen pictures a class, at 30 x 20; the counts are set accordingly."""
    monkeypatch.setattr(pacs, "COUNTS", {domain: tuple(range(10, 17)) for domain in pacs.COUNTS})
    for domain in ("sketch", "photo"):
        for label, name in enumerate(pacs.CLASSES):
            for number in range(10 + label):
                put(
                    tmp_path / "given" / "PACS" / domain / name / f"{number:03d}.jpg",
                    jpeg((30, 20), 100 * label + number)[0],
                )
    put(tmp_path / "given" / "PACS" / "sketch" / "dog" / "._000.jpg", b"left by a copy")
    return tmp_path / "given" / "PACS"


@pytest.mark.parametrize("zipped", [False, True])
def test_pacs_is_split_by_class_and_always_alike(drawings, tmp_path, zipped):
    source = packed(drawings.parent, tmp_path / "PACS.zip") if zipped else drawings
    manifests = [tasks.prepare("pacs-sketch", tmp_path / root, source)[0] for root in ("one", "two")]
    assert manifests[0] == manifests[1]
    assert "split of our own, 70/30 by class" in manifests[0]["changed"]
    (train, train_labels), (test, test_labels) = (
        task("pacs-sketch").load(s, tmp_path / "one") for s in ("train", "test")
    )
    assert np.bincount(test_labels).tolist() == [3, 3, 4, 4, 4, 4, 5]
    assert (np.bincount(train_labels) + np.bincount(test_labels)).tolist() == list(range(10, 17))
    assert train.shape[1:] == (64, 64, 3)
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in test}
    expected = Image.fromarray(jpeg((30, 20), 0)[1]).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.asarray(expected).tobytes() in {x.tobytes() for x in np.concatenate([train, test])}


def test_pacs_from_arrays_with_a_split_for_each_domain(tmp_path, monkeypatch):
    monkeypatch.setattr(pacs, "COUNTS", {"photo": (10,) * 7})
    images = np.random.RandomState(0).randint(0, 256, (70, 64, 64, 3), np.uint8)
    splits = {"photo": (images, np.arange(70) % 7)}
    store.write(tmp_path, "pacs", splits, pacs.CLASSES, "reduced, JPEG")
    manifest, _ = tasks.prepare("pacs-photo", tmp_path / "data", tmp_path / "pacs")
    assert manifest["changed"].startswith("as handed on: reduced, JPEG; ")
    assert [manifest["splits"][split]["images"][0] for split in ("train", "test")] == [49, 21]
    with pytest.raises(UserError, match="lists no split 'sketch'"):
        tasks.prepare("pacs-sketch", tmp_path / "data", tmp_path / "pacs")


def test_pacs_with_a_picture_too_few_is_refused(drawings, tmp_path):
    (drawings / "photo" / "guitar" / "004.jpg").unlink()
    with pytest.raises(UserError, match="pacs-photo: 12 images of guitar, 13 expected"):
        tasks.prepare("pacs-photo", tmp_path / "data", drawings)
    shutil.rmtree(drawings / "photo" / "horse")
    with pytest.raises(UserError, match="no folder horse in it"):
        tasks.prepare("pacs-photo", tmp_path / "data", drawings)


def test_pacs_says_where_it_lies(tmp_path):
    with pytest.raises(UserError, match=r"download PACS .*python bench\.py data pacs-cartoon --from FOLDER"):
        tasks.prepare("pacs-cartoon", tmp_path)


# --- DomainNet


@pytest.fixture
def domain(tmp_path):
    """Official files of `sketch`: two training pictures and a test picture of each class, wide, high and small."""
    root, lists = tmp_path / "given", {"train": [], "test": []}
    for label, (name, number) in enumerate(domainnet.CLASSES.items()):
        for n, split in enumerate(("train", "train", "test")):
            path = f"sketch/{name}/sketch_{number:03d}_{n:06d}.jpg"
            put(root / path, jpeg([(300, 280), (200, 400), (700, 310)][n], 10 * label + n)[0])
            lists[split].append(f"{path} {number}\n")
    lists["train"].append("sketch/zebra/sketch_343_000000.jpg 343\n")
    for split, rows in lists.items():
        put(root / f"sketch_{split}.txt", "".join(rows))
    put(root / domainnet.DUPLICATES, "clipart/axe/clipart_011_000001.jpg\nsketch/axe/sketch_011_000001.jpg\n")
    return root


@pytest.mark.parametrize("zipped", [False, True])
def test_domainnet_by_the_lists_without_duplicates(domain, tmp_path, zipped):
    if zipped:
        (tmp_path / "all").mkdir()
        shutil.move(domain / "sketch", tmp_path / "all" / "sketch")
        packed(tmp_path / "all", domain / "sketch.zip")
    manifest, _ = tasks.prepare("domainnet-sketch", tmp_path / "data", domain)
    assert manifest["splits"]["train"]["images"] == [19, 256, 256, 3]  # the zebra and the duplicate are not in it
    assert manifest["changed"] == "split lists other than the official ones"
    images, labels = task("domainnet-sketch").load("train", tmp_path / "data")
    assert np.bincount(labels).tolist() == [2, 2, 1, *[2] * 7]
    high = Image.fromarray(jpeg((200, 400), 1)[1]).resize((256, 512), Image.Resampling.BICUBIC)
    assert np.array_equal(images[1], np.asarray(high)[128:384])
    assert isinstance(images, np.memmap)
    test, _ = task("domainnet-sketch").load("test", tmp_path / "data")
    whole, _ = store.read(tmp_path / "data", "domainnet-sketch", "test")
    assert np.array_equal(test, whole[:, 16:240, 16:240]) and test.shape == (10, 224, 224, 3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / domainnet.DUPLICATES).unlink(), "duplicates.txt is missing; published at https"),
        (lambda root: (root / "sketch_test.txt").unlink(), "sketch_test.txt cannot be read"),
        (lambda root: put(root / "sketch_test.txt", "sketch/axe/a.jpg eleven\n"), "line 1: sketch/CLASS/PICTURE ID"),
        (lambda root: put(root / "sketch_test.txt", "sketch/axe/a.jpg 1\n"), "line 1: .* is no airplane"),
        (lambda root: put(root / "sketch_test.txt", "sketch/axe/a.jpg 11\n"), "no image of airplane"),
        (lambda root: shutil.copy(root / "sketch_train.txt", root / "sketch_test.txt"), "on the lists of training and"),
        (
            lambda root: shutil.rmtree(root / "sketch" / "bird"),
            "2 of 19 listed pictures are missing, the first is sketch/bird",
        ),
        (
            lambda root: put(root / "sketch" / "axe" / "sketch_011_000000.jpg", b"none"),
            "sketch_011_000000.jpg cannot be",
        ),
        (lambda root: put(root / "sketch.zip", b"none"), "sketch.zip is neither a folder nor a zip archive"),
    ],
)
def test_what_is_wrong_with_domainnet_is_one_line(domain, tmp_path, spoil, message):
    spoil(domain)
    with pytest.raises(UserError, match=message) as caught:
        tasks.prepare("domainnet-sketch", tmp_path / "data", domain)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "domainnet-sketch").exists()


def test_a_download_is_verified(domain, tmp_path, monkeypatch):
    """What lies in the download folder is used; another list than the official one is refused."""
    (tmp_path / "all").mkdir()
    shutil.move(domain / "sketch", tmp_path / "all" / "sketch")
    packed(tmp_path / "all", domain / "sketch.zip")
    folder = tmp_path / "data" / "domainnet-sketch" / "download"
    shutil.copytree(domain, folder)
    with pytest.raises(UserError, match=r"sketch\.zip is not the official file: sha256 23a7"):
        tasks.prepare("domainnet-sketch", tmp_path / "data")
    assert (folder / "sketch.zip").is_file()
    digests = [domainnet.file_digest(folder / name) for name in ("sketch.zip", "sketch_train.txt", "sketch_test.txt")]
    monkeypatch.setitem(domainnet.OFFICIAL, "sketch", domainnet.Official("sketch.zip", 0.1, *digests, images=3))
    manifest, line = tasks.prepare("domainnet-sketch", tmp_path / "data")
    assert "stored in" in line and manifest["changed"] == "" and not folder.exists()
