"""Whether a value satisfies a JSON schema: jsonschema's answer, some thirty times sooner and without a reason.

A rendering checks thousands of records, nearly all of which are right, so `documents.check` asks here first and
jsonschema, for the reason, where the answer is no. A schema becomes one function, put together from one for each of its
keywords; a keyword that has none here is an error of whoever writes the schema, not passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import repeat
from operator import call
from typing import Any

Test = Callable[[Any], object]  # by its truth

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),  # 5.0 is a whole number to the standard, and none to range()
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def compiled(schema: Mapping[str, Any]) -> Test:
    """The function that says whether a value, as JSON or YAML is read, satisfies `schema`. KeyError for a keyword that
    it does not know."""
    return _all([KEYWORDS[word](told, schema) for word, told in schema.items() if word not in SILENT])


def search(pattern: str) -> Callable[[str], object]:
    """What finds a schema's pattern: `$` is the end of the text; Python's also stands before a last line break."""
    return re.compile(re.sub(r"\$$", r"\\Z", pattern)).search


def _all(tests: list[Test]) -> Test:
    return tests[0] if len(tests) == 1 else lambda value: all(map(call, tests, repeat(value)))


def _for(kind: type | tuple[type, ...], holds: Test) -> Test:
    """What holds for values of a kind; the keyword says nothing of others. True and False are no numbers."""
    return lambda value: not isinstance(value, kind) or isinstance(value, bool) or holds(value)


def _type(names: str | list[str]) -> Test:
    kinds = frozenset(kind for name in ([names] if isinstance(names, str) else names) for kind in TYPES[name])
    return lambda value: type(value) in kinds


def _equal(constants: list[Any]) -> Test:
    """One of these plain values; True is not 1."""
    return lambda value: any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in constants)


def _properties(parts: Mapping[str, Mapping]) -> Test:
    tests = [(key, compiled(part)) for key, part in parts.items() if part]
    return _for(dict, lambda value: all(holds(value[key]) for key, holds in tests if key in value))


def _others(part: bool | Mapping, schema: Mapping[str, Any]) -> Test:
    known = frozenset(schema.get("properties", ()))
    if part is False:
        return _for(dict, known.issuperset)
    test = _each(part)
    return _for(dict, lambda value: test(part for key, part in value.items() if key not in known))


def _each(part: Any) -> Test:
    test = compiled(part)
    return lambda values: all(map(test, values))


def _unique(values: list) -> bool:
    """Of names and whole numbers; whatever else is in question is for jsonschema."""
    return {*map(type, values)} <= {str, int} and len({*values}) == len(values)


def _condition(said: Mapping[str, Any], schema: Mapping[str, Any]) -> Test:
    test, then, other = (compiled(part) for part in (said, schema.get("then", {}), schema.get("else", {})))
    return lambda value: then(value) if test(value) else other(value)


_NUMBER = (int, float)
SILENT = {"$schema", "title", "then", "else"}  # the last two belong to `if`
KEYWORDS: dict[str, Callable[[Any, Mapping[str, Any]], Test]] = {
    "type": lambda names, _: _type(names),
    "const": lambda constant, _: _equal([constant]),
    "enum": lambda constants, _: _equal(constants),
    "minimum": lambda low, _: _for(_NUMBER, lambda value: value >= low),
    "maximum": lambda high, _: _for(_NUMBER, lambda value: value <= high),
    "exclusiveMinimum": lambda low, _: _for(_NUMBER, lambda value: value > low),
    "exclusiveMaximum": lambda high, _: _for(_NUMBER, lambda value: value < high),
    "multipleOf": lambda step, _: _for(_NUMBER, lambda value: value % step == 0),
    "minLength": lambda low, _: _for(str, lambda value: len(value) >= low),
    "maxLength": lambda high, _: _for(str, lambda value: len(value) <= high),
    "pattern": lambda pattern, _: _for(str, search(pattern)),
    "items": lambda part, _: _for(list, _each(part)),
    "minItems": lambda low, _: _for(list, lambda value: len(value) >= low),
    "maxItems": lambda high, _: _for(list, lambda value: len(value) <= high),
    "uniqueItems": lambda asked, _: _for(list, lambda value: not asked or _unique(value)),
    "required": lambda keys, _: _for(dict, frozenset(keys).issubset),
    "minProperties": lambda low, _: _for(dict, lambda value: len(value) >= low),
    "properties": lambda parts, _: _properties(parts),
    "propertyNames": lambda part, _: _for(dict, _each(part)),
    "additionalProperties": _others,
    "allOf": lambda parts, _: _all([compiled(part) for part in parts]),
    "if": _condition,
}
