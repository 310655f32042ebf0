"""Several runs by one command: each in a process of its own, some at a time, stopped as one."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from dfkd import session

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


def command(folder, others: int) -> list[str]:
    return [sys.executable, "-c", RUN, str(folder), str(others)]


def test_several_at_a_time_share_the_processors_and_each_line_says_whose_it_is(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(session, "_processors", lambda: 5)
    assert session.execute_each([of("fast", 0), of("ssdkd", 3)], command(tmp_path, 2), 2) == 3, "the worst status"
    told = capfd.readouterr().out.splitlines()
    assert sorted(told) == [
        "fast 0: complaint",
        "fast 0: threads 2 with 2",
        "ssdkd 3: complaint",
        "ssdkd 3: threads 2 with 2",
    ]


@pytest.mark.parametrize(("jobs", "threads"), [(9, "1"), (2, "7")])
def test_no_run_has_less_than_a_thread_and_what_the_user_said_stands(tmp_path, monkeypatch, capfd, jobs, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if jobs == 2:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert session.execute_each([of("fast", 0)], command(tmp_path, 1), jobs) == 0
    assert f"fast 0: threads {threads} with 1" in capfd.readouterr().out


def test_one_after_the_other_has_the_terminal_and_every_thread(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert session.execute_each([of("fast", 0), of("fast", 1)], command(tmp_path, 1), 1) == 1
    told = capfd.readouterr()
    assert told.out.splitlines() == ["threads None with 1", "threads None with 2"]
    assert told.err.splitlines() == ["complaint"] * 2


# Runs that take a signal as a run does: the first one saves, a second one would not.
PATIENT = """
import pathlib, signal, sys, time
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append("INT"))
signal.signal(signal.SIGTERM, lambda *_: heard.append("TERM"))
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
    session.execute_each(runs, [sys.executable, "-c", sys.argv[1], sys.argv[2]], 2)
except session.Stopped as stop:
    print("stopped:", stop)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM")])
def test_a_signal_reaches_each_run_once_and_starts_no_other(tmp_path, number, word):
    """Ctrl-C goes to the whole group of a terminal: not to the runs, or they would be asked twice."""
    sweep = subprocess.Popen(
        [sys.executable, "-c", SWEEP, PATIENT, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 60
    while len([*tmp_path.iterdir()]) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(sweep.pid, number)
    out, _ = sweep.communicate(timeout=60)
    reason = f"stopped: stopped by {signal.Signals(number).name}; the same command with --resume goes on"
    assert sorted(out.splitlines()) == [f"a 0: heard {word}", f"b 0: heard {word}", reason]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
