"""Strict reading of small files."""

from __future__ import annotations

import os

import pytest

from dfkd import documents
from dfkd.errors import UserError

JSON = {
    "half": ('{"half', "cannot be read"),
    "duplicate": ('{"a": 1, "a": 2}', "'a' stands there twice"),
    "NaN": ('{"a": NaN}', "a: nan is no number"),
    "overflow": ('{"a": 1e999}', "a: inf is no number"),
    "integer": ('{"a": ' + "9" * 400 + "}", "a: an integer beyond 64 bits"),
    "endless integer": ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
    "deep list": ("[" * 200_000, "nested too deeply"),
    "deep but whole": ("[" * 500 + "]" * 500, "nested too deeply"),
    "surrogate": (r'{"a": "\ud800"}', "lone surrogate"),
    "surrogate key": (r'{"\ud800": 1}', "lone surrogate"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
}
YAML = {
    "a list": ("[1, 2]", "a mapping from names"),
    "a string": ("text", "a mapping from names"),
    "numbers as names": ("1: 2", "a mapping from names"),
    "duplicate": ("a: 1\na: 2", "'a' stands there twice"),
    "duplicate below": ("b: {a: 1, a: 2}", "'a' stands there twice"),
    "code": ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    "NaN": ("a: .nan", "a: nan is no number"),
    "tab": ("a:\n\t- b", "cannot be read"),
    "deep": ("a: " + "[" * 500 + "]" * 500, "nested too deeply"),
    "deeper": ("a: " + "[" * 50_000, "nested too deeply"),
    "a date by its tag": ("a: !!timestamp 2001-01-01", "a: a date is no plain value"),
    "a date out of range": ("a: !!timestamp 2001-99-99", "cannot be read"),
    "unhashable": ("? [1]\n: 2", "cannot be read"),
    "bomb": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
        "too many entries",
    ),
    "itself": ("a: &a [*a]", "nested too deeply"),
}


def refusal(read, path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("name", JSON)
def test_json_that_is_refused(tmp_path, name):
    content, reason = JSON[name]
    assert reason in refusal(documents.read_json, tmp_path / "file.json", content)


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_refused(tmp_path, name):
    content, reason = YAML[name]
    assert reason in refusal(documents.read_yaml, tmp_path / "file.yaml", content)


@pytest.mark.parametrize("read", [documents.read_json, documents.read_yaml])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match="no regular file"):
            read(path)


def test_a_file_of_gigabytes_is_refused_at_once(tmp_path):
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(2**34)
    with pytest.raises(UserError, match="more than 32 MiB"):
        documents.read_json(tmp_path / "large.json")


def test_plain_content_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, true, "\xc3\xa9"]}')  # a spreadsheet's byte-order mark
    assert documents.read_json(path) == {"a": [1, 2.5, None, True, "é"]}
    path.write_text("a: &x {b: 1}\nc: *x\n", encoding="utf-8")
    assert documents.read_yaml(path) == {"a": {"b": 1}, "c": {"b": 1}}
    path.write_text("", encoding="utf-8")
    assert documents.read_yaml(path) == {}


def test_a_schema_names_the_key(tmp_path):
    schema = {"type": "object", "properties": {"a": {"properties": {"b": {"type": "integer"}}}}}
    documents.check({"a": {"b": 1}}, schema, "f.json")
    with pytest.raises(UserError, match=r"^f.json: a.b: 'x' is not of type 'integer'$"):
        documents.check({"a": {"b": "x"}}, schema, "f.json")


def test_the_end_of_a_name_is_its_end(tmp_path):
    schema = {"properties": {"a": {"pattern": "^[a-z]+$"}}}
    documents.check({"a": "b"}, schema, "f.json")
    for name in ("b\n", "b\nc", "B"):
        with pytest.raises(UserError, match=r"^f.json: a: '.*' does not match '\^\[a-z\]\+\$'$"):
            documents.check({"a": name}, schema, "f.json")


def test_a_key_of_two_lines_is_one_line():
    with pytest.raises(UserError, match=r"^f: a b: 1 is not of type 'string'$"):
        documents.check({"a\nb": 1}, {"additionalProperties": {"type": "string"}}, "f")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("-3", -3),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("2.", 2.0),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("~", None),
        *((text, text) for text in ("010", "1_000", "0x10", "0o10", "1:30", "yes", "off", "2001-01-01", "00.5")),
    ],
)
def test_a_number_of_yaml_is_decimal_and_all_else_is_text(text, value):
    """YAML 1.1 makes 8, 1000, 16, 90, true and a date of such texts."""
    found = documents.parse_yaml(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


def test_words_and_keys_of_a_closed_list_are_answered_with_the_nearest():
    schema = {"properties": {"colour": {"enum": ["red", "green"]}}, "additionalProperties": False}
    for value, reason in (
        ({"color": "red"}, "here: unknown key 'color' (nearest: 'colour'; there are: colour)"),
        ({"colour": "gren"}, "here: colour: unknown value 'gren' (nearest: 'green'; there are: green, red)"),
    ):
        with pytest.raises(UserError) as caught:
            documents.check(value, schema, "here")
        assert str(caught.value) == reason


def test_a_fraction_is_no_whole_number():
    with pytest.raises(UserError, match=r"here: n: 5\.0 is not of type 'integer'"):
        documents.check({"n": 5.0}, {"properties": {"n": {"type": "integer"}}}, "here")
