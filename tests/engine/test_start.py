"""The worker's process starts wherever the project lies and whatever the locale; one that does not is one line."""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import subprocess
import sys
from unittest.mock import Mock

import pytest

import bench
from dfkd import paths, session
from dfkd.engine import harness

WORKER = "import os, sys; print('·', sys.path[0], os.environ['PYTHONPATH'], file=sys.stderr)\n"
HARNESS = """
import sys
sys.path.insert(0, sys.argv[1])
from dfkd.engine.start import start
sys.stdout.buffer.write(start().communicate()[1])
"""
UTF8, ASCII = {"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(("name", "locale"), [("a:b", UTF8), ('it\'s "ü" 好', UTF8), ("$(x)%s", ASCII)])
def test_a_worker_starts_wherever_the_project_lies(name, locale, tmp_path):
    """A colon would part an entry of PYTHONPATH; what a worker says is UTF-8, for so it is read."""
    root = tmp_path / name
    for part, text in {
        "__init__.py": "",
        "paths.py": (paths.CODE / "paths.py").read_text(encoding="utf-8"),
        "engine/__init__.py": "",
        "engine/start.py": (paths.CODE / "engine" / "start.py").read_text(encoding="utf-8"),
        "engine/worker.py": WORKER,
    }.items():
        (root / "dfkd" / part).parent.mkdir(parents=True, exist_ok=True)
        (root / "dfkd" / part).write_text(text, encoding="utf-8")
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    environment = plain | locale | {"PYTHONPATH": f"relative{os.pathsep}/there"}
    command = [sys.executable, "-c", HARNESS, str(root)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True)
    told = f"· {root} {tmp_path / 'relative'}{os.pathsep}/there\n"
    assert (done.stdout.decode(), done.stderr) == (told, b"")


def test_that_the_harness_was_stopped_is_no_silence_of_the_worker(monkeypatch):
    """Ctrl-Z, and an hour later `fg`: what the worker has said meanwhile is heard."""
    worker, message = object.__new__(harness.Worker), ("saved", {}, {})
    worker.patience, worker.reason, worker._heard, worker._lines = 1800.0, None, queue.Queue(), []
    hours = itertools.count(0.0, 3600.0)
    monkeypatch.setattr("time.monotonic", lambda: next(hours))
    monkeypatch.setattr(worker._heard, "get", Mock(side_effect=[queue.Empty, message]))
    assert worker.next() == message
    monkeypatch.setattr(worker._heard, "get", Mock(side_effect=queue.Empty))
    with pytest.raises(harness.Failed, match="said nothing for 30 min"):
        worker.next()


def test_a_worker_that_cannot_start_is_told_in_one_line(teacher, tmp_path, monkeypatch, capsys):
    """What is said to it has nowhere to go, and stays in a buffer."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    gone = subprocess.Popen(["sh", "-c", "echo no torch here >&2; exit 3"], start_new_session=True, **pipes)
    gone.wait()
    gone.stdin.write(b" ")
    monkeypatch.setattr(session, "start", lambda: gone)
    monkeypatch.setattr(session, "_to_be_made", lambda *_: False)
    monkeypatch.setattr(paths, "WORK", tmp_path / "work")
    monkeypatch.setenv("DFKD_DATA", str(tmp_path / "data"))
    cell = ("run", "--method=template", "--data=digits", "--pair=resnet8-resnet8", "--device=cpu")
    assert bench.main([*cell, f"--teacher-weights={shutil.copy(teacher[0], tmp_path)}"]) == 1
    lines = capsys.readouterr().err.splitlines()
    expected = "bench.py: the worker left with status 3 before its last message; its last lines: no torch here"
    assert lines == ["no torch here", expected]
