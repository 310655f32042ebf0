"""Protocols and recipes: from names on the command line to one resolved configuration. Torch-free.

`benchmarks/<data>/protocol.yaml` holds the protocols of a table, `benchmarks/<data>/recipes/<name>.yaml` how a
method differs there from its class's defaults, `params.yaml` which cells the tables span.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from dfkd import catalog, documents
from dfkd.changes import EXAMPLES, coerce, parse_changes, value_of
from dfkd.errors import UserError, shown, unknown
from dfkd.names import LARGEST, NAME, check_name
from dfkd.networks import fitting, network
from dfkd.optimisers import COUNTS, NOT_NEGATIVE, PARTS, POSITIVE, SHARE, mapping, one_of
from dfkd.tasks import task

BENCHMARKS = catalog.ROOT / "benchmarks"
PARAMS = catalog.ROOT / "params.yaml"
NO_PRIOR = "none"

_NAME = {"type": "string", "pattern": NAME}
_NAMES = {"type": "array", "items": _NAME, "minItems": 1, "uniqueItems": True}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 10**9}
_BATCH = _COUNT | {"maximum": 2**20}  # images
_BUDGET = {
    "precision": {"type": "string", "enum": ["fp32", "tf32", "bf16"]},
    "rounds": _COUNT,
    "synthesis_batch": _BATCH,
    "evaluations": _COUNT,
    "prior": {"type": "string", "minLength": 1},
}
_STUDENT = {"steps": _COUNT, "batch": _BATCH}
_TRAINING = mapping(
    "steps batch optimizer schedule", **_STUDENT, **{part: one_of(types) for part, types in PARTS.items()}
)
# What a run is configured by, but for its method's arguments.
SETTINGS = mapping("precision training rounds synthesis_batch evaluations", training=_TRAINING, **_BUDGET)
_SUPERVISED = {
    "epochs": _COUNT,
    "batch": _BATCH | {"minimum": 2},
    "lr": POSITIVE,
    "momentum": SHARE,
    "weight_decay": NOT_NEGATIVE,
    "schedule": {"type": "string"},
    "focal": NOT_NEGATIVE,
    "encoder": _NAME,
}
_ALWAYS = "epochs batch lr momentum weight_decay schedule"
PROTOCOL = mapping(
    "precision training rounds synthesis_batch evaluations",
    **SETTINGS["properties"],
    recipe_may_set={"type": "array", "items": {"enum": list(SETTINGS["properties"])}, "uniqueItems": True},
    minutes=NOT_NEGATIVE,
    teacher=one_of(
        {
            "cosine": mapping(_ALWAYS, **_SUPERVISED),
            "multistep": mapping(
                f"{_ALWAYS} milestones gamma", **_SUPERVISED, milestones=COUNTS, gamma=SHARE
            ),
        },
        "schedule",
    ),
)
PROTOCOLS = {
    "title": "The protocols of a table, together with those of its base: benchmarks/<data>/protocol.yaml",
    "type": "object",
    "properties": {"base": _NAME},
    "propertyNames": _NAME,
    "additionalProperties": PROTOCOL,
}
_ARGUMENTS = {
    "type": "object",
    "additionalProperties": {"type": ["number", "string", "boolean", "array", "null"]},
}
RECIPE = {
    "title": "A recipe: benchmarks/<data>/recipes/<name>.yaml",
    **mapping(
        base=_NAME,
        method=_NAME,
        note={"type": "string", "maxLength": 1000},
        args=_ARGUMENTS,
        pairs={"type": "object", "propertyNames": _NAME, "additionalProperties": _ARGUMENTS},
        protocols={
            "type": "object",
            "propertyNames": _NAME,
            "additionalProperties": mapping(
                args=_ARGUMENTS,
                # Only what differs from the protocol; the two together are checked when they are joined.
                training=mapping(**_STUDENT, **{part: {"type": "object"} for part in PARTS}),
                **_BUDGET,
            ),
        },
    ),
}
SPAN = {
    "title": "Which cells the tables span: params.yaml",
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "additionalProperties": mapping(
            "pairs recipes seeds",
            teachers=_NAMES,
            pairs=_NAMES,
            recipes=_NAMES,
            seeds={
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": LARGEST},
                "minItems": 1,
                "uniqueItems": True,
            },
        ),
    },
}


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


def _remembered(function: Callable) -> Callable:
    """A function of the files here, worked out anew when one of them has changed: commands ask it hundreds of times.

    What it returns is shared and must not be changed.
    """
    cached = functools.lru_cache(maxsize=64)(lambda stamps, *arguments: function(*arguments))
    return functools.wraps(function)(lambda *arguments: cached(_stamps(), *arguments))


def _stamps() -> tuple:
    """What tells one state of the files from another."""
    paths = (
        PARAMS,
        *BENCHMARKS.glob("*/protocol.yaml"),
        *BENCHMARKS.glob("*/recipes/*.yaml"),
        *catalog.files(),
    )
    found = ((path, path.stat()) for path in paths if path.exists())
    return tuple((path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found)


def datasets() -> list[str]:
    """Data sets that have a table."""
    return sorted(path.parent.name for path in BENCHMARKS.glob("*/protocol.yaml"))


@_remembered
def protocols(data: str) -> dict[str, dict]:
    """The protocols of a table by name. A file with a `base` says only how it differs from that table."""
    found: dict[str, dict] = {}
    for path in reversed(_lineage(data)):
        found = _merge(found, documents.read_yaml(path))
    found.pop("base", None)
    documents.check(found, PROTOCOLS, _protocol_file(data))
    return found


def _protocol_file(data: str) -> Path:
    return BENCHMARKS / data / "protocol.yaml"


def _lineage(data: str) -> list[Path]:
    """The protocol file of a table, of its base and so on."""
    if data not in datasets():
        raise unknown("data", data, datasets())
    line = [_protocol_file(data)]
    while (base := documents.read_yaml(line[-1]).get("base")) is not None:
        if base not in datasets() or _protocol_file(base) in line:
            raise UserError(f"{line[-1]}: base: {shown(base)} is no table that this one could start from")
        line.append(_protocol_file(base))
    return line


@_remembered
def recipes(data: str) -> dict[str, dict]:
    """The recipes of a table by name; a method without one runs under its own name with its defaults.

    A recipe with a `base` says only how it differs from that recipe; a table with a `base` has that table's recipes.
    Raises UserError, naming file and key, for any that is wrong, whichever is wanted.
    """
    files = _recipe_files(data)
    found = {name: documents.read_checked(path, RECIPE) for name, path in files.items()}
    joined = {name: _inherit(name, found, files) for name in found}
    for name, recipe in joined.items():
        _s(recipe, files[name], data)
    return joined


def _recipe_files(data: str) -> dict[str, Path]:
    folders = (path.parent / "recipes" for path in reversed(_lineage(data)))
    files = [path for folder in folders for path in sorted(folder.glob("[!.]*.yaml"))]
    return {check_name(path.stem, f"{path}: a recipe's name"): path for path in files}


def _inherit(name: str, found: Mapping[str, dict], files: Mapping[str, Path]) -> dict:
    """A recipe joined with its base, that one's base and so on."""
    line = [name]
    while (base := found[line[-1]].get("base")) is not None:
        if base not in found or base in line:
            problem = unknown("recipe", base, found.keys() - set(line))
            raise UserError(f"{files[line[-1]]}: base: {problem}")
        line.append(base)
    recipe: dict = {"method": line[-1]}
    for part in reversed(line):
        recipe = _merge(recipe, found[part])
    recipe.pop("base", None)
    return recipe


