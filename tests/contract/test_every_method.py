"""What any method must satisfy, over the whole registry and on each kind of task."""

from __future__ import annotations

import subprocess
import sys
from inspect import signature

import pytest

from dfkd import catalog, paths, records
from dfkd.engine import configuration, confine
from dfkd.engine.method import METHODS as REGISTRY
from dfkd.engine.method import build_method, import_file
from dfkd.errors import UserError
from dfkd.tables import pipeline
from dfkd.tables.resolve import resolve
from dfkd.tasks import task
from tests.conftest import PAIRS, outcome, student_digest

# `method` is every registered method, or those of a file outside the repository: `--dfkd-method FILE` (conftest.py).
on_each_kind = pytest.mark.parametrize("data", PAIRS)


def declines(method: str, data: str, outside: str | None) -> bool:
    """Whether the method says that it does not apply to these data."""
    resolved = resolve(data, "quick", method, extra=outside)
    return build_method(**configuration.method(resolved)).supports(task(data)) is not None


def test_a_count_below_nothing_is_refused_in_one_line(method, outside):
    """Of the suite's own methods: each whole number counts something, and a temperature divides logits."""
    if outside:
        pytest.skip("a method of somebody else's may have numbers below nothing")
    entry = catalog.entry(method)
    wrong = {name: -1 for name, value in entry.arguments.items() if type(value) is int}
    wrong |= {name: 0.0 for name in entry.arguments if name == "temperature"}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=name) as error:
            build_method(method, str(entry.path), {name: value}, entry.prior, entry.reference)
        assert "\n" not in str(error.value)


@on_each_kind
def test_it_leaves_a_valid_record_and_a_student(method, data, tiny, execute, tmp_path, outside):
    record = execute(tiny(method, data=data))
    records.validate(record)
    if declines(method, data, outside):
        assert record["status"] == "unsupported"
        assert record["error"]
        return
    assert record["status"] == "ok"
    assert record["metrics"]["name"] == {"digits": "top1", "digit-scenes": "miou"}[data]
    assert record["reference"] == catalog.entry(method, outside).reference
    if record["cost"]["student_steps"]:
        assert record["cost"]["student_steps"] == 4
        assert [point["step"] for point in record["metrics"]["curve"]] == [2, 4]
        assert (tmp_path / "work" / record["work"] / "student.json").is_file()
    if not record["reference"]:
        assert record["cost"]["images_synthesised"] > 0
        assert record["time"]["synthesis"] > 0
        assert (tmp_path / "work" / record["work"] / "samples.png").is_file()


@on_each_kind
def test_stopped_at_every_safe_point_it_gives_the_same_student(method, data, tiny, execute, tmp_path, outside):
    """A run that is stopped and resumed after every single step or call equals the one that runs through."""
    if declines(method, data, outside):
        return
    cell = tiny(method, data=data)
    straight = execute(cell)
    expected = student_digest(straight, tmp_path) if straight["cost"]["student_steps"] else None
    record, stops = execute(cell, time_limit=1e-9), 0
    while record["status"] == "partial":
        stops += 1
        assert stops < 50, "no progress from stop to stop"
        record = execute(cell, time_limit=1e-9, resume=True)
    assert stops >= (4 if straight["cost"]["student_steps"] else 0)
    assert record["time"]["resumes"] == stops
    assert record["time"]["prior"] == record["prior"]["seconds"]  # billed once, however often it was stopped
    assert outcome(record) == outcome(straight)
    if expected:
        assert student_digest(record, tmp_path) == expected


@pytest.mark.slow
@on_each_kind
def test_confined_in_a_process_of_its_own_it_is_the_same(method, data, tiny, execute, outside):
    """As `bench.py run` runs it; the other tests run it in theirs."""
    if declines(method, data, outside):
        return
    cell = tiny(method, data=data)
    apart = execute(cell, apart=True)
    assert apart["status"] == "ok" and apart["provenance"]["isolation"] == confine.isolation()
    assert outcome(apart) == outcome(execute(cell))


@on_each_kind
def test_the_seed_decides_and_nothing_else(method, data, tiny, execute, tmp_path):
    first, second = (execute(tiny(method, seed=1, data=data)) for _ in range(2))
    assert outcome(first) == outcome(second)
    if first["cost"]["student_steps"]:
        other = student_digest(execute(tiny(method, seed=2, data=data)), tmp_path)
        assert student_digest(second, tmp_path) != other


def test_an_unknown_argument_names_the_nearest(method, tiny):
    with pytest.raises(UserError, match=r"unknown --set key 'training.stepz' \(nearest: 'training.steps'"):
        tiny(method, "training.stepz=3")


def test_what_is_read_without_torch_is_what_the_class_says(method, outside):
    entry = catalog.entry(method, outside)
    import_file(entry.path)
    cls = REGISTRY.get(method)
    assert (entry.prior, entry.reference) == (cls.prior, cls.reference)
    assert entry.cites == tuple(cls.cites.split())
    defaults = {name: p.default for name, p in signature(cls).parameters.items()}
    assert entry.arguments == (defaults if cls.__init__ is not object.__init__ else {})
    assert entry.summary and entry.summary.endswith((".", ":"))


def test_every_cell_of_the_tables_resolves():
    cells = [resolve(run.data, run.protocol, run.method, run.pair, run.seed) for run in pipeline.span()]
    assert len({cell.run.name for cell in cells}) == len(cells) > 100
    assert not any(cell.custom for cell in cells)


@pytest.mark.slow
def test_a_method_from_outside_is_tested_by_one_command(tmp_path):
    text = catalog.entry("template").path.read_text(encoding="utf-8").replace('"template"', '"mine"')
    (tmp_path / "mine.py").write_text(text.replace("steps: int = 10", "steps: int = 2"), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-k",
        "digits and not scenes",
        f"--dfkd-method={tmp_path / 'mine.py'}",
    ]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr


def test_the_template_is_short():
    lines = catalog.entry("template").path.read_text().splitlines()
    assert len(lines) <= 40
