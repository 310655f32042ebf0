"""Tiny-ImageNet (Stanford CS231n): 64 x 64 images of 200 ImageNet classes, and what is made of them.

`tiny_imagenet` is all of it; the official validation images, whose labels are known, are the test split.
`tiny_imagenet50` is a task of its own: every fourth class in the order of the WordNet ids, the first 200 training
images of each by number, and these classes' validation images. `public_images` is a pool: the validation images of the
other 150 classes. ImageNet has two of them a second time, as training images of the fifty; these are stored, and no
run sees them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.errors import UserError
from dfkd.tasks import sources, store
from dfkd.tasks.base import InputSpec, Task
from dfkd.tasks.download import downloading

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"
VALIDATION = 50  # validation images of each class
CLASSES = """
goldfish, European fire salamander, bullfrog, tailed frog, American alligator, boa constrictor, trilobite, scorpion,
black widow, tarantula, centipede, goose, koala, jellyfish, brain coral, snail, slug, sea slug, American lobster,
spiny lobster, black stork, king penguin, albatross, dugong, Chihuahua, Yorkshire terrier, golden retriever, Labrador
retriever, German shepherd, standard poodle, tabby, Persian cat, Egyptian cat, cougar, lion, brown bear, ladybug, fly,
bee, grasshopper, walking stick, cockroach, mantis, dragonfly, monarch, sulphur butterfly, sea cucumber, guinea pig,
hog, ox, bison, bighorn, gazelle, Arabian camel, orangutan, chimpanzee, baboon, African elephant, lesser panda,
abacus, academic gown, altar, apron, backpack, bannister, barbershop, barn, barrel, basketball, bathtub, beach wagon,
beacon, beaker, beer bottle, bikini, binoculars, birdhouse, bow tie, brass, broom, bucket, bullet train, butcher shop,
candle, cannon, cardigan, cash machine, CD player, chain, chest, Christmas stocking, cliff dwelling, computer
keyboard, confectionery, convertible, crane, dam, desk, dining table, drumstick, dumbbell, flagpole, fountain, freight
car, frying pan, fur coat, gasmask, go-kart, gondola, hourglass, iPod, jinrikisha, kimono, lampshade, lawn mower,
lifeboat, limousine, magnetic compass, maypole, military uniform, miniskirt, moving van, nail, neck brace, obelisk,
oboe, organ, parking meter, pay-phone, picket fence, pill bottle, plunger, pole, police van, poncho, pop bottle,
potter's wheel, projectile, punching bag, reel, refrigerator, remote control, rocking chair, rugby ball, sandal,
school bus, scoreboard, sewing machine, snorkel, sock, sombrero, space heater, spider web, sports car, steel arch
bridge, stopwatch, sunglasses, suspension bridge, swimming trunks, syringe, teapot, teddy, thatch, torch, tractor,
triumphal arch, trolleybus, turnstile, umbrella, vestment, viaduct, volleyball, water jug, water tower, wok, wooden
spoon, comic book, plate, guacamole, ice cream, ice lolly, pretzel, mashed potato, cauliflower, bell pepper, mushroom,
orange, lemon, banana, pomegranate, meat loaf, pizza, potpie, espresso, alp, cliff, coral reef, lakeside, seashore,
acorn
"""


class Official:
    """The archive, or its unpacked folder: class ids in their order, class names, pictures by split."""

    def __init__(self, source: Path) -> None:
        self.root = sources.below(sources.tree(source), FOLDER)
        self.ids = sorted(sources.lines(self.root / "wnids.txt"))
        words = dict(line.split("\t", 1) for line in sources.lines(self.root / "words.txt") if "\t" in line)
        self.names = [words.get(wordnet_id, wordnet_id).split(",")[0] for wordnet_id in self.ids]

    def train(self, label: int, count: int) -> Iterator[np.ndarray]:
        """The first `count` training images of a class, by number."""
        folder = self.root / "train" / self.ids[label] / "images"
        for number in range(count):
            yield self._image(folder / f"{self.ids[label]}_{number}.JPEG")

    def validation(self, labels: list[int]) -> Iterator[tuple[np.ndarray, int]]:
        """The validation images of these classes with their labels, in the order of their numbers."""
        rows = [line.split("\t")[:2] for line in sources.lines(self.root / "val" / "val_annotations.txt")]
        rows.sort(key=lambda row: int(row[0].removeprefix("val_").removesuffix(".JPEG")))
        for name, wordnet_id in rows:
            if (label := self.ids.index(wordnet_id)) in labels:
                yield self._image(self.root / "val" / "images" / name), label

    def _image(self, path: sources.Tree) -> np.ndarray:
        image = np.asarray(sources.picture(path))
        if image.shape != (64, 64, 3):
            raise UserError(f"{path}: {image.shape[1]} x {image.shape[0]}, 64 x 64 expected")
        return image


@contextmanager
def official(name: str, root: Path, gigabytes: float) -> Iterator[Official]:
    """The archive (250 MB), downloaded and verified, or as it lies in `<root>/<name>/download`; removed afterwards."""
    from torchvision.datasets.utils import download_url

    with downloading(name, root, URL, gigabytes) as folder:
        download_url(URL, folder, md5=MD5)
        archive = folder / URL.rsplit("/", 1)[1]
        try:
            yield Official(archive)
        except UserError as error:
            raise UserError(f"{name}: {archive} is not the official archive ({error})") from None


@dataclass(frozen=True)
class TinyImageNet(Task):
    """Every `step`-th class with its first `each` training images; all of its validation images are the test split."""

    step: int = 1
    each: int = 500
    unused: tuple[str, ...] = ()  # sha256 of the pixels of training images that are left out when they are loaded

    @property
    def training_images(self) -> int:
        return self.each * self.spec.classes

    def load(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        images, labels = super().load(split, root)
        if split == "train" and self.unused:
            kept = [hashlib.sha256(image.tobytes()).hexdigest() not in self.unused for image in images]
            images, labels = images[kept], labels[kept]
        return images, labels

    def fetch(self, root: Path) -> dict[str, Any]:
        with official(self.name, root, 0.3 + 2.5e-5 * self.each * self.spec.classes) as found:
            return self._store(found, root)

    def convert(self, source: Path, root: Path) -> dict[str, Any]:
        """Store the official archive or its unpacked folder, or arrays in the store's layout that hold this task's
        classes and counts. Raises UserError, and then what was stored before is untouched."""
        if not store.is_layout(source):
            return self._store(Official(source), root)
        splits, names, changed = store.handed_on(source, self.splits)
        if tuple(names) != self.class_names:
            raise UserError(f"{source}: its classes are not those of {self.name}")
        for split, (images, labels) in splits.items():
            self.verify(split, images, labels)
            each = self.each if split == "train" else VALIDATION
            self.expect_counts(f"{source}, {split}", labels, [each] * self.spec.classes)
        return store.write(root, self.name, splits, self.class_names, changed)

    def _store(self, found: Official, root: Path) -> dict[str, Any]:
        kept = list(range(0, len(found.ids), self.step))
        if len(kept) != self.spec.classes:
            raise UserError(f"{found.root}: {len(found.ids)} classes, {self.step * self.spec.classes} expected")
        labels: list[int] = []

        def validation() -> Iterator[np.ndarray]:
            for image, label in found.validation(kept):
                labels.append(label // self.step)
                yield image

        train = (image for label in kept for image in found.train(label, self.each))
        with ExitStack() as stack:
            images = [stack.enter_context(store.spooled(root, part)) for part in (train, validation())]
            self.expect_counts(f"{found.root}, val", np.array(labels), [VALIDATION] * len(kept))
            splits = {
                "train": (images[0], np.arange(len(kept)).repeat(self.each)),
                "test": (images[1], np.array(labels)),
            }
            return store.write(root, self.name, splits, [found.names[label] for label in kept])


class PublicImages(Task):
    """Natural images on which a diffusion prior may be trained."""

    def fetch(self, root: Path) -> dict[str, Any]:
        """As `Task.fetch`, from the official archive. UserError without network or space."""
        with official(self.name, root, 0.4) as found:
            kept = [label for label in range(len(found.ids)) if label % 4]
            images, labels = zip(*found.validation(kept), strict=True)
            splits = {"train": (np.stack(images), np.searchsorted(kept, np.array(labels)))}
            changed = "validation images of 150 Tiny-ImageNet classes"
            return store.write(root, self.name, splits, [found.names[label] for label in kept], changed)


def _spec(classes: int) -> InputSpec:
    return InputSpec(size=64, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, classes=classes)


NAMES = tuple(" ".join(name.split()) for name in CLASSES.split(","))

TINY_IMAGENET = TinyImageNet(name="tiny_imagenet", spec=_spec(200), class_names=NAMES)

TINY_IMAGENET50 = TinyImageNet(
    name="tiny_imagenet50",
    spec=_spec(50),
    class_names=NAMES[::4],
    step=4,
    each=200,
    unused=(
        "84dbeddc902a94c1a227ac86d529d15eb648a788471d61ad2d9b46980339339c",  # a miniskirt
        "0c8aa09e3b839b2f7005ae554bc426a036dd04dedf38f6b81dfaa3ab02975c0a",  # a pole
    ),
)

PUBLIC_IMAGES = PublicImages(name="public_images", spec=_spec(150), class_names=(), splits=("train",))
