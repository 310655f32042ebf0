"""The first run of an account, and what runs under the seal at all: no home, no cache, no tool is taken for granted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfkd.engine.guard import guard
from dfkd.paths import ROOT
from tests.conftest import BUDGET, PAIR, TINY

CHILD = """
import sys
from pathlib import Path
import bench
from dfkd import paths
paths.teachers, paths.RESULTS, paths.WORK = (lambda: Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[2]) / "work"
sys.exit(bench.main(sys.argv[3:]))
"""
# HOME, or None; whether git, fc-list and all else are there; what keeps the method from real data, for the hook
# alone refuses processes.
HOMES = {
    "an empty home": ("{}", True, "audit-hook"),
    "no home": (None, True, "landlock"),
    "an unwritable home, no tools": ("/dev/null", False, "audit-hook"),
}


@pytest.mark.slow
@pytest.mark.parametrize("home", HOMES)
def test_the_first_run_of_an_account(home, teacher, tmp_path):
    from dfkd.artifacts import TEACHER

    own, (place, tools, isolation) = tmp_path / "teachers" / teacher[0].name, HOMES[home]
    own.parent.mkdir()
    own.write_bytes(teacher[0].read_bytes())
    TEACHER.write(own, teacher[1])
    (tmp_path / "home").mkdir()
    kept = ("LANG", "OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"PATH": os.environ["PATH"] if tools else str(tmp_path), "DFKD_ISOLATION": isolation}
    if place:
        environment["HOME"] = place.format(tmp_path / "home")
    changes = [f"--set={change}" for change in (*TINY["fast"], *BUDGET)]
    cell = ["run", "--method=fast", "--data=digits", f"--pair={PAIR}", "--device=cpu", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-c", CHILD, str(own.parent), str(tmp_path), *cell, *changes, "--tensorboard"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ok: top1" in done.stdout
    assert list((tmp_path / "work").rglob("vis_data/events.*"))


METHODS = ("fast", "ssdkd", "cmi", "deepinv", "dfad", "dda", "diffdfkd", "template", "kd-noise")


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """What is written outside the work folder, and which processes are asked for, while the guard is sealed."""
    seen, folder = [], str(tmp_path_factory.getbasetemp())

    def audit(event: str, arguments: tuple) -> None:
        if not guard.sealed:
            return
        if event == "subprocess.Popen":
            seen.append(f"{event} {arguments[0]}")
        elif event == "open" and isinstance(arguments[0], str | bytes | Path):
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else False
            if writes and not os.path.realpath(os.fsdecode(path)).startswith((folder, "/dev/", "/proc/")):
                seen.append(f"open {os.fsdecode(path)}")
        elif event == "os.mkdir" and not os.path.realpath(arguments[0]).startswith(folder):
            seen.append(f"{event} {arguments[0]}")

    sys.addaudithook(audit)
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_under_the_seal_nothing_is_started_and_no_cache_is_written(method, tiny, execute, caches):
    caches.clear()
    assert execute(tiny(method))["status"] == "ok"
    assert [what for what in caches if "__pycache__" not in what] == []
