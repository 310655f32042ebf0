"""A teacher for a run, wherever it comes from: found, adopted, somebody's own, or trained now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd.errors import UserError
from dfkd.networks.normalised import Normalised
from dfkd.tasks import store, task
from dfkd.teachers import cards, weights
from dfkd.teachers.training import initialise, score, train
from dfkd.units import duration


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
    say: Callable[[str], None] = print,
) -> tuple[Path, dict]:
    """The weights file and card of `<data>_<arch>` in folder `own`.

    Found there (unless it is to be made `anew`), else adopted from `source` or `DFKD_WEIGHTS`, else trained by `recipe`
    (last epoch, no picking by test accuracy). Raises UserError.
    """
    folders = cards.weights_folders(own, source)
    for folder in folders[1:]:
        if not folder.is_dir():
            raise UserError(f"there is no weights folder {folder} (--weights, DFKD_WEIGHTS)")
    found = cards.find(data, arch, folders[1:] if anew else folders)
    manifest = task(data).manifest(data_root)
    if found is not None and found.parent == Path(own) and not cards.card_path(found).is_file():
        raise UserError(f"{found} has no card; remove it, or move it to a folder that DFKD_WEIGHTS names")
    if found is not None and found.parent == Path(own):
        card = cards.read_card(found)
        if card["recipe"] and recipe and card["recipe"]["epochs"] < recipe["epochs"]:
            raise UserError(
                f"{found} was trained for fewer epochs than this protocol's teacher; remove it to train anew"
            )
        if card["seed"] not in (None, seed):
            raise UserError(
                f"{found} was trained with seed {card['seed']}, not {seed}; remove it to train anew"
            )
        if card["data_digest"] not in (None, store.digest(manifest)):
            raise UserError(f"{found} was measured on other data than these; remove it to have it made anew")
        return found, card
    if found is not None:
        say(f"teacher {data}_{arch}: adopting {found.name} from the weights folder")
        path = weights.adopt(
            data,
            arch,
            found.parent,
            own,
            lambda network: _measure(network, data, task(data).load("test", data_root), device),
            store.digest(manifest),
        )
        return path, cards.read_card(path)
    if not recipe:
        raise UserError(f"no teacher {data}_{arch} and no recipe to train one; name a folder by DFKD_WEIGHTS")
    say(f"teacher {data}_{arch}: training {recipe['epochs']} epochs")
    spec = task(data).spec
    network = initialise(arch, spec, seed)
    if "encoder" in recipe:
        weights.load_encoder(network, recipe["encoder"], folders)

    def report(epoch: float, epochs: int, seconds: float) -> None:
        if epoch <= 1 or epoch == epochs or epoch % max(1, epochs // 10) == 0:
            left = duration(seconds / epoch * (epochs - epoch))
            say(f"teacher {data}_{arch}: epoch {epoch:.2g}/{epochs}, about {left} left")

    train_split, test = (task(data).load(split, data_root) for split in ("train", "test"))
    seconds = train(
        network,
        *train_split,
        task(data),
        recipe,
        seed=seed,
        device=device,
        report=report,
    )
    network.to("cpu")
    measured = _measure(Normalised(network, spec), data, test, device)
    path = Path(own) / cards.weights_name(data, arch)
    facts = dict(recipe=dict(recipe), seed=seed, accuracy=measured, seconds=round(seconds, 2))
    card = cards.new_card(data, arch, spec, "trained", data_digest=store.digest(manifest), **facts)
    return path, weights.save(network, path, card)


def foreign(
    data: str, arch: str, path: Path, folder: Path, data_root: Path, device: torch.device
) -> tuple[Path, dict]:
    """Somebody's own checkpoint, converted into `folder` and measured; returns the weights file and its card."""
    spec = weights.spec_of(path, task(data).spec)
    network = weights.load_foreign(path, arch, spec)
    measured = _measure(Normalised(network, spec), data, task(data).load("test", data_root), device)
    digest = store.digest(task(data).manifest(data_root))
    card = cards.new_card(data, arch, spec, "foreign", accuracy=measured, data_digest=digest)
    target = folder / f"{cards.file_digest(path)[:12]}_{cards.weights_name(data, arch)}"
    return target, weights.save(network, target, card)


def _measure(
    network: torch.nn.Module, data: str, test: tuple[np.ndarray, np.ndarray], device: torch.device
) -> float:
    network = network.to(device, memory_format=torch.channels_last)
    return score(network, task(data), *test, device)
