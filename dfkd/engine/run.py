"""One run from start to record: the one way in for whoever wants a cell measured."""

from __future__ import annotations

import errno
import math
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from dfkd import artifacts, paths, priors, records
from dfkd.engine import configuration, machine
from dfkd.engine.clock import Clock
from dfkd.engine.distillation import Declined
from dfkd.engine.evaluation import Batches, on_device
from dfkd.engine.guard import guard
from dfkd.engine.method import Method, build_method
from dfkd.engine.module import Diverged
from dfkd.engine.record import Facts, Measured
from dfkd.engine.runner import PlainRunner
from dfkd.engine.seeds import seed_for
from dfkd.errors import CannotWrite, UserError
from dfkd.signals import Stopped
from dfkd.tables.resolve import Resolved

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from dfkd.engine.loop import StageLoop

SAVED = (configuration.STATE, configuration.LOG)  # what a run is resumed from
MADE = ("student.safetensors", "student.json", configuration.SAMPLES)  # what a finished run leaves


class Failed(Exception):
    """A run failed for a reason that one line tells; no traceback would say more."""


@dataclass(frozen=True)
class Options:
    """What changes where a run happens and not what it computes; `work` is None for the project's work folder."""

    data_root: Path
    device: str | None = None
    resume: bool = False
    work: Path | None = None
    save_every: float = 60.0
    time_limit: float | None = None
    tensorboard: bool = False


def run(
    resolved: Resolved,
    teacher_weights: Path,
    card: dict,
    options: Options,
    prior: tuple[Path | str, dict] | None = None,
    keep: Callable[[dict], Any] = records.validate,
) -> dict:
    """Run one cell and return its record, which `keep` has put in its place; only then is the saved state deleted.

    `teacher_weights` is the teacher's safetensors file and `card` its card; `prior` is where the cell's diffusion model
    lies, with its card, for a cell that names one. Statuses `ok`, `diverged`, `partial` and `unsupported` are returned.
    A violation of the data-free rule (DataFreeViolation), what one line tells (Failed) and any crash raise, after
    `keep` has had a record of status `failed`. Raises Stopped where a full disk ends a run that can go on from its
    saved state, and UserError.
    """
    device = machine.device_of(options.device)
    tf32 = resolved.config["precision"] == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    manifest, memory = resolved.task.manifest(options.data_root), machine.Memory(device)
    facts = Facts(resolved, card, manifest, device, prior[1] if prior else None)
    folder = (options.work or paths.WORK) / facts.work
    clock, measured = Clock(device), Measured()
    if folder.resolve().is_relative_to(options.data_root.resolve()):
        raise UserError(f"the work folder {folder} lies inside the data root, which a run may not open")
    with ExitStack() as stack:
        stack.enter_context(_exclusive(folder, options.resume))
        stack.enter_context(_resumable(folder))
        try:
            with _told(), _violations_first():
                _measure(
                    resolved, (teacher_weights, card), prior, options, facts, measured, clock, memory, folder, stack
                )
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as problem:
            measured.status, measured.error = "failed", str(problem)
            with suppress(CannotWrite):  # of two misfortunes the first is told
                keep(facts.record(measured, clock, memory))
            raise
        record = facts.record(measured, clock, memory)
        keep(record)
        if measured.status != "partial":
            for name in SAVED if measured.status == "ok" else SAVED + MADE:  # what is left belongs to the record
                (folder / name).unlink(missing_ok=True)
        return record


def _measure(
    resolved: Resolved,
    teacher: tuple[Path, dict],
    prior: tuple[Path | str, dict] | None,
    options: Options,
    facts: Facts,
    measured: Measured,
    clock: Clock,
    memory: machine.Memory,
    folder: Path,
    stack: ExitStack,
) -> None:
    """Fill `measured`. The guard, once sealed, stays so until `stack` is left."""
    try:
        with clock.phase("setup"):
            runner = _assemble(resolved, teacher, prior, options, clock, folder, stack)
            measured.loop = runner.train_loop
        runner.train()
        measured.peak_memory = memory.peak()  # of the run, not of looking at what it made
        measured.diagnostics = runner.val_loop.describe()
        if measured.loop.total_steps:
            with clock.phase("bookkeeping"):
                _keep_student(resolved, measured.loop, folder, facts)
    except (Declined, Diverged, Stopped) as end:
        measured.status, measured.error, measured.prior = end.status, str(end), getattr(end, "prior", None)
    if measured.loop:
        measured.report = _report(measured.loop.model.method)


