import json
import math

import pytest

from dfkd import files, records
from dfkd.errors import UserError
from dfkd.identity import Run
from tests.records.conftest import diagnostics, prior


def required_keys(schema, path=()):
    """Every key that some object of the schema requires, as a path; items of arrays count as item 0."""
    for key in schema.get("required", []):
        yield (*path, key)
    for key, below in schema.get("properties", {}).items():
        yield from required_keys(below, (*path, key))
    if "items" in schema:
        yield from required_keys(schema["items"], (*path, 0))


def parent_of(record, path):
    for key in path[:-1]:
        record = record[key]
    return record


KEYS = list(required_keys(records.SCHEMA))


def test_the_schema_is_a_schema_and_requires_the_keys_of_the_design():
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(records.SCHEMA)
    for path in (
        ("identity", "seed"), ("metrics", "oracle_best"), ("metrics", "curve", 0, "step"),
        ("time", "bookkeeping"), ("time", "resumes"), ("cost", "peak_memory_bytes"), ("prior", "trained_on"),
        ("provenance", "commit"), ("provenance", "data", "changed"),
        ("provenance", "hardware", "class"), ("config",), ("custom",),
    ):  # fmt: skip
        assert path in KEYS


@pytest.mark.parametrize("path", KEYS, ids=lambda path: ".".join(map(str, path)))
def test_a_missing_key_is_refused_by_name(record, path):
    broken = record(diagnostics=diagnostics())
    del parent_of(broken, path)[path[-1]]
    with pytest.raises(UserError) as caught:
        records.validate(broken)
    message = str(caught.value)
    assert f"'{path[-1]}' is a required property" in message
    assert ".".join(map(str, path[:-1])) in message
    assert "\n" not in message


def test_further_keys_may_join(record):
    more = record()
    more["note"] = more["time"]["note"] = "joined"
    records.validate(more)


def test_what_later_records_have_may_be_there_or_not(record):
    records.validate(record())
    full = record(prior=prior(), shared=60.0, diagnostics=diagnostics(), report={"kept": 0.7, "refreshes": 3})
    records.validate(full)
    full["diagnostics"] |= {"agreement": None, "diversity": None}
    full["prior"] |= {"name": None, "origin": None, "seconds": None}
    records.validate(full)
    full["diagnostics"] = None
    records.validate(full)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("time", "shared"), -1.0),
        (("prior", "origin"), "found"),
        (("prior", "seconds"), "2 h"),
        (("diagnostics",), []),
        (("diagnostics", "images"), 2.5),
        (("diagnostics", "agreement"), 94.0),
        (("diagnostics", "classes"), []),
        (("diagnostics", "classes", 0), 1.5),
        (("diagnostics", "frechet"), -0.1),
        (("report", "kept"), "71 %"),
        (("report", "kept"), math.nan),
    ],
)
def test_what_later_records_have_is_checked(record, path, value):
    broken = record(prior=prior(), shared=60.0, diagnostics=diagnostics(), report={"kept": 0.7})
    parent_of(broken, path)[path[-1]] = value
    with pytest.raises(UserError, match=r"\.".join(map(str, path))):
        records.validate(broken)


def test_what_is_spent_once_per_teacher_is_part_of_the_scored_time(record):
    whole = record(prior=prior(seconds=1000), synthesis=500.0, distillation=0.0, shared=501.0)
    records.validate(whole)
    whole["time"]["shared"] = 510.0
    with pytest.raises(UserError, match=r"time\.shared: 510\.0 s and the prior's 1000 s are more than time\.scored"):
        records.validate(whole)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", [("metrics", "last"), ("metrics", "curve", 0, "value"), ("config", "lr")])
