"""`--set key=value`: what people type, as values of the right type. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable

from dfkd import documents
from dfkd.errors import UserError, shown

# A value of each type that a JSON schema names.
EXAMPLES: dict[str, object] = {"integer": 0, "number": 0.0, "boolean": False, "string": "", "array": []}


def parse_changes(changes: Iterable[str]) -> dict[str, str]:
    """The `key=value` of `--set` as a mapping, values as they are written. Raises UserError for a key given twice."""
    found: dict[str, str] = {}
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise UserError(f"--set takes key=value, not {shown(change)}")
        if key in found:
            raise UserError(f"--set {shown(key)} is given twice")
        found[key] = text
    return found


def value_of(key: str, text: str, example: object, optional: bool = False) -> object:
    """What follows `key=`, as the type of `example` (or None): a text as it stands or quoted, all else as YAML 1.2."""
    try:
        literal = isinstance(example, str) and text[:1] not in ("'", '"')
        value = documents.sane(text) if literal else documents.parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {key}: {shown(text)} is not a value: {error}") from None
    if not text and not literal:
        raise UserError(f"--set {key} lacks a value")
    return coerce(f"--set {key}", value, example, optional, text)


def coerce(key: str, value: object, example: object, optional: bool = False, given: object = None) -> object:
    """`value` as the type of `example`, a whole number also as a fraction, a list as a tuple of what that begins with;
    `given` is how it was written.

    Where it is `optional` None will do, too.
    """
    if type(value) is type(example) or (optional and value is None):
        return value
    if isinstance(example, float) and type(value) is int:
        return float(value)
    if isinstance(example, tuple) and isinstance(value, list):  # YAML and JSON have lists only
        return tuple(coerce(key, each, example[0], False, given) if example else each for each in value)
    given = value if given is None else given
    raise UserError(f"{key} takes a value of type {type(example).__name__}, not {shown(given)}")
