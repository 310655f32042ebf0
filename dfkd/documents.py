"""Small JSON and YAML files from anybody's hand: read strictly, checked against a schema, refused in one line.

Records, cards, manifests, recipes and protocols all come in through here.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dfkd.conformance import Test, compiled, search
from dfkd.errors import UserError, unknown

if TYPE_CHECKING:
    from jsonschema import ValidationError

SIZE = 32 * 2**20  # bytes; a curve of a hundred thousand points has some ten
DEPTH = 32
NODES = 2_000_000  # what a few bytes of nested YAML aliases would unfold to is far more
INTEGER = 2**63  # what pandas, numpy and most readers of JSON can hold


class _Refused(ValueError):
    """Why a document cannot be taken, without its name."""


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises UserError, naming the file, for anything that is not plain JSON.

    Refused are duplicate keys, NaN and infinities, integers beyond 64 bits, lone surrogates, nesting deeper than
    `DEPTH`, files of more than `SIZE` bytes, and whatever is no regular file. FileNotFoundError passes through.
    """
    return _read(Path(path), parse_json)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, {} for an empty one; refuses what `read_json` does, and other content."""
    content = _read(Path(path), parse_yaml)
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} cannot be read: a mapping from names is expected")
    return content


def read_checked(path: str | Path, schema: Mapping[str, Any]) -> dict[str, Any]:
    """As `read_yaml`, of a file that must be there and satisfy the JSON schema."""
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    check(content, schema, path)
    return content


def text_of(path: str | Path) -> str:
    """The text of any other small file: UTF-8, with or without a byte-order mark. Raises as `read_json` does."""
    return _read(Path(path), str)


def parse_json(text: str) -> Any:
    """As `read_json`, of a text; raises ValueError with the reason."""
    try:
        return sane(json.loads(text, object_pairs_hook=_without_duplicates))
    except RecursionError:
        raise _Refused("nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """As `read_yaml`, of a text that may hold any plain value; raises ValueError with the reason."""
    try:
        return sane(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        raise _Refused(" ".join(str(error).split())[:200]) from None
    except RecursionError:
        raise _Refused("nested too deeply") from None
    except (LookupError, TypeError, AttributeError) as error:  # a value that its explicit tag does not fit
        raise _Refused(f"a value that is not of its tag's type ({type(error).__name__}: {error})") from None


def sane(value: Any) -> Any:
    """`value`, after a look at every part of it; raises ValueError, naming the key, for what plain JSON does not hold.

    Not recursive: it is the depth that may be wrong.
    """
    pending: list[tuple[tuple, Any]] = [((), value)]
    seen = 0
    while pending:
        path, item = pending.pop()
        if not isinstance(item, _CONTAINERS):  # `value` itself
            item = [item]
        seen += len(item)
        if item and len(path) >= DEPTH:
            raise _Refused("nested too deeply")
        if seen > NODES:
            raise _Refused("too many entries")
        for key, part in item.items() if isinstance(item, dict) else enumerate(item):
            if isinstance(part, _CONTAINERS):
                pending.append(((*path, key), part))
            elif problem := _problem(part) or _problem(key):
                raise _Refused(f"{dotted((*path, key))}{problem}")
    return value


_CONTAINERS = dict, list, tuple


def _problem(item: Any) -> str | None:
    """Why this is no value of plain JSON."""
    if isinstance(item, str):  # most parts, and nearly all keys
        return None if item.isascii() or _encodable(item) else "text with a lone surrogate"
    if isinstance(item, float):
        return None if math.isfinite(item) else f"{item} is no number that JSON knows"
    if item is None or isinstance(item, bool):
        return None
    if isinstance(item, int):
        return None if -INTEGER <= item < INTEGER else "an integer beyond 64 bits"
    return f"a {type(item).__name__} is no plain value"  # by an explicit tag of YAML: dates, sets, bytes


def check(value: Any, schema: Mapping[str, Any], where: object) -> None:
    """Raise UserError `where: key: what is wrong`, unless `value` satisfies the JSON schema.

    A key or word that is not in a closed list is answered with the nearest that is.
    """
    if _compiled(schema)(value):
        return
    from jsonschema.exceptions import best_match

    error = best_match(_validator(schema).iter_errors(value))
    if error is not None:
        raise UserError(f"{where}: {dotted(error.absolute_path)}{_reason(error)}")


def _reason(error: ValidationError) -> str:
    if error.validator == "additionalProperties" and error.validator_value is False:
        known = error.schema.get("properties", {})
        return str(unknown("key", next(key for key in error.instance if key not in known), known))
    if error.validator == "enum" and isinstance(error.instance, str):
        return str(unknown("value", error.instance, filter(None, error.validator_value)))
    return error.message.splitlines()[0][:200]


def dotted(path: Iterable[object]) -> str:
    """`time.buffer: `, or nothing at the root; on one line, whatever the keys are."""
    name = " ".join(".".join(map(str, path)).split())[:200]
    return f"{name}: " if name else ""


def _compiled(schema: Mapping[str, Any]) -> Test:
    """As `compiled`, once for each schema. It is kept with its test, so that no other gets its number."""
    if id(schema) not in _COMPILED:
        _COMPILED[id(schema)] = schema, compiled(schema)
    return _COMPILED[id(schema)][1]


_COMPILED: dict[int, tuple[Mapping[str, Any], Test]] = {}


def _validator(schema: Mapping[str, Any]) -> Any:
    """What gives the reasons, by the same reading of the standard; which of several does not depend on who wrote it."""
    from jsonschema import Draft202012Validator, validators

    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return validators.extend(Draft202012Validator, {"pattern": _matches}, type_checker=types)(
        json.loads(json.dumps(schema, sort_keys=True))
    )


def _matches(validator: Any, pattern: str, text: Any, schema: Mapping[str, Any]) -> Iterator[Exception]:
    from jsonschema import ValidationError

    if isinstance(text, str) and not search(pattern)(text):
        yield ValidationError(f"{text!r} does not match {pattern!r}")


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _Refused("no regular file")
        if status.st_size > SIZE:
            raise _Refused(f"more than {SIZE >> 20} MiB")
        return parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: not UTF-8 ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Refused(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


class _Loader(yaml.SafeLoader):
    """Plain values as YAML 1.2 has them, and no key twice.

    YAML 1.1 reads 010 as 8, 1_000 as 1000, 1:30 as 90, `no` as false, 1e-3 as a text and 2001-01-01 as a date. Here
    decimal numbers are numbers, true and false are truth values, and all else is text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise _Refused(f"{key!r} stands there twice")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
_WHOLE = r"[-+]?(?:0|[1-9][0-9]*)"
for tag, pattern, first in (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", _WHOLE, "-+0123456789"),
    ("float", rf"(?:{_WHOLE}(?:\.[0-9]*)?|[-+]?\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.inf|\.nan", "-+."),  # to be refused by name
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)
