"""Tiny-ImageNet (Stanford CS231n): 64 x 64 images of 200 ImageNet classes; here the pool `public_images` of it.

The pool is the validation images of the 150 classes that the 50-class subset (every fourth class, in the order of the
WordNet ids) leaves out.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.tasks import store
from dfkd.tasks.base import InputSpec, Task
from dfkd.tasks.download import downloading

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


class PublicImages(Task):
    """Natural images on which a diffusion prior may be trained."""

    def fetch(self, root: Path) -> dict[str, Any]:
        """As `Task.fetch`: from the official archive (250 MB), which is removed afterwards.

        An archive that lies in `<root>/public_images/download` already is used. UserError without network or space.
        """
        from torchvision.datasets.utils import download_url

        with downloading(self.name, root, URL, 0.4) as folder:
            download_url(URL, folder, md5=MD5)
            images, labels, classes = _validation(folder / URL.rsplit("/", 1)[1])
            numbers = [number for number in range(len(classes)) if number % 4]
            kept = np.isin(labels, numbers)
            splits = {"train": (images[kept], np.searchsorted(numbers, labels[kept]))}
            names = [classes[number] for number in numbers]
            changed = "validation images of 150 Tiny-ImageNet classes"
            return store.write(root, self.name, splits, names, changed)


def _validation(archive: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The validation images (uint8, 10,000 x 64 x 64 x 3) in the order of their numbers, labels, class names."""
    from PIL import Image

    with zipfile.ZipFile(archive) as file:

        def lines(name: str) -> list[str]:
            return file.read(f"tiny-imagenet-200/{name}").decode().splitlines()

        ids = sorted(lines("wnids.txt"))
        words = dict(line.split("\t", 1) for line in lines("words.txt"))
        rows = [line.split("\t")[:2] for line in lines("val/val_annotations.txt")]
        rows.sort(key=lambda row: int(row[0].removeprefix("val_").removesuffix(".JPEG")))
        images = []
        for name, _ in rows:
            with file.open(f"tiny-imagenet-200/val/images/{name}") as image:
                images.append(np.asarray(Image.open(image).convert("RGB")))
    labels = np.array([ids.index(wordnet_id) for _, wordnet_id in rows])
    return np.stack(images), labels, [words[wordnet_id].split(",")[0] for wordnet_id in ids]


PUBLIC_IMAGES = PublicImages(
    name="public_images",
    spec=InputSpec(size=64, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, classes=150),
    class_names=(),
    splits=("train",),
)
