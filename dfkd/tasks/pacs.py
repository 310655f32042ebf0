"""PACS (Li et al., "Deeper, Broader and Artier Domain Generalization", ICCV 2017), a task for each of the four domains.

Seven classes at 64 x 64, reduced from the published 227 x 227 (Lanczos). The split is **our own**: 70 % of each class
for training and 30 % for testing, drawn with a fixed seed; the authors' lists belong to the task of domain
generalization, where whole domains are held out. The draw depends on the order of the images, so that two copies in
another order, or compressed otherwise, have other digests. Nothing is downloaded: the files lie at Google Drive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.errors import UserError
from dfkd.tasks import sources, store
from dfkd.tasks.base import InputSpec, Task

CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
# Images of each class, as published.
COUNTS = {
    "art_painting": (379, 255, 285, 184, 201, 295, 449),
    "cartoon": (389, 457, 346, 135, 324, 288, 405),
    "photo": (189, 202, 182, 186, 199, 280, 432),
    "sketch": (772, 740, 753, 608, 816, 80, 160),
}
SIDE = 64
TEST = 0.3  # share of each class
CHANGED = "reduced to 64 x 64; split of our own, 70/30 by class"


@dataclass(frozen=True)
class Pacs(Task):
    """One domain."""

    domain: str = ""

    def fetch(self, root: Path) -> dict[str, Any]:
        """Raises UserError, always: it says what to download, and how to convert it."""
        raise UserError(
            f"{self.name}: download PACS (linked at domaingeneralization.github.io; a folder for each domain and in it "
            f"for each class) and run: python bench.py data {self.name} --from FOLDER"
        )

    def convert(self, source: Path, root: Path) -> dict[str, Any]:
        """Store the domain out of a folder or zip archive `<domain>/<class>/<picture>`, or out of arrays in the store's
        layout with a split for each domain. Raises UserError, and then what was stored before is untouched."""
        if store.is_layout(source):
            found, classes, changed = store.handed_on(source, [self.domain])
            if tuple(classes) != CLASSES:
                raise UserError(f"{source}: its classes are {', '.join(classes)}, not {', '.join(CLASSES)}")
            return self._store(*found[self.domain], root, changed)
        folder, labels = sources.below(sources.tree(source), self.domain), []

        def pictures() -> Iterator[np.ndarray]:
            for label, name in enumerate(CLASSES):
                for path in _pictures(sources.below(folder, name)):
                    labels.append(label)
                    yield _reduced(path)

        with store.spooled(root, pictures()) as images:
            return self._store(images, np.array(labels), root)

    def _store(self, images: np.ndarray, labels: np.ndarray, root: Path, changed: str = "") -> dict[str, Any]:
        self.verify(self.domain, images, labels)
        self.expect_counts(self.name, labels, COUNTS[self.domain])
        test = _test_rows(labels)
        splits = {
            split: (images[rows], labels[rows])
            for split, rows in (("train", np.setdiff1d(np.arange(len(labels)), test)), ("test", test))
        }
        # How a copy was made before it was handed on, and what happened here.
        notes = "; ".join(filter(None, (f"as handed on: {changed}" if changed else "", CHANGED)))
        return store.write(root, self.name, splits, CLASSES, notes)


def _test_rows(labels: np.ndarray) -> np.ndarray:
    """The images to test on, in their order: of each class the rounded share `TEST`."""
    random = np.random.RandomState(0)  # numpy's frozen generator
    rows = [random.permutation(np.flatnonzero(labels == label)) for label in range(len(CLASSES))]
    return np.sort(np.concatenate([of_class[: round(TEST * len(of_class))] for of_class in rows]))


def _pictures(folder: sources.Tree) -> list[sources.Tree]:
    """The picture files of a folder by name; hidden ones are none."""
    found = [path for path in folder.iterdir() if path.name.lower().endswith((".jpg", ".jpeg", ".png"))]
    return sorted((path for path in found if not path.name.startswith(".")), key=lambda path: path.name)


def _reduced(path: sources.Tree) -> np.ndarray:
    from PIL import Image

    return np.asarray(sources.picture(path).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


PACS = tuple(
    Pacs(
        name=f"pacs-{domain}",
        spec=InputSpec(size=SIDE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, classes=len(CLASSES)),
        class_names=CLASSES,
        padding=8,
        domain=domain,
    )
    for domain in COUNTS
)
