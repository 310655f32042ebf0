"""What `bench.py run`, `teacher` and `prior` do once their options are read: from a resolved run to its record."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from dfkd import artifacts, paths, records, report
from dfkd.artifacts import PRIOR, TEACHER
from dfkd.engine.start import start
from dfkd.errors import UserError
from dfkd.files import check_writable
from dfkd.metrics import metric
from dfkd.signals import EXIT_PARTIAL, Stopped, signal_of, stopping
from dfkd.tables import costs
from dfkd.tables.definition import check_fits, table_of
from dfkd.tables.resolve import Resolved, resolve
from dfkd.tasks import TASKS, task
from dfkd.tasks.store import below, data_root
from dfkd.units import duration, memory

THREADS = "OMP_NUM_THREADS"


def protocol_of(options: argparse.Namespace) -> str:
    """As asked, else `quick` for embedded data; for the rest `paper` where a CUDA device is used, and `cpu`."""
    if options.protocol is not None:
        return options.protocol
    if task(options.data).embedded:
        return "quick"
    device = options.device
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return "paper" if device.startswith("cuda") else "cpu"


def chosen(options: argparse.Namespace) -> list[Resolved]:
    """Every method that was named with every seed. Raises UserError, also for a diffusion prior that nobody knows:
    before a teacher is trained for it."""
    from dfkd.artifacts.priors import check_known

    protocol, given = protocol_of(options), (options.changes, options.extra, options.precision)
    runs = [
        resolve(options.data, protocol, method, options.pair, seed, *given)
        for method, seed in itertools.product(options.method, options.seed)
    ]
    for name in {run.prior for run in runs if run.prior is not None}:
        check_known(name, options.weights)
    return runs


def execute_each(runs: Sequence[Resolved], command: Sequence[str], options: argparse.Namespace) -> int:
    """Run `command` once for each, in a process of its own, which no other method has been in; the worst status.

    With several `jobs` as many run at a time, each with its part of the processors' threads, and every line that they
    print begins with whose it is. Raises Stopped where a signal came; what ran has saved its state, unless it came
    twice.
    """
    if options.jobs < 1 or (options.debug and options.jobs > 1):
        raise UserError(f"--jobs {options.jobs}: at least 1 is expected, and with --debug no more")
    jobs, running, reasons = min(options.jobs, len(runs)), set[subprocess.Popen[bytes]](), list[str]()
    out, errors = (None, None) if jobs == 1 else (subprocess.PIPE, subprocess.STDOUT)
    environment = dict(os.environ)
    if jobs > 1 and not os.environ.get(THREADS):
        environment[THREADS] = str(max(1, _processors() // jobs))

    def stop(reason: str) -> None:
        reasons.append(reason)
        for process in tuple(running):
            process.send_signal(signal_of(reason))

    def one(resolved: Resolved) -> int:
        if reasons:
            return EXIT_PARTIAL
        name = f"{resolved.run.method} {resolved.run.seed}"
        asked = [*command, f"--method={resolved.run.method}", f"--seed={resolved.run.seed}"]
        with subprocess.Popen(asked, env=environment, stdout=out, stderr=errors) as process:
            running.add(process)
            if reasons:  # since it was looked at
                process.terminate()
            for line in process.stdout or ():
                # In one piece, for other threads print too.
                print(f"{name}: {line.decode(errors='replace').rstrip()}\n", end="", flush=True)
        running.discard(process)
        if process.returncode < 0:
            print(f"{name}: ended by {signal.Signals(-process.returncode).name}", file=sys.stderr)
        return process.returncode if process.returncode >= 0 else 1

    with ThreadPoolExecutor(jobs) as pool, stopping(stop):
        statuses = list(pool.map(one, runs))
    if reasons:
        raise Stopped(f"{reasons[0]}; the same command with --resume goes on")
    return max(statuses, key=lambda status: (status not in (0, EXIT_PARTIAL), status))


def execute(resolved: Resolved, options: argparse.Namespace) -> dict | None:
    """Run one cell and put its record in its place; None where a finished one is there already.

    Raises what `engine.run.run` raises, and `Stopped` before there is a record to write.
    """
    until = _moment(options)
    custom = resolved.custom or bool(options.teacher_weights or options.debug or options.compile)
    resolved = replace(resolved, custom=custom, compiled=options.compile)
    out = _out(resolved, options.out)
    if options.debug:
        return _execute(resolved, options, until, out, None)
    worker = start()  # it imports torch while this process does
    try:
        return _execute(resolved, options, until, out, worker)
    finally:
        worker.kill()  # where it was not needed
        with suppress(BrokenPipeError), worker:  # waited for; nobody misses what it has not read
            pass


def _execute(
    resolved: Resolved, options: argparse.Namespace, until: float, out: Path, worker: subprocess.Popen[bytes] | None
) -> dict | None:
    from dfkd.engine.compiling import impossible
    from dfkd.engine.configuration import STATE
    from dfkd.engine.machine import device_of
    from dfkd.engine.precision import settled
    from dfkd.engine.record import work_name
    from dfkd.engine.run import Options, declined, run
    from dfkd.engine.throughput import name_of

    root, device = data_root(options.data_root), device_of(options.device)
    if not resolved.entry.needs_data and (held := below(root)):
        raise UserError(f"the data root {root} holds {', '.join(held)}, which a data-free run could not open")
    resolved = settled(resolved, device)
    if resolved.compiled and (reason := impossible()):
        print(f"not compiled: {reason}", file=sys.stderr)
        resolved = replace(resolved, compiled=False)
    seconds = costs.predicted(resolved, costs.devices().get(name_of(device), {}))
    about = "" if seconds is None else f", about {duration(seconds)}"
    print(f"{resolved.run.name} on {device} in {resolved.precision}{about}")
    given = {"tensorboard": options.tensorboard, "patience": 60 * options.patience, "again": options.again}
    given |= {"apart": worker is not None, "started": worker, "private": tuple(out / name for name in TASKS)}
    settings = Options(root, str(device), options.resume, **given)
    kept: list[Path | None] = []

    def keep(record: dict) -> None:
        if options.debug:
            records.validate(record)
        kept.append(None if options.debug else records.keep(record, out))

    record = declined(resolved, settings, keep) if _to_be_made(resolved, options) else None
    if record is None:
        given = {"data_root": root, "device": device, "source": options.weights, "until": until}
        names = resolved.run.data, resolved.run.teacher, resolved.protocol.teacher
        teacher = artifacts.teacher(*names, file=options.teacher_weights, **given)
        prior = None if resolved.prior is None else artifacts.prior(resolved.prior, **given)
        facts = resolved, teacher[1], resolved.task.manifest(root), device, prior and prior[1]
        work = work_name(*facts)
        resumable = options.resume and (paths.WORK / work / STATE).is_file()
        if not (options.again or resumable) and _is_finished(resolved.run.path(out), partial(work_name, *facts)):
            print(f"finished: {resolved.run.path(out)}; to run it once more: --again")
            return None
        limit = max(1e-9, until - time.monotonic()) if until < math.inf else None
        record = run(resolved, *teacher, replace(settings, time_limit=limit), prior, keep)
    _tell(record, "not written, for the method ran in this process" if options.debug else kept[-1])
    if kept[-1] is not None and out == Path(os.path.realpath(paths.records())):
        report.after_run(record, tables=not in_stage())  # there the tables have a stage of their own
    return record


def make_teacher(options: argparse.Namespace) -> str:
    """Find, import or train a teacher; returns a line on it."""
    until = _moment(options)
    recipe = table_of(options.data).protocol(protocol_of(options)).teacher
    check_fits(options.data, options.arch)
    from dfkd.engine.machine import device_of

    root, device = data_root(options.data_root), device_of(options.device)
    given = {"seed": options.seed, "source": options.weights, "resume": options.resume, "until": until}
    path, card = artifacts.teacher(options.data, options.arch, recipe, root, device, anew=in_stage(), **given)
    score = metric(task(options.data).metric).text(card["accuracy"])
    return f"{path}: {card['origin']}, {task(options.data).metric} {score} on the test set"


def make_prior(options: argparse.Namespace) -> str:
    """Find, import or train a diffusion prior, and draw some of its images; returns a line on it."""
    until = _moment(options)
    from dfkd.priors import recipes

    name, recipe = recipes.recipe_for(options.data, options.size)
    recipe, name = recipes.changed(recipe, options.changes), options.name or name
    recipes.check_free(name, recipe)
    import torch

    from dfkd.engine.machine import device_of
    from dfkd.engine.samples import save_grid
    from dfkd.priors import load
    from dfkd.priors.base import sample
    from dfkd.synthesis.buffer import to_bytes

    device, root = device_of(options.device), data_root(options.data_root)
    grid, there = paths.plots() / "priors" / f"{name}.png", PRIOR.there(paths.prior(name)) and not in_stage()
    given = {"source": options.weights, "recipe": recipe, "resume": options.resume, "until": until}
    folder, card = artifacts.prior(name, root, device, anew=in_stage(), **given)
    if not (there and grid.is_file()):
        model = load(folder, card, device, "fp32")
        save_grid(to_bytes(sample(model, 72, torch.Generator(device).manual_seed(0))), grid)
    return f"{folder}: {card['origin']}, {card['trained_on']}; samples in {grid}"


def profile(options: argparse.Namespace) -> str:
    """Where the time of a method's steps goes."""
    from dfkd.engine.profile import show

    return show(options.method, options.data, protocol_of(options), options.pair, options.precision, options.device)


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_stage() -> bool:
    """Whether DVC called: it does where something changed, so a teacher or prior that lies there is made anew."""
    return "DVC_STAGE" in os.environ


