"""NYU Depth v2 with 13 classes (Silberman et al., ECCV 2012; classes of Couprie et al., ICLR 2013).

Official split: 795 training and 654 test images, 640 x 480. Label 255 is ignored. Nothing is downloaded: the files lie
at several places and some only now and then, so `convert` takes what somebody has.

The field brings the short side to 256, images bilinearly (antialiased), labels by the nearest pixel, then crops 128 in
training and tests on whole images. The resizing happens once, in the conversion; `changed` stays empty, as that is the
published protocol. Smaller images are stored at their own size and never enlarged, and `changed` tells it. Arrays
that were put into the store by other means are used at the size they have.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.errors import UserError, reason
from dfkd.metrics import IGNORE
from dfkd.tasks import sources, store
from dfkd.tasks.base import InputSpec, Task

CLASSES = "bed books ceiling chair floor furniture objects picture sofa table tv wall window"
COUNTS = {"train": 795, "test": 654}
PUBLISHED = (480, 640)
SHORT_SIDE = 256

LABELLED = "nyu_depth_v2_labeled.mat"
META_DATA = "github.com/ankurhanda/nyuv2-meta-data"
PLACES = {
    LABELLED: "cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html",
    "splits.mat": "horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup",
    "classMapping40.mat": META_DATA,
    "class13Mapping.mat": META_DATA,
}

# What tells a folder of images and one of labels, the surest word first ("seg40" may lie beside "seg13").
IMAGE_WORDS, LABEL_WORDS = ("image", "rgb"), ("13", "label", "seg")

# Of labels in PNG files, by whether classes count from 0.
NUMBERINGS = {False: "0 (unlabelled) to 13", True: f"0 to 12 and {IGNORE}"}

# Of each pair: what to call it in a message; its image, H x W x 3; its label, H x W, with 0 to 12 and 255. All uint8.
Pairs = Generator[tuple[str, np.ndarray, np.ndarray], None, None]


class NYUv2(Task):
    """The task; `convert` reads both layouts in which the data are handed around."""

    def fetch(self, root: Path) -> dict[str, Any]:
        """Raises UserError, always: it says what to download, and where that is published."""
        files = ", ".join(f"{name} ({place})" for name, place in PLACES.items())
        raise UserError(
            f"{self.name}: download {files} into one folder, or the images and 13-class PNG labels of {META_DATA}, "
            f"and run: python bench.py data {self.name} --from FOLDER"
        )

    def convert(self, source: Path, root: Path) -> dict[str, Any]:
        """Store what lies at `source`: the official file, its folder, or a folder of pictures; returns the manifest.

        Raises UserError where something is missing or not as published; what was stored before is then untouched.
        """
        if not source.exists():
            raise UserError(f"{self.name}: there is no {source}")
        official = source / LABELLED if source.is_dir() else source
        pairs, notes = (_official(official), []) if official.is_file() else _pictures(source)
        size: tuple[int, ...] = ()
        splits = {}
        for split, entries in pairs.items():
            images, labels = [], []
            with closing(entries):
                for where, image, label in entries:
                    size = size or label.shape
                    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                        raise UserError(f"{where}: {image.dtype} {list(image.shape)} is no picture in colours")
                    if image.shape[:2] != label.shape:
                        raise UserError(f"{where}: image of {_size(image)}, label of {_size(label)}")
                    if label.shape != size:
                        raise UserError(f"{where}: {_size(label)}, but those before are {size[1]} x {size[0]}")
                    image, label = _reduce(image, label)
                    images.append(image)
                    labels.append(label)
            splits[split] = np.stack(images), np.stack(labels)
            self.verify(split, *splits[split])
        if size != PUBLISHED:
            notes = [f"images of {size[1]} x {size[0]} instead of {PUBLISHED[1]} x {PUBLISHED[0]}", *notes]
        return store.write(root, self.name, splits, self.class_names, "; ".join(notes))


def _official(path: Path) -> dict[str, Pairs]:
    """The pairs of `nyu_depth_v2_labeled.mat`, by split; three small files lie beside it.

    Assumed, as public programs that read them have it: `splits.mat` holds `trainNdxs` and `testNdxs` (numbers from 1);
    `classMapping40.mat` holds `mapClass` (for each of 894 raw labels one of 40 classes, from 1); the first field of
    the structure `classMapping13` in `class13Mapping.mat` holds for each of the 40 one of 13 classes, from 1. 0 is
    "unlabelled" throughout.
    """
    import h5py

    if not h5py.is_hdf5(path):
        raise UserError(f"{path} is no HDF5 file, as {LABELLED} is; published at {PLACES[LABELLED]}")
    numbers = {split: _variable(path.parent / "splits.mat", f"{split}Ndxs") for split in COUNTS}
    for split, count in COUNTS.items():
        _expect(count, len(numbers[split]), split, path.parent / "splits.mat")
    if sorted(np.concatenate(list(numbers.values()))) != list(range(1, sum(COUNTS.values()) + 1)):
        raise UserError(f"{path.parent / 'splits.mat'}: not every image from 1 on is in one split")
    to_40 = np.append(0, _variable(path.parent / "classMapping40.mat", "mapClass"))
    to_13 = np.append(0, _variable(path.parent / "class13Mapping.mat", "classMapping13"))
    if min(to_40.min(), to_13.min()) < 0 or to_40.max() >= len(to_13) or to_13.max() > len(CLASSES.split()):
        raise UserError(f"{path.parent}: the class mappings do not lead to 40 and then to 13 classes")
    # uint8 makes 255 of 0 - 1.
    classes = (to_13[to_40] - 1).astype(np.uint8)
    return {split: _official_pairs(path, np.sort(numbers[split]), classes) for split in COUNTS}


def _official_pairs(path: Path, numbers: np.ndarray, classes: np.ndarray) -> Pairs:
    """One split, read image by image: MATLAB keeps arrays in the other order, so HDF5 shows N x 3 x W x H."""
    import h5py

    try:
        with h5py.File(path) as file:
            images, labels = file["images"], file["labels"]
            if not len(images) == len(labels) == sum(COUNTS.values()):
                found = f"{len(images)} images and {len(labels)} labels"
                raise UserError(f"{path}: {found}, {sum(COUNTS.values())} of each expected")
            for number in numbers:
                where, label = f"{path}, number {number}", labels[number - 1].T
                wrong = label[(label < 0) | (label >= len(classes))]
                if wrong.size:
                    raise UserError(f"{where}: label {wrong[0]} found; the mapping has 0 to {len(classes) - 1}")
                yield where, images[number - 1].T, classes[label]
    except UserError:
        raise
    except Exception as error:  # h5py raises whatever a damaged or another file makes it stumble over
        raise UserError(f"{path} cannot be read ({reason(error)}); published at {PLACES[LABELLED]}") from None


def _variable(path: Path, name: str) -> np.ndarray:
    """The numbers of one variable of a small MATLAB file, in a row; of a structure, those of its first field."""
    from scipy.io import loadmat

    if not path.is_file():
        raise UserError(f"{path} is missing; published at {PLACES[path.name]}")
    try:
        value = loadmat(path)[name]
        if value.dtype.names:
            value = value[0, 0][0]
        return value.reshape(-1).astype(np.int64)
    except Exception as error:  # scipy raises whatever a damaged file makes it stumble over
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {reason(error)})") from None


def _pictures(folder: Path) -> tuple[dict[str, Pairs], list[str]]:
    """The pairs of a folder of pictures, by split, and notes on how they differ from what was published.

    Images and PNG labels of a split lie in folders whose paths name both, such as `image/train` and `seg13/train`,
    `train/images` and `train/labels`, `nyu_train_rgb` and `nyuv2_train_class13`; the last number in its name says
    which image it is. Labels are 0 (unlabelled) and 1 to 13; in splits where 255 occurs they are 0 to 12 already.
    """
    images = {split: _numbered(_folder(folder, split, IMAGE_WORDS)) for split in COUNTS}
    labels = {split: _numbered(_folder(folder, split, LABEL_WORDS)) for split in COUNTS}
    for split, count in COUNTS.items():
        _expect(count, len(images[split]), split, folder)
        alone = sorted(images[split].keys() ^ labels[split].keys())
        if alone:
            raise UserError(f"{folder}: number {alone[0]} of {split} has an image or a label, not both")
    arrays = {split: {number: _label(path) for number, path in labels[split].items()} for split in COUNTS}
    from_zero = {split: _from_zero(folder, split, arrays[split]) for split in COUNTS}
    for split, zero in from_zero.items():
        for number, label in arrays[split].items():
            wrong = label[(label > 12) & (label != IGNORE) if zero else label > 13]
            if wrong.size:
                known = f"{NUMBERINGS[zero]}, as the other labels of {split} are"
                raise UserError(f"{labels[split][number]}: label {wrong[0]} found; allowed: {known}")
            if not zero:
                label -= 1  # uint8: 255 for 0
    if len(set(from_zero.values())) > 1:
        found = " but ".join(f"{split} has labels {NUMBERINGS[zero]}" for split, zero in from_zero.items())
        raise UserError(f"{folder}: {found}; number both alike")
    jpeg = any(path.suffix.lower() != ".png" for split in COUNTS for path in images[split].values())
    pairs = {split: _picture_pairs(images[split], arrays[split]) for split in COUNTS}
    return pairs, ["images compressed as JPEG"] * jpeg


def _from_zero(folder: Path, split: str, labels: Mapping[int, np.ndarray]) -> bool:
    """Which of the two NUMBERINGS the labels of a split have.

    Refused where that cannot be told, for a wrong guess would shift every class.
    """
    found = set().union(*(np.unique(label).tolist() for label in labels.values()))
    if IGNORE not in found and max(found) < 13:
        allowed = f"{NUMBERINGS[False]}, or {NUMBERINGS[True]}"
        raise UserError(f"{folder}: no label of {split} is 13 and none is {IGNORE}; allowed are {allowed}")
    return IGNORE in found


def _picture_pairs(images: dict[int, Path], labels: dict[int, np.ndarray]) -> Pairs:
    for number, path in sorted(images.items()):
        yield str(path), _open(path, "RGB"), labels[number]


def _folder(root: Path, split: str, words: tuple[str, ...]) -> Path:
    """The folder of pictures, at most two levels down, whose path names the split and the first word that any has."""
    other = next(name for name in COUNTS if name != split)
    folders = {path.relative_to(root).as_posix().lower(): path for path in (*root.glob("*"), *root.glob("*/*"))}
    named = [name for name, path in folders.items() if split in name and other not in name and path.is_dir()]
    for word in words:
        fitting = [name for name in named if word in name and _numbered(folders[name])]
        if len(fitting) > 1:
            raise UserError(f"{root}: {' and '.join(sorted(fitting))} might both be meant; leave one of them there")
        if fitting:
            return folders[fitting[0]]
    raise UserError(
        f"{root}: no {LABELLED}, and no pictures in a folder such as {words[0]}/{split} "
        f"(its path must name the split and one of: {', '.join(words)})"
    )


def _numbered(folder: Path) -> dict[int, Path]:
    """The pictures of a folder by the last number in their names. Raises UserError where two have the same.

    Hidden files are none: macOS leaves a `._` file beside each that it copies.
    """
    pictures: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        numbers = re.findall(r"\d+", path.stem)
        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and numbers and not path.name.startswith("."):
            if int(numbers[-1]) in pictures:
                raise UserError(f"{pictures[int(numbers[-1])]} and {path.name} have the same number")
            pictures[int(numbers[-1])] = path
    return pictures


def _label(path: Path) -> np.ndarray:
    label = _open(path)
    if label.ndim != 2:
        raise UserError(f"{path}: a label has one channel, this has {label.shape[2]}")
    if label.max() > IGNORE:
        raise UserError(f"{path}: label {label.max()} found; a label is at most {IGNORE}")
    return label.astype(np.uint8)


def _open(path: Path, mode: str | None = None) -> np.ndarray:
    return np.array(sources.picture(path, mode))


def _reduce(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A pair with its short side at 256, or as it is where that is not longer."""
    from PIL import Image

    height, width = label.shape
    short = min(height, width)
    if short <= SHORT_SIDE:
        return image, label
    size = (width * SHORT_SIDE // short, height * SHORT_SIDE // short)
    # Pillow's filters widen with the reduction, which is what others call antialiasing.
    reduced = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR)
    nearest = Image.fromarray(np.ascontiguousarray(label)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(reduced), np.asarray(nearest)


def _expect(count: int, found: int, split: str, where: Path) -> None:
    if found != count:
        raise UserError(f"{where}: {found} images in the {split} split, {count} expected")


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


NYUV2 = NYUv2(
    name="nyuv2",
    spec=InputSpec(size=128, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, classes=13),
    class_names=tuple(CLASSES.split()),
    kind="segmentation",
    metric="miou",
    padding=16,
)
