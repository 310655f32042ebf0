"""Several runs by one command: each in a process of its own, some at a time, stopped as one."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from dfkd import session
from dfkd.engine import harness
from dfkd.errors import UserError

# What stands for a run: it says what it was given, waits for the others' files, ends with its seed.
RUN = """
import os, pathlib, sys, time
folder, others, method, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]), *(a.split("=")[1] for a in sys.argv[3:])
(folder / f"{method}-{seed}").touch()
until = time.monotonic() + 20
while len([*folder.iterdir()]) < others and time.monotonic() < until:
    time.sleep(0.01)
print("threads", os.environ.get("OMP_NUM_THREADS"), "with", len([*folder.iterdir()]))
print("complaint", file=sys.stderr)
sys.exit(int(seed))
"""


def of(method: str, seed: int):
    return SimpleNamespace(run=SimpleNamespace(method=method, seed=seed))


def several(runs, command, jobs: int, debug: bool = False) -> int:
    return session.execute_each(runs, command, SimpleNamespace(jobs=jobs, debug=debug))


def command(folder, others: int) -> list[str]:
    return [sys.executable, "-c", RUN, str(folder), str(others)]


def test_several_at_a_time_share_the_processors_and_each_line_says_whose_it_is(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(session, "_processors", lambda: 5)
    assert several([of("fast", 0), of("ssdkd", 3)], command(tmp_path, 2), 2) == 3, "the worst status"
    told = capfd.readouterr().out.splitlines()
    assert sorted(told) == [
        "fast 0: complaint",
        "fast 0: threads 2 with 2",
        "ssdkd 3: complaint",
        "ssdkd 3: threads 2 with 2",
    ]


@pytest.mark.parametrize(("said", "jobs", "threads"), [("", 9, "2"), ("7", 2, "7")])
def test_threads_are_shared_by_the_runs_there_are_unless_the_user_said_how_many(
    tmp_path, monkeypatch, capfd, said, jobs, threads
):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(session, "_processors", lambda: 5)
    assert several([of("fast", 0), of("cmi", 0)], command(tmp_path, 2), jobs) == 0
    assert capfd.readouterr().out.count(f"threads {threads} with 2") == 2


@pytest.mark.parametrize(("jobs", "debug"), [(0, False), (2, True)])
def test_jobs_that_make_no_sense_are_refused(jobs, debug):
    with pytest.raises(UserError, match=f"--jobs {jobs}: at least 1 is expected, and with --debug no more"):
        several([of("fast", 0), of("cmi", 0)], [], jobs, debug)


def test_what_is_worst_and_what_was_killed_is_told(capfd):
    """A run that can go on (75) is no failure; one that a signal ended has said nothing itself."""
    ends = "import os, sys; seed = int(sys.argv[2][7:]); print('half', end=''); sys.stdout.flush()\n"
    ends += "os.kill(os.getpid(), 9) if seed == 9 else os._exit(seed)"
    assert several([of("fast", seed) for seed in (75, 0)], [sys.executable, "-c", ends], 2) == 75
    assert several([of("fast", seed) for seed in (75, 9)], [sys.executable, "-c", ends], 2) == 1
    told = capfd.readouterr()
    assert sorted(told.out.splitlines()) == ["fast 0: half", "fast 75: half", "fast 75: half", "fast 9: half"]
    assert told.err == "fast 9: ended by SIGKILL\n"


def test_one_after_the_other_has_the_terminal_and_every_thread(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert several([of("fast", 0), of("fast", 1)], command(tmp_path, 1), 1) == 1
    told = capfd.readouterr()
    assert told.out.splitlines() == ["threads None with 1", "threads None with 2"]
    assert told.err.splitlines() == ["complaint"] * 2


# A run that takes a signal as a run does, and saves then.
PATIENT = """
import pathlib, signal, sys, time
heard = set()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: heard.add(signal.Signals(number).name))
pathlib.Path(sys.argv[1], sys.argv[2].split("=")[1]).touch()
while not heard:
    time.sleep(0.01)
time.sleep(0.5)
print("heard", *heard, flush=True)
"""
SWEEP = """
import sys
from types import SimpleNamespace
from dfkd import session
runs = [SimpleNamespace(run=SimpleNamespace(method=name, seed=0)) for name in ("a", "b", "c")]
try:
    session.execute_each(runs, [sys.executable, "-c", sys.argv[1], sys.argv[2]], SimpleNamespace(jobs=2, debug=False))
except session.Stopped as stop:
    print("stopped:", stop)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("everybody", [True, False], ids=["a terminal's", "of the command alone"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_each_run_and_starts_no_other(tmp_path, number, everybody):
    sweep = subprocess.Popen(
        [sys.executable, "-c", SWEEP, PATIENT, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 60
    while len([*tmp_path.iterdir()]) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    (os.killpg if everybody else os.kill)(sweep.pid, number)
    out, _ = sweep.communicate(timeout=60)
    name = signal.Signals(number).name
    reason = f"stopped: stopped by {name}; the same command with --resume goes on"
    assert sorted(out.splitlines()) == [f"a 0: heard {name}", f"b 0: heard {name}", reason]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_two_signals_at_once_are_one(monkeypatch):
    """A terminal's Ctrl-C reaches a run, and so does the one that the command passes on; a second one ends it."""
    told = []
    worker = harness.Worker.__new__(harness.Worker)
    worker.reason, worker._process = None, SimpleNamespace(send_signal=lambda number: told.append(number.name))
    monkeypatch.setattr(harness.Worker, "end", lambda worker: told.append("end"))
    clock = iter((10.0, 10.2, 10.8))
    monkeypatch.setattr(harness.time, "monotonic", lambda: next(clock))
    for name in ("SIGINT", "SIGINT", "SIGTERM"):
        worker.ask_to_stop(f"stopped by {name}")
    assert told == ["SIGINT", "end"]
