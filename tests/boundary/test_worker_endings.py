"""Whoever is killed, and when: the run goes on to the record that it would have had. And other ends of the two."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from dfkd.engine.evaluator import Failed
from dfkd.errors import UserError
from dfkd.files import file_digest
from dfkd.paths import ROOT
from tests.conftest import BUDGET, PAIR, TINY, latest, outcome

# The harness, in a process of its own.
HARNESS = """
import json, sys
from pathlib import Path
from dfkd.tables.resolve import resolve
from dfkd.engine.run import Options, run
from dfkd.signals import Stopped
from dfkd.artifacts import TEACHER

weights, work, method, changes, pair = Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:6])
cell = resolve("digits", "quick", method, pair, 0, changes, sys.argv[6] or None, "fp32")  # as `tiny` has it
try:
    options = Options(work.parent / "data", "cpu", True, work, save_every=0.05)
    record = run(cell, weights, TEACHER.read(weights), options)
except Stopped:
    sys.exit(75)
sys.exit(75 if record["status"] == "partial" else 0)
"""
METHOD = """
import os, sys, time
from dfkd.engine.method import METHODS
from baselines.deepinv import DeepInv

@METHODS.register_module("dying", force=True)
class Dying(DeepInv):
    def after_step(self, ctx, batch, outputs):
        if ctx.student_steps == 2:
            {deed}
"""
LONGER = ("training.steps=40", "rounds=20", "evaluations=8")
FIVE = ("fast", "ssdkd", "deepinv", "dfad", "cmi")
VICTIMS = ("worker", "harness", "both")


@pytest.fixture
def dying(tiny, tmp_path):
    """dying(deed): the cell of a method that does it in its third step."""

    def make(deed: str):
        path = tmp_path / "dying.py"
        path.write_text(METHOD.format(deed=deed))
        return tiny("dying", "steps=3", extra=str(path))

    return make


@pytest.fixture
def harness(teacher, tmp_path):
    """harness(method, *changes, extra=""): the running process of one, which resumes."""

    def start(method: str, *changes: str, extra: str = "") -> subprocess.Popen:
        joined = latest(*BUDGET, *TINY.get(method, ()), *changes)
        told = map(json.dumps, (method, joined, PAIR))
        command = [sys.executable, "-c", HARNESS, str(teacher[0]), str(tmp_path / "work"), *told, extra]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    return start


def digest_of(folder) -> str:
    return file_digest(folder / "student.safetensors")


def kill(process: subprocess.Popen, victim: str) -> None:
    with_worker = [] if victim == "harness" else psutil.Process(process.pid).children()
    for each in [*with_worker, *([] if victim == "worker" else [psutil.Process(process.pid)])]:
        each.send_signal(signal.SIGKILL)


def wait(process: subprocess.Popen, work, draw: random.Random) -> tuple[int, float]:
    """Until a random moment of the run: while it starts, or at so many of its states, whatever the machine's speed."""
    states, seen = draw.randint(-4, 16), set()
    while process.poll() is None and len(seen) < states:
        with suppress(OSError):
            seen |= {path.stat().st_mtime_ns for path in work.glob("*/*/*/*/*/journal.json")}
        time.sleep(0.005)
    more = draw.uniform(0, 4 if states < 1 else 0.2)
    time.sleep(more)
    return states, more


