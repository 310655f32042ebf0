"""What a worker does once it is confined: it builds the run, trains, and says what that came to and how it ended."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd.engine import diagnostics, machine, returned, samples
from dfkd.engine.clock import Clock
from dfkd.engine.distillation import Declined
from dfkd.engine.evaluation import on_device
from dfkd.engine.guard import DataFreeViolation, guard
from dfkd.engine.method import build_method
from dfkd.engine.module import Diverged
from dfkd.engine.runner import PlainRunner
from dfkd.errors import FULL, CannotWrite, UserError
from dfkd.signals import Stopped
from dfkd.tasks import task

AT_FAULT = "the method is at fault"
Tell = Callable[..., dict[str, Tensor]]  # tell(kind, values, tensors): the tensors that it is answered


def work(begin: dict[str, Any], tell: Tell, stack: ExitStack) -> None:
    """Run what `begin` says; however that ends, the last message says how. A guard is sealed until `stack` is left."""
    it = _Work(begin, tell, stack)
    end = it.told(it.ask if "ask" in begin else it.run)
    end["peak"] = it.memory.peak()  # of the run, not of looking at what it made
    if it.runner is not None:
        counts = it.told(it.counts)
        end = end | counts if end["status"] == "ok" else counts | end
        if end["status"] == "ok":
            end |= it.told(it.send_result) | {"time": it.clock.report()}
    tell("done", end)


class _Work:
    """One run in a worker; `runner` is there once it is built."""

    def __init__(self, begin: dict[str, Any], tell: Tell, stack: ExitStack) -> None:
        self.begin, self.tell, self._stack = begin, tell, stack
        machine.allow_tf32(begin["precision"])
        device = torch.device(begin["device"])
        self.clock, self.memory = Clock(device, since=begin["since"]), machine.Memory(device)
        self.runner: PlainRunner | None = None

    def told(self, action: Callable[[], dict | None]) -> dict[str, Any]:
        """What the action gives, and how it ended."""
        apart = self.begin["apart"]
        try:
            return {"status": "ok", "error": None, **(action() or {})}
        except Declined as reason:
            return {"status": reason.status, "error": str(reason), "prior": reason.prior}
        except (Diverged, Stopped) as stop:
            return {"status": stop.status, "error": str(stop)}
        except BaseException as problem:
            if isinstance(problem, KeyboardInterrupt) and not apart:
                raise  # of the user, who has no other process to stop
            return _failure(problem, in_full=not apart)

    def _seal(self) -> None:
        """Where no kernel does, keep Python from opening data from now on: torch and the prior have been loaded."""
        if self.begin["isolation"] != "landlock":
            self._stack.enter_context(guard.seal(*self.begin["deny"]))

    def ask(self) -> None:
        """Raise Declined if the method does not apply to the task."""
        self._seal()
        method = build_method(**self.begin["method"])
        try:
            reason = returned.reason(method.supports(task(self.begin["ask"])))
        except returned.WrongReturn as error:  # told before a teacher is trained for it
            raise UserError(f"{AT_FAULT}: {error}") from error
        if reason:
            raise Declined(reason, method.prior)

    def run(self) -> None:
        """From the network's first weights to the last step; the start of the process is over. Raises what ends it."""
        real = self.tell("started")  # the training split, for reference rows that declare it
        with self.clock.phase("setup"):
            given: dict[str, Any] = {"clock": self.clock, "seal": self._seal}
            if real:
                given["real"] = on_device(real["images"].numpy(), real["labels"].numpy(), self.clock.device)
            log = Path(self.begin["write"][0]) / "log"
            self.runner = runner = PlainRunner(self.begin["config"], log, given, tell=self.tell)
        model = runner.model
        stages = [[s.scored, s.reset_student, s.rounds * s.student_steps] for s in model.stages]
        self.tell("ready", {"prior": model.prior, "stages": stages})
        runner.train()
        model.check_teacher()
        guard.check()

    def counts(self) -> dict[str, Any]:
        """What the worker counted."""
        assert self.runner is not None
        model = self.runner.model
        return {
            "progress": vars(model.progress),
            "teacher_images": model.ctx.teacher.images_seen,
            "shared": round(self.runner.train_loop.shared_seconds, 4),
            "prior": model.prior,
            "report": returned.report(model.method.report()),
            "time": self.clock.report(),
        }

    def send_result(self) -> None:
        """The student once more, which the harness of a resumed run has not seen, and images for it to describe."""
        assert self.runner is not None
        model = self.runner.model
        with self.clock.phase("evaluation"):
            tensors = {f"student.{name}": weight for name, weight in model.weights().items()}
            if made := model.images():
                images, labels = diagnostics.chosen(*made)
                buffer = model.ctx.buffer
                newest = buffer.newest(samples.COUNT) if buffer.size else images[: samples.COUNT]
                tensors |= {"images": images, "newest": newest} | ({} if labels is None else {"labels": labels})
            self.tell("result", {}, tensors)


def _failure(problem: BaseException, in_full: bool) -> dict[str, Any]:
    """An end by an error, told in one line; a traceback goes to stderr where one helps."""
    kind, text = "failed", f"the method raised {type(problem).__name__}: {problem}"
    if isinstance(problem, Exception) and machine.out_of_memory(problem):
        text = f"out of memory: {str(problem).splitlines()[0]}"
    elif isinstance(problem, OSError) and problem.errno in FULL:
        kind, text = "unwritable", f"cannot write {problem.filename or 'a file'}: {problem.strerror}"
    elif isinstance(problem, CannotWrite | UserError | DataFreeViolation):
        names = {CannotWrite: "unwritable", DataFreeViolation: "violation"}
        kind, text = names.get(type(problem), "refused"), str(problem)
    elif isinstance(problem, returned.WrongReturn):
        text = f"{AT_FAULT}: {problem}"
    elif isinstance(problem, Exception):
        text = str(problem) or type(problem).__name__
        if isinstance(problem, PermissionError) and problem.filename and not in_full:
            text += ": data and records are closed to a method, which writes to its own folder, HOME and TMPDIR only"
        _show(problem, in_full)
    if in_full and isinstance(problem.__cause__, Exception):
        _show(problem.__cause__, in_full)
    return {"status": "failed", "kind": kind, "error": text}


def _show(problem: Exception, in_full: bool) -> None:
    """The traceback; unless it is wanted in full, of the method's lines and what they call, without the engine's."""
    frames = traceback.extract_tb(problem.__traceback__)
    ours = (os.path.dirname(os.path.abspath(__file__)) + os.sep, "<")
    between = f"{os.sep}mmengine{os.sep}"
    shown = [f for f in frames if in_full or not (f.filename.startswith(ours) or between in f.filename)]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(shown)]
    print(*lines, *traceback.format_exception_only(problem), sep="", end="", file=sys.stderr, flush=True)
