"""Exact resume: killed at any moment, a run goes on to the record that it would have had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from dfkd.engine import run as run_module
from dfkd.engine import state
from dfkd.engine.configuration import LOG, STATE
from dfkd.errors import UserError
from dfkd.paths import ROOT
from dfkd.signals import stopping
from tests.conftest import BUDGET, PAIR, TINY, latest, outcome

CPU = torch.device("cpu")


def plain(state) -> bool:
    """Nothing but containers, numbers, strings and tensors."""
    if isinstance(state, dict):
        return all(type(key) in (str, int) and plain(value) for key, value in state.items())
    if type(state) in (list, tuple):
        return all(map(plain, state))
    return state is None or type(state) in (int, float, str, bool, torch.Tensor)


@pytest.fixture
def stopped(tiny, execute, tmp_path):
    """A run that stopped after its first call: (cell, its work folder)."""
    cell = tiny("ssdkd")
    record = execute(cell, time_limit=1e-9)
    assert record["status"] == "partial"
    return cell, tmp_path / "work" / record["work"]


# A run as `bench.py run` makes it, in a process of its own, with a state every few steps.
CHILD = """
import json, sys
from pathlib import Path
from dfkd.tables.resolve import resolve
from dfkd.engine.run import Options, run
from dfkd.artifacts import TEACHER

