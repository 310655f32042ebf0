"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), fetched through torchvision.

The normalisation is the one of the data-free distillation programs; a teacher trained with another brings it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dfkd.tasks import store
from dfkd.tasks.base import InputSpec, Task
from dfkd.tasks.download import downloading

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"

CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class Cifar(Task):
    """One of the two."""

    def fetch(self, root: Path) -> dict[str, Any]:
        """Fetch about 170 MB, verify the md5, store the arrays, remove the archive.

        An archive that lies in `<root>/<name>/download` already is used. UserError without network or space.
        """
        from torchvision import datasets

        source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[self.name]
        with downloading(self.name, root, source.url, 0.6) as folder:
            parts = {split: source(folder, train=split == "train", download=True) for split in self.splits}
            splits = {split: (part.data, np.array(part.targets)) for split, part in parts.items()}
            return store.write(root, self.name, splits, parts["test"].classes)


CIFAR10 = Cifar(
    name="cifar10",
    spec=InputSpec(32, 3, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 10),
    class_names=tuple(CIFAR10_CLASSES.split()),
)

CIFAR100 = Cifar(
    name="cifar100",
    spec=InputSpec(32, 3, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 100),
    class_names=tuple(CIFAR100_CLASSES.split()),
)
