"""A prior for a run, wherever it comes from: found, adopted, trained now, from the hub, or somebody's own folder."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfkd import names
from dfkd.errors import UserError, unknown
from dfkd.files import copy_file
from dfkd.locks import alone
from dfkd.priors import cards
from dfkd.priors.disjoint import training_images
from dfkd.priors.recipes import HUB, recipes
from dfkd.tasks import store
from dfkd.teachers import file_digest, given_folders

if TYPE_CHECKING:
    import torch

# Folders without a card, known by the sha256 of their weights; a name alone would prove nothing.
KNOWN: dict[str, dict[str, Any]] = {
    "2003502f4a524091eb7adcbdbd7c8d10da4a61d1349314f51ef860b49ca4bba5": {
        "trained_on": "public_images: 7,500 Tiny-ImageNet validation images of 150 classes, at 32 pixels",
        "data": "public_images",
        # Whatever benchmarks/priors.yaml says today.
        "recipe": {
            "data": "public_images",
            "size": 32,
            "channels": [32, 64, 128],
            "layers": 1,
            "steps": 9862,
            "batch": 64,
            "lr": 6e-4,
            "weight_decay": 1e-3,
            "warmup": 200,
            "decay": 0.4,
            "ema": 0.9995,
        },
        "seed": 0,
        "seconds": 7201.0,
    }
}


def provide(
    name: str,
    own: Path,
    data_root: Path,
    device: torch.device | str,
    *,
    source: Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    resume: bool = True,
    anew: bool = False,
    until: float = math.inf,
    say: Callable[[str], None] = print,
) -> tuple[Path, dict[str, Any]]:
    """The folder and card of a prior; `name` is a name or the path of somebody's folder.

    By name: found in `own` (unless it is to be made `anew`), else `prior_<name>` of `source` or `DFKD_WEIGHTS` (a pixel
    model is copied to `own`), else from the hub, else trained, by `recipe` or that of `benchmarks/priors.yaml`; one
    process makes it while others wait. Raises UserError, also where one that is there was trained by another recipe,
    and `Stopped` at the moment `until` (of `time.monotonic`).
    """
    if "/" in name:
        return _foreign(names.path(name))
    names.check_name(name, "a prior's name")
    if anew or not _is_folder(own / name):
        from dfkd.priors.training import WORK

        with alone(WORK / f"{name}.lock", f"prior {name}", until, say):
            if anew or not (own / name).is_dir():
                return _make(name, own, data_root, device, source, recipe, resume, until, say)
    return own / name, _found(own / name, recipe)


def _make(
    name: str,
    own: Path,
    data_root: Path,
    device: torch.device | str,
    source: Path | None,
    recipe: Mapping[str, Any] | None,
    resume: bool,
    until: float,
    say: Callable[[str], None],
) -> tuple[Path, dict[str, Any]]:
    """What `provide` does where the prior is not in `own`."""
    given = find(name, source)
    if given is not None and cards.kind_of(given) != "pixel":
        card = _pipeline_card(name, given)
        _check_recipe(card, recipe, given)
        return given, card  # several GB are not copied
    if given is not None:
        say(f"prior {name}: adopting {given.name} from the weights folder")
        return _adopt(name, given, own, data_root, recipe)
    if name in HUB:
        folder = _download(name, say)
        return folder, _pipeline_card(name, folder)
    recipe = recipe or recipes().get(name)
    if recipe is None:
        raise unknown("prior", name, {*recipes(), *HUB, *(path.stem for path in own.glob("*.json"))})
    from dfkd.priors.training import train

    return train(name, recipe, own, data_root, device, resume=resume, until=until, say=say)


def check_known(name: str, own: Path, source: Path | None = None) -> None:
    """Raise UserError for a name, or the path of a folder, that `provide` could not turn into a prior."""
    if "/" in name:
        _folder(names.path(name))
        return
    names.check_name(name, "a prior's name")
    known = {*recipes(), *HUB, *(path.stem for path in own.glob("*.json"))}
    if name not in known and not _is_folder(own / name) and find(name, source) is None:
        raise unknown("prior", name, known)


def find(name: str, source: Path | None = None) -> Path | None:
    """The folder of a ready prior in `source` or `DFKD_WEIGHTS`, or None. UserError where that folder is missing."""
    folders = (folder / f"prior_{name}" for folder in given_folders(Path(), source)[1:])
    return next((folder for folder in folders if _is_folder(folder)), None)


def _is_folder(path: Path) -> bool:
    """Whether there is a folder. Raises UserError for whatever else has its name."""
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{path} is no folder, where a prior is expected")
    return path.is_dir()


def _found(folder: Path, recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    if not cards.card_path(folder).is_file():
        raise UserError(f"{folder} has no card; remove it, or move it to a folder that DFKD_WEIGHTS names")
    card = cards.read_card(folder)
    if card["name"] != folder.name:
        raise UserError(f"{cards.card_path(folder)} is the card of the prior {card['name']!r}, not {folder.name!r}")
    wanted = recipe or (recipes().get(folder.name) if card["origin"] == "trained" else None)
    _check_recipe(card, wanted, folder)
    return card


def _check_recipe(card: Mapping[str, Any], wanted: Mapping[str, Any] | None, folder: Path) -> None:
    if wanted is not None and card["recipe"] != wanted:
        raise UserError(f"{folder} was trained by another recipe; remove it, or take another name")


def _adopt(
    name: str, given: Path, own: Path, data_root: Path, recipe: Mapping[str, Any] | None
) -> tuple[Path, dict[str, Any]]:
    """Copy a pixel model, with a card and the digests of its training images, to `own`."""
    from dfkd.priors.pixel import PixelPrior

    card = _card_of(name, given, "adopted")
    PixelPrior.load(given, card, "cpu")  # it must fit before anything is written
    target, beside, digests = own / name, own / f"{name}.json", own / f"{name}.images.npy"
    # In a fresh clone card and digests are there and the weights are not: what is known of these weights is kept.
    kept = cards.read_card(target) if beside.is_file() and digests.is_file() else None
    known = kept is not None and kept["digest"] == card["digest"]
    card = kept if known else card
    _check_recipe(card, recipe, given)
    if known:
        pass
    elif (given / "images.npy").is_file():
        copy_file(given / "images.npy", digests)
    elif card["data"] is not None:
        images, manifest = training_images(card, data_root)
        cards.write_digests(digests, images)
        shape = dict(zip(("count", "height", "width"), images.shape, strict=False))
        card = card | {"data_digest": store.digest(manifest), "images": shape}
    else:
        cards.write_digests(digests, np.empty((0, 1, 1, 3), np.uint8))  # nobody knows them
    partial = own / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for path in (
        cards.weights_path(given),
        given / "config.json",
        given / "scheduler" / "scheduler_config.json",
    ):
        copy_file(path, partial / path.relative_to(given))
    cards.write_card(beside, card)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)  # last, so that a folder in place always has its card
    return target, card


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; a prior's name has no slash")
    return path


def _foreign(folder: Path) -> tuple[Path, dict[str, Any]]:
    return _folder(folder), _card_of(folder.name, folder, "foreign")


def _card_of(name: str, folder: Path, origin: str) -> dict[str, Any]:
    """The complete card of somebody's folder: what it says in `card.json`, or what is known of its weights."""
    digest = file_digest(cards.weights_path(folder))
    path = cards.card_path(folder)
    if path.is_file():
        told: Mapping[str, Any] = cards.read_json(path)
    elif digest in KNOWN:
        told = KNOWN[digest]
    else:
        raise UserError(
            f"{folder} has no card; write {folder / 'card.json'} with at least "
            '{"trained_on": "one sentence on the images that the model was trained on"}'
        )
    # What can be seen is not taken from anybody's word.
    told = {key: told[key] for key in set(cards.KEYS) & told.keys() - {"name", "kind", "origin"}}
    facts = {"digest": digest, "size": cards.side_of(folder)}
    card = cards.new_card(name, cards.kind_of(folder), told.get("trained_on", ""), origin) | told | facts
    if not card["trained_on"]:
        raise UserError(f"{path} must say under 'trained_on' what images the model was trained on")
    cards.check(card, path)
    return card | {"seconds": 0.0} if origin == "foreign" else card  # nobody here measured them


