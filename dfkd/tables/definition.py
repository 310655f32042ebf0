"""A table is one file, `benchmarks/<family>/table.yaml`: data, protocols, pairs, recipes, seeds. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dfkd import documents, paths
from dfkd.errors import UserError, named, shown
from dfkd.files import asked_once, find, stamps
from dfkd.names import LARGEST, NAME
from dfkd.networks import fitting, network
from dfkd.optimizers import PARTS, mapping, one_of
from dfkd.tasks import task
from dfkd.teachers.recipes import SCHEMA as TEACHER

# In the order in which tables are shown, with what every protocol of that name is.
MEANINGS = {
    "paper": "The published recipes",
    "scaled": "Published budgets divided by one factor, so that speeds may be compared with papers; scores may not",
    "cpu": "Real data, small pairs, cut budgets; not to be compared with papers",
    "quick": "Data that come with the packages, minutes on a laptop; not to be compared with papers",
}
PRECISIONS = ("fp32", "tf32", "bf16")
AUTO = "auto"  # precision: bf16 where the machine is faster in it, else fp32
NO_PRIOR = "none"

NAMED = {"type": "string", "pattern": NAME}
_NAMES = {"type": "array", "items": NAMED, "minItems": 1, "uniqueItems": True}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 10**9}
_BATCH = _COUNT | {"maximum": 2**20}  # images
_SEED = {"type": "integer", "minimum": 0, "maximum": LARGEST}
BUDGET = {
    "precision": {"type": "string", "enum": [*PRECISIONS, AUTO]},
    "rounds": _COUNT,
    "synthesis_batch": _BATCH,
    "evaluations": _COUNT,
    "prior": {"type": "string", "minLength": 1},
}
STUDENT = {"steps": _COUNT, "batch": _BATCH}
TRAINING = mapping(
    "steps batch optimizer schedule", **STUDENT, **{part: one_of(types) for part, types in PARTS.items()}
)
_ALWAYS = "precision training rounds synthesis_batch evaluations"
# What a run is configured by, but for its method's arguments.
SETTINGS = mapping(_ALWAYS, training=TRAINING, **BUDGET)
_PROTOCOL = mapping(
    f"pairs recipes seeds {_ALWAYS}",
    pairs=_NAMES,
    recipes=_NAMES,
    seeds={"type": "array", "items": _SEED, "minItems": 1, "uniqueItems": True},
    **SETTINGS["properties"],
    recipe_may_set={"type": "array", "items": {"enum": list(SETTINGS["properties"])}, "uniqueItems": True},
    teacher=TEACHER,
)
SCHEMA = {
    "title": "A table, together with the protocols of its base: benchmarks/<family>/table.yaml",
    **mapping(
        "about data protocols",
        about={"type": "string", "minLength": 1, "maxLength": 300},
        data=_NAMES,
        base=NAMED,
        protocols={
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"enum": list(MEANINGS)},
            "additionalProperties": _PROTOCOL,
        },
    ),
}


@dataclass(frozen=True)
class Protocol:
    """The rules of a table's runs, and which runs it spans.

    Attributes:
        name: one of `MEANINGS`.
        pairs, recipes, seeds: the span; the first pair is the default.
        settings: precision, training, rounds, synthesis_batch, evaluations and prior as a run has them, unless its
            recipe may and does say otherwise.
        recipe_may_set: the settings that are not the same for all methods.
        teacher: the recipe by which a missing teacher is trained; empty where none is.
    """

    name: str
    pairs: tuple[str, ...]
    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    recipe_may_set: tuple[str, ...]
    teacher: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Table:
    """One family of data sets and how they are measured. Its recipes are files beside it and beside its base."""

    family: str
    about: str
    data: tuple[str, ...]
    base: str | None
    protocols: Mapping[str, Protocol]

    @property
    def path(self) -> Path:
        return paths.table(self.family)

    @property
    def families(self) -> tuple[str, ...]:
        """The folders whose recipes it has, the base's first."""
        return (self.family,) if self.base is None else (self.base, self.family)

    def protocol(self, name: str) -> Protocol:
        """Raises UserError naming the nearest one."""
        return named("protocol", name, self.protocols)


