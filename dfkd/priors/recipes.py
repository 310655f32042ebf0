"""Priors by name: recipes of those trained here (`benchmarks/priors.yaml`), repositories of the others. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from dfkd.catalog import ROOT
from dfkd.errors import UserError, unknown
from dfkd.tasks import pool

PATH = ROOT / "benchmarks" / "priors.yaml"

# Pipelines on the Hugging Face hub.
HUB: dict[str, dict[str, Any]] = {
    "stable-diffusion-v1-5": {
        "repository": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "revision": None,
        "exclude": ("v1-*", "*.fp16.*", "*non_ema*", "*.bin", "safety_checker/*"),
        "trained_on": "captioned web images (LAION-2B-en and its subset laion-aesthetics v2 5+)",
    },
    "sd-image-variations": {
        "repository": "lambdalabs/sd-image-variations-diffusers",
        "revision": "v2.0",
        "exclude": ("safety_checker/*",),  # its weights are .bin
        "trained_on": "captioned web images (LAION-2B-en; fine-tuned on LAION improved aesthetics 6+)",
    },
}

RECIPE: dict[str, tuple[type, ...]] = {
    "data": (str,),  # the pool
    "size": (int,),  # side of the images; the pool's is a multiple of it
    "channels": (list,),  # of the U-Net's levels, from the outside in; multiples of 8
    "layers": (int,),  # residual blocks a level
    "steps": (int,),
    "batch": (int,),
    "lr": (int, float),
    "weight_decay": (int, float),
    "warmup": (int,),  # steps in which the rate rises
    "decay": (int, float),  # share of the steps, at the end, in which it falls to a fiftieth (cosine)
    "ema": (int, float),
}


def recipes() -> dict[str, dict[str, Any]]:
    """Every recipe by the prior's name."""
    try:
        return yaml.safe_load(PATH.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{PATH} cannot be read: {str(error).splitlines()[0]}") from error


def recipe_for(data: str, size: int) -> tuple[str, dict[str, Any]]:
    """The default name and recipe of a prior of that pool and size.

    A size without a recipe of its own has that of the pool's first. Raises UserError for a pool that is unknown or has
    none.
    """
    pool(data)
    ours = [recipe for recipe in recipes().values() if recipe["data"] == data]
    if not ours:
        raise UserError(f"there is no recipe for the pool {data}; write one into {PATH}")
    recipe = next((recipe for recipe in ours if recipe["size"] == size), ours[0])
    return f"{data.split('_')[0]}{size}", recipe | {"size": size}


def check_name(name: str) -> None:
    """Raise UserError for a name that a prior cannot have."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"a prior's name has letters and digits, after the first also '.', '_' and '-', unlike {name!r}"
        )


def check_free(name: str, recipe: Mapping[str, Any]) -> None:
    """Raise UserError for a name that a prior of that recipe cannot have, such as another one's."""
    check_name(name)
    if name in HUB or recipes().get(name, recipe) != recipe:
        raise UserError(f"{name} is another prior; choose a --name of its own")


def changed(recipe: Mapping[str, Any], changes: list[str]) -> dict[str, Any]:
    """The recipe with each `key=value` of `--set` put in, checked. Raises UserError."""
    result = dict(recipe)
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise UserError(f"--set takes key=value, not {change!r}")
        if key not in RECIPE or key in ("data", "size"):
            raise unknown("--set key", key, RECIPE.keys() - {"data", "size"})
        try:
            result[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {key}: {text!r} is not a value") from None
        if isinstance(result[key], str):  # 1e-3 is a string to YAML
            try:
                result[key] = float(text)
            except ValueError:
                pass  # `check` names it
    check(result)
    return result


def check(recipe: Mapping[str, Any]) -> None:
    """Raise UserError for a missing or unknown key and for a value that cannot be meant."""
    for key in recipe.keys() - RECIPE.keys():
        raise unknown("key of a prior's recipe", key, RECIPE)
    for key, types in RECIPE.items():
        if not isinstance(recipe.get(key), types) or isinstance(recipe[key], bool):
            raise UserError(f"a prior's recipe: {key!r} is {recipe.get(key)!r}, not a {types[-1].__name__}")
    channels = recipe["channels"]
    if not channels or not all(isinstance(c, int) and c > 0 and c % 8 == 0 for c in channels):
        raise UserError(f"a prior's recipe: 'channels' are multiples of 8, not {channels!r}")
    size, halvings = recipe["size"], len(channels) - 1
    if size < 1 or size % 2**halvings:
        raise UserError(f"a prior's recipe: {halvings} halvings do not divide a 'size' of {size}")
    for key, least in {"layers": 1, "steps": 1, "batch": 1, "warmup": 0, "weight_decay": 0}.items():
        if recipe[key] < least:
            raise UserError(f"a prior's recipe: {key!r} must be at least {least}, not {recipe[key]}")
    if not 0 < recipe["lr"] < float("inf"):
        raise UserError(f"a prior's recipe: 'lr' must be above 0, not {recipe['lr']}")
    for key in ("decay", "ema"):
        if not 0 <= recipe[key] <= 1:
            raise UserError(f"a prior's recipe: {key!r} lies between 0 and 1, not at {recipe[key]}")
