"""DomainNet (Peng et al., ICCV 2019): DiffDFKD's ten classes in six domains at 224 x 224, a task for each domain.

Split by the official lists (about 70/30), filtered to the ten official ids (diffdfkd.md 3); images on the duplicates
list of DomainBed are left out. Pictures are decoded once, the short side brought to 256 and the central square stored;
training crops 224 of it at random and the test takes the centre (DiffDFKD's program squeezes test images to 224 x 224).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.errors import UserError
from dfkd.files import file_digest
from dfkd.tasks import sources, store
from dfkd.tasks.base import InputSpec, Task
from dfkd.tasks.download import downloading

BASE = "http://csr.bu.edu/ftp/visda/2019/multi-source"
DUPLICATES = "domain_net_duplicates.txt"
DUPLICATES_URL = f"https://raw.githubusercontent.com/facebookresearch/DomainBed/main/domainbed/misc/{DUPLICATES}"
# DiffDFKD's classes in label order, with their official ids (diffdfkd.md 3).
CLASSES = {
    "airplane": 1,
    "clock": 73,
    "axe": 11,
    "basketball": 19,
    "bicycle": 29,
    "bird": 31,
    "strawberry": 290,
    "flower": 121,
    "pizza": 225,
    "bracelet": 39,
}
STORED, SIDE = 256, 224


@dataclass(frozen=True)
class Official:
    """Where the cleaned archive of a domain lies, its size in GB, and the sha256 of the archive and of its lists.

    The publisher gives no checksums; these are those that TensorFlow Datasets has recorded.
    """

    place: str
    gigabytes: float
    archive: str
    train: str
    test: str
    images: int  # of these classes in the training list (diffdfkd.md 3; of quickdraw and real inferred there)


OFFICIAL = {
    "clipart": Official(
        "groundtruth/clipart.zip",
        1.3,
        "f8f248a3e8bbc9868c523ae24e6601b4c2ad102afc60c0efeb4f3255df22354d",
        "affdadf5f95a7583e6b98030a3d35007e2613ee4dd942393c5a705ec2b429312",
        "62c8e36aaba1c41ad9e249099739707220a44c08f167b37ef420f34a31628a6b",
        1_137,
    ),
    "infograph": Official(
        "infograph.zip",
        4.4,
        "891e14f476317e97b6f06d6498c11d0a5b8d0c8b57210765ed9beb072da611fa",
        "36b44cbd41a2915e0dc73b4f4be8862a6f3c220f93c8d63fb2439beeae3aefda",
        "413cfa54ac92e7e6b242f4f09fbd9c8ace85c4deaf3cb6c81ff6b68264460136",
        1_126,
    ),
    "painting": Official(
        "groundtruth/painting.zip",
        3.7,
        "fa47e6d405503ea0286cabd767f176bd30e988b63ddd7b9db16cf030c9770015",
        "f1da38d50a702fddf1329f85bc607d7a2abcae7e6aec75e1fd49cc1bd340d47b",
        "11472b13b5188e09f06918b12eebb660588c97a20e43e268d9b02e3e37eb8f97",
        1_755,
    ),
    "quickdraw": Official(
        "quickdraw.zip",
        0.5,
        "9f37df2a8c3733703dbb35ad9964202a65f675ca30137756457537536b485d84",
        "3a5edd3bc215772010eebc87f158707703dd7e48091d13b816af81326a9d1c0f",
        "2a00a60650a453c65c356da748fec54084a197272137c440e7d52d08947357bf",
        3_500,
    ),
    "real": Official(
        "real.zip",
        6.1,
        "d7fe010b430c5b510f85d657d38c4a1924822695fabea4fef57bd00dba251d63",
        "19d483256d24aef19e581b65eda8333fd918aef3eb733fe499ff384120e3a289",
        "2b3f75bcde309aeb5931292084b2162e936b5f189e3bb1ad716f0f74c460864c",
        3_550,
    ),
    "sketch": Official(
        "sketch.zip",
        2.7,
        "23a7dbae7016b343e934399beaa8a68728fb5e570ebe2c71df9b75cf91c499fc",
        "72f4bc6afa5702a1ccba800d0053c1427de87439dfaf246dbc9a2e71abfec54f",
        "3fb48fca18c507c4321f007c3f62b308ec232ff6928cbfe2af64e76ec366e840",
        1_694,
    ),
}


@dataclass(frozen=True)
class DomainNet(Task):
    """One domain."""

    domain: str = ""

    @property
    def training_images(self) -> int:
        """Those on the duplicates list included."""
        return OFFICIAL[self.domain].images

    def fetch(self, root: Path) -> dict[str, Any]:
        """As `Task.fetch`: archive, lists and the duplicates list, verified and removed afterwards. What lies in
        `<root>/<name>/download` already is used. UserError without network or space."""
        from torchvision.datasets.utils import download_url

        official = OFFICIAL[self.domain]
        expected = {f"{BASE}/{official.place}": official.archive, DUPLICATES_URL: None}
        expected |= {
            f"{BASE}/domainnet/txt/{self.domain}_{split}.txt": getattr(official, split) for split in self.splits
        }
        url = f"{BASE}/{official.place}"
        with downloading(self.name, root, url, official.gigabytes + 1) as folder:
            for url, digest in expected.items():
                path = folder / url.rsplit("/", 1)[1]
                if not path.is_file():
                    download_url(url, folder)
                if digest not in (None, found := file_digest(path)):
                    raise UserError(
                        f"{self.name}: {path} is not the official file: sha256 {digest} expected, {found} found"
                    )
            return self.convert(folder, root)

    def convert(self, source: Path, root: Path) -> dict[str, Any]:
        """Store the domain out of a folder with the official files: `<domain>.zip` or the folder `<domain>` that it
        holds, `<domain>_train.txt`, `<domain>_test.txt` and DomainBed's `domain_net_duplicates.txt`.

        Every listed picture must be there. Raises UserError, and then what was stored before is untouched.
        """
        source = Path(source)
        duplicates = self._duplicates(source / DUPLICATES)
        archive = source / f"{self.domain}.zip"
        pictures = sources.tree(archive if archive.is_file() else source)
        listed = {split: self._listed(source / f"{self.domain}_{split}.txt", duplicates) for split in self.splits}
        both = {name for name, _ in listed["train"]} & {name for name, _ in listed["test"]}
        if both:
            raise UserError(f"{source}: {min(both)} is on the lists of training and of test")
        official = OFFICIAL[self.domain]
        own = any(
            file_digest(source / f"{self.domain}_{split}.txt") != getattr(official, split) for split in self.splits
        )
        splits = {}
        with ExitStack() as stack:
            for split, rows in listed.items():
                images = stack.enter_context(store.spooled(root, _squares(pictures, rows)))
                splits[split] = images, np.array([label for _, label in rows])
                self.verify(split, *splits[split])
            changed = "split lists other than the official ones" if own else ""
            return store.write(root, self.name, splits, self.class_names, changed)

    def _duplicates(self, path: Path) -> set[str]:
        if not path.is_file():
            raise UserError(f"{path} is missing; published at {DUPLICATES_URL}")
        return set(sources.lines(path))

    def _listed(self, path: Path, duplicates: set[str]) -> list[tuple[str, int]]:
        """The pictures of a list that are of our classes, each with our label. UserError where one has no picture."""
        labels = {number: (label, name) for label, (name, number) in enumerate(CLASSES.items())}
        rows = []
        for number, line in enumerate(sources.lines(path), 1):
            name, _, official = line.rpartition(" ")
            if not official.isdecimal() or not name.startswith(f"{self.domain}/"):
                raise UserError(f"{path}, line {number}: {self.domain}/CLASS/PICTURE ID expected, {line[:80]!r} found")
            label, folder = labels.get(int(official), (None, ""))
            if label is None or name in duplicates:
                continue
            if name.split("/")[1] != folder:
                raise UserError(f"{path}, line {number}: {name} is no {folder}, which {official} stands for")
            rows.append((name, label))
        counts = np.bincount([label for _, label in rows], minlength=len(CLASSES))
        if not counts.all():
            raise UserError(f"{path}: no image of {list(CLASSES)[int(counts.argmin())]}")
        return rows


def _squares(root: sources.Tree, rows: Sequence[tuple[str, int]]) -> Iterator[np.ndarray]:
    """Each listed picture as it is stored. Raises UserError for the first that is missing, with how many are."""
    missing = [name for name, _ in rows if not (root / name).is_file()]
    if missing:
        raise UserError(f"{root}: {len(missing)} of {len(rows)} listed pictures are missing, the first is {missing[0]}")
    for name, _ in rows:
        yield sources.square(sources.picture(root / name), STORED)


DOMAINNET = tuple(
    DomainNet(
        name=f"domainnet-{domain}",
        spec=InputSpec(size=SIDE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, classes=len(CLASSES)),
        class_names=tuple(CLASSES),
        padding=SIDE // 8,
        stored=STORED,
        domain=domain,
    )
    for domain in OFFICIAL
)
