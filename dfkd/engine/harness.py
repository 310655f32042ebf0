"""The harness's hold on the worker: it is started, listened to, asked to stop, ended."""

from __future__ import annotations

import io
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from dfkd import paths
from dfkd.engine import confine
from dfkd.engine.channel import Broken, Channel, Closed
from dfkd.engine.evaluator import Evaluator, Failed, raise_failure
from dfkd.engine.start import python_path, start
from dfkd.signals import Stopped, signal_of

# Everything that would outlive a run lies in its own folder.
CACHES = {
    **{"HOME": "home", "XDG_CACHE_HOME": "cache", "MPLCONFIGDIR": "matplotlib", "TMPDIR": "tmp", "TORCH_HOME": "torch"},
    **{"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "HF_HOME": "huggingface"},
    **{"TORCH_EXTENSIONS_DIR": "extensions", "CUDA_CACHE_PATH": "cuda"},
}
LAST_LINES = 5  # of stderr, told of a worker that ends without a word
LOOK = 0.5  # seconds between two looks at whether a worker hangs
ONCE = 0.5  # seconds within which two signals are one
GRACE = 10.0  # seconds in which a worker whose last message has been heard may end by itself


class Worker:
    """The other process, whose first message is `begin`; started now unless it was.

    It hangs if for `patience` seconds it sends no message, whatever it writes to stderr.
    """

    def __init__(self, begin: dict[str, Any], patience: float, process: subprocess.Popen[bytes] | None = None) -> None:
        self.patience = patience
        self.reason: str | None = None
        self._asked = 0.0  # when, by `time.monotonic`
        self._heard: queue.Queue = queue.Queue()
        self._silent = 0.0  # seconds, counted here: a clock goes on while this process is stopped
        for folder in begin["environment"].values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._process = process or start()
        assert self._process.stdin and self._process.stdout  # as asked for
        self._channel = Channel(self._process.stdout, self._process.stdin)
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._listen, self._pass_on)]
        for thread in self._threads:
            thread.start()
        self.say("begin", begin)

    def _listen(self) -> None:
        try:
            while True:
                self._heard.put(self._channel.receive())
        except Broken as end:
            self._heard.put(end)

    def _pass_on(self) -> None:
        """What the worker writes to stderr appears on ours, and its last lines are kept."""
        errors = cast(io.BufferedReader, self._process.stderr)
        while content := errors.read1(65536):
            sys.stderr.write(content.decode("utf-8", "replace"))
            sys.stderr.flush()
            lines = content.decode("utf-8", "replace").splitlines()
            self._lines.extend(line for line in lines if line.strip() and " · " not in line)  # progress tells nothing

    def say(self, kind: str, values: dict | None = None, tensors: dict | None = None) -> None:
        with suppress(Closed):  # it is heard of where its next message is waited for
            self._channel.send(kind, values, tensors)

    def ask_to_stop(self, reason: str) -> None:
        """At its next safe point; asked twice, at once. `reason` is a line of `stopping`.

        Two within `ONCE` are one: Ctrl-C in a terminal, say, which the command that runs several passes on, too.
        """
        asked, self.reason = self.reason, reason
        if asked is None:
            self._asked = time.monotonic()
            self._process.send_signal(signal_of(reason))
        elif time.monotonic() - self._asked > ONCE:
            self.end()

    def next(self) -> tuple[str, dict, dict]:
        """Its next message. Raises Failed for a worker that is dead or silent, Stopped if it was asked to be."""
        self._silent = 0.0
        while self._silent < self.patience:
            try:
                heard = self._heard.get(timeout=LOOK)
            except queue.Empty:
                self._silent += LOOK
                continue
            if not isinstance(heard, Broken):
                return heard
            if not isinstance(heard, Closed):
                raise Failed(f"the worker sent {heard}")
            if self.reason is not None:
                raise Stopped(self.reason)
            raise Failed(f"the worker {self._how_it_ended()}")
        raise Failed(f"the worker said nothing for {self.patience / 60:.0f} min{self._told()}")

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return f"closed its channel{self._told()}"
        self._threads[1].join(GRACE)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"left with status {code}"
        return f"{how} before its last message{self._told()}"

    def _told(self) -> str:
        return f"; its last lines: {' | '.join(self._lines)}" if self._lines else ""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile it and all that it started stand still: seconds that are free of charge are none to work in.

        On Linux alone: elsewhere nobody would wake it, or end it, after this process was killed.
        """
        stop, go = (signal.SIGSTOP, signal.SIGCONT) if sys.platform == "linux" else (0, 0)
        self._signal(stop)
        try:
            yield
        finally:
            self._signal(go)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def end(self) -> None:
        """It, and all that it started, is no more."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._threads[1].join(GRACE)


def begin(
    inside: Path, reads: Iterable[Path], root: Path, apart: bool, private: Iterable[Path] = (), **what: Any
) -> dict[str, Any]:
    """The first message: what the worker may touch, and what it shall do.

    `inside` is its folder, `root` that of the data; `apart` is whether it is a process of its own. In `private` folders
    it may read nothing, as in those of other runs, their students and scores.
    """
    code = [paths.ROOT / "dfkd", *paths.METHODS, *python_path()]
    return {
        "isolation": confine.isolation() if apart else "audit-hook",
        "apart": apart,
        "read": [str(path.resolve()) for path in (*code, *reads)],
        "write": [str(inside)],
        "deny": [str(root), *confine.bundled()],
        "names": [str(paths.ROOT)],
        "private": [str(path) for path in (paths.WORK, paths.RESULTS, *private)],
        "environment": {name: str(inside / folder) for name, folder in CACHES.items()},
        **what,
    }


def serve(worker: Worker, evaluator: Evaluator) -> None:
    """Answer a worker until its last message. Raises what ended it, if that was not the method's choice."""
    while not evaluator.measured.end:
        message = worker.next()
        with worker.held():
            answer = evaluator.answer(*message)
        worker.say("go", tensors=answer)
    if worker.reason is not None and evaluator.measured.status == "failed":
        raise Stopped(worker.reason)
    raise_failure(evaluator.measured.end)


def serve_here(begin: dict[str, Any], evaluator: Evaluator) -> None:
    """Harness and worker in one process, for who writes a method: breakpoints work, tracebacks are whole."""
    from dfkd.engine.work import work

    Path(begin["write"][0]).mkdir(parents=True, exist_ok=True)

    def tell(kind: str, values: dict | None = None, tensors: dict | None = None) -> dict[str, Any]:
        return evaluator.answer(kind, values or {}, tensors or {})

    with ExitStack() as stack:
        work(begin, tell, stack)
        raise_failure(evaluator.measured.end)