@pytest.mark.slow
def test_killed_at_any_moment_it_equals_the_run_that_was_let_be(harness, tiny, execute, tmp_path, request):
    """`--kills N` moments, drawn at random over the whole of a run; some fall before its first state."""
    work, known = tmp_path / "work", {}
    first, count = request.config.getoption("--kills-from"), request.config.getoption("--kills")
    for index in range(first, first + count):
        method, victim = FIVE[index % len(FIVE)], VICTIMS[index % len(VICTIMS)]
        cell = tiny(method, *LONGER)
        if method not in known:
            record = execute(cell, work=tmp_path / "straight")
            known[method] = outcome(record), digest_of(tmp_path / "straight" / record["work"])
        process = harness(method, *LONGER)
        states, more = wait(process, work, random.Random(index))
        case = f"{index}: {method}, {victim} killed {more:.2f} s after state {max(states, 0)}"
        if alive := process.poll() is None:
            kill(process, victim)
        process.wait(60)
        # A process that is about to exit is still alive: the student lies there once all is done.
        ended = not alive or list(work.glob("*/*/*/*/*/student.safetensors"))
        record = execute(cell, resume=True, apart=True, save_every=0.05)
        print(f"{f'{index}: {method}, it had ended' if ended else case}; resumed {record['time']['resumes']} times")
        assert record["time"]["resumes"] or ended or states < 2, f"{case}: its state was not found"
        assert (outcome(record), digest_of(work / record["work"])) == known[method], case
        shutil.rmtree(work)  # a run of this method that is still to come begins at the beginning


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_a_safe_point_and_two_at_once(number, dying, harness, tmp_path):
    """The method of the second run would sleep for an hour in its third step."""
    waits = "Path('there').touch(); time.sleep(3600)"
    path = dying("pass").entry.path
    path.write_text("from pathlib import Path\n" + path.read_text().replace("pass", waits))
    process = harness("dying", "steps=3", extra=str(path))
    while not list((tmp_path / "work").glob("*/*/*/*/*/*/there")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    time.sleep(1)
    assert process.poll() is None, "a step that is going on is finished"
    process.send_signal(number)
    assert process.wait(30) == 75


@pytest.mark.parametrize("moment", [0.7, 3.0])
def test_a_signal_while_the_worker_starts(moment, harness):
    process = harness("template")
    time.sleep(moment)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (75, -signal.SIGTERM)


ENDS = {
    "os._exit(0)": "left with status 0 before its last message; its last lines: .*parting words",
    "os._exit(7)": "left with status 7 before its last message",
    "os.kill(os.getpid(), 11)": "was ended by SIGSEGV before its last message",
}


@pytest.mark.slow
@pytest.mark.parametrize("deed", ENDS)
def test_a_worker_that_goes_fails_the_run_with_its_last_lines(deed, dying, execute):
    kept = []
    with pytest.raises(Failed, match=ENDS[deed]) as told:
        execute(dying(f"print('parting words', flush=True); {deed}"), apart=True, keep=kept.append)
    assert "\n" not in str(told.value)
    assert kept[0]["status"] == "failed" and kept[0]["error"] == str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["time.sleep(3600)", "[(print('x', flush=True), time.sleep(1)) for _ in range(3600)]"])
def test_a_worker_that_says_nothing_is_ended(deed, dying, execute):
    """Whatever it prints."""
    begun = time.monotonic()
    with pytest.raises(Failed, match="said nothing for"):
        execute(dying(deed), apart=True, patience=10.0)
    assert time.monotonic() < begun + 60


@pytest.mark.slow
def test_what_a_worker_started_ends_with_it(dying, execute, capsys):
    deed = "import subprocess; print('child', subprocess.Popen(['sleep', '3600']).pid, file=sys.stderr, flush=True)"
    assert execute(dying(deed), apart=True)["status"] == "ok"
    (child,) = re.findall(r"child (\d+)", capsys.readouterr().err)
    assert not psutil.pid_exists(int(child)) or psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE


def test_without_landlock_the_record_says_so(tiny, execute, monkeypatch: pytest.MonkeyPatch):
    expected = outcome(execute(tiny("deepinv")))
    monkeypatch.setenv("DFKD_ISOLATION", "audit-hook")
    record = execute(tiny("deepinv"), apart=True)
    assert record["provenance"]["isolation"] == "audit-hook"
    assert outcome(record) == expected


def test_a_state_without_its_journal_is_one_clear_error(tiny, execute, tmp_path):
    record = execute(tiny("deepinv"), time_limit=1e-9)
    (tmp_path / "work" / record["work"] / "journal.json").unlink()
    with pytest.raises(UserError, match=r"state\.pt is no state that journal\.json knows; delete it"):
        execute(tiny("deepinv"), resume=True)


def test_of_two_saves_only_the_state_that_is_there_counts(tiny, execute, tmp_path):
    """Killed between the journal's writing and the state's, and once more after the resume, it still goes on."""
    expected = outcome(execute(tiny("deepinv")))
    work = tmp_path / "work" / execute(tiny("deepinv"), time_limit=1e-9)["work"]
    journal = json.loads((work / "journal.json").read_text())
    other = {"state": "of a state that was not written", "curve": [{"step": 2, "seconds": 9.0, "value": 99.0}]}
    (work / "journal.json").write_text(json.dumps([*journal, journal[-1] | other]))
    record = execute(tiny("deepinv"), time_limit=1e-9, resume=True)
    while record["status"] == "partial":
        record = execute(tiny("deepinv"), time_limit=1e-9, resume=True)
    assert outcome(record) == expected