def _s(recipe: dict, path: Path, data: str) -> None:
    """Raise UserError, naming file and key, for a pair, protocol or argument of a joined recipe that there is not."""
    known, by_protocol = protocols(data), recipe.get("protocols", {})
    parts = {"args": recipe.get("args", {})}
    parts |= {f"pairs.{pair}": arguments for pair, arguments in recipe.get("pairs", {}).items()}
    parts |= {f"protocols.{name}.args": part.get("args", {}) for name, part in by_protocol.items()}
    with _named(path, "pairs"):
        for pair in recipe.get("pairs", {}):
            check_pair(data, pair)
    with _named(path, "protocols"):
        for name in by_protocol.keys() - known:
            raise unknown("protocol", name, known)
    entry = catalog.entries().get(recipe["method"])  # one that `--import` brings is not known here
    for key, arguments in parts.items():
        with _named(path, key):
            for name, value in arguments.items() if entry else ():
                coerce(name, value, _argument(name, entry))


@contextmanager
def _named(*where: object) -> Iterator[None]:
    """UserErrors of the block say where in which file they come from."""
    try:
        yield
    except UserError as error:
        raise UserError(": ".join(map(str, (*where, error)))) from None


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
    """Every (data, protocol, pair, recipe, seed) that `params.yaml` names. UserError for a name that there is not."""
    for data, tables in documents.read_checked(PARAMS, SPAN).items():
        for protocol in tables:
            lists = _lists(data, protocol)
            for pair in lists["pairs"]:
                for recipe in lists["recipes"]:
                    for seed in lists["seeds"]:
                        yield data, protocol, pair, recipe, seed


