"""The published schemas are what the code checks by."""

from __future__ import annotations

from pkgutil import resolve_name

import pytest
from jsonschema import Draft202012Validator

from dfkd import paths, schemas


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_a_published_schema_is_a_schema_and_the_one_in_the_code(name):
    Draft202012Validator.check_schema(resolve_name(schemas.SCHEMAS[name]))
    stored = (paths.SCHEMAS / f"{name}.json").read_text(encoding="utf-8")
    assert stored == schemas.published(name), "run: python -m dfkd.schemas"


def test_nothing_else_is_published():
    assert {path.stem for path in paths.SCHEMAS.iterdir()} == set(schemas.SCHEMAS)