def test_what_json_has_no_number_for_is_refused(record, path, number):
    broken = record(status="diverged")
    parent_of(broken, path)[path[-1]] = number
    with pytest.raises(UserError, match=rf"{path[-1]}: (nan|-?inf) is no number that JSON knows"):
        records.validate(broken)
    parent_of(broken, path)[path[-1]] = None
    records.validate(broken)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("status",), "fine"),
        (("custom",), 0),
        (("identity", "seed"), "0"),
        (("identity", "seed"), True),
        (("identity", "data"), "../escape"),
        (("identity", "teacher"), "a-b"),
        (("metrics", "name"), "top5"),
        (("metrics", "last"), "93.1"),
        (("time", "synthesis"), -1.0),
        (("time", "resumes"), 0.5),
        (("cost", "student_steps"), None),
        (("provenance", "data", "test_changed"), "no"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(record, path, value):
    broken = record()
    parent_of(broken, path)[path[-1]] = value
    with pytest.raises(UserError, match=r"\.".join(path)):
        records.validate(broken)


@pytest.mark.parametrize(("account", "named"), [("buffer", r"time\.total"), ("scored", r"time\.scored")])
def test_a_clock_that_does_not_add_up_is_refused(record, account, named):
    broken = record()
    broken["time"][account] += 2e-3 * broken["time"]["total"]
    with pytest.raises(UserError, match=named):
        records.validate(broken)
    near = record()
    near["time"][account] += 0.5e-3 * near["time"]["total"]
    records.validate(near)


def test_evaluation_and_bookkeeping_are_free(record):
    broken = record()
    broken["time"]["scored"] = broken["time"]["total"]
    with pytest.raises(UserError, match="less evaluation and bookkeeping"):
        records.validate(broken)


@pytest.mark.parametrize("key", ["last", "oracle_best"])
def test_a_finished_run_has_an_accuracy(record, key):
    broken = record()
    broken["metrics"][key] = None
    with pytest.raises(UserError, match=rf"metrics\.{key}"):
        records.validate(broken)


@pytest.mark.parametrize("broken", [None, [], "text", 3])
def test_what_is_no_object_is_refused(broken):
    with pytest.raises(UserError, match="object"):
        records.validate(broken)


def test_path(record, tmp_path):
    identity = record("ssdkd", data="pacs-photo", protocol="cpu", seed=7)["identity"]
    expected = tmp_path / "pacs-photo" / "wrn40_2-wrn16_1" / "ssdkd" / "cpu-seed7.json"
    assert Run.of({"identity": identity}).path(tmp_path) == expected


def test_write_then_read(record, tmp_path):
    made = record(last=90.25)
    path = records.write(made, tmp_path)
    assert path == Run.of(made).path(tmp_path)
    assert records.read(path) == made
    text = path.read_text()
    assert text == json.dumps(made, indent=1, sort_keys=True) + "\n"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_refused_record_leaves_nothing(record, tmp_path):
    broken = record()
    broken["config"]["lr"] = math.nan
    with pytest.raises(UserError):
        records.write(broken, tmp_path)
    broken["config"]["lr"] = object()
    with pytest.raises(UserError, match="not JSON serializable"):
        records.write(broken, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_write_that_breaks_leaves_the_old_record_whole(record, tmp_path, monkeypatch):
    path = records.write(record(last=90.0), tmp_path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        records.write(record(last=91.0), tmp_path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_made_is_one_line(record, tmp_path):
    (tmp_path / "cifar10").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write"):
        records.write(record(), tmp_path)


def test_read_all_is_in_order_of_paths_and_empty_without_a_folder(record, tmp_path):
    made = [record("ssdkd", seed=1), record("fast-2"), record("ssdkd", seed=0)]
    for each in made:
        records.write(each, tmp_path / "records")
    assert records.read_all(tmp_path / "records") == ([made[1], made[2], made[0]], [])
    assert records.read_all(tmp_path / "records", "*/*/ssdkd/*-seed1.json") == ([made[0]], [])
    assert records.read_all(tmp_path / "nowhere") == ([], [])


def test_keep_never_puts_an_attempt_in_the_place_of_a_result(record, tmp_path):
    path = records.keep(record(last=90.0), tmp_path)
    for status in ("partial", "failed"):
        assert records.keep(record(status=status), tmp_path) is None
    assert records.read(path)["metrics"]["last"] == 90.0
    assert records.keep(record(last=91.0), tmp_path) == path
    assert records.read(path)["metrics"]["last"] == 91.0


@pytest.mark.parametrize("status", ["ok", "partial"])
def test_a_file_that_is_no_record_gives_way_and_is_named(record, tmp_path, capsys, status):
    made = record(status=status)
    path = Run.of(made).path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text('{"half')
    assert records.keep(made, tmp_path) == path
    assert records.read(path) == made
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"replaced: {path} cannot be read: ")


def test_an_error_that_names_a_file_whose_name_is_no_text_costs_no_record(record, tmp_path):
    made = record(status="failed") | {"error": "no such file: \udcff"}
    assert records.read(records.keep(made, tmp_path))["error"] == "no such file: ?"
