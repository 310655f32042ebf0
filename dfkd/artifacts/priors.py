"""A diffusion prior for a run: found, imported, from the hub, user-provided, or trained now."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfkd import names, paths
from dfkd.artifacts.cards import IMPORTED, PRIOR, TRAINED, USER_PROVIDED, Artifact, given_folders
from dfkd.artifacts.wanted import Wanted
from dfkd.errors import UserError, unknown
from dfkd.files import copy_file, file_digest
from dfkd.priors.auxiliary import training_images
from dfkd.priors.folder import kind_of, read_json, side_of, weights_path, write_digests
from dfkd.priors.recipes import HUB, recipes
from dfkd.tasks import pool, store

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


class WantedPrior(Wanted):
    """The prior of that name; without a recipe of its own, it is trained by that of `benchmarks/priors.yaml`."""

    kind = PRIOR

    def __init__(
        self,
        name: str,
        data_root: Path,
        device: torch.device,
        *,
        recipe: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        names.check_name(name, "a prior's name")
        super().__init__(name, paths.prior(name), recipe, data_root, device, **options)

    def check(self, card: Mapping[str, Any], path: Path) -> None:
        ours = self.recipe is None and path == self.path and card["origin"] == TRAINED
        wanted = recipes().get(self.name) if ours else self.recipe
        if wanted is not None and card["recipe"] != wanted:
            raise UserError(f"{path} was trained by another recipe; remove it, or take another name")

    def bring(self, given: Path) -> Artifact:
        """A pixel model is copied, with a card and the hashes of its images; a pipeline of several GB is not."""
        if kind_of(given) != "pixel":
            card = _pipeline_card(self.name, given)
            self.check(card, given)
            return Artifact(given, card)
        from dfkd.priors.pixel import PixelPrior

        self.tell(f"importing {given.name} from the weights folder")
        card = _card_of(self.name, given, IMPORTED)
        PixelPrior.load(given, card, "cpu")  # it must fit before anything is written
        card = self._keep_hashes(given, card)
        partial = self._partial()
        for path in (weights_path(given), given / "config.json", given / "scheduler" / "scheduler_config.json"):
            copy_file(path, partial / path.relative_to(given))
        return self._place(partial, card)

    def train(self) -> Artifact:
        if self.name in HUB:
            folder = _download(self.name, self.tell)
            return Artifact(folder, _pipeline_card(self.name, folder))
        recipe = self.recipe or recipes().get(self.name)
        if recipe is None:
            raise unknown("prior", self.name, _known())
        from dfkd.priors.pixel import save
        from dfkd.priors.training import train

        source = pool(recipe["data"])
        manifest, (images, _) = source.manifest(self.data_root), source.load("train", self.data_root)
        options = self.training(dict(recipe), store.digest(manifest))
        unet, seconds = train(recipe, source, images, **options)
        save(unet, partial := self._partial())
        write_digests(self._hashes, images)
        facts = {"data": recipe["data"], "size": recipe["size"], "recipe": dict(recipe), "seed": self.seed}
        facts |= {"digest": file_digest(weights_path(partial)), "seconds": round(seconds, 2)}
        what = f"{recipe['data']}: {len(images):,} {manifest['changed']}, at {recipe['size']} pixels"
        facts |= {"kind": "pixel", "trained_on": what} | _seen(images, manifest)
        artifact = self._place(partial, PRIOR.new(self.name, origin=TRAINED, **facts))
        options["state"].unlink(missing_ok=True)
        return artifact

    @property
    def _hashes(self) -> Path:
        """Those of the training images."""
        return self.path.with_name(f"{self.name}.images.npy")

    def _partial(self) -> Path:
        """The name under which the folder is written; nothing has it yet."""
        partial = self.path.with_name(f"{self.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        return partial

    def _place(self, partial: Path, card: dict[str, Any]) -> Artifact:
        """The complete folder takes its place, last, so that one in place always has its card."""
        PRIOR.write(self.path, card)
        shutil.rmtree(self.path, ignore_errors=True)
        partial.rename(self.path)
        return Artifact(self.path, card)

    def _keep_hashes(self, given: Path, card: dict[str, Any]) -> dict[str, Any]:
        """Put the hashes of the training images beside the folder; returns the card with what is known of them."""
        # In a fresh clone card and hashes are there and the weights are not: what is known of these weights is kept.
        if PRIOR.card_path(self.path).is_file() and self._hashes.is_file():
            kept = PRIOR.read(self.path)
            if kept["digest"] == card["digest"]:
                self.check(kept, given)
                return kept
        self.check(card, given)
        if (given / "images.npy").is_file():
            copy_file(given / "images.npy", self._hashes)
        elif card["data"] is not None:
            images, manifest = training_images(card, self.data_root)
            write_digests(self._hashes, images)
            return card | _seen(images, manifest)
        else:
            write_digests(self._hashes, np.empty((0, 1, 1, 3), np.uint8))  # nobody knows them
        return card


def _seen(images: np.ndarray, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of training images that are at hand."""
    shape = dict(zip(("count", "height", "width"), images.shape, strict=False))
    return {"data_digest": store.digest(manifest), "images": shape}


