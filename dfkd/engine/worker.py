"""The worker: a fresh interpreter that confines itself, then imports the method and runs the training loop.

It has teacher, prior, work folder and budget; no data set, no evaluator, no record. What it knows of the run arrives in
the first message, and what it comes to leaves in messages (docs/architecture.md has the picture).
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfkd.engine.channel import Channel, of_worker
from dfkd.engine.confine import confine

if TYPE_CHECKING:
    from dfkd.engine.clock import Clock
    from dfkd.engine.runner import PlainRunner

Tell = Callable[..., object]
_DEATH_OF_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def main() -> None:
    """Serve one harness, at the other end of stdin and stdout."""
    since = time.perf_counter()
    channel = of_worker()
    _, begin, _ = channel.receive()
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL, 0, 0, 0)
    with ExitStack() as stack:
        if begin["confined"]:
            folders = {key: [Path(path) for path in begin[key]] for key in ("read", "write", "deny", "names")}
            confine(**folders)
        work(begin, _asking(channel), since, stack)


def _asking(channel: Channel) -> Tell:
    """What sends a message and waits until the harness has done what it asks for."""

    def tell(kind: str, values: dict | None = None, tensors: dict | None = None) -> None:
        channel.send(kind, values, tensors)
        channel.receive()

    return tell


def work(begin: dict[str, Any], tell: Tell, since: float, stack: ExitStack) -> None:
    """Run what `begin` says; however that ends, the last message says how. A guard is sealed until `stack` is left."""
    import torch

    from dfkd.engine import distillation  # noqa: F401  the configuration names what is registered there
    from dfkd.engine.clock import Clock
    from dfkd.engine.guard import guard
    from dfkd.engine.machine import Memory
    from dfkd.engine.module import Diverged
    from dfkd.signals import Stopped

    device = torch.device(begin["device"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = begin["tf32"]
    clock, memory = Clock(device, since=since), Memory(device)
    seal = _sealing(begin, stack)
    runner: PlainRunner | None = None
    end: dict[str, Any] = {"status": "ok", "error": None, "prior": None}
    try:
        if "ask" in begin:
            seal()
            _decline(begin)
        else:
            tell("started")
            with clock.phase("setup"):
                runner = _assemble(begin, tell, clock, seal)
            loop = runner.train_loop
            stages = [
                [s.scored, s.reset_student, s.rounds * s.student_steps, s.rounds * s.synthesis_steps]
                for s in loop.stages
            ]
            tell("ready", {"prior": runner.model.method.prior, "stages": stages})
            runner.train()
            end["peak"] = memory.peak()  # of the run, not of looking at what it made
            _send_images(runner, tell)
            guard.check()
    except (distillation.Declined, Diverged, Stopped) as stop:
        end |= {"status": stop.status, "error": str(stop), "prior": getattr(stop, "prior", None)}
    except BaseException as problem:
        if "debug" in begin:
            raise
        end |= _failure(problem)
    end.setdefault("peak", memory.peak())
    try:
        end |= _facts(runner, clock) if runner else {}
    except BaseException as problem:
        end |= _failure(problem)
    tell("done", end)


def _sealing(begin: dict[str, Any], stack: ExitStack) -> Callable[[], object]:
    """What keeps Python from opening data where no kernel does: called when torch and the prior have been loaded."""
    from dfkd.engine.guard import guard

    if begin["confined"] or begin["real"] or "debug" in begin:
        return lambda: None
    guard.install()
    return lambda: stack.enter_context(guard.seal(*begin["deny"]))


def _assemble(begin: dict[str, Any], tell: Tell, clock: Clock, seal: Callable[[], object]) -> PlainRunner:
    """Everything up to the first synthesis step. Raises Declined."""
    from dfkd.engine.runner import PlainRunner
    from dfkd.engine.evaluation import on_device
    from dfkd.tasks import task

    given: dict[str, Any] = {"clock": clock, "seal": seal}
    if begin["real"]:
        on = task(begin["config"]["model"]["run"]["data"])
        given["real"] = on_device(*on.load("train", Path(begin["real"])), clock.device)
    return PlainRunner(begin["config"], Path(begin["write"][0]) / "log", given, tell=tell)


def _decline(begin: dict[str, Any]) -> None:
    """Raise Declined if the method does not apply to the task."""
    from dfkd.engine.distillation import Declined
    from dfkd.engine.method import build_method
    from dfkd.tasks import task

    method = build_method(**begin["method"])
    if reason := method.supports(task(begin["ask"])):
        raise Declined(reason, method.prior)


def _send_images(runner: PlainRunner, tell: Tell) -> None:
    """The synthetic images at hand, as bytes, for the harness to describe."""
    made = runner.model.images()
    if made is not None:
        images, labels = made
        with runner.model.clock.phase("evaluation"):
            tell("images", {}, {"images": images} | ({} if labels is None else {"labels": labels}))


def _facts(runner: PlainRunner, clock: Clock) -> dict[str, Any]:
    """What the worker counted."""
    model, loop = runner.model, runner.train_loop
    return {
        "progress": vars(model.progress),
        "teacher_images": model.ctx.teacher.images_seen,
        "shared": round(loop.shared_seconds, 4),
        "prior": model.method.prior,
        "report": _numbers(model.method.report()),
        "time": clock.report(),
    }


def _numbers(report: object) -> dict[str, float]:
    """What the method says of its run, if that is finite numbers by name. Raises ValueError."""
    import math

    numbers = report.values() if isinstance(report, dict) else [None]
    good = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if not (good and all(isinstance(name, str) for name in report)):
        raise ValueError(f"the method's report() is to give finite numbers by name, not {report!r:.200}")
    return report


def _failure(problem: BaseException) -> dict[str, Any]:
    """An end by an error, told in one line; a traceback of the method's own lines goes to stderr where one helps."""
    from dfkd.engine.guard import DataFreeViolation
    from dfkd.engine.machine import out_of_memory
    from dfkd.errors import CannotWrite, UserError

    kind, text = "failed", f"the method raised {type(problem).__name__}: {problem}"
    if isinstance(problem, Exception) and out_of_memory(problem):
        text = f"out of memory: {str(problem).splitlines()[0]}"
    elif isinstance(problem, OSError) and problem.errno in (27, 28, 122):  # too large, no space, quota
        kind, text = "unwritable", f"cannot write {problem.filename or 'a file'}: {problem.strerror}"
    elif isinstance(problem, CannotWrite | UserError | DataFreeViolation):
        names = {CannotWrite: "unwritable", DataFreeViolation: "violation"}
        kind, text = names.get(type(problem), "refused"), str(problem)
    elif isinstance(problem, Exception):
        text = str(problem) or type(problem).__name__
        _show_own_lines(problem)
    return {"status": "failed", "kind": kind, "error": text}


def _show_own_lines(problem: Exception) -> None:
    """The traceback, less the lines of harness and libraries below the method's."""
    ours = os.path.dirname(os.path.abspath(__file__))
    frames = traceback.extract_tb(problem.__traceback__)
    shown = [f for f in frames if not (f.filename.startswith((ours, "<")) or f"{os.sep}mmengine{os.sep}" in f.filename)]
    print("Traceback (most recent call last):", file=sys.stderr)
    print("".join(traceback.format_list(shown)), end="", file=sys.stderr)
    print("".join(traceback.format_exception_only(problem)), end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
