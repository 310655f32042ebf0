"""What a command prints is no reason for it to end, and its exit status says what it came to."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from dfkd.paths import ROOT

# Stands for a command: what is printed in the middle of its work, a result, one of the statuses.
COMMAND = """
import sys
from dfkd import streams
streams.settle()
print("x" * 100_000, flush=True)
print("y" * 100_000, file=sys.stderr)
open(sys.argv[1], "w").write("done")
print("z")
try:
    streams.flush()
except streams.UserError:
    sys.exit(2)
sys.exit(75)
"""


def call(line: str, tmp_path, **streams) -> tuple[int, bytes]:
    """The exit status of a line of the shell in which COMMAND stands for the one above, and what it says on stderr."""
    (tmp_path / "command.py").write_text(COMMAND, encoding="utf-8")
    command = f"'{sys.executable}' '{tmp_path}/command.py' '{tmp_path}/result'"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line.replace("COMMAND", command)], env=environment, stderr=-1, **streams)
    return done.returncode, done.stderr


GONE = {
    "nobody reads": "COMMAND 2>&1 | (exec <&-; sleep 1); exit ${PIPESTATUS[0]}",
    "nobody reads on": "COMMAND 2>&1 | head -c 9 >/dev/null; exit ${PIPESTATUS[0]}",
    "errors are not read": "COMMAND 2> >(exec <&-; sleep 1) >/dev/null",
    "a full disk for errors": "COMMAND 2>/dev/full >/dev/null",
    "closed errors": "COMMAND 2>&- >/dev/null",
    "all closed": "COMMAND <&- >&- 2>&-",
}


@pytest.mark.parametrize("how", GONE)
def test_a_command_goes_on_though_nobody_reads(how, tmp_path):
    assert call(GONE[how], tmp_path) == (75, b"")
    assert (tmp_path / "result").read_text() == "done"


def test_output_that_did_not_arrive_is_told_at_the_end(tmp_path):
    status, errors = call("COMMAND >/dev/full", tmp_path)
    assert status == 2 and errors.endswith(b"y\n")
    assert (tmp_path / "result").read_text() == "done"
    with open("/dev/full", "wb") as full:
        command = [sys.executable, ROOT / "bench.py", "plan", "--shard=1/9999"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and done.stderr.endswith(b"\nbench.py: standard output: No space left on device\n")


def test_a_stream_that_another_program_made_non_blocking(tmp_path):
    read, write = os.pipe()
    os.set_blocking(write, False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    slow = subprocess.Popen(["bash", "-c", "sleep 1; wc -c"], stdin=read, stdout=subprocess.PIPE)
    assert call("COMMAND 2>/dev/null", tmp_path, stdout=write)[0] == 75
    os.close(write)
    os.close(read)
    assert int(slow.communicate()[0]) == 100_003


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_are_imported_is_no_traceback(number, tmp_path):
    slow = f"import time\nopen({str(tmp_path / 'there')!r}, 'w').close()\ntime.sleep(60)\n"
    (tmp_path / "tabulate.py").write_text(slow, encoding="utf-8")
    command, environment = [sys.executable, ROOT / "bench.py", "list"], os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    while not (tmp_path / "there").exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert (process.communicate()[1], process.returncode) == (b"", 75)