def check_known(name: str, source: Path | None = None) -> None:
    """Raise UserError for a name, or the path of a folder, that could not become a prior of a run."""
    if "/" in name:
        _folder(names.path(name))
        return
    names.check_name(name, "a prior's name")
    there = name in _known() or PRIOR.there(paths.prior(name))
    if not there and PRIOR.find(name, given_folders(source)) is None:
        raise unknown("prior", name, _known())


def _known() -> set[str]:
    """The names of all priors with a recipe, a card or a place on the hub."""
    return {*recipes(), *HUB, *(path.stem for path in paths.priors().glob("*.json"))}


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; a prior's name has no slash")
    return folder


def user_provided(folder: Path) -> Artifact:
    """Somebody's own folder, used where it lies."""
    return Artifact(_folder(folder), _card_of(folder.name, folder, USER_PROVIDED))


def _card_of(name: str, folder: Path, origin: str) -> dict[str, Any]:
    """The complete card of somebody's folder: what it says in `card.json`, or what is known of its weights."""
    digest, path = file_digest(weights_path(folder)), PRIOR.card_path(folder)
    if path.is_file():
        told: Mapping[str, Any] = read_json(path)
    elif digest in KNOWN:
        told = KNOWN[digest]
    else:
        raise UserError(
            f"{folder} has no card; write {folder / 'card.json'} with at least "
            '{"trained_on": "one sentence on the images that the model was trained on"}'
        )
    # What can be seen is not taken from anybody's word.
    told = {key: told[key] for key in PRIOR.schema["properties"].keys() & told.keys() - {"name"}}
    seen = {"kind": kind_of(folder), "origin": origin, "digest": digest, "size": side_of(folder)}
    card = PRIOR.new(name, **{"trained_on": ""} | told | seen)
    if not card["trained_on"]:
        raise UserError(f"{path} must say under 'trained_on' what images the model was trained on")
    PRIOR.check(card, path)
    return card | {"seconds": 0.0} if origin == USER_PROVIDED else card  # nobody here measured them


def _pipeline_card(name: str, folder: Path) -> dict[str, Any]:
    if name not in HUB or PRIOR.card_path(folder).is_file():
        return _card_of(name, folder, USER_PROVIDED)
    known = {
        "trained_on": HUB[name]["trained_on"],
        "address": f"https://huggingface.co/{HUB[name]['repository']}",
    }
    seen = {"kind": kind_of(folder), "digest": file_digest(weights_path(folder)), "size": side_of(folder)}
    return PRIOR.new(name, origin=USER_PROVIDED, **known, **seen)


def _download(name: str, say: Callable[[str], None]) -> Path:
    """The pipeline's folder in the hub's cache, fetched if it is not there; without its safety checker."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    repository, revision = HUB[name]["repository"], HUB[name]["revision"]
    say(f"{repository} from the hub's cache, or its 5 GB from the hub")
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
