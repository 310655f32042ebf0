"""How a run ends, and what is there afterwards: the record before the saved state goes, one line for what one line
tells, and never another run's student in place of one's own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch

from dfkd import records
from dfkd.engine import run as engine
from dfkd.engine import samples, state
from dfkd.engine.configuration import INSIDE
from dfkd.errors import CannotWrite, UserError
from dfkd.paths import ROOT
from dfkd.signals import Stopped
from dfkd.synthesis.buffer import ImageLog
from tests.conftest import BUDGET, PAIR, TINY, outcome, student_digest

METHOD = """
import os, sys
import torch
from dataclasses import dataclass
from pathlib import Path
from dfkd.engine.method import METHODS, Method
from dfkd.synthesis.buffer import Samples

FLAG = Path({flag!r})  # while it is not there the method misbehaves

def at(place):
    if place == {place!r} and not FLAG.exists():
        {deed}

at("import")

@METHODS.register_module("ending", force=True)
@dataclass(eq=False)
class Ending(Method):
    def __post_init__(self):
        at("constructor")

    def supports(self, task):
        at("supports")

    def setup(self, ctx):
        at("setup")

    def synthesize(self, ctx):
        at("synthesize")
        shape = (ctx.budget.synthesis_batch, ctx.spec.channels, ctx.spec.size, ctx.spec.size)
        return Samples(torch.rand(shape, generator=ctx.rng("noise")))

    def distill(self, ctx, batch):
        at("distill")
        return super().distill(ctx, batch)

    def after_step(self, ctx, batch, outputs):
        Ending.student = ctx.student
        if ctx.student_steps == 3:
            at("after_step")

    def report(self):
        at("report")
        return {{"share": 0.5}}

    def state_dict(self):
        at("state_dict")
        return {{}}
"""
PLACES = ("import", "constructor", "supports", "setup", "synthesize", "distill", "after_step", "report", "state_dict")


@pytest.fixture
def ending(tiny, tmp_path):
    """ending(place, deed): the cell of a method that does it there, until the test's `flag` is there."""
    count = iter(range(99))

    def make(place: str = "never", deed: str = "pass"):
        path = tmp_path / f"ending_{next(count)}.py"
        path.write_text(METHOD.format(flag=str(tmp_path / "flag"), place=place, deed=deed))
        return tiny("ending", extra=str(path))

    return make


@pytest.fixture
def straight(ending, execute, tmp_path):
    """The outcome of the method that does nothing special."""
    return outcome(execute(ending(), work=tmp_path / "straight"))


def folder_of(cell, tmp_path):
    (lock,) = (tmp_path / "work" / cell.run.name).rglob("lock")
    return lock.parent


def resumed(cell, execute, tmp_path, **options) -> dict:
    """The record of `--resume` once all is well again; `now` says that it went on from a state."""
    (tmp_path / "flag").touch()
    record = execute(cell, resume=True, **options)
    assert record["time"]["resumes"] == 1
    return record


# --- the record first


def test_the_state_is_there_until_the_record_is(ending, execute, tmp_path):
    cell, seen = ending(), []
    execute(cell, keep=lambda record: seen.append(sorted(p.name for p in folder_of(cell, tmp_path).iterdir())))
    assert {INSIDE, "journal.json", "student.safetensors"} <= set(seen[0])
    assert {p.name for p in folder_of(cell, tmp_path).iterdir()} & {INSIDE, "journal.json"} == set()


def no_space(*_, **__):
    raise CannotWrite("cannot write it: No space left on device")


def killed(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("keep", "error"), [(no_space, Stopped), (killed, KeyboardInterrupt)])
def test_a_record_that_could_not_be_written_is_written_by_the_resumed_run(
    keep, error, ending, execute, straight, tmp_path
):
    cell = ending()
    with pytest.raises(error):
        execute(cell, keep=keep)
    assert outcome(resumed(cell, execute, tmp_path)) == straight


REPORTS = {
    "nan": "return {'share': float('nan')}",
    "infinite": "return {'share': float('inf')}",
    "text": "return {'share': 'half'}",
    "a flag": "return {'share': True}",
    "a tensor": "return {'share': torch.ones(2)}",
    "a list": "return [1.0]",
    "None": "return None",
    "a name that is none": "return {1: 1.0}",
}


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_that_is_no_numbers_fails_the_run_in_one_line(kind, ending, execute, straight, tmp_path):
    cell, kept = ending(), []
    text = cell.entry.path.read_text().replace('at("report")', f"if not FLAG.exists():\n            {REPORTS[kind]}")
    cell.entry.path.write_text(text)
    with pytest.raises(engine.Failed, match=r"report\(\) is to give finite numbers by name, not ") as caught:
        execute(cell, keep=kept.append)
    assert "\n" not in str(caught.value)
    (record,) = kept
    records.validate(record)
    assert record["status"] == "failed" and record["report"] == {}
    assert outcome(resumed(cell, execute, tmp_path)) == straight


