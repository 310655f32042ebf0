"""Recipes: `benchmarks/<family>/recipes/<name>.yaml` says how a method differs there from its class's defaults.

A method without one runs under its own name with its defaults. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dfkd import catalog, documents, paths
from dfkd.changes import coerce
from dfkd.errors import UserError, named, unknown
from dfkd.files import asked_once, stamps
from dfkd.files import find as find_files
from dfkd.names import check_name
from dfkd.optimizers import PARTS, mapping
from dfkd.tables.definition import BUDGET, NAMED, STUDENT, Table, check_pair, merge, naming

_ARGUMENTS = {"type": "object", "additionalProperties": {"type": ["number", "string", "boolean", "array", "null"]}}
# Only what differs from the protocol; the two together are checked when they are joined.
_CHANGES = {
    "args": _ARGUMENTS,
    "training": mapping(**STUDENT, **{part: {"type": "object"} for part in PARTS}),
    **BUDGET,
}


def _by_name(value: dict) -> dict:
    return {"type": "object", "propertyNames": NAMED, "additionalProperties": value}


SCHEMA = {
    "title": "A recipe: benchmarks/<family>/recipes/<name>.yaml",
    **mapping(
        base=NAMED,
        method=NAMED,
        ablates=NAMED,  # the recipe that this one is an ablation of: shown under it and never ranked
        note={"type": "string", "maxLength": 1000},
        args=_ARGUMENTS,
        pairs=_by_name(_ARGUMENTS),
        protocols=_by_name(mapping(pairs=_by_name(mapping(**_CHANGES)), **_CHANGES)),
    ),
}


@asked_once
def recipes(table: Table) -> dict[str, dict]:
    """The recipes of a table by name, each joined with its bases; a table with a `base` has that table's too.

    Where both have one of a name the table's own counts; the other is the base of a file whose `base` is its own name.

    Raises UserError, naming file and key, for any that is wrong, whichever is wanted,
    and where a protocol spans one that there is not.
    """
    return _book(table, stamps(_files(table)), stamps(catalog.files()))


@lru_cache(maxsize=32)
def _book(table: Table, stamped: tuple, methods_stamped: tuple) -> dict[str, dict]:
    """As `recipes`, read from these files and checked against these methods."""
    layers = _layers(path for path, *_ in stamped)
    joined, methods = _joined(layers), catalog.entries()
    known = {*joined, *methods}
    for name, recipe in joined.items():
        file = layers[name][-1]
        _check(recipe, file, table, methods.get(recipe["method"]))
        with naming(file, "ablates"):
            whole = recipe.get("ablates")
            if whole is not None and whole not in known - {name}:
                raise unknown("recipe", whole, known - {name})
            if whole is not None and "ablates" in joined.get(whole, {}):
                raise UserError(f"{whole} is an ablation itself")
    for protocol in table.protocols.values():
        with naming(table.path, f"protocols.{protocol.name}.recipes"):
            for name in protocol.recipes:
                if name not in known:
                    raise unknown("method", name, known)
    return joined


def find(table: Table, name: str, extra: str | None = None) -> tuple[dict, catalog.Entry]:
    """The recipe of that name ({} for a method without one) and the method that it is of."""
    book, methods = recipes(table), catalog.entries(extra)
    recipe = named("method", name, {method: {} for method in methods} | book)
    where = f" in {_layers(_files(table))[name][-1]}" if name in book else ""
    return recipe, named(f"method{where}", recipe.get("method", name), methods)


def _files(table: Table) -> list[Path]:
    """The files of its recipes, the base table's first."""
    folders = [paths.table(family).parent / "recipes" for family in table.families]
    found = [path for folder in folders for path in find_files(folder, "[!.]*.yaml")]
    for path in found:
        with naming(path):
            check_name(path.stem, "a recipe's name")
    return found


def _layers(files: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of each recipe, the base table's first."""
    layers: dict[str, list[Path]] = {}
    for path in files:
        layers.setdefault(path.stem, []).append(path)
    return layers


def _joined(layers: Mapping[str, list[Path]]) -> dict[str, dict]:
    read = {path: documents.read_checked(path, SCHEMA) for own in layers.values() for path in own}
    return {name: _inherit(own[-1], read, layers) for name, own in layers.items()}


def _inherit(path: Path, read: Mapping[Path, dict], layers: Mapping[str, list[Path]]) -> dict:
    """A recipe joined with its base, that one's base and so on."""
    line = [path]
    while (base := read[line[-1]].get("base")) is not None:
        last = line[-1]
        there = layers.get(base, [])
        if base == last.stem:
            there = there[: there.index(last)]
        if not there or there[-1] in line:
            raise UserError(f"{last}: base: {unknown('recipe', base, layers.keys() - {part.stem for part in line})}")
        line.append(there[-1])
    recipe: dict = {"method": line[-1].stem}
    for part in reversed(line):
        recipe = merge(recipe, read[part])
    recipe.pop("base", None)
    # Whole, and not as joined key by key: `args` of a recipe would lose to what its base has under a protocol.
    return recipe | {"layers": [read[part] for part in reversed(line)]}


def said(recipe: Mapping[str, Any], protocol: str, pair: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a recipe says of its method's arguments and of the protocol's settings: all of a base's, then its own.

    In each the last wins: `args`, `pairs`, the protocol, that pair there.
    """
    arguments: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for layer in recipe.get("layers", ()):
        there = layer.get("protocols", {}).get(protocol, {})
        of_pair = there.get("pairs", {}).get(pair, {})
        for place in (layer.get("args"), layer.get("pairs", {}).get(pair), there.get("args"), of_pair.get("args")):
            arguments |= place or {}
        for part in (there, of_pair):
            settings = merge(settings, {key: value for key, value in part.items() if key not in ("args", "pairs")})
    return arguments, settings


def _check(recipe: dict, path: Path, table: Table, entry: catalog.Entry | None) -> None:
    """Raise UserError, naming file and key, for a pair, protocol or argument of a joined recipe that there is not.

    `entry` is its method; None of one that `--import` brings, which is not known here.
    """
    by_protocol: dict[str, Any] = recipe.get("protocols", {})
    parts = {"args": recipe.get("args", {})}
    parts |= {f"pairs.{pair}": arguments for pair, arguments in recipe.get("pairs", {}).items()}
    for name, part in by_protocol.items():
        parts[f"protocols.{name}.args"] = part.get("args", {})
        for pair, changes in part.get("pairs", {}).items():
            parts[f"protocols.{name}.pairs.{pair}.args"] = changes.get("args", {})
    with naming(path, "pairs"):
        for pair in (*recipe.get("pairs", {}), *(p for part in by_protocol.values() for p in part.get("pairs", {}))):
            check_pair(table.data[0], pair)
    with naming(path, "protocols"):
        for name in by_protocol:
            table.protocol(name)
        # What is published for `paper` would pass for a scaled budget.
        if "paper" in by_protocol and "scaled" in table.protocols and "scaled" not in by_protocol:
            raise UserError("its budget under `paper` is not divided: give it a part `scaled` too (docs/protocol.md)")
    for key, arguments in parts.items():
        with naming(path, key):
            for name, value in arguments.items():
                if entry:
                    coerce(name, value, *kind_of(name, entry))


def kind_of(key: str, entry: catalog.Entry) -> tuple[object, bool]:
    """A value of the type of a method's argument, and whether it may be None, as `coerce` takes them."""
    default = named(f"argument of {entry.name}", key, entry.arguments)
    return entry.examples[key], default is None
