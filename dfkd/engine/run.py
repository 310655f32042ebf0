"""One run from start to record: the one way in for whoever wants a cell measured."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dfkd import artifacts, paths, records
from dfkd.engine import configuration, harness, machine, throughput
from dfkd.engine.configuration import INSIDE, LOG, STATE
from dfkd.engine.evaluator import GRID, Evaluator, Failed, raise_failure
from dfkd.engine.guard import DataFreeViolation
from dfkd.engine.harness import Worker
from dfkd.engine.journal import JOURNAL
from dfkd.engine.precision import settled
from dfkd.engine.record import Facts, Measured
from dfkd.errors import FULL, CannotWrite, UserError, one_line
from dfkd.priors import text
from dfkd.signals import Stopped, stopping
from dfkd.tables.resolve import Resolved

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MADE = ("student.safetensors", "student.json", GRID)  # what a finished run leaves


@dataclass(frozen=True)
class Options:
    """What changes where a run happens and not what it computes; `work` is None for the project's work folder.

    With `resume` a run goes on from its saved state; without, there may be one only with `again`, which gives it up.
    A worker that says nothing for `patience` seconds is taken to hang. Without `apart` the method runs in this process,
    behind the guard alone. `started` is a worker's process that is there already, `private` are folders in which it may
    read nothing, such as that of records.
    """

    data_root: Path
    device: str | None = None
    resume: bool = False
    work: Path | None = None
    save_every: float = 60.0
    time_limit: float | None = None
    tensorboard: bool = False
    patience: float = 1800.0
    apart: bool = True
    started: subprocess.Popen[bytes] | None = None
    private: tuple[Path, ...] = ()
    again: bool = False


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
    A violation of the data-free rule (DataFreeViolation) and whatever else makes a run fail (Failed) raise, after
    `keep` has had a record of status `failed`. Raises Stopped where a full disk ends a run that can go on from its
    saved state, and UserError.
    """
    device = machine.device_of(options.device)
    resolved = settled(resolved, device)
    machine.allow_tf32(resolved.precision)
    facts = Facts(resolved, card, resolved.task.manifest(options.data_root), device, prior[1] if prior else None)
    folder = ((options.work or paths.WORK) / facts.work).resolve()
    if folder.is_relative_to(options.data_root.resolve()):
        raise UserError(f"the work folder {folder} lies inside the data root, which a run may not open")
    with _exclusive(folder), _resumable(folder):
        with _told():
            _prepare(folder, options.resume, options.again)
        evaluator = Evaluator(resolved, (teacher_weights, card), prior, options.data_root.resolve(), folder, device)
        try:
            with _told():
                _measure(evaluator, options, facts)
            record = _checked(facts.record(evaluator.measured))
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as problem:
            with suppress(CannotWrite):  # of two misfortunes the first is told
                keep(_failed(facts, evaluator.measured, problem))
            raise
        keep(record)
        if record["status"] != "partial":  # what is left belongs to the record
            for name in (JOURNAL,) if record["status"] == "ok" else (JOURNAL, *MADE):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / INSIDE, ignore_errors=True)
        return record


def _measure(evaluator: Evaluator, options: Options, facts: Facts) -> None:
    """What the worker does, and what the harness makes of it."""
    memory, activity, measured = machine.Memory(evaluator.device), machine.Activity(), evaluator.measured
    if (evaluator.folder / STATE).is_file():
        evaluator.journal.resume()
    begin = _begin(evaluator, options)
    measured.isolation = begin["isolation"]
    worker = Worker(begin, options.patience, options.started) if options.apart else None
    try:
        with stopping(worker.ask_to_stop) if worker else nullcontext():
            evaluator.load()
            evaluator.curves = _curves(evaluator.folder) if options.tensorboard else None
            if worker:
                harness.serve(worker, evaluator)
            else:
                harness.serve_here(begin, evaluator)
    except Stopped as stop:
        measured.status, measured.error = stop.status, str(stop)
    finally:
        if worker:
            worker.end()
        measured.processor_seconds, measured.others = activity.measured()
    measured.harness_memory = memory.peak()
    if measured.status == "ok":
        _keep_student(evaluator, facts)
        # The worker has ended: nothing slows this machine down while its throughput is measured.
        measured.predicted = throughput.predicted(evaluator.resolved, evaluator.device)


def _begin(evaluator: Evaluator, options: Options) -> dict[str, Any]:
    """The worker's first message. Its clock starts when this process's does."""
    resolved, (weights, card), prior, folder = evaluator.resolved, evaluator.teacher, evaluator.prior, evaluator.folder
    config = configuration.configuration(
        resolved,
        (weights.resolve(), card),
        prior,
        folder,
        resume=options.resume,
        save_every=options.save_every,
        time_limit=options.time_limit,
        live=sys.stderr.isatty(),
    )
    encoder = text.asked_for(resolved.config["args"])
    if encoder:  # as an absolute path: the worker has another folder
        config["model"]["method"]["arguments"][text.ARGUMENT] = str(encoder)
    configuration.write(config, folder)
    reads = [
        weights,
        artifacts.TEACHER.card_path(weights),
        *_code(resolved),
        *(_files(Path(prior[0])) if prior else ()),
        *(_files(encoder) if encoder else ()),
    ]
    what: dict[str, Any] = {
        "device": str(evaluator.device),
        "precision": resolved.precision,
        "since": evaluator.journal.opened,
    }
    what |= {"private": options.private, "config": config}
    return harness.begin(folder / INSIDE, reads, evaluator.root, options.apart, **what)


