"""The worker: a fresh interpreter that confines itself, then imports the method and runs the training loop.

It has teacher, prior, work folder and budget; no data set, no evaluator, no record. What it knows of the run arrives in
the first message, and what it comes to leaves in messages (docs/architecture.md has the picture).
"""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfkd.engine.channel import Channel, Closed, of_worker
from dfkd.engine.confine import confine

if TYPE_CHECKING:
    from torch import Tensor

    from dfkd.engine.clock import Clock
    from dfkd.engine.runner import PlainRunner

Tell = Callable[..., Any]
_DEATH_OF_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def main() -> None:
    """Serve one harness, at the other end of stdin and stdout."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as SIGTERM: until the loop runs there is nothing to keep
    channel = of_worker()
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL, 0, 0, 0)
    from dfkd.engine import distillation, runner  # noqa: F401  now, while the harness gets ready

    try:
        _, begin, _ = channel.receive()
    except Closed:
        return  # the harness found that there is nothing to run
    os.environ.update(begin["environment"])
    tempfile.tempdir = None  # found anew
    os.chdir(begin["write"][0])
    if begin["isolation"] == "landlock":
        if _threads() > 1:
            raise OSError("a thread is there already that would not be confined")
        folders = {key: [Path(path) for path in begin[key]] for key in ("read", "write", "deny", "names")}
        if not confine(**folders):
            raise OSError("this process cannot be confined, as was promised")
    with ExitStack() as stack:
        work(begin, _asking(channel), stack)


def _threads() -> int:
    """Those of this process that the kernel knows."""
    return len(os.listdir("/proc/self/task"))


def _asking(channel: Channel) -> Tell:
    """What sends a message, waits until the harness has done what it asks for, and gives the tensors it answers."""

    def tell(kind: str, values: dict | None = None, tensors: dict | None = None) -> dict[str, Tensor]:
        channel.send(kind, values, tensors)
        return channel.receive()[2]

    return tell


def work(begin: dict[str, Any], tell: Tell, stack: ExitStack) -> None:
    """Run what `begin` says; however that ends, the last message says how. A guard is sealed until `stack` is left."""
    import torch

    from dfkd.engine import distillation, machine, runner  # noqa: F401  a configuration names what is registered there
    from dfkd.engine.clock import Clock

    device = torch.device(begin["device"])
    machine.allow_tf32(begin["precision"])
    clock, memory = Clock(device, since=begin["since"]), machine.Memory(device)
    made: list[PlainRunner] = []
    end = _told(begin, lambda: _run(begin, tell, clock, _sealing(begin, stack), made))
    end["peak"] = memory.peak()  # of the run, not of looking at what it made
    if made:
        counts = _told(begin, lambda: _counts(made[0], clock))
        end = end | counts if end["status"] == "ok" else counts | end
        if end["status"] == "ok":
            end |= _told(begin, lambda: _send_result(made[0], tell)) | {"time": clock.report()}
    tell("done", end)


def _told(begin: dict[str, Any], action: Callable[[], dict | None]) -> dict[str, Any]:
    """What the action gives, and how it ended."""
    from dfkd.engine.distillation import Declined
    from dfkd.engine.module import Diverged
    from dfkd.signals import Stopped

    try:
        return {"status": "ok", "error": None, **(action() or {})}
    except (Declined, Diverged, Stopped) as stop:
        return {"status": stop.status, "error": str(stop)} | ({"prior": stop.prior} if hasattr(stop, "prior") else {})
    except BaseException as problem:
        if isinstance(problem, KeyboardInterrupt) and not begin["apart"]:
            raise  # of the user, who has no other process to stop
        return _failure(problem, in_full=not begin["apart"])


def _run(begin: dict[str, Any], tell: Tell, clock: Clock, seal: Callable[[], object], made: list[PlainRunner]) -> None:
    """All of a run; its Runner, once there is one, goes into `made`."""
    from dfkd.engine.guard import guard

    if "ask" in begin:
        seal()
        _decline(begin)
        return
    real: dict[str, Tensor] = tell("started")
    with clock.phase("setup"):
        made.append(runner := _assemble(begin, tell, clock, seal, real))
    stages = [[s.scored, s.reset_student, s.rounds * s.student_steps] for s in runner.train_loop.stages]
    tell("ready", {"prior": runner.model.method.prior, "stages": stages})
    runner.train()
    runner.model.check_teacher()
    guard.check()


def _sealing(begin: dict[str, Any], stack: ExitStack) -> Callable[[], object]:
    """What keeps Python from opening data where no kernel does: called when torch and the prior have been loaded."""
    from dfkd.engine.guard import guard

    if begin["isolation"] == "landlock":
        return lambda: None
    guard.install()
    return lambda: stack.enter_context(guard.seal(*begin["deny"]))


def _assemble(
    begin: dict[str, Any], tell: Tell, clock: Clock, seal: Callable[[], object], real: dict[str, Tensor]
) -> PlainRunner:
    """Everything up to the first synthesis step; `real` is the training split, for reference rows. Raises Declined."""
    from dfkd.engine.evaluation import on_device
    from dfkd.engine.runner import PlainRunner

    given: dict[str, Any] = {"clock": clock, "seal": seal}
    if real:
        given["real"] = on_device(real["images"].numpy(), real["labels"].numpy(), clock.device)
    return PlainRunner(begin["config"], Path(begin["write"][0]) / "log", given, tell=tell)


def _decline(begin: dict[str, Any]) -> None:
    """Raise Declined if the method does not apply to the task."""
    from dfkd.engine.distillation import Declined
    from dfkd.engine.method import build_method
    from dfkd.tasks import task

    method = build_method(**begin["method"])
    if reason := method.supports(task(begin["ask"])):
        raise Declined(reason, method.prior)


def _send_result(runner: PlainRunner, tell: Tell) -> None:
    """The student once more, which the harness of a resumed run has not seen, and images for it to describe."""
    from dfkd.engine import diagnostics, samples

    model, buffer = runner.model, runner.model.ctx.buffer
    with model.clock.phase("evaluation"):
        tensors = {f"student.{name}": weight for name, weight in model.weights().items()}
        if made := model.images():
            images, labels = diagnostics.chosen(*made)
            newest = buffer.newest(samples.COUNT) if buffer.size else images[: samples.COUNT]
            tensors |= {"images": images, "newest": newest} | ({} if labels is None else {"labels": labels})
        tell("result", {}, tensors)


def _counts(runner: PlainRunner, clock: Clock) -> dict[str, Any]:
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


def _numbers(report: Any) -> dict[str, float]:
    """What the method says of its run, if that is finite numbers by name. Raises ValueError."""
    numbers = report.values() if isinstance(report, dict) else [None]
    good = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if not (good and all(isinstance(name, str) for name in report)):
        raise ValueError(f"the method's report() is to give finite numbers by name, not {report!r:.200}")
    return report


def _failure(problem: BaseException, in_full: bool) -> dict[str, Any]:
    """An end by an error, told in one line; a traceback goes to stderr where one helps."""
    from dfkd.engine.guard import DataFreeViolation
    from dfkd.engine.machine import out_of_memory
    from dfkd.errors import FULL, CannotWrite, UserError

    kind, text = "failed", f"the method raised {type(problem).__name__}: {problem}"
    if isinstance(problem, Exception) and out_of_memory(problem):
        text = f"out of memory: {str(problem).splitlines()[0]}"
    elif isinstance(problem, OSError) and problem.errno in FULL:
        kind, text = "unwritable", f"cannot write {problem.filename or 'a file'}: {problem.strerror}"
    elif isinstance(problem, CannotWrite | UserError | DataFreeViolation):
        names = {CannotWrite: "unwritable", DataFreeViolation: "violation"}
        kind, text = names.get(type(problem), "refused"), str(problem)
    elif isinstance(problem, Exception):
        text = str(problem) or type(problem).__name__
        _show(problem, in_full)
    return {"status": "failed", "kind": kind, "error": text}


def _show(problem: Exception, in_full: bool) -> None:
    """The traceback; unless it is wanted in full, of the method's lines and what they call, without the engine's."""
    frames = traceback.extract_tb(problem.__traceback__)
    ours = (os.path.dirname(os.path.abspath(__file__)) + os.sep, "<")
    between = f"{os.sep}mmengine{os.sep}"
    shown = [f for f in frames if in_full or not (f.filename.startswith(ours) or between in f.filename)]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(shown)]
    print(*lines, *traceback.format_exception_only(problem), sep="", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
