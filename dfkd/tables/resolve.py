"""From names on the command line to one run with everything that they stand for. Torch-free."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import yaml

from dfkd import catalog, documents
from dfkd.changes import EXAMPLES, coerce, parse_changes, value_of
from dfkd.errors import UserError, named, unknown
from dfkd.identity import Run
from dfkd.metrics import Metric, metric
from dfkd.names import LARGEST
from dfkd.optimizers import PARTS
from dfkd.tables.definition import (
    AUTO,
    NO_PRIOR,
    SETTINGS,
    STUDENT,
    TRAINING,
    Protocol,
    Table,
    check_pair,
    merge,
    table_of,
)
from dfkd.tables.recipes import find, kind_of, said
from dfkd.tasks import Task, task


@dataclass(frozen=True)
class Resolved:
    """One run: what identifies it, its table and protocol, the method behind it, its configuration."""

    run: Run
    table: Table
    protocol: Protocol
    entry: catalog.Entry
    config: Mapping[str, Any]
    custom: bool = False
    note: str = ""
    precision: str = "fp32"  # in which it runs; `auto` until `engine.precision` has chosen
    compiled: bool = False  # `--compile`

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON of the configuration, which all seeds share."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    @property
    def prior(self) -> str | None:
        """The diffusion model of the run: a name, or a path to somebody's own."""
        name = self.config.get("prior", NO_PRIOR)
        return None if name == NO_PRIOR else name

    def document(self) -> str:
        """All that decides the numbers of the run, as YAML."""
        names = (*self.run._fields, "args", "class")
        content: dict[str, Any] = {"run": self.run._asdict(), "method": self.entry.name}
        content["args"] = {**self.entry.arguments, **self.config["args"]}
        content |= {key: value for key, value in self.config.items() if key not in names}
        content |= {"teacher": dict(self.protocol.teacher), "custom": self.custom, "hash": self.digest}
        return "---\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=None)

    @property
    def task(self) -> Task:
        return task(self.run.data)

    @property
    def metric(self) -> Metric:
        return metric(self.task.metric)


def resolve(
    data: str,
    protocol: str,
    method: str,
    pair: str | None = None,
    seed: int = 0,
    changes: Collection[str] = (),
    extra: str | None = None,
    precision: str | None = None,
) -> Resolved:
    """One run. `method` is a recipe's or a method's name, `changes` are `key=value` from `--set`.

    `precision` changes the configuration, unless the protocol's is `auto`: there it says what the machine would.

    Precedence, the last wins: the method's defaults, the recipe's `args`, its `pairs`, its `protocols`, the `pairs` of
    these (of a recipe with a base: all of the base's, then its own), `--set`.
    Raises UserError for every unknown name (with the nearest one) and every value of a wrong type.
    """
    task(data)
    if not 0 <= seed <= LARGEST:
        raise UserError(f"--seed counts repetitions from 0 to {LARGEST}, not {seed}")
    table = table_of(data)
    rules = table.protocol(protocol)
    recipe, entry = find(table, method, extra)
    if shared := entry.arguments.keys() & SETTINGS["properties"].keys():  # of which `--set` would mean one
        raise UserError(f"{entry.path}: a budget has a key {sorted(shared)[0]!r}: name the field otherwise")
    pair = pair or rules.pairs[0]
    teacher, student = check_pair(data, pair)
    arguments, of_recipe = said(recipe, protocol, pair)
    settings = _settings(rules, entry, of_recipe, f"recipe {method!r}: {protocol} of {data}")
    changed = _changes(changes, precision, settings)
    _apply(changed, arguments, settings, entry)
    runs_in = precision if settings["precision"] == AUTO and precision else settings["precision"]
    arguments = {key: coerce(key, value, *kind_of(key, entry)) for key, value in arguments.items()}
    steps, rounds = settings["training"]["steps"], settings["rounds"]
    if steps % rounds:
        raise UserError(f"{method}: {steps} student steps do not divide into {rounds} rounds")
    names = dict(data=data, teacher=teacher, student=student, method=method, protocol=protocol)
    config = {**names, "class": entry.name, "args": arguments, **settings}
    run, note = Run(**names, seed=seed), recipe.get("note", "")
    resolved = Resolved(run, table, rules, entry, config, bool(changed), note, runs_in)
    if (whole := recipe.get("ablates")) and not changed:
        _check_differs(resolved, resolve(data, protocol, whole, pair, seed, (), extra, precision))
    return resolved