def _code(resolved: Resolved) -> list[Path]:
    """Where a method outside the project lies, with what it imports from beside it."""
    return [resolved.entry.path.parent] if resolved.entry.external else []


def _files(folder: Path) -> list[Path]:
    """A folder, and what its links lead to: in the hub's cache weights are links."""
    return [folder, *(path for path in folder.rglob("*") if path.is_symlink())]


def _checked(record: dict) -> dict:
    """Raises Failed for what the worker said and no record can hold."""
    try:
        records.validate(record)
    except UserError as error:
        raise Failed(f"the run's numbers make no record: {error}") from None
    return record


def _failed(facts: Facts, measured: Measured, problem: Exception) -> dict:
    """The record of a run that failed, without the worker's word where no record can hold that."""
    measured.status, measured.error = "failed", str(problem)
    with suppress(Exception):
        return _checked(facts.record(measured))
    measured.end, measured.time, measured.diagnostics = {}, None, None
    return facts.record(measured)


def declined(resolved: Resolved, options: Options, keep: Callable[[dict], Any]) -> dict | None:
    """The record of a method that declines its task, for before a teacher or a prior is made; None where it applies.

    What goes wrong there goes wrong in the run as well, which tells it; but a value that the constructor refuses is
    told now (UserError).
    """
    device = machine.device_of(options.device)
    resolved, root = settled(resolved, device), options.data_root.resolve()
    inside = ((options.work or paths.WORK) / "asked" / resolved.run.name).resolve()
    what: dict[str, Any] = {"device": str(device), "precision": resolved.precision, "since": time.perf_counter()}
    what |= {"ask": resolved.run.data, "method": configuration.method(resolved)}
    first = harness.begin(inside, _code(resolved), root, True, **what)
    worker = Worker(first, options.patience)
    try:
        with stopping(worker.ask_to_stop):
            _, end, _ = worker.next()
        raise_failure(end)
    except (Failed, DataFreeViolation):
        return None
    finally:
        worker.end()
        shutil.rmtree(inside, ignore_errors=True)
    if end.get("status") != "unsupported":
        return None
    facts = Facts(resolved, None, resolved.task.manifest(root), device, None)
    reason = one_line(end.get("error"))
    record = _checked(facts.record(Measured(status="unsupported", error=reason, isolation=first["isolation"])))
    keep(record)
    return record


def _curves(folder: Path) -> SummaryWriter:
    """TensorBoard's writer; importing it takes a second and is done for those who ask."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "vis_data")


@contextmanager
def _told() -> Iterator[None]:
    """What ends a run from below as an error that one line tells."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise CannotWrite(f"cannot write {error.filename or 'a file'}: {error.strerror}") from error
    except Exception as error:
        if machine.out_of_memory(error):
            raise Failed(f"out of memory: {str(error).splitlines()[0]}") from error
        raise


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Where nothing can be written a run stops; if its state was saved before, it can go on."""
    try:
        yield
    except CannotWrite as problem:
        if not (folder / STATE).is_file():
            raise
        raise Stopped(f"{problem}; the same command with --resume goes on") from problem


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """The work folder for this process alone."""
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another process is running this cell in {folder}") from None
    except OSError as error:
        raise UserError(f"cannot write to the work folder {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _prepare(folder: Path, resume: bool, again: bool) -> None:
    """Empty the work folder, or of a run that may resume all but its state.

    What a finished run left stays until there is something to put in its place. Raises UserError where a saved state,
    perhaps of hours, would be lost and nobody said so.
    """
    if not (resume or again) and (folder / STATE).is_file():
        raise UserError(f"{folder} holds a saved state of this run: pass --resume to go on from it, or --again")
    if resume:
        _renew(folder / INSIDE)
        if (folder / STATE).is_file():
            return
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name not in ("lock", *MADE):
            item.unlink()


def _renew(inside: Path) -> None:
    """A new folder for the worker, with nothing of the old one but its saved state, if that is there.

    What a process that was left over from a killed run may still write is the old folder.
    """
    new, old = inside.with_name("worker-new"), inside.with_name("worker-old")
    if not inside.is_dir() and new.is_dir():  # killed between the two lines that give them their names
        new.rename(inside)
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    if inside.is_dir():
        new.mkdir()
        for name in (STATE.name, LOG.name):
            _copy(inside / name, new / name)
        inside.rename(old)
        new.rename(inside)
        shutil.rmtree(old, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """A file that a worker left, if it is one: a link would lead to what only this process may read."""
    try:
        found = os.open(source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return
    with open(found, "rb") as file:
        if stat.S_ISREG(os.fstat(found).st_mode):
            with open(target, "wb") as copy:
                shutil.copyfileobj(file, copy, 2**20)


def _keep_student(evaluator: Evaluator, facts: Facts) -> None:
    """What an engineer came for: the weights that were evaluated last, with a card like the teacher's."""
    run, measured = evaluator.resolved.run, evaluator.measured
    if evaluator.student is None or measured.time is None:
        return
    card = artifacts.TEACHER.new(
        run.data,
        run.student,
        origin="distilled",
        spec=evaluator.spec.to_dict(),
        recipe=evaluator.resolved.config,
        seed=run.seed,
        accuracy=measured.curve[-1]["value"],
        seconds=round(measured.time["scored"], 2),
        data_digest=facts.data["digest"],
    )
    artifacts.save(evaluator.student.network, evaluator.folder / MADE[0], card)
