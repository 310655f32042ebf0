"""The quick answer to whether a value satisfies a schema is jsonschema's."""

from __future__ import annotations

import copy
import json
from pkgutil import resolve_name

import pytest
from jsonschema import Draft202012Validator, validators

from dfkd import documents, records
from dfkd.conformance import compiled
from dfkd.errors import UserError
from dfkd.schemas import SCHEMAS
from tests.records.conftest import diagnostics, make, prior

ODD = [None, True, False, 0, 1, -1, 2**60, 0.5, -0.5, 1.0, 1e301, "", "a", "a\n", "a b", [], {}, [1, 1], [""], {"": 0}]
KEYWORDS = [
    {"type": "integer"},
    {"type": ["number", "null"]},
    {"type": ["array", "object"]},
    {"const": 1},
    {"const": True},
    {"enum": ["a", 0, None]},
    {"minimum": 0, "maximum": 1},
    {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"multipleOf": 3},
    {"minLength": 1, "maxLength": 2},
    {"pattern": "^[a-z]+$"},
    {"items": {"type": "integer"}, "minItems": 1, "maxItems": 1},
    {"uniqueItems": True},
    {"required": [""]},
    {"minProperties": 1},
    {"properties": {"": {"type": "string"}, "a": {}}, "additionalProperties": False},
    {"propertyNames": {"minLength": 1}, "additionalProperties": {"type": "string"}},
    {"allOf": [{"type": "number"}, {"maximum": 0}]},
    {"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"type": "null"}},
]


def judged(schema, value):
    """jsonschema's answer, with whole numbers as this project has them."""
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    matches = {"pattern": documents._matches}
    return validators.extend(Draft202012Validator, matches, type_checker=types)(schema).is_valid(value)


@pytest.mark.parametrize("schema", KEYWORDS, ids=json.dumps)
def test_each_keyword_is_read_as_by_jsonschema(schema):
    answers = [judged(schema, value) for value in ODD]
    assert [bool(compiled(schema)(value)) for value in ODD] == answers
    assert {True, False} == set(answers)


def places(value):
    """Every container in a document and every key or index in it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(inner):
        yield value, key
        if isinstance(part, dict | list):
            yield from places(part)


def records_of_every_kind():
    yield make(diagnostics=diagnostics(), report={"a": 1.0}, prior=prior(), shared=1.0)
    yield make(status="unsupported")
    yield make(last=0.5, metric="miou")


@pytest.mark.parametrize("record", records_of_every_kind(), ids=["ok", "unsupported", "miou"])
def test_a_record_with_one_odd_value_is_judged_as_by_jsonschema(record):
    test, refused = compiled(records.SCHEMA), 0
    assert test(record)
    for parent, key in places(record):
        kept = parent[key]
        for value in (None, True, -1, 1e301, "", [], {}):
            parent[key] = value
            assert bool(test(record)) == judged(records.SCHEMA, record), (key, value)
            refused += not test(record)
        parent[key] = kept
    assert refused > 100


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_of_the_project_has_known_keywords(name):
    compiled(resolve_name(SCHEMAS[name]))


def test_a_keyword_that_nobody_reads_is_an_error():
    with pytest.raises(KeyError, match="minContains"):
        compiled({"minContains": 1})


def test_a_refusal_still_has_its_reason_and_the_schema_stays_its_own():
    for number in range(50):  # short-lived schemas, whose place in memory the next one gets
        schema = {"const": number}
        documents.check(number, copy.deepcopy(schema), "here")
        with pytest.raises(UserError, match=f"here: {number} was expected"):
            documents.check(-1, copy.deepcopy(schema), "here")