def default_pair(data: str, protocol: str) -> str:
    """The first pair that the table spans."""
    lists = _lists(data, protocol)
    if lists is None:
        raise UserError(f"{PARAMS.name} names no pair for {data} under {protocol}; pass --pair")
    return lists["pairs"][0]


@_remembered
def _lists(data: str, protocol: str) -> dict[str, list] | None:
    """What `params.yaml` says of one table, every name in it checked; None where it says nothing."""
    lists = documents.read_checked(PARAMS, SPAN).get(data, {}).get(protocol)
    if lists is None:
        return None
    with _named(PARAMS, data):
        if data not in datasets():
            raise unknown("data", data, datasets())
    known, _, _ = protocols(data), recipes(data), catalog.entries()  # a fault in those files is not this one's
    with _named(PARAMS, f"{data}.{protocol}"):
        if protocol not in known:
            raise unknown("protocol", protocol, known)
        for arch in lists.get("teachers", ()):
            check_fits(data, arch)
        for pair in lists["pairs"]:
            check_pair(data, pair)
        for name in lists["recipes"]:
            find(data, name)
    return lists


def find(data: str, name: str, extra: str | None = None) -> tuple[dict, catalog.Entry]:
    """The recipe of that name ({} for a method without one) and the method that it is of."""
    book, methods = recipes(data), catalog.entries(extra)
    if name not in book and name not in methods:
        raise unknown("method", name, {*book, *methods})
    recipe = book.get(name, {})
    method = recipe.get("method", name)
    if method not in methods:
        raise unknown(f"method in {_recipe_files(data)[name]}", method, methods)
    return recipe, methods[method]


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
    if not 0 <= seed <= LARGEST:
        raise UserError(f"--seed counts repetitions from 0 to {LARGEST}, not {seed}")
    available = protocols(data)
    if protocol not in available:
        raise unknown("protocol", protocol, available)
    recipe, entry = find(data, method, extra)
    pair = pair or default_pair(data, protocol)
    teacher, student = check_pair(data, pair)
    by_protocol = recipe.get("protocols", {}).get(protocol, {})
    arguments = {
        **recipe.get("args", {}),
        **recipe.get("pairs", {}).get(pair, {}),
        **by_protocol.get("args", {}),
    }
    settings = _settings(available[protocol], entry, by_protocol, f"recipe {method!r}: {protocol} of {data}")
    changed = _changes(changes or (), precision, settings)
    _apply(changed, arguments, settings, entry)
    arguments = {key: coerce(key, value, _argument(key, entry)) for key, value in arguments.items()}
    steps, rounds = settings["training"]["steps"], settings["rounds"]
    if steps % rounds:
        raise UserError(f"{method}: {steps} student steps do not divide into {rounds} rounds")
    names = dict(data=data, teacher=teacher, student=student, method=method, protocol=protocol)
    identity, config = {**names, "seed": seed}, {**names, "class": entry.name, "args": arguments, **settings}
    teacher_recipe = available[protocol].get("teacher", {})
    return ResolvedCell(identity, entry, config, bool(changed), recipe.get("note", ""), teacher_recipe)