def tell_traceback(error: Exception) -> None:
    """Print the traceback of what ended a run, unless its one line says all."""
    from dfkd.engine.evaluator import Failed
    from dfkd.engine.guard import DataFreeViolation

    if not isinstance(error, DataFreeViolation | Failed):
        traceback.print_exception(error, file=sys.stderr)


def _moment(options: argparse.Namespace) -> float:
    """When the time limit of a command that starts now ends, as `time.monotonic` tells time."""
    return time.monotonic() + 60 * (options.time_limit or math.inf)


def _out(resolved: Resolved, option: Path | None) -> Path:
    """The folder of the record, which can be written to, as can the work folder."""
    own = paths.records()
    out = Path(os.path.realpath(option or (paths.custom(resolved.digest) if resolved.custom else own)))
    if resolved.custom and out == Path(os.path.realpath(own)):
        raise UserError("a custom run has no place in results/records; pass another --out, or none")
    path = resolved.run.path(out)
    for folder in (path.parent, paths.WORK):
        check_writable(folder)
    if path.is_dir():
        raise UserError(f"cannot write the record {path}: it is a folder")
    return out


def _to_be_made(resolved: Resolved, options: argparse.Namespace) -> bool:
    """Whether a teacher or a diffusion model is not there yet; a user-provided prior always is."""
    teacher = options.teacher_weights or paths.teacher(resolved.run.data, resolved.run.teacher)
    prior = resolved.prior
    return not TEACHER.there(teacher) or bool(prior and "/" not in prior and not PRIOR.there(paths.prior(prior)))


