"""Priors by name: recipes of those trained here (`benchmarks/priors.yaml`), repositories of the others. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from typing import Any

from dfkd import documents, paths
from dfkd.changes import EXAMPLES, parse_changes, value_of
from dfkd.errors import UserError, named
from dfkd.files import stamps
from dfkd.names import NAME, check_name
from dfkd.optimizers import NOT_NEGATIVE, POSITIVE, SHARE, mapping
from dfkd.tasks import pool

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

_COUNT = {"type": "integer", "minimum": 1, "maximum": 10**9}
# What `--set` may change.
CHANGEABLE: dict[str, Any] = {
    # Of the U-Net's levels, from the outside in.
    "channels": {"type": "array", "items": _COUNT | {"multipleOf": 8}, "minItems": 1, "maxItems": 16},
    "layers": _COUNT,  # residual blocks a level
    "steps": _COUNT,
    "batch": _COUNT | {"maximum": 2**20},
    "lr": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "warmup": _COUNT | {"minimum": 0},  # steps in which the rate rises
    "decay": SHARE,  # of the steps, at the end, in which it falls to a fiftieth (cosine)
    "ema": SHARE,
}
RECIPE = {
    "title": "The recipe of a diffusion prior",
    **mapping(
        " ".join(("data", "size", *CHANGEABLE)),
        data={"type": "string", "pattern": NAME},  # the auxiliary images
        size=_COUNT | {"maximum": 2**16},  # side of the images it makes; theirs is a multiple of it
        **CHANGEABLE,
    ),
}
RECIPES = {
    "title": "The recipes of the diffusion priors that are trained here: benchmarks/priors.yaml",
    "type": "object",
    "propertyNames": {"pattern": NAME},
    "additionalProperties": RECIPE,
}


def recipes() -> dict[str, dict[str, Any]]:
    """Every recipe by the prior's name."""
    return deepcopy(_recipes(stamps([paths.prior_recipes()])))


@lru_cache(maxsize=4)
def _recipes(files: tuple) -> dict[str, dict[str, Any]]:
    """A plan asks for them once for each of its cells."""
    ((path, *_),) = files
    found = documents.read_checked(path, RECIPES)
    for name, recipe in found.items():
        _check_size(recipe, f"{path}: {name}")
    return found


def recipe_for(data: str, size: int) -> tuple[str, dict[str, Any]]:
    """The default name and recipe of a prior of those auxiliary images and that size.

    A size without a recipe of its own has that of their first. Raises UserError for images that are unknown or have
    none.
    """
    pool(data)
    ours = [recipe for recipe in recipes().values() if recipe["data"] == data]
    if not ours:
        raise UserError(f"there is no recipe for the auxiliary images {data}; write one into {paths.prior_recipes()}")
    recipe = next((recipe for recipe in ours if recipe["size"] == size), ours[0])
    return f"{data.split('_')[0]}{size}", recipe | {"size": size}


def check_free(name: str, recipe: Mapping[str, Any]) -> None:
    """Raise UserError for a name that a prior of that recipe cannot have, such as another one's."""
    check_name(name, "a prior's name")
    if name in HUB or recipes().get(name, recipe) != recipe:
        raise UserError(f"{name} is another prior; choose a --name of its own")


def changed(recipe: Mapping[str, Any], changes: list[str]) -> dict[str, Any]:
    """The recipe with each `key=value` of `--set` put in, checked. Raises UserError."""
    result = dict(recipe)
    for key, text in parse_changes(changes).items():
        schema = named("--set key", key, CHANGEABLE)
        result[key] = value_of(key, text, EXAMPLES[schema["type"]])
    check(result)
    return result


def check(recipe: Mapping[str, Any]) -> None:
    """Raise UserError for a missing or unknown key and for a value that cannot be meant."""
    documents.check(recipe, RECIPE, "a prior's recipe")
    _check_size(recipe, "a prior's recipe")


def _check_size(recipe: Mapping[str, Any], where: str) -> None:
    halvings = len(recipe["channels"]) - 1
    if recipe["size"] % 2**halvings:
        raise UserError(f"{where}: {halvings} halvings do not divide a 'size' of {recipe['size']}")