def _settings(protocol: dict, entry: catalog.Entry, by_protocol: dict, where: str) -> dict:
    """What the protocol and a recipe's part for it say together."""
    settings = {key: deepcopy(value) for key, value in protocol.items() if key in SETTINGS["properties"]}
    # A key of the methods that use one only, so that a table's prior says nothing of the others.
    prior = settings.pop("prior", NO_PRIOR)
    if entry.prior == "diffusion":
        settings["prior"] = prior
    for key, value in by_protocol.items():
        if key == "args":
            continue
        # To know less is anybody's right.
        if key not in protocol.get("recipe_may_set", ()) and (key, value) != ("prior", NO_PRIOR):
            raise UserError(f"{where} fixes {key!r} for all methods")
        settings[key] = _merge(settings[key], value) if isinstance(value, dict) else value
    documents.check(settings, SETTINGS, where)
    return settings


def check_pair(data: str, pair: str) -> tuple[str, str]:
    """`teacher-student` as two known architectures that fit the data."""
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
        raise UserError(
            f"{arch} does not fit {data}, a task of {kind}; there are: {', '.join(fitting(kind))}"
        )


def _argument(key: str, entry: catalog.Entry) -> object:
    """The default of a method's argument."""
    if key not in entry.arguments:
        raise unknown(f"argument of {entry.name}", key, entry.arguments)
    return entry.arguments[key]


def _changes(changes: Collection[str], precision: str | None, settings: dict) -> dict[str, str]:
    """What `--set` and `--precision` change; the latter only where it differs from the protocol's."""
    found = parse_changes(changes)
    if precision is not None and "precision" in found:
        raise UserError("--precision and --set precision say the same; pass one of them")
    if precision not in (None, settings["precision"]):
        found["precision"] = precision
    return found


def _apply(changed: Mapping[str, str], arguments: dict, settings: dict, entry: catalog.Entry) -> None:
    """Put each change into a method's arguments or, with dots (`training.steps`), into the settings."""
    for part, types in PARTS.items():
        name = changed.get(f"training.{part}.type")
        if name is not None:
            if name not in types:
                raise unknown(part, name, types)
            taken = types[name]["properties"]
            old = settings["training"][part] | {"type": name}
            # The old type's own arguments, which nobody gave here, go with it.
            settings["training"][part] = {key: value for key, value in old.items() if key in taken}
    known = _keys(settings)
    for key, text in changed.items():
        if key in entry.arguments:
            arguments[key] = value_of(key, text, entry.arguments[key])
        elif key in known:
            *path, last = key.split(".")
            functools.reduce(dict.__getitem__, path, settings)[last] = value_of(key, text, known[key])
        else:
            raise unknown("--set key", key, (*entry.arguments, *known))
    documents.check(settings, SETTINGS, "--set")


def _keys(settings: dict) -> dict[str, object]:
    """The keys that `--set` knows in the settings, those of their present types among them, each with an example."""
    schemas = {key: SETTINGS["properties"][key] for key in settings}
    del schemas["training"]
    schemas |= {f"training.{key}": _TRAINING["properties"][key] for key in _STUDENT}
    for part, types in PARTS.items():
        of_type = types[settings["training"][part]["type"]]["properties"]
        schemas |= {f"training.{part}.{key}": schema for key, schema in of_type.items()}
    return {key: EXAMPLES[schema["type"]] for key, schema in schemas.items()}
