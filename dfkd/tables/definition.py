"""A table is one file: `benchmarks/<family>/table.yaml` says its data, protocols, pairs, recipes and seeds. Torch-free.

Recipes are small files beside it, `recipes/<name>.yaml`: how a method differs there from its class's defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dfkd import documents, paths
from dfkd.errors import UserError, unknown

# In the order in which tables are shown, with what every protocol of that name is.
PROTOCOLS = {
    "paper": "The published recipes",
    "scaled": "Published budgets divided by one factor; speeds may be compared with papers, scores not",
    "cpu": "Real data, small pairs, cut budgets; not to be compared with papers",
    "quick": "Embedded data, minutes on a laptop; not to be compared with papers",
}
NO_PRIOR = "none"
SETTINGS = ("precision", "training", "rounds", "synthesis_batch", "evaluations")


def _names(pattern: str) -> dict:
    return {"type": "array", "items": {"type": "string", "pattern": pattern}, "minItems": 1, "uniqueItems": True}


def _object(required: Iterable[str] = (), **properties: Any) -> dict:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_NAME = r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\Z"
_COUNT = {"type": "integer", "minimum": 1, "maximum": 10**9}
_TYPED = {"type": "object", "required": ["type"]}
PROTOCOL_SCHEMA = _object(
    (),
    pairs=_names(r"\A[A-Za-z0-9_.]+-[A-Za-z0-9_.]+\Z"),
    recipes=_names(_NAME),
    seeds={"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31}, "minItems": 1},
    minutes={"type": "number", "minimum": 0},
    precision={"enum": ["fp32", "tf32", "bf16"]},
    training=_object((), steps=_COUNT, batch=_COUNT, optimizer=_TYPED, schedule=_TYPED),
    rounds=_COUNT,
    synthesis_batch=_COUNT,
    evaluations=_COUNT,
    prior={"type": "string", "minLength": 1},
    recipe_may_set={"type": "array", "items": {"enum": [*SETTINGS, "prior"]}},
    teacher={"type": "object"},
)
SCHEMA = {
    "title": "A table: benchmarks/<family>/table.yaml",
    **_object(
        ("about", "data"),
        about={"type": "string", "minLength": 1},
        data=_names(_NAME),
        base={"type": "string", "pattern": _NAME},
        protocols={
            "type": "object",
            "propertyNames": {"enum": list(PROTOCOLS)},
            "additionalProperties": PROTOCOL_SCHEMA,
        },
    ),
}


@dataclass(frozen=True)
class Protocol:
    """The rules of a table's runs, and which it spans.

    Attributes:
        name: one of `PROTOCOLS`.
        pairs, recipes, seeds: the span; the first pair is the default.
        minutes: a guess of what a cell takes, until some have been run.
        settings: `precision`, `training`, `rounds`, `synthesis_batch` and `evaluations` as a run has them unless its
            recipe may and does say otherwise.
        prior: the diffusion model of the methods that use one.
        recipe_may_set: the settings that are not the same for all methods.
        teacher: the recipe by which a missing teacher is trained.
    """

    name: str
    pairs: tuple[str, ...]
    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: float
    settings: Mapping[str, Any]
    prior: str
    recipe_may_set: frozenset[str]
    teacher: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """One family of data sets and how they are measured; its recipes are files beside it and beside its base's."""

    family: str
    about: str
    data: tuple[str, ...]
    base: str | None
    protocols: Mapping[str, Protocol]

    def protocol(self, name: str) -> Protocol:
        """Raises UserError naming the nearest one."""
        if name not in self.protocols:
            raise unknown("protocol", name, self.protocols)
        return self.protocols[name]


def tables() -> dict[str, Table]:
    """Every table by the name of its family. Raises UserError naming the file and key that are wrong."""
    files = tuple(sorted(path for path in paths.BENCHMARKS.glob("*/table.yaml")))
    return _read_all(tuple((path, path.stat().st_mtime_ns) for path in files))


def table_of(data: str) -> Table:
    """The table in which a data set stands."""
    known = {name: table for table in tables().values() for name in table.data}
    if data not in known:
        raise unknown("data", data, known)
    return known[data]


def datasets() -> list[str]:
    """Data sets that stand in a table."""
    return sorted(name for table in tables().values() for name in table.data)


@lru_cache(maxsize=4)
def _read_all(files: tuple) -> dict[str, Table]:
    texts = {path.parent.name: documents.read_yaml(path) for path, _ in files}
    found: dict[str, Table] = {}
    for family, content in texts.items():
        documents.check(content, SCHEMA, paths.table(family))
        found[family] = _table(family, content, texts)
    owners: dict[str, str] = {}
    for family, table in found.items():
        for data in table.data:
            if owners.setdefault(data, family) != family:
                raise UserError(f"{paths.table(family)}: data: {data} stands in the table of {owners[data]} too")
    return found


def _table(family: str, content: Mapping[str, Any], texts: Mapping[str, Mapping[str, Any]]) -> Table:
    path, base, protocols = paths.table(family), content.get("base"), content.get("protocols", {})
    if base is not None:
        if base == family or base not in texts or "base" in texts[base]:
            raise UserError(f"{path}: base: {base!r} is no table with protocols of its own")
        protocols = merge(texts[base].get("protocols", {}), protocols)
    if not protocols:
        raise UserError(f"{path}: protocols: there are none")
    made = {name: _protocol(name, values, f"{path}: protocols.{name}") for name, values in protocols.items()}
    return Table(family, content["about"], tuple(content["data"]), base, made)


def _protocol(name: str, values: Mapping[str, Any], where: str) -> Protocol:
    for key in ("pairs", "recipes", "seeds", *SETTINGS):
        if key not in values:
            raise UserError(f"{where}: {key!r} is missing")
    return Protocol(
        name=name,
        pairs=tuple(values["pairs"]),
        recipes=tuple(values["recipes"]),
        seeds=tuple(values["seeds"]),
        minutes=values.get("minutes", 0.0),
        settings={key: values[key] for key in SETTINGS},
        prior=values.get("prior", NO_PRIOR),
        recipe_may_set=frozenset(values.get("recipe_may_set", ())),
        teacher=values.get("teacher", {}),
    )


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, mappings joined key by key; one of another `type` takes the place of the whole."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("type") in (None, old.get("type")):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged
