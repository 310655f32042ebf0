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


def value_of(key: str, text: str, default: object) -> object:
    """What follows `key=`, as the type of `default`: a text as it stands or quoted, all else as YAML 1.2 has it."""
    try:
        literal = isinstance(default, str) and text[:1] not in ("'", '"')
        value = documents.sane(text) if literal else documents.parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {key}: {shown(text)} is not a value: {error}") from None
    if not text and not literal:
        raise UserError(f"--set {key} lacks a value")
    return coerce(f"--set {key}", value, default, text)


def coerce(key: str, value: object, default: object, given: object = None) -> object:
    """`value` as the type of `default`, a whole number also as a fraction; `given` is how it was written."""
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    given = value if given is None else given
    raise UserError(f"{key} takes a value of type {type(default).__name__}, not {shown(given)}")