@asked_once
def tables() -> dict[str, Table]:
    """Every table by its family. Raises UserError naming the file and key that are wrong, in whichever it is."""
    return _tables(stamps(find(paths.BENCHMARKS, "[!.]*/table.yaml")))


def table_of(data: str) -> Table:
    """The table in which a data set stands. Raises UserError naming the nearest one."""
    return named("data", data, owners())


def owners() -> dict[str, Table]:
    """The table of each data set."""
    return {data: table for table in tables().values() for data in table.data}


def datasets() -> list[str]:
    """The data sets that stand in a table."""
    return sorted(owners())


@lru_cache(maxsize=4)
def _tables(files: tuple) -> dict[str, Table]:
    mappings = {"properties": {"protocols": {"type": "object"}}}  # as far as a table can be checked without its base
    texts = {path.parent.name: documents.read_checked(path, mappings) for path, *_ in files}
    found = {family: _table(family, content, texts) for family, content in texts.items()}
    owners: dict[str, str] = {}
    for family, table in found.items():
        for data in table.data:
            if owners.setdefault(data, family) != family:
                raise UserError(f"{table.path}: data: {data} stands in the table of {owners[data]} already")
    return found


def _table(family: str, content: dict[str, Any], texts: Mapping[str, dict[str, Any]]) -> Table:
    path, base = paths.table(family), content.get("base")
    if base is not None:
        if not isinstance(base, str) or base not in texts or base == family or "base" in texts[base]:
            raise UserError(f"{path}: base: {shown(base)} is no table that this one could start from")
        content = content | {"protocols": merge(texts[base].get("protocols", {}), content.get("protocols", {}))}
    documents.check(content, SCHEMA, path)
    with naming(path, "data"):
        for data in content["data"]:
            task(data)
    protocols = {}
    for name in (name for name in MEANINGS if name in content["protocols"]):
        with naming(path, f"protocols.{name}"):
            protocols[name] = _protocol(name, content["protocols"][name], content["data"][0])
    return Table(family, content["about"], tuple(content["data"]), base, protocols)


def _protocol(name: str, values: Mapping[str, Any], data: str) -> Protocol:
    for pair in values["pairs"]:
        check_pair(data, pair)
    return Protocol(
        name=name,
        pairs=tuple(values["pairs"]),
        recipes=tuple(values["recipes"]),
        seeds=tuple(values["seeds"]),
        settings={key: value for key, value in values.items() if key in SETTINGS["properties"]},
        recipe_may_set=tuple(values.get("recipe_may_set", ())),
        teacher=values.get("teacher", {}),
    )


def check_pair(data: str, pair: str) -> tuple[str, str]:
    """`teacher-student` as two known networks that fit the data."""
    parts = pair.split("-")
    if len(parts) != 2:
        raise UserError(f"a pair is written TEACHER-STUDENT, such as wrn40_2-wrn16_1, not {shown(pair)}")
    for part in parts:
        check_fits(data, part)
    return parts[0], parts[1]


def check_fits(data: str, arch: str) -> None:
    """Raises UserError for an unknown network, and one that has not the kind of output that the data need."""
    kind = task(data).kind
    if network(arch).kind != kind:
        raise UserError(f"{arch} does not fit {data}, a task of {kind}; there are: {', '.join(fitting(kind))}")


@contextmanager
def naming(*where: object) -> Iterator[None]:
    """UserErrors of the block say where in which file they come from."""
    try:
        yield
    except UserError as error:
        raise UserError(": ".join(map(str, (*where, error)))) from None


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, mappings joined key by key."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and _kind(value) in (None, _kind(old)):
            merged[key] = merge(old, value)
        else:  # another type of optimizer or schedule does not take the arguments of the one it replaces
            merged[key] = value
    return merged


def _kind(part: Mapping[str, Any]) -> str | None:
    """What decides which keys a mapping has: the type of an optimizer or a schedule, the schedule of a teacher."""
    return next((part[key] for key in ("type", "schedule") if isinstance(part.get(key), str)), None)