def _pipeline_card(name: str, folder: Path) -> dict[str, Any]:
    if name not in HUB or cards.card_path(folder).is_file():
        return _card_of(name, folder, "foreign")
    facts = {"size": cards.side_of(folder), "digest": file_digest(cards.weights_path(folder))}
    address = f"https://huggingface.co/{HUB[name]['repository']}"
    return cards.new_card(name, cards.kind_of(folder), HUB[name]["trained_on"], "foreign", address=address, **facts)


def _download(name: str, say: Callable[[str], None]) -> Path:
    """The pipeline's folder in the hub's cache, fetched if it is not there; without its safety checker."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    repository, revision = HUB[name]["repository"], HUB[name]["revision"]
    say(f"prior {name}: {repository} from the hub's cache, or its 5 GB from the hub")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it warns of is said below
    try:
        return Path(DiffusionPipeline.download(repository, revision=revision, safety_checker=None))
    except Exception as error:
        option = f" --revision {revision}" if revision else ""
        excluded = " ".join(f'"{pattern}"' for pattern in HUB[name]["exclude"])
        raise UserError(
            f"prior {name} is neither here nor to be had from the hub ({type(error).__name__}); where there is a "
            f"network, run: hf download {repository}{option} --exclude {excluded} --local-dir "
            f"prior_{name}, and put that folder into one that DFKD_WEIGHTS names"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
