"""The harness: it owns test data, evaluator, clock and budget, and starts and answers the worker, which has none.

Everything that a worker says is checked here against what the harness itself fixed or measured.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dfkd import paths, teachers
from dfkd.engine import confine, diagnostics
from dfkd.engine.channel import Broken, Channel, Closed
from dfkd.engine.configuration import STATE
from dfkd.engine.context import Teacher
from dfkd.engine.evaluation import Batches, confusion_of
from dfkd.engine.guard import DataFreeViolation
from dfkd.engine.journal import Journal
from dfkd.errors import CannotWrite, UserError
from dfkd.networks import initialise
from dfkd.networks.normalised import Normalised
from dfkd.signals import Stopped, stopping
from dfkd.tasks.base import InputSpec

if TYPE_CHECKING:
    from dfkd.tables.resolve import Resolved

CACHES = {
    **{"HOME": "home", "XDG_CACHE_HOME": "cache", "MPLCONFIGDIR": "matplotlib", "TMPDIR": "tmp", "TORCH_HOME": "torch"},
    **{"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "HF_HOME": "huggingface"},
    **{"TORCH_EXTENSIONS_DIR": "extensions", "CUDA_CACHE_PATH": "cuda"},
}
LAST_LINES = 5  # of stderr, told of a worker that ends without a word
GRACE = 10.0  # seconds in which a worker whose last message has been heard may end by itself


def is_terminal() -> bool:
    """Whether somebody sees a live line of progress."""
    return sys.stderr.isatty()


class Failed(Exception):
    """A run failed for a reason that one line tells; no traceback would say more."""


class Judge:
    """Answers a worker's messages: evaluates its student at the moments fixed here, and checks what it counts."""

    def __init__(self, resolved: Resolved, teacher: tuple[Path, dict], prior_seconds: float, journal: Journal) -> None:
        self.resolved, self.weights, self.card, self.journal = resolved, teacher[0], teacher[1], journal
        self.prior_seconds, self.end, self.kind = prior_seconds, None, None
        self.diagnostics: dict | None = None
        self.student: Normalised | None = None
        self.curves: Any = None
        self._moments: set[int] = set()
        self._scored = 0

    def load(self, root: Path, device: torch.device) -> None:
        """What evaluations need; the worker starts meanwhile."""
        run = self.resolved.run
        self.test = Batches(*self.resolved.task.load("test", root), device)
        self.spec = InputSpec.from_dict(self.card["spec"])
        self.hash = teachers.file_digest(self.weights)
        self.teacher = Teacher(teachers.load(self.weights, run.teacher, self.spec), self.spec)
        self.teacher.to(device, memory_format=torch.channels_last)
        self._student = Normalised(initialise(run.student, self.spec, 0), self.spec)
        self._student.to(device, memory_format=torch.channels_last)

    def answer(self, kind: str, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Do what a message asks for. Raises Failed where it is not what this run may send."""
        handler = getattr(self, f"_on_{kind}", None)
        if handler is None or (self.end is not None):
            raise Failed(f"the worker sent {kind!r}, which is no message of a run that goes on")
        try:
            handler(values, tensors)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise Failed(f"the worker's message {kind!r} makes no sense: {str(error).splitlines()[0]:.200}") from None

    def _on_started(self, values: dict, tensors: dict) -> None:
        self.journal.free["start"] += self.journal.total

    def _on_ready(self, values: dict, tensors: dict) -> None:
        granted, stages = self.resolved.config["training"]["steps"], values["stages"]
        self.kind = str(values["prior"])
        self._scored = sum(steps for scored, _, steps, _ in stages if scored)
        if self._scored != granted and not (self.resolved.entry.reference and self._scored == 0):
            raise Failed(f"{self._scored} scored student steps are scheduled, the protocol grants {granted}")
        taught = False
        for scored, reset, steps, _ in stages:
            taught = (taught and not reset) or (steps > 0 and not scored)
            if taught and scored and steps:
                raise Failed("scored student steps follow unscored ones without a student reset")
        count = self.resolved.config["evaluations"]
        self._moments = {round(self._scored * i / count) for i in range(1, count + 1)} if count else set()

    def _on_resumed(self, values: dict, tensors: dict) -> None:
        self.journal.resumed(int(values["save"]))

    def _on_saving(self, values: dict, tensors: dict) -> None:
        self.journal.saving(int(values["save"]))

    def _on_saved(self, values: dict, tensors: dict) -> None:
        state = self.journal.path.parent / STATE
        self.journal.saved(state.stat().st_size if state.is_file() else 0)

    def _on_student(self, values: dict, tensors: dict[str, torch.Tensor]) -> None:
        step, curve = int(values["step"]), self.journal.curve
        due = min((moment for moment in self._moments if not curve or moment > curve[-1]["step"]), default=None)
        if step != due:
            raise Failed(f"a student was sent for evaluation at step {step}, due is {due}")
        seconds = min(max(0.0, float(values["seconds"])), self.journal.total + self.prior_seconds)
        begun = time.perf_counter()
        if values.get("teacher") and self.resolved.entry.reference:
            network: torch.nn.Module = self.teacher
        else:
            network = self.student = self._student
            network.load_state_dict(tensors)
        matrix = confusion_of(network, self.test, self.spec.classes)
        value = self.resolved.metric.of(matrix.cpu())
        curve.append({"step": step, "seconds": round(seconds, 4), "value": round(value, 6)})
        if self.test.images.device.type == "cuda":
            torch.cuda.empty_cache()
        self.journal.free["evaluation"] += time.perf_counter() - begun
        if not sys.stderr.isatty():
            print(f"{self.resolved.run.name} · step {step} · {self.resolved.metric.text(value)}", file=sys.stderr)
        if self.curves:
            self.curves.add_scalar("value", value, step)

    def _on_images(self, values: dict, tensors: dict[str, torch.Tensor]) -> None:
        begun, device = time.perf_counter(), self.test.images.device
        images, labels = tensors["images"].to(device), tensors.get("labels")
        real = diagnostics.features_of(self.teacher, self.test.images, self.test.size)
        labels = None if labels is None else labels.to(device)
        self.diagnostics = diagnostics.describe(self.teacher, images, labels, real, self.test.size)
        self.journal.free["evaluation"] += time.perf_counter() - begun

    def _on_done(self, values: dict, tensors: dict) -> None:
        self.end = values

    def check(self) -> None:
        """Refuse an end whose counts or seconds are not those that the harness has. Raises Failed."""
        try:
            self._check()
        except (KeyError, TypeError, AttributeError) as error:
            raise Failed(f"the worker's last message makes no sense: {error}") from None

    def _check(self) -> None:
        end, curve = self.end, self.journal.curve
        steps = end["progress"]["student_steps"]
        if steps != self._scored or (curve[-1]["step"] if curve else None) != max(self._moments, default=None):
            raise Failed(f"{steps} student steps were taken and {len(curve)} evaluations made of {self._scored} steps")
        if teachers.file_digest(self.weights) != self.hash:
            raise DataFreeViolation("the teacher's file has changed")
        total, free, said = self.journal.total, self.journal.free, end["time"]
        billed = self.prior_seconds if "diffusion" in self.kind else 0.0
        slack = 0.02 * total + 0.3
        if abs(said["total"] - billed - total) > slack:
            raise Failed(
                f"the worker's seconds add up to {said['total']:.1f}, the harness counted {total + billed:.1f}"
            )
        if said["prior"] < billed - 1e-3:
            raise Failed("the seconds of the diffusion prior are missing")
        if said["evaluation"] > free["evaluation"] + slack + 0.05 * len(curve):
            raise Failed(f"{said['evaluation']:.1f} s are called evaluation, which took {free['evaluation']:.1f} s")
        if said["bookkeeping"] > free["start"] + free["saves"] + 0.05 * total + 2:
            raise Failed(f"{said['bookkeeping']:.1f} s are called bookkeeping, more than a run can need")


class Worker:
    """The other process: started, listened to, asked to stop, ended."""

    def __init__(self, begin: dict[str, Any], inside: Path, patience: float) -> None:
        self.patience, self.reason, self._heard = patience, None, queue.Queue()
        environment = os.environ | {name: str(inside / folder) for name, folder in CACHES.items()}
        environment |= {"PYTHONPATH": str(paths.ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        environment["COLUMNS"] = str(shutil.get_terminal_size().columns)
        for folder in CACHES.values():
            (inside / folder).mkdir(parents=True, exist_ok=True)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-P", "-m", "dfkd.engine.worker"]
        self._process = subprocess.Popen(command, **pipes, env=environment, cwd=inside, start_new_session=True)
        self._channel = Channel(self._process.stdout, self._process.stdin)
        self._lines: deque[bytes] = deque(maxlen=LAST_LINES)
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
        while content := self._process.stderr.read1(65536):
            sys.stderr.write(content.decode("utf-8", "replace"))
            sys.stderr.flush()
            self._lines.extend(line for line in content.splitlines() if line.strip())

    def say(self, kind: str, values: dict | None = None) -> None:
        try:
            self._channel.send(kind, values)
        except Closed:
            pass  # it is heard of where its next message is waited for

    def ask_to_stop(self, reason: str) -> None:
        """At its next safe point; asked twice, at once."""
        if self.reason is None:
            self._process.send_signal(getattr(signal, reason.split()[-1]))
        else:
            self.end()
        self.reason = reason

    def next(self) -> tuple[str, dict, dict]:
        """Its next message. Raises Failed for a worker that is dead or silent, Stopped if it was asked to be."""
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            try:
                heard = self._heard.get(timeout=0.5)
            except queue.Empty:
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
        code = self._process.wait(GRACE)
        self._threads[1].join(GRACE)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"left with status {code}"
        return f"{how} before its last message{self._told()}"

    def _told(self) -> str:
        lines = [line.decode("utf-8", "replace") for line in self._lines]
        return f"; its last lines: {' | '.join(lines)}" if lines else ""

    def end(self) -> None:
        """It, and all that it started, is no more."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self._process.wait()
        self._threads[1].join(GRACE)


def begin(
    device: torch.device, tf32: bool, inside: Path, reads: list[Path], root: Path, real: bool, **what: Any
) -> dict[str, Any]:
    """The first message: what the worker may touch and what it shall do."""
    code = [paths.ROOT / "dfkd", *paths.METHODS]
    denied = [] if real else [root, *confine.bundled()]
    return {
        "confined": confine.version() > 0,
        "read": [str(path.resolve()) for path in (*code, *reads, *([root] if real else []))],
        "write": [str(inside.resolve())],
        "deny": [str(path) for path in denied],
        "names": [str(paths.ROOT)],
        "real": str(root) if real else None,
        "device": str(device),
        "tf32": tf32,
        **json.loads(json.dumps(what)),
    }


def serve(worker: Worker, judge: Judge) -> None:
    """Answer a worker until its last message. Raises what ended it, if that was not the method's choice."""
    with stopping(worker.ask_to_stop):
        while judge.end is None:
            kind, values, tensors = worker.next()
            judge.answer(kind, values, tensors)
            worker.say("go")
    raise_failure(judge.end)


def serve_here(begin: dict[str, Any], judge: Judge) -> None:
    """Harness and worker in one process, unconfined, with breakpoints and full tracebacks, for who writes a method."""
    from dfkd.engine.worker import work

    (Path(begin["write"][0])).mkdir(parents=True, exist_ok=True)

    def tell(kind: str, values: dict | None = None, tensors: dict | None = None) -> None:
        judge.answer(kind, values or {}, tensors or {})

    with ExitStack() as stack:
        work({**begin, "debug": True}, tell, time.perf_counter(), stack)


def raise_failure(end: dict[str, Any]) -> None:
    """Raise the error that a last message tells of, if any."""
    if end.get("status") == "failed":
        kinds = {"refused": UserError, "unwritable": CannotWrite, "violation": DataFreeViolation}
        raise kinds.get(end.get("kind"), Failed)(str(end.get("error")))