weights, work, changes, pair = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
cell = resolve("digits", "quick", "ssdkd", pair, 0, changes, precision="fp32")
run(cell, weights, TEACHER.read(weights), Options(work.parent / "data", "cpu", True, work, save_every=0.2))
"""


@pytest.mark.slow
def test_killed_twice_it_equals_the_run_that_was_let_be(teacher, tiny, execute, tmp_path):
    import json

    longer = ["training.steps=60", "rounds=20", "evaluations=6"]
    cell = tiny("ssdkd", *longer)
    straight = execute(cell, work=tmp_path / "straight")
    changes = json.dumps(latest(*TINY["ssdkd"], *BUDGET, *longer))
    command = [sys.executable, "-c", CHILD, str(teacher[0]), str(tmp_path / "work"), changes, PAIR]
    states = []
    for _ in range(2):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (found := list((tmp_path / "work").glob("*/*/*/*/*/*/state.pt"))) or digest_of(found[0]) in states:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)  # the log runs ahead of the state
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        states.append(digest_of(found[0]))
    record = execute(cell, resume=True)
    assert record["time"]["resumes"] == 2
    assert outcome(record) == outcome(straight)
    path = tmp_path / "straight" / straight["work"]
    assert (path / "student.safetensors").read_bytes() == (
        tmp_path / "work" / record["work"] / "student.safetensors"
    ).read_bytes()


def digest_of(path) -> int:
    return hash(path.read_bytes())


def test_a_kill_while_the_state_is_written_leaves_the_one_before(stopped, execute, tiny, monkeypatch):
    cell, folder = stopped
    before = (folder / STATE).read_bytes()

    def killed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        execute(cell, time_limit=1e-9, resume=True)
    monkeypatch.undo()
    assert (folder / STATE).read_bytes() == before
    assert outcome(execute(cell, resume=True)) == outcome(execute(cell))


def test_images_logged_after_the_last_state_are_cut_off(stopped, execute):
    cell, folder = stopped
    with open(folder / LOG, "ab") as log:
        log.write(b"what a killed process had added since")
    assert outcome(execute(cell, resume=True)) == outcome(execute(cell))


def test_a_log_that_is_not_the_state_s_is_refused(stopped, execute):
    cell, folder = stopped
    content = bytearray((folder / LOG).read_bytes())
    content[5] ^= 1
    (folder / LOG).write_bytes(content)
    with pytest.raises(UserError, match=r"bank\.bin does not hold the images of the saved state"):
        execute(cell, resume=True)


def test_the_state_is_tensors_and_plain_containers(stopped):
    _, folder = stopped
    saved = state.load(folder / STATE, CPU)
    assert plain(saved)
    assert saved.keys() == {"version", "loop", "model", "optimizer", "schedules", "globals", "clock"}
    assert {"weights", "buffer", "method", "streams"} <= saved["model"].keys()


def test_the_images_are_not_in_it(stopped):
    """Of the bank it holds length and digest."""
    _, folder = stopped
    buffer = state.load(folder / STATE, CPU)["model"]["buffer"]
    assert "images" not in buffer and buffer["log"].keys() == {"length", "digest"}
    assert (folder / LOG).stat().st_size == buffer["log"]["length"] * 3 * 16 * 16


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "longer"])
def test_a_damaged_state_is_one_clear_error(damage, stopped, execute):
    cell, folder = stopped
    path = folder / STATE
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[:1000], "garbage": b"x" * 1000, "longer": content + b"x"}[damage])
    with pytest.raises(UserError, match=r"state\.pt .*delete it to start this run afresh") as caught:
        execute(cell, resume=True)
    assert "\n" not in str(caught.value)


STATES = {
    "a class, which weights_only=True refuses": {"version": 1, "loop": Path("x")},
    "no mapping": [torch.zeros(1)],
    "of another version": {"version": 99},
}


@pytest.mark.parametrize("kind", STATES)
def test_what_is_no_state_is_one_clear_error(kind, tmp_path):
    (tmp_path / "state.pt").write_bytes(state.packed(STATES[kind]))
    with pytest.raises(UserError, match=r"state\.pt .*delete it to start this run afresh") as caught:
        state.load(tmp_path / "state.pt", CPU)
    assert "\n" not in str(caught.value)


def test_a_run_starts_afresh_only_when_asked_to(stopped, execute):
    cell, folder = stopped
    before = (folder / STATE).read_bytes()
    with pytest.raises(UserError, match="holds a saved state of this run: pass --resume to go on from it, or --again"):
        execute(cell)
    assert (folder / STATE).read_bytes() == before
    record = execute(cell, again=True)
    assert record["time"]["resumes"] == 0
    assert not (folder / STATE).exists()


def test_a_finished_run_leaves_no_state(stopped, execute):
    cell, folder = stopped
    execute(cell, resume=True)
    assert not (folder / STATE).exists() and not (folder / LOG).exists()


@pytest.mark.parametrize("change", ["training.batch=16", "temperature=3.0", "training.optimizer.lr=0.3"])
def test_another_configuration_does_not_resume_it(change, stopped, execute, tiny, tmp_path):
    _, folder = stopped
    record = execute(tiny("ssdkd", change), resume=True)
    assert record["time"]["resumes"] == 0
    assert tmp_path / "work" / record["work"] != folder
    assert (folder / STATE).is_file(), "the other run's state is its own"


def test_other_code_does_not_resume_it(tiny, execute, tmp_path):
    """The method's file is part of what the work folder is keyed by."""
    text = (ROOT / "methods" / "template.py").read_text().replace('"template"', '"mine", force=True')
    folders = []
    for i, edit in enumerate((text, text + "\n# a comment\n", text + "\nNEW = 1\n")):
        path = tmp_path / str(i) / "mine.py"
        path.parent.mkdir()
        path.write_text(edit)
        cell = tiny("mine", "steps=2", extra=str(path))
        record = execute(cell, resume=True, time_limit=1e-9)
        folders.append((record["work"], record["time"]["resumes"]))
    first, comment, changed = folders
    assert first[1] == 0
    assert comment == (first[0], 1), "an edit of words changes nothing"
    assert changed[0] != first[0] and changed[1] == 0


@pytest.mark.parametrize("resume", [True, False])
def test_two_processes_do_not_share_a_work_folder(resume, stopped, execute):
    cell, folder = stopped
    before = (folder / STATE).read_bytes()
    refused = pytest.raises(UserError, match="another process is running this cell")
    with FileLock(folder / "lock"), refused as caught:
        execute(cell, resume=resume)
    assert "\n" not in str(caught.value)
    assert (folder / STATE).read_bytes() == before