# --- a method that leaves


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("deed", "error"),
    [("sys.exit(0)", "SystemExit"), ("raise GeneratorExit", "GeneratorExit")],
    ids=["exit", "its kind"],
)
def test_a_method_that_ends_the_process_fails_the_run(place, deed, error, ending, execute):
    kept = []
    with pytest.raises(engine.Failed, match=f"the method raised {error}"):
        execute(ending(place, deed), keep=kept.append)
    (record,) = kept
    records.validate(record)
    assert record["status"] == "failed"


@pytest.mark.parametrize("place", PLACES)
def test_a_keyboard_interrupt_leaves_no_record(place, ending, execute):
    """In one process nobody can tell the method's from the user's."""
    with pytest.raises(KeyboardInterrupt):
        execute(ending(place, "raise KeyboardInterrupt"), keep=pytest.fail)


# --- a student that is none


# Losses of 0 whose gradient is not finite.
SPOILING = {"nan": "(bias * 0).sum().sqrt()", "inf": "(bias - bias.detach()).sum().sqrt()"}
SPOILT = """bias = ctx.student.network.fc.bias
        return super().distill(ctx, batch) | ({{"spoilt": {}}} if ctx.student_steps == 3 else {{}})"""


@pytest.mark.parametrize("part", ["fc.bias", "bn1.running_var"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_weight_that_is_not_finite_is_divergence(part, value, ending, execute, tmp_path):
    execute(ending())
    poison = f"Ending.student.network.state_dict()[{part!r}].fill_(float({value!r}))"
    cell = ending("after_step", poison if "running" in part else "pass")
    if "running" not in part:
        text, spoilt = cell.entry.path.read_text(), SPOILT.format(SPOILING[value])
        cell.entry.path.write_text(text.replace("return super().distill(ctx, batch)", spoilt))
    record = execute(cell)
    assert record["status"] == "diverged" and "weight of the student was not finite" in record["error"]
    assert record["metrics"]["last"] is None
    assert not list((tmp_path / "work" / record["work"]).glob("student.*"))


# --- a full disk


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


FULL = {
    "the state": (os, "fsync"),
    "the bank": (ImageLog, "append"),
    "the grid": (samples, "save_grid"),
    "the student": (engine, "_keep_student"),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_ends_a_run_that_can_go_on(what, tiny, execute, tmp_path, monkeypatch):
    cell = tiny("ssdkd")
    expected = outcome(execute(cell, work=tmp_path / "straight"))
    assert execute(cell, time_limit=1e-9)["status"] == "partial"
    monkeypatch.setattr(*FULL[what], full)
    with pytest.raises(Stopped, match=r"cannot write .*No space left on device; .* --resume") as caught:
        execute(cell, resume=True, keep=pytest.fail)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert outcome(execute(cell, resume=True)) == expected


def test_without_a_saved_state_it_is_an_error_of_one_line(tiny, execute, monkeypatch):
    monkeypatch.setattr(ImageLog, "append", full)
    with pytest.raises(CannotWrite, match="No space left on device"):
        execute(tiny("ssdkd"))


CHILD = """
import resource, sys
import bench
from pathlib import Path
from dfkd import paths
paths.teachers, paths.RESULTS, paths.WORK = (lambda: Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[2]) / "work"
from dfkd.engine import hooks
write = hooks.replace_file
def first_then_full(path, content):
    write(path, content)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
hooks.replace_file = first_then_full
sys.exit(bench.main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full_is_one_line_and_status_75(teacher, tmp_path):
    """By the limit on the size of a file, which torch, numpy and PIL meet below Python."""
    from dfkd.artifacts import TEACHER

    own = tmp_path / "teachers" / teacher[0].name
    own.parent.mkdir()
    own.write_bytes(teacher[0].read_bytes())
    TEACHER.write(own, teacher[1])
    changes = [f"--set={change}" for change in (*TINY["ssdkd"], *BUDGET)]
    arguments = [
        "run",
        "--method=ssdkd",
        "--data=digits",
        f"--pair={PAIR}",
        "--device=cpu",
        "--debug",
    ]
    command = [sys.executable, "-c", CHILD, str(own.parent), str(tmp_path), *arguments, *changes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    errors = [line for line in done.stderr.splitlines() if " · " not in line]
    assert len(errors) == 1 and "File too large" in errors[0] and "--resume" in errors[0]


# --- memory, and batches that cannot be


@pytest.mark.parametrize("deed", ["torch.zeros(10**15)", "torch.zeros(2**62, 4)", "raise MemoryError('no more')"])
@pytest.mark.parametrize("place", ["setup", "synthesize", "distill"])
def test_memory_that_cannot_be_had_is_told_in_one_line(place, deed, ending, execute):
    kept = []
    with pytest.raises(engine.Failed, match=r"^out of memory: ") as caught:
        execute(ending(place, deed), keep=kept.append)
    assert "\n" not in str(caught.value)
    assert kept[0]["status"] == "failed"


@pytest.mark.parametrize("change", ["synthesis_batch=1000000000000", "training.batch=1000000000000"])
def test_a_batch_that_no_memory_holds(change, tiny, execute):
    with pytest.raises((engine.Failed, UserError)) as caught:
        execute(tiny("ssdkd", change))
    assert "\n" not in str(caught.value)


def test_a_batch_of_one_is_refused_where_the_student_cannot_train_on_it(tiny, execute):
    with pytest.raises(UserError, match=r"training\.batch=1 is too small for this student: Expected more than 1"):
        execute(tiny("dfad", "training.batch=1", data="digit-scenes"), keep=pytest.fail)
    assert execute(tiny("dfad", "training.batch=1"))["status"] == "ok"


# --- what stays


def test_a_new_run_leaves_the_old_student_until_it_has_one(tiny, execute, tmp_path):
    cell = tiny("ssdkd")
    digest = student_digest(execute(cell), tmp_path)
    partial = execute(cell, time_limit=1e-9)
    assert partial["status"] == "partial" and student_digest(partial, tmp_path) == digest
    assert student_digest(execute(cell, resume=True), tmp_path) == digest


def test_no_state_of_before_is_taken_for_one_of_this_run(tiny, execute, tmp_path, monkeypatch):
    cell = tiny("ssdkd")
    execute(cell, time_limit=1e-9)
    monkeypatch.setattr(ImageLog, "append", full)
    with pytest.raises(CannotWrite):
        execute(cell, again=True)


@pytest.mark.parametrize("bit", range(0, 8, 3))
@pytest.mark.parametrize("place", [3, 20, 0.3, 0.6, 0.9, -1])
def test_a_bit_that_was_flipped_is_seen(place, bit, tmp_path):
    path = tmp_path / "state.pt"
    content = bytearray(state.packed({"version": state.VERSION, "student": torch.arange(1000.0)}))
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"state\.pt cannot be read .*delete it to start this run afresh") as caught:
        state.load(path, torch.device("cpu"))
    assert "\n" not in str(caught.value)


# --- first of all


@pytest.mark.slow
def test_a_method_is_asked_before_a_teacher_is_made(tiny, tmp_path, monkeypatch):
    """In a process of its own; cmi declines label maps, the template takes them."""
    kept, options = [], engine.Options(tmp_path / "data", "cpu", work=tmp_path / "work")
    record = engine.declined(tiny("cmi", data="digit-scenes"), options, kept.append)
    assert kept == [record]
    records.validate(record)
    assert record["status"] == "unsupported" and record["error"]
    assert record["provenance"]["teacher"] == {"digest": None, "origin": None, "accuracy": None}
    assert engine.declined(tiny("template", data="digit-scenes"), options, pytest.fail) is None


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["sys.exit(0)", "os._exit(0)"])
def test_what_goes_wrong_there_is_told_by_the_run(deed, ending, tmp_path):
    options = engine.Options(tmp_path / "data", "cpu", work=tmp_path / "work")
    assert engine.declined(ending("supports", deed), options, pytest.fail) is None


def test_a_value_that_the_method_refuses_is_told_before_a_teacher_is_made(tiny, tmp_path):
    options = engine.Options(tmp_path / "data", "cpu", work=tmp_path / "work")
    with pytest.raises(UserError, match="fast: meta must be one of"):
        engine.declined(tiny("fast", "meta=maml"), options, pytest.fail)


# --- a device that computes nothing


@pytest.mark.parametrize("name", ["meta", "gpu", "cuda:99", "vulkan", "xla", "hpu", "privateuseone", "cpu:x"])
def test_a_device_that_cannot_be_used_is_named(name):
    from dfkd.engine.machine import device_of

    with pytest.raises(UserError, match=f"^--device {name} cannot be used: ") as caught:
        device_of(name)
    assert "\n" not in str(caught.value)