def _assemble(
    resolved: Resolved,
    teacher: tuple[Path, dict],
    prior: tuple[Path | str, dict] | None,
    options: Options,
    clock: Clock,
    folder: Path,
    stack: ExitStack,
) -> PlainRunner:
    """Everything up to the first synthesis step. Raises Declined."""
    on, root, entry = resolved.task, options.data_root, resolved.entry
    with clock.phase("evaluation"):
        if prior:
            priors.check_disjoint(prior[1], priors.digests_path(Path(prior[0])), on, root)
        test = Batches(*on.load("test", root), clock.device)
    given: dict[str, Any] = {"clock": clock}
    if entry.needs_data:
        given["real"] = on_device(*on.load("train", root), clock.device)
    else:  # from then on to the end nothing in this process opens real data
        given["seal"] = lambda: stack.enter_context(guard.seal(root))
    config = configuration.configuration(
        resolved,
        teacher,
        prior,
        folder,
        seed=seed_for("run", *resolved.run.axes),
        resume=options.resume,
        save_every=options.save_every,
        time_limit=options.time_limit,
        curves=options.tensorboard,
    )
    configuration.write(config, folder)
    writer = stack.enter_context(_curves(folder)) if options.tensorboard else None
    return PlainRunner(config, folder / "log", given, test=test, curves=writer)


def declined(resolved: Resolved, options: Options, keep: Callable[[dict], Any]) -> dict | None:
    """The record of a method that declines its task, for before a teacher or a prior is made; None where it applies.

    Asked in a process of its own: where a method's file has been imported, real data may not be opened any more. What
    goes wrong there goes wrong in the run as well, which tells it; but a value that the constructor refuses is told now
    (UserError).
    """
    device = machine.device_of(options.device)
    manifest = resolved.task.manifest(options.data_root)
    facts, clock, memory = Facts(resolved, None, manifest, device, None), Clock(device), machine.Memory(device)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            reason = pool.submit(_ask, resolved, options.data_root).result()
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException:
        return None
    if reason is None:
        return None
    record = facts.record(Measured(status=Declined.status, error=reason), clock, memory)
    keep(record)
    return record


def _ask(resolved: Resolved, root: Path) -> str | None:
    with guard.seal(root):
        return build_method(**configuration.method(resolved)).supports(resolved.task)


def _curves(folder: Path) -> SummaryWriter:
    """TensorBoard's writer; importing it takes a second and is done for those who ask, before the guard is sealed."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "vis_data")


def _report(method: Method) -> dict[str, float]:
    """What the method says of its run. Raises Failed unless that is finite numbers by name."""
    report = method.report()
    numbers = report.values() if isinstance(report, dict) else [None]
    good = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if not (good and all(isinstance(name, str) for name in report)):
        raise Failed(f"the method's report() is to give finite numbers by name, not {report!r:.200}")
    return report


@contextmanager
def _told() -> Iterator[None]:
    """What ends a run from below, or a method that leaves the process, as an error that one line tells."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CannotWrite(f"cannot write {error.filename or 'a file'}: {error.strerror}") from error
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, Exception) and machine.out_of_memory(error):
            raise Failed(f"out of memory: {str(error).splitlines()[0]}") from error
        raise
    except BaseException as error:
        raise Failed(f"the method raised {type(error).__name__}: {error}") from error


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Where nothing can be written a run stops; if its state was saved before, it can go on."""
    try:
        yield
    except CannotWrite as problem:
        if not (folder / SAVED[0]).is_file():
            raise
        raise Stopped(f"{problem}; the same command with --resume goes on") from problem


@contextmanager
def _violations_first() -> Iterator[None]:
    """However the block ends, a refused access to real data is what it ends with."""
    try:
        yield
    finally:
        guard.check()


@contextmanager
def _exclusive(folder: Path, resume: bool) -> Iterator[None]:
    """The work folder for this process alone; emptied, once it is ours, unless the run may resume from it.

    What a finished run left stays until there is something to put in its place.
    """
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another process is running this cell in {folder}") from None
    except OSError as error:
        raise UserError(f"cannot write to the work folder {folder}: {error.strerror}") from error
    try:
        for item in [] if resume else folder.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name not in ("lock", *MADE):
                item.unlink()
        yield
    finally:
        lock.release()


def _keep_student(resolved: Resolved, loop: StageLoop, folder: Path, facts: Facts) -> None:
    """What an engineer came for: the student's weights with a card like the teacher's."""
    model, run = loop.model, resolved.run
    card = artifacts.TEACHER.new(
        run.data,
        run.student,
        origin="distilled",
        spec=model.ctx.spec.to_dict(),
        recipe=resolved.config,
        seed=run.seed,
        accuracy=loop.curve[-1]["value"],
        seconds=round(loop.clock.scored, 2),
        data_digest=facts.data["digest"],
    )
    artifacts.save(model.student.network, folder / "student.safetensors", card)