def test_an_unwritable_work_folder_is_one_clear_error(tiny, execute, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the work folder"):
        execute(tiny("template"), work=tmp_path / "file")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_run_at_the_next_safe_point(number, tiny, execute, tmp_path):
    flag = tmp_path / "flag"
    path = tmp_path / "signalled.py"
    path.write_text(f"""
import os
from pathlib import Path
import torch
from filelock import FileLock
from dfkd.engine.method import METHODS, Method
from dfkd.synthesis.buffer import Samples

@METHODS.register_module("signalled", force=True)
class Signalled(Method):
    def synthesize(self, ctx):
        shape = (ctx.budget.synthesis_batch, ctx.spec.channels, ctx.spec.size, ctx.spec.size)
        return Samples(torch.rand(shape, generator=ctx.rng("noise")))

    def distill(self, ctx, batch):
        if ctx.student_steps == 2 and not Path({str(flag)!r}).exists():
            Path({str(flag)!r}).touch()
            os.kill(os.getpid(), {int(number)})
        return super().distill(ctx, batch)
""")
    cell = tiny("signalled", extra=str(path))
    handler = signal.getsignal(number)
    record = execute(cell)
    assert record["status"] == "partial" and record["error"] == f"stopped by {number.name}"
    assert record["cost"]["student_steps"] == 3, "the step that was going on is finished"
    assert signal.getsignal(number) == handler, "the handler is the caller's again"
    resumed = execute(cell, resume=True)
    assert resumed["status"] == "ok" and resumed["time"]["resumes"] == 1
    assert outcome(resumed) == outcome(execute(cell))


def test_a_hangup_that_nohup_has_turned_off_stops_nothing():
    asked, before = [], signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping(asked.append):
            signal.raise_signal(signal.SIGHUP)
            assert asked == []
            signal.raise_signal(signal.SIGTERM)
        assert asked == ["stopped by SIGTERM"]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_time_before_a_resume_counts(stopped, execute):
    cell, folder = stopped
    saved = state.load(folder / STATE, CPU)["clock"]["seconds"]
    record = execute(cell, resume=True)
    assert all(record["time"][account] >= round(saved[account], 4) for account in saved)
    assert saved["synthesis"] > 0
    assert os.path.isfile(folder / "student.safetensors")


def test_a_resumed_worker_has_a_new_folder_with_the_saved_state_and_nothing_else(tmp_path):
    inside = tmp_path / "worker"
    (inside / "cache").mkdir(parents=True)
    for name in ("state.pt", "bank.bin", "note"):
        (inside / name).write_text(name)
    left_over = os.open(inside, os.O_RDONLY)  # as that of a process which outlived a killed run
    run_module._renew(inside)
    assert {path.name: path.read_text() for path in inside.iterdir()} == {
        "state.pt": "state.pt",
        "bank.bin": "bank.bin",
    }
    assert os.fstat(left_over).st_ino != inside.stat().st_ino and [path.name for path in tmp_path.iterdir()] == [
        "worker"
    ]
    with pytest.raises(FileNotFoundError):
        os.open("word", os.O_CREAT | os.O_WRONLY, dir_fd=left_over)
    os.close(left_over)


def test_a_kill_while_the_folder_is_renewed_loses_no_state(tmp_path):
    (tmp_path / "worker-new").mkdir()
    (tmp_path / "worker-new" / "state.pt").write_text("x")
    run_module._renew(tmp_path / "worker")
    assert [path.name for path in (tmp_path / "worker").iterdir()] == ["state.pt"]
    (tmp_path / "worker-old").mkdir()
    (tmp_path / "worker-new").mkdir()
    run_module._renew(tmp_path / "worker")
    assert [path.name for path in (tmp_path / "worker").iterdir()] == ["state.pt"]
    assert [path.name for path in tmp_path.iterdir()] == ["worker"]


def test_a_run_whose_folder_was_being_renewed_when_it_was_killed_resumes(stopped, execute):
    cell, folder = stopped
    (folder / "worker").rename(folder / "worker-new")
    record = execute(cell, resume=True)
    assert (record["status"], record["time"]["resumes"]) == ("ok", 1)


def test_no_link_of_a_worker_is_followed_when_its_folder_is_renewed(tmp_path):
    (tmp_path / "secret").write_text("test images")
    inside = tmp_path / "worker"
    inside.mkdir()
    (inside / "state.pt").symlink_to(tmp_path / "secret")
    os.mkfifo(inside / "bank.bin")
    run_module._renew(inside)
    assert list(inside.iterdir()) == []