def _is_finished(path: Path, work_name: Callable[[str | None], str]) -> bool:
    """Whether this record is that of a run in the folder that such a run works in, and its student is there.

    The folder's name stands for configuration, code, data, teacher, prior and kind of device. For DVC, whose stages
    hold several runs, the code is that of the method, as in its dependencies: what changes in the harness repeats no
    run.
    """
    from dfkd.engine.configuration import CONFIGURATION

    try:
        record = records.read(path)
    except (UserError, FileNotFoundError):
        return False
    harness = record["provenance"]["code"]["harness"] if in_stage() else None
    made = (CONFIGURATION, *("student.safetensors",) * bool(record["cost"]["student_steps"]))
    there = all((paths.WORK / record["work"] / name).is_file() for name in made)
    return there and record["status"] == "ok" and record["work"] == work_name(harness)


def _tell(record: dict, path: Path | str | None) -> None:
    """What a run came to, in a few lines."""
    metrics, seconds, work = record["metrics"], record["time"], paths.WORK / record["work"]
    last, teacher = (metric(metrics["name"]).text(metrics[key]) for key in ("last", "teacher"))
    note = f" ({record['error']})" if record["error"] else ""
    print(f"{record['status']}{note}: {metrics['name']} {last}, teacher {teacher}")
    parts = ", ".join(f"{name} {duration(seconds[name])}" for name in ("synthesis", "distillation", "total"))
    size = record["cost"]["peak_memory_bytes"]
    print(f"time: {parts}" + ("" if size is None else f"; memory {memory(size)}"))
    print(f"record: {path or 'not written: a finished one is there already'}")
    if (work / "student.safetensors").is_file():
        print(f"student: {work / 'student.safetensors'}")
    if record["status"] == "partial":
        print("run the same command with --resume to go on")
