"""A teacher for a run, wherever it comes from: found, adopted, somebody's own, or trained now."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd import names, resumable
from dfkd.engine.evaluation import score
from dfkd.errors import UserError
from dfkd.locks import alone
from dfkd.networks import initialise
from dfkd.networks.normalised import Normalised
from dfkd.tasks import store, task
from dfkd.teachers import cards, weights
from dfkd.teachers.training import train

WORK = resumable.WORK / "teachers"


def provide(
    data: str,
    arch: str,
    recipe: Mapping[str, Any],
    own: Path,
    data_root: Path,
    device: torch.device,
    *,
    seed: int = 0,
    source: Path | None = None,
    anew: bool = False,
    resume: bool = True,
    until: float = math.inf,
    say: Callable[[str], None] = print,
) -> tuple[Path, dict]:
    """The weights file and card of `<data>_<arch>` in folder `own`.

    Found there (unless it is to be made `anew`), else adopted from `source` or `DFKD_WEIGHTS`, else trained by `recipe`
    (last epoch, no picking by test accuracy); one process makes it while others wait. With `resume` a training goes on
    where it was stopped. Raises UserError, and `Stopped` as `resumable.finish` does.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"a seed lies between 0 and 2^63 - 1, not at {str(seed)[:40]}")
    folders = cards.given_folders(own, source)
    digest, name = store.digest(task(data).manifest(data_root)), f"{data}_{arch}"

    def found() -> tuple[Path, dict] | None:
        path = None if anew else cards.find(data, arch, [own])
        return path and (path, _fitting(path, data, arch, recipe, seed, digest))

    def make() -> tuple[Path, dict]:
        given = cards.find(data, arch, folders[1:])
        if given is not None:
            tell(f"adopting {given.name} from the weights folder")
            test = task(data).load("test", data_root)
            path = weights.adopt(data, arch, given.parent, own, lambda n: _measure(n, data, test, device), digest)
            return path, cards.read_card(path)
        if not recipe:
            raise UserError(f"no teacher {name} and no recipe to train one; name a folder by DFKD_WEIGHTS")
        return _train(data, arch, recipe, folders, data_root, device, seed, digest, resume, until, tell)

    def tell(line: str) -> None:
        say(f"teacher {name}: {line}")

    if (result := found()) is None:
        with alone(WORK / f"{name}.lock", f"teacher {name}", until, say):
            result = found() or make()
    return result


def _fitting(path: Path, data: str, arch: str, recipe: Mapping[str, Any], seed: int, data_digest: str) -> dict:
    """The card of weights that are there. Raises UserError where they are not what is asked for."""
    if not cards.card_path(path).is_file():
        raise UserError(f"{path} has no card; remove it, or move it to a folder that DFKD_WEIGHTS names")
    card = cards.card_of(path, data, arch)
    weights.check_digest(path, card)
    if card["recipe"] and recipe and card["recipe"].get("epochs", 0) < recipe["epochs"]:
        raise UserError(f"{path} was trained for fewer epochs than this protocol's teacher; remove it to train anew")
    if card["seed"] not in (None, seed):
        raise UserError(f"{path} was trained with seed {card['seed']}, not {seed}; remove it to train anew")
    if card["data_digest"] not in (None, data_digest):
        raise UserError(f"{path} was measured on other data than these; remove it to have it made anew")
    return card


def _train(
    data: str,
    arch: str,
    recipe: Mapping[str, Any],
    folders: list[Path],
    data_root: Path,
    device: torch.device,
    seed: int,
    data_digest: str,
    resume: bool,
    until: float,
    say: Callable[[str], None],
) -> tuple[Path, dict]:
    """Train a teacher and keep it in the first of `folders`; an encoder to start from may lie in any."""
    say(f"training {recipe['epochs']} epochs")
    spec = task(data).spec
    network, encoder = initialise(arch, spec, seed), None
    if "encoder" in recipe:
        given = weights.load_encoder(network, recipe["encoder"], folders, recipe.get("encoder_sha256"))
        encoder = cards.file_digest(given)
    path = folders[0] / cards.weights_name(data, arch)
    facts = (dict(recipe), encoder, data_digest, seed, device.type)
    state = resumable.state_path(WORK / path.stem, *facts)
    train_split, test = (task(data).load(split, data_root) for split in ("train", "test"))
    seconds = train(
        network,
        *train_split,
        task(data),
        recipe,
        seed=seed,
        device=device,
        state=state,
        resume=resume,
        until=until,
        say=say,
    )
    network.to("cpu")
    measured = _measure(Normalised(network, spec), data, test, device)
    facts = dict(recipe=dict(recipe), seed=seed, accuracy=measured, seconds=round(seconds, 2))
    card = cards.new_card(data, arch, spec, "trained", data_digest=data_digest, **facts)
    card = weights.save(network, path, card)
    state.unlink(missing_ok=True)
    return path, card


def foreign(data: str, arch: str, path: Path, folder: Path, data_root: Path, device: torch.device) -> tuple[Path, dict]:
    """Somebody's own checkpoint, converted into `folder` and measured; returns the weights file and its card."""
    path = names.path(str(path))
    spec = weights.spec_of(path, task(data).spec)
    network = weights.load_foreign(path, arch, spec)
    measured = _measure(Normalised(network, spec), data, task(data).load("test", data_root), device)
    digest = store.digest(task(data).manifest(data_root))
    card = cards.new_card(data, arch, spec, "foreign", accuracy=measured, data_digest=digest)
    target = folder / f"{cards.file_digest(path)[:12]}_{cards.weights_name(data, arch)}"
    return target, weights.save(network, target, card)


def _measure(network: torch.nn.Module, data: str, test: tuple[np.ndarray, np.ndarray], device: torch.device) -> float:
    network = network.to(device, memory_format=torch.channels_last)
    measured = score(network, task(data), *test, device)
    if not math.isfinite(measured):
        raise UserError(f"{data}: the test split has no label that counts, so nothing can be measured")
    return measured