def _check_differs(ablation: Resolved, whole: Resolved) -> None:
    """Raise UserError for an ablation that is what it ablates: its row would be that one's, run twice."""
    one, other = (
        {**each.config, "method": None, "args": each.entry.arguments | each.config["args"]}
        for each in (ablation, whole)
    )
    if one == other:
        run = ablation.run
        raise UserError(f"{run.method} ablates {whole.run.method} and is the same under {run.protocol} of {run.data}")


def takes_prior(entry: catalog.Entry) -> bool:
    """Whether a method uses the prior that its protocol names, or the images that one was trained on."""
    return entry.prior in ("diffusion", catalog.PUBLIC)


def _settings(protocol: Protocol, entry: catalog.Entry, recipe: Mapping[str, Any], where: str) -> dict:
    """What the protocol and a recipe say together."""
    settings = deepcopy(dict(protocol.settings))
    # A key of the methods that use one only, so that a table's prior says nothing of the others.
    prior = settings.pop("prior", NO_PRIOR)
    if takes_prior(entry):
        settings["prior"] = prior
    for key, value in recipe.items():
        # Any recipe may do without the prior.
        if key not in protocol.recipe_may_set and (key, value) != ("prior", NO_PRIOR):
            raise UserError(f"{where} fixes {key!r} for all methods")
        settings[key] = merge(settings[key], value) if isinstance(value, dict) else value
    documents.check(settings, SETTINGS, where)
    return settings


def _changes(changes: Collection[str], precision: str | None, settings: dict) -> dict[str, str]:
    """What `--set` and `--precision` change; the latter only where it is none that the protocol may run in."""
    found = parse_changes(changes)
    if precision is not None and "precision" in found:
        raise UserError("--precision and --set precision say the same; pass one of them")
    may = ("fp32", "bf16") if settings["precision"] == AUTO else (settings["precision"],)
    if precision is not None and precision not in may:
        found["precision"] = precision
    return found


def _apply(changed: Mapping[str, str], arguments: dict, settings: dict, entry: catalog.Entry) -> None:
    """Put each change into a method's arguments or, with dots (`training.steps`), into the settings."""
    for part, types in PARTS.items():
        name = changed.get(f"training.{part}.type")
        if name is not None:
            taken = named(part, name, types)["properties"]
            old = settings["training"][part] | {"type": name}
            # The old type's own arguments, which nobody gave here, go with it.
            settings["training"][part] = {key: value for key, value in old.items() if key in taken}
    known = _keys(settings)
    for key, text in changed.items():
        if key in entry.arguments:
            arguments[key] = value_of(key, text, *kind_of(key, entry))
        elif key in known:
            *path, last = key.split(".")
            functools.reduce(dict.__getitem__, path, settings)[last] = value_of(key, text, known[key])
        else:
            raise unknown("--set key", key, (*entry.arguments, *known))
    if changed:
        documents.check(settings, SETTINGS, "--set")


def _keys(settings: dict) -> dict[str, object]:
    """The keys that `--set` knows in the settings, those of their present types among them, each with an example."""
    schemas = {key: SETTINGS["properties"][key] for key in settings}
    del schemas["training"]
    schemas |= {f"training.{key}": TRAINING["properties"][key] for key in STUDENT}
    for part, types in PARTS.items():
        of_type = types[settings["training"][part]["type"]]["properties"]
        schemas |= {f"training.{part}.{key}": schema for key, schema in of_type.items()}
    return {key: EXAMPLES[schema["type"]] for key, schema in schemas.items()}
