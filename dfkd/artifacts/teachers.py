"""A teacher for a run: found, imported, user-provided, or trained now to the last epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd import names, paths
from dfkd.artifacts.cards import IMPORTED, TEACHER, TRAINED, USER_PROVIDED, Artifact
from dfkd.artifacts.wanted import Wanted
from dfkd.artifacts.weights import load, load_any, load_encoder, save, spec_of
from dfkd.engine.evaluation import score
from dfkd.errors import UserError
from dfkd.files import copy_file, file_digest
from dfkd.networks import initialise
from dfkd.networks.normalised import Normalised
from dfkd.tasks import Task, store, task
from dfkd.teachers.training import train

# Public checkpoints known by the sha256 of their safetensors file; a name alone would prove nothing.
ADDRESSES = {
    digest: address
    for address, digests in {
        "https://github.com/chenyaofo/pytorch-cifar-models": (
            "2f978aaeac04ede6ae30c3f3db63a014a3f22fb45084c4b07ba06ae7b578c35e",  # cifar10_resnet20
            "b9482028c37b20b1bfba0d9fe55b7f40c029161dc02e11892e1e2ad4f02ef73f",  # cifar10_resnet56
            "8c447a4ab4ee53726a16699d04b32bad12634460d235e0f4acdc9d0d9d232d12",  # cifar100_resnet20
            "d63a829c0f9cf63f6ed65a473c71d60be1c89de38d2de8fc95f5d6edd3d93b33",  # cifar100_resnet56
        ),
        "https://github.com/karanchahal/distiller": (
            "5f4fd58af49f2b060d40822613c0228c7662badd4204b360f2260e7ec58a8425",  # cifar10_wrn16_1
            "44bf0c21b887b4c7c9e9d3a58b5d32317c336702934a5338ae8b04a24313dc21",  # cifar10_wrn28_1
        ),
    }.items()
    for digest in digests
}


class WantedTeacher(Wanted):
    """The teacher `<data>_<arch>`; an empty recipe trains none."""

    kind = TEACHER

    def __init__(
        self, data: str, arch: str, recipe: Mapping[str, Any], data_root: Path, device: torch.device, **options: Any
    ) -> None:
        path = paths.teacher(data, arch)
        super().__init__(path.stem, path, recipe, data_root, device, **options)
        self.data, self.arch = data, arch
        self.data_digest = store.digest(task(data).manifest(data_root))

    def check(self, card: Mapping[str, Any], path: Path) -> None:
        if card["recipe"] and self.recipe and card["recipe"].get("epochs", 0) < self.recipe.get("epochs", 0):
            raise UserError(
                f"{path} was trained for fewer epochs than this protocol's teacher; remove it to train anew"
            )
        if card["seed"] not in (None, self.seed):
            raise UserError(f"{path} was trained with seed {card['seed']}, not {self.seed}; remove it to train anew")
        if card["data_digest"] not in (None, self.data_digest):
            raise UserError(f"{path} was measured on other data than these; remove it to have it made anew")

    def bring(self, given: Path) -> Artifact:
        self.tell(f"importing {given.name} from the weights folder")
        test = task(self.data).load("test", self.data_root)
        measured = partial(measure, on=task(self.data), test=test, device=self.device)
        return bring(self.data, self.arch, given, self.path, measured, self.data_digest)

    def train(self) -> Artifact:
        """An encoder to start from may lie in any of `folders`. A recipe without epochs takes it as it is."""
        recipe, on = self.recipe, task(self.data)
        if not recipe:
            raise UserError(f"no teacher {self.name} and no recipe to train one; name a folder by DFKD_WEIGHTS")
        self.tell(f"training {recipe['epochs']} epochs" if "epochs" in recipe else f"taken from {recipe['encoder']}")
        network, encoder = initialise(self.arch, on.spec, self.seed), None
        if "encoder" in recipe:
            chosen = recipe.get("encoder_sha256"), recipe.get("encoder_classes", ())
            encoder = file_digest(load_encoder(network, recipe["encoder"], self.folders, *chosen))
        options = self.training(dict(recipe), encoder, self.data_digest)
        facts: dict[str, Any] = {"origin": IMPORTED}
        if "epochs" in recipe:
            seconds = train(network, *on.load("train", self.data_root), on, recipe, **options)
            facts = {"origin": TRAINED, "seed": self.seed, "seconds": round(seconds, 2)}
        test = on.load("test", self.data_root)
        accuracy = measure(Normalised(network.to("cpu").eval(), on.spec), on, test, self.device)
        facts |= dict(recipe=dict(recipe), accuracy=accuracy, spec=on.spec.to_dict(), data_digest=self.data_digest)
        card = save(network, self.path, TEACHER.new(self.data, self.arch, **facts))
        options["state"].unlink(missing_ok=True)
        return Artifact(self.path, card)


def bring(
    data: str,
    arch: str,
    given: Path,
    target: Path,
    measured: Callable[[torch.nn.Module], float] | None = None,
    data_digest: str | None = None,
) -> Artifact:
    """Copy the teacher in the file `given`, with a card.

    `measured` takes the network (images in [0, 1] in, logits out) and returns its test score. The file must fit the
    network before anything is written. Raises UserError as `load` does.
    """
    if TEACHER.card_path(given).is_file():
        TEACHER.read_of(given, paths.teacher(data, arch).stem)
    spec = spec_of(given, task(data).spec)
    network = Normalised(load(given, arch, spec), spec).eval()
    digest = file_digest(given)
    facts = {"spec": spec.to_dict(), "digest": digest, "address": ADDRESSES.get(digest), "data_digest": data_digest}
    card = TEACHER.new(data, arch, origin=IMPORTED, accuracy=measured(network) if measured else None, **facts)
    TEACHER.write(target, card)
    copy_file(given, target)
    return Artifact(target, card)


def user_provided(data: str, arch: str, file: Path, data_root: Path, device: torch.device) -> Artifact:
    """Somebody's own checkpoint, converted into `work/teachers` and measured."""
    file = names.path(str(file))
    spec = spec_of(file, task(data).spec)
    network = load_any(file, arch, spec)
    accuracy = measure(Normalised(network, spec), task(data), task(data).load("test", data_root), device)
    digest = store.digest(task(data).manifest(data_root))
    facts = {"spec": spec.to_dict(), "accuracy": accuracy, "data_digest": digest}
    target = paths.WORK / "teachers" / f"{file_digest(file)[:12]}_{paths.teacher(data, arch).name}"
    return Artifact(target, save(network, target, TEACHER.new(data, arch, origin=USER_PROVIDED, **facts)))


def measure(network: torch.nn.Module, on: Task, test: tuple[np.ndarray, np.ndarray], device: torch.device) -> float:
    """The task's metric on the test set, of a network that takes images in [0, 1]."""
    measured = score(network.to(device).to(memory_format=torch.channels_last), on, *test, device)
    if not math.isfinite(measured):
        raise UserError(f"{on.name}: the test split has no label that counts, so nothing can be measured")
    return measured
