"""Protocols and recipes: from names on the command line to one resolved configuration. Torch-free.

`benchmarks/<data>/protocol.yaml` holds the protocols of a table, `benchmarks/<data>/recipes/<name>.yaml` how a
method differs there from its class's defaults, `params.yaml` which cells the tables span.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from dfkd import catalog
from dfkd.errors import UserError, unknown
from dfkd.networks import fitting, network
from dfkd.tasks import task

BENCHMARKS = catalog.ROOT / "benchmarks"
PARAMS = catalog.ROOT / "params.yaml"
RECIPE_KEYS = {"base", "method", "args", "pairs", "protocols", "note"}
NO_PRIOR = "none"


@dataclass(frozen=True)
class ResolvedCell:
    """One entry of a table: what identifies it, the method behind it, its resolved configuration."""

    identity: dict
    entry: catalog.Entry
    config: dict
    custom: bool = False
    note: str = ""
    teacher_recipe: dict = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON of the configuration, which all seeds share."""
        text = json.dumps(self.config, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def prior(self) -> str | None:
        """The diffusion model of the run: a name, or a path to somebody's own."""
        name = self.config.get("prior", NO_PRIOR)
        return None if name == NO_PRIOR else name

    @property
    def name(self) -> str:
        i = self.identity
        return f"{i['data']}/{i['teacher']}-{i['student']}/{i['method']}/{i['protocol']}-seed{i['seed']}"


def datasets() -> list[str]:
    """Data sets that have a table."""
    return sorted(path.parent.name for path in BENCHMARKS.glob("*/protocol.yaml"))


def protocols(data: str) -> dict[str, dict]:
    """The protocols of a table by name. A file with a `base` says only how it differs from that table."""
    path = BENCHMARKS / data / "protocol.yaml"
    if not path.is_file():
        raise unknown("data", data, datasets())
    found = _yaml(path)
    base = found.pop("base", None)
    return _merge(protocols(base), found) if base else found


def recipes(data: str) -> dict[str, dict]:
    """The recipes of a table by name; a method without one runs under its own name with its defaults.

    A recipe with a `base` says only how it differs from that recipe; a table with a `base` has that table's recipes.
    """
    found = _recipe_files(data)
    for name, recipe in found.items():
        for key in recipe.keys() - RECIPE_KEYS:
            raise UserError(f"recipe {name!r} of {data}: {unknown('key', key, RECIPE_KEYS)}")
    return {name: _inherit(name, found) for name in found}


def _recipe_files(data: str) -> dict[str, dict]:
    folder = BENCHMARKS / data
    base = _yaml(folder / "protocol.yaml").get("base") if folder.is_dir() else None
    theirs = _recipe_files(base) if base else {}
    return theirs | {path.stem: _yaml(path) for path in sorted((folder / "recipes").glob("*.yaml"))}


def _inherit(name: str, found: dict[str, dict], below: tuple[str, ...] = ()) -> dict:
    recipe = dict(found[name])
    base = recipe.pop("base", None)
    if base is None:
        return {"method": name, **recipe}
    if base not in found or base in below:
        raise unknown(f"base of recipe {name!r}", base, found.keys() - {name, *below})
    return _merge(_inherit(base, found, (*below, name)), recipe)


def _merge(base: dict, changes: dict) -> dict:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("type") in (None, old.get("type")):
            merged[key] = _merge(old, value)
        else:  # another type of optimiser or schedule does not take the arguments of the one it replaces
            merged[key] = value
    return merged


def span() -> Iterator[tuple[str, str, str, str, int]]:
    """Every (data, protocol, pair, recipe, seed) that `params.yaml` names."""
    for data, tables in _yaml(PARAMS).items():
        for protocol, lists in tables.items():
            for pair in lists["pairs"]:
                for recipe in lists["recipes"]:
                    for seed in lists["seeds"]:
                        yield data, protocol, pair, recipe, seed


def default_pair(data: str, protocol: str) -> str:
    """The first pair that the table spans."""
    try:
        return _yaml(PARAMS)[data][protocol]["pairs"][0]
    except KeyError:
        raise UserError(f"params.yaml names no pair for {data} under {protocol}; pass --pair") from None


def resolve(
    data: str,
    protocol: str,
    method: str,
    pair: str | None = None,
    seed: int = 0,
    changes: list[str] | None = None,
    extra: str | None = None,
    precision: str | None = None,
) -> ResolvedCell:
    """One cell. `method` is a recipe's or a method's name, `changes` are `key=value` from `--set`.

    Precedence, the last wins: constructor defaults, the recipe's `args`, its `pairs`, its `protocols`, `--set`.
    Raises UserError for every unknown name (with the nearest one) and every value of a wrong type.
    """
    task(data)
    if seed < 0:
        raise UserError(f"--seed counts repetitions from 0, not {seed}")
    available = protocols(data)
    if protocol not in available:
        raise unknown("protocol", protocol, available)
    settings, recipe_book = deepcopy(available[protocol]), recipes(data)
    methods = catalog.entries(extra)
    if method not in recipe_book and method not in methods:
        raise unknown("method", method, {*recipe_book, *methods})
    recipe = recipe_book.get(method, {})
    entry = methods.get(recipe.get("method", method))
    if entry is None:
        raise UserError(
            f"recipe {method!r} of {data} names a method that is not registered: {recipe['method']!r}"
        )
    pair = pair or default_pair(data, protocol)
    teacher, student = split_pair(pair)
    for part in (teacher, student):
        check_fits(data, part)

    by_protocol = recipe.get("protocols", {}).get(protocol, {})
    arguments = {
        **recipe.get("args", {}),
        **recipe.get("pairs", {}).get(pair, {}),
        **by_protocol.get("args", {}),
    }
    may_set = set(settings.pop("recipe_may_set", ()))
    # A key of the methods that use one only, so that a table's prior says nothing of the others.
    prior = settings.pop("prior", NO_PRIOR)
    if entry.prior == "diffusion":
        settings["prior"] = prior
    for key, value in by_protocol.items():
        if key == "args":
            continue
        # To know less is anybody's right.
        if key not in may_set and (key, value) != ("prior", NO_PRIOR):
            raise UserError(f"recipe {method!r}: protocol {protocol} of {data} fixes {key!r} for all methods")
        settings[key] = _merge(settings[key], value) if isinstance(value, dict) else value
    teacher_recipe = settings.pop("teacher", {})
    settings.pop("minutes", None)  # a guess for `plan`, no part of what is run
    for change in changes or ():
        _change(change, arguments, settings, entry)
    if precision is not None and precision != settings["precision"]:
        settings["precision"] = precision
        changes = [*(changes or ()), f"precision={precision}"]
    arguments = {
        key: coerce(key, value, _known(key, entry.arguments, f"argument of {entry.name}"))
        for key, value in arguments.items()
    }
    _check_budget(settings, method)
    names = dict(data=data, teacher=teacher, student=student, method=method, protocol=protocol)
    identity, config = {**names, "seed": seed}, {**names, "class": entry.name, "args": arguments, **settings}
    return ResolvedCell(identity, entry, config, bool(changes), recipe.get("note", ""), teacher_recipe)


def split_pair(pair: str) -> tuple[str, str]:
    """`teacher-student` as two known architectures."""
    parts = pair.split("-")
    if len(parts) != 2:
        raise UserError(f"a pair is written TEACHER-STUDENT, such as wrn40_2-wrn16_1, not {pair!r}")
    for part in parts:
        network(part)
    return parts[0], parts[1]


def check_fits(data: str, arch: str) -> None:
    """Raises UserError where a network has not the kind of output that the data need."""
    kind = task(data).kind
    if network(arch).kind != kind:
        raise UserError(
            f"{arch} does not fit {data}, a task of {kind}; there are: {', '.join(fitting(kind))}"
        )


def coerce(key: str, value: object, default: object) -> object:
    """`value` as the type of `default`; numbers may be written as YAML leaves them (1e-3 is a string there)."""
    if isinstance(value, str) and (default is None or isinstance(default, float)):
        value = _number(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} takes a finite number, not {value!r}")
    if isinstance(default, float) and number:
        return float(value)
    if default is None or (type(value) is type(default)):
        return value
    raise UserError(f"{key} takes a value of type {type(default).__name__}, not {value!r}")


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _known(key: str, known: dict, kind: str) -> object:
    if key not in known:
        raise unknown(kind, key, known)
    return known[key]


def _change(change: str, arguments: dict, settings: dict, entry: catalog.Entry) -> None:
    """Apply one `key=value`: a constructor argument, or a protocol key with dots (`training.steps`)."""
    key, separator, text = change.partition("=")
    if not separator:
        raise UserError(f"--set takes key=value, not {change!r}")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise UserError(f"--set {key}: {text!r} is not a value") from None
    if key in entry.arguments:
        arguments[key] = coerce(f"--set {key}", value, entry.arguments[key])
        return
    flat = _flatten(settings)
    if key not in flat:
        raise unknown("--set key", key, (*entry.arguments, *flat))
    *path, last = key.split(".")
    for part in path:
        settings = settings[part]
    settings[last] = coerce(f"--set {key}", value, flat[key])


def _flatten(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in settings.items():
        flat.update(
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return flat


def _check_budget(settings: dict, method: str) -> None:
    steps, rounds = settings["training"]["steps"], settings["rounds"]
    if (
        min(
            steps, rounds, settings["training"]["batch"], settings["synthesis_batch"], settings["evaluations"]
        )
        < 1
    ):
        raise UserError(f"{method}: steps, batch, rounds, synthesis_batch and evaluations must be at least 1")
    if steps % rounds:
        raise UserError(f"{method}: {steps} student steps do not divide into {rounds} rounds")
    if settings["precision"] not in ("fp32", "tf32", "bf16"):
        raise unknown("precision", settings["precision"], ("fp32", "tf32", "bf16"))


def _yaml(path: Path) -> dict:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
