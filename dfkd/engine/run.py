"""One cell from start to record: assembles teacher, student, method and Runner, and writes what was measured."""

from __future__ import annotations

import copy
import datetime
import errno
import fcntl
import hashlib
import importlib
import importlib.util
import math
import multiprocessing
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from mmengine.runner import Runner
from torch import Tensor

from dfkd import catalog, priors, records, teachers
from dfkd.engine import compat, machine
from dfkd.engine.clock import Clock
from dfkd.engine.context import Context, Teacher
from dfkd.engine.evaluation import Judge, metric_of
from dfkd.engine.guard import guard
from dfkd.engine.hooks import CurveHook, GuardHook, ProgressHook, SamplesHook, StateHook
from dfkd.engine.loop import DataFreeLoop, Distiller, Diverged, Stopped
from dfkd.engine.method import METHODS, Budget, Method
from dfkd.engine.seeds import Streams, seed_for, seed_globals
from dfkd.errors import CannotWrite, UserError
from dfkd.networks.normalised import Normalised
from dfkd.synthesis.augment import augment_for
from dfkd.synthesis.buffer import ReplayBuffer, to_bytes
from dfkd.tables.resolve import Resolved
from dfkd.tasks import InputSpec, Task, store
from dfkd.teachers.training import initialise, on_device

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

WORK = catalog.ROOT / "work"
SAVED = ("state.pt", "bank.bin")  # what a run is resumed from
MADE = ("student.safetensors", "student.json", "samples.png")  # what a finished run leaves


class Declined(Exception):
    """The method does not apply to the task."""

    status = "unsupported"


class Failed(Exception):
    """A run failed for a reason that one line tells; no traceback would say more."""


@dataclass(frozen=True)
class Options:
    """What changes where a run happens and not what it computes."""

    data_root: Path
    device: str | None = None
    resume: bool = False
    work: Path = WORK
    save_every: float = 60.0
    time_limit: float | None = None
    tensorboard: bool = False


def run(
    cell: Resolved,
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
    tf32 = cell.config["precision"] == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    manifest, memory = cell.task.manifest(options.data_root), machine.Memory(device)
    facts = _Facts(cell, card, manifest, device, prior[1] if prior else None)
    folder = options.work / facts.work
    clock, runner, status, error = Clock(device), None, "ok", None
    if folder.resolve().is_relative_to(options.data_root.resolve()):
        raise UserError(f"the work folder {folder} lies inside the data root, which a run may not open")
    with ExitStack() as stack:
        stack.enter_context(_exclusive(folder, options.resume))
        stack.enter_context(_resumable(folder))
        try:
            with _told(), _violations_first():
                try:
                    with clock.phase("setup"):
                        runner = _assemble(cell, teacher_weights, prior, options, facts, clock, folder, stack)
                    runner.train()
                    facts.peak_memory = memory.peak()  # of the run, not of looking at what it made
                    facts.diagnostics = _describe(facts.method, runner)
                    if runner.train_loop.total_steps:
                        with clock.phase("bookkeeping"):
                            _keep_student(cell, runner.train_loop, folder, facts)
                except (Declined, Diverged, Stopped) as end:
                    status, error = end.status, str(end)
                facts.report = _report(facts.method) if runner else {}
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as problem:
            with suppress(CannotWrite):  # of two misfortunes the first is told
                keep(facts.record(runner and runner.train_loop, clock, memory, "failed", str(problem)))
            raise
        record = facts.record(runner and runner.train_loop, clock, memory, status, error)
        keep(record)
        if status != "partial":
            for name in SAVED if status == "ok" else SAVED + MADE:  # what is left belongs to the record
                (folder / name).unlink(missing_ok=True)
        return record


def _assemble(
    cell: Resolved,
    teacher_weights: Path,
    prior: tuple[Path | str, dict] | None,
    options: Options,
    facts: _Facts,
    clock: Clock,
    folder: Path,
    stack: ExitStack,
) -> Runner:
    """Everything up to the first call. The guard, once sealed, stays so until `stack` is left. Raises Declined."""
    the_task, device, needs_data = cell.task, clock.device, cell.entry.needs_data
    seed = seed_for("run", *cell.run.axes)
    seed_globals(seed)
    spec = InputSpec.from_dict(facts.card["spec"])
    teacher = _teacher(cell, teacher_weights, spec, device)
    model = priors.load(*prior, device, cell.config["precision"]) if prior else None
    with clock.phase("evaluation"):
        if prior:
            priors.check_disjoint(prior[1], priors.digests_path(prior[0]), the_task, options.data_root)
        test = _arrays(the_task, "test", options.data_root, device)
        metric = metric_of(the_task)
    real = _arrays(the_task, "train", options.data_root, device) if needs_data else None
    writer = stack.enter_context(_curves(folder)) if options.tensorboard else None
    # From here to the end nothing in this process opens real data; the method is imported inside.
    stack.enter_context(nullcontext() if needs_data else guard.seal(options.data_root))
    facts.method = method = build_method(cell)
    reason = method.supports(the_task)
    if reason is not None:
        raise Declined(reason)
    with _refused_values(cell):
        ctx = _context(cell, method, teacher, spec, the_task, device, clock, folder)
        ctx.real, ctx.prior = real, model
        method.setup(ctx)
    return _runner(cell, method, ctx, test, metric, options, folder, facts, seed, writer)


def declined(cell: Resolved, options: Options, keep: Callable[[dict], Any]) -> dict | None:
    """The record of a method that declines its task, for before a teacher or a prior is made; None where it applies.

    Asked in a process of its own: where a method's file has been imported, real data may not be opened any more. What
    goes wrong there goes wrong in the run as well, which tells it; but a value that the constructor refuses is told now
    (UserError).
    """
    device = machine.device_of(options.device)
    manifest = cell.task.manifest(options.data_root)
    facts, clock, memory = _Facts(cell, None, manifest, device, None), Clock(device), machine.Memory(device)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            reason = pool.submit(_ask, cell, options.data_root).result()
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException:
        return None
    if reason is None:
        return None
    record = facts.record(None, clock, memory, Declined.status, reason)
    keep(record)
    return record


def _ask(cell: Resolved, root: Path) -> str | None:
    with guard.seal(root):
        return build_method(cell).supports(cell.task)


def build_method(cell: Resolved) -> Method:
    """Import the method's file and build it. Raises UserError for an argument value it refuses."""
    import_file(cell.entry.path)
    with _refused_values(cell):
        method = METHODS.get(cell.entry.name)(**cell.config["args"])
    cls = type(method)
    declared, found = (cell.entry.prior, cell.entry.reference), (cls.prior, cls.reference)
    if declared != found:
        raise UserError(
            f"{cell.entry.path} must state `prior` and `reference` as plain constants, not {found}"
        )
    return method


@contextmanager
def _refused_values(cell: Resolved) -> Iterator[None]:
    """A ValueError of a constructor or of `setup` is about a value somebody gave: one line, not a crash."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{cell.run.method}: {error}") from error


def import_file(path: Path) -> None:
    """Import a method's file once: as `methods.x` or `baselines.x` inside the project, by path elsewhere."""
    if path.is_relative_to(catalog.ROOT):
        name = ".".join(path.relative_to(catalog.ROOT).with_suffix("").parts)
        if name.split(".")[0] in catalog.FOLDERS:
            importlib.import_module(name)
            return
    # What lies beside it can be imported, `from .helper` as if the folder were a package; behind all else on the
    # path, for a file there must not take the place of a library's.
    package = ModuleType(f"imported_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}")
    package.__path__ = [str(path.parent)]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    name = f"{package.__name__}.{path.stem}"
    if name not in sys.modules:
        sys.modules[package.__name__] = package
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise


def _arrays(the_task: Task, split: str, root: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    return on_device(*the_task.load(split, root), device)


def _teacher(cell: Resolved, weights: Path, spec: InputSpec, device: torch.device) -> Teacher:
    network = teachers.load(weights, cell.run.teacher, spec)
    return Teacher(network, spec).to(device, memory_format=torch.channels_last)


def _context(
    cell: Resolved,
    method: Method,
    teacher: Teacher,
    spec: InputSpec,
    the_task: Task,
    device: torch.device,
    clock: Clock,
    folder: Path,
) -> Context:
    run, config = cell.run, cell.config
    budget = Budget(
        config["training"]["steps"], config["training"]["batch"], config["rounds"], config["synthesis_batch"]
    )

    capacity = method.buffer_capacity(budget)
    if capacity < budget.synthesis_batch and any(stage.calls for stage in method.schedule(budget)):
        raise ValueError(f"a buffer of {capacity} cannot take a call of {budget.synthesis_batch} images")

    def new_student() -> Normalised:
        # The same initialisation for every method at equal data, pair and repetition.
        axes = (run.data, run.teacher, run.student, run.seed)
        network = initialise(run.student, spec, seed_for("student-init", *axes))
        return Normalised(network, spec).to(device, memory_format=torch.channels_last)

    student, shape = new_student(), (spec.channels, spec.size, spec.size)
    if budget.batch == 1:
        _check_trains_on_one(student, shape)
    return Context(
        teacher=teacher,
        student=student,
        new_student=new_student,
        spec=spec,
        budget=budget,
        device=device,
        rng=Streams(device, *run.axes),
        buffer=ReplayBuffer(capacity, shape, device, method.replace, folder / "bank.bin"),
        augmentation=augment_for(the_task),
        autocast=lambda: compat.autocast(device, config["precision"]),
        clock=clock,
        class_names=the_task.class_names,
        per_pixel=the_task.kind == "segmentation",
    )


def _runner(
    cell: Resolved,
    method: Method,
    ctx: Context,
    test: tuple[Tensor, Tensor],
    metric: dict,
    options: Options,
    folder: Path,
    facts: _Facts,
    seed: int,
    writer: SummaryWriter | None,
) -> Runner:
    """mmengine's Runner around the data-free loop and the judge."""
    training, stages = cell.config["training"], method.schedule(ctx.budget)
    counted = sum(stage.rounds * stage.steps for stage in stages if stage.counted)
    if counted != ctx.budget.steps and not (cell.entry.reference and counted == 0):
        granted = f"the protocol grants {ctx.budget.steps}"
        raise UserError(f"{cell.run.method} schedules {counted} counted student steps, {granted}")
    optimiser = dict(
        type="PrecisionOptimWrapper", precision=cell.config["precision"], optimizer=training["optimizer"]
    )
    schedule = dict(training["schedule"])
    per = schedule.pop("per")

    def loop(runner: Runner, dataloader: dict) -> DataFreeLoop:
        return DataFreeLoop(
            runner,
            method,
            ctx,
            stages,
            cell.config["evaluations"],
            lambda: evaluate(runner),
            lambda: renew(runner),
            options.time_limit,
            per,
            facts.prior["seconds"],
        )

    def judge(runner: Runner, dataloader: dict, evaluator: dict) -> Judge:
        return Judge(runner, runner.build_evaluator(evaluator), *test, ctx.clock)

    # What is evaluated is a twin of the student that no method has had in hand: a hook left on the student would
    # otherwise be shown the test images.
    twin = ctx.new_student()

    def evaluate(runner: Runner) -> float:
        network = method.judged(ctx) if cell.entry.reference else ctx.student
        if network is ctx.student:
            twin.load_state_dict(ctx.student.state_dict())
            network = twin
        seen = ctx.teacher.images_seen
        value = runner.val_loop.run(network)
        ctx.teacher.images_seen = seen
        return value

    def renew(runner: Runner) -> None:
        ctx.student = runner.model.student = ctx.new_student()
        runner.optim_wrapper = runner.build_optim_wrapper(optimiser)
        runner.param_schedulers = runner.build_param_scheduler(_schedule(schedule, per, ctx.budget))

    hooks = [
        StateHook(folder / "state.pt", options.save_every, options.resume),
        GuardHook(ctx.teacher),
        ProgressHook(cell.run.name),
        SamplesHook(folder / "samples.png"),
    ]
    if writer is not None:
        hooks.append(CurveHook(writer))
    runner = compat.QuietRunner(
        model=Distiller(ctx.student, method.modules(), ctx.device),
        work_dir=str(folder / "log"),
        train_dataloader={},
        train_cfg=dict(type=loop),
        optim_wrapper=optimiser,
        param_scheduler=_schedule(schedule, per, ctx.budget),
        val_dataloader={},
        val_cfg=dict(type=judge),
        val_evaluator=metric,
        default_hooks=compat.NO_DEFAULT_HOOKS,
        custom_hooks=hooks,
        log_level="WARNING",
        experiment_name=f"{cell.run.method}-{id(ctx)}",
        randomness=dict(seed=seed % 2**32),
    )
    runner.model.to(ctx.device)  # mmengine moves it to CUDA wherever there is one
    return runner


def _check_trains_on_one(student: Normalised, shape: tuple[int, int, int]) -> None:
    """A BatchNorm layer that gets one value a channel cannot train: found out beforehand, and without numbers."""
    try:
        copy.deepcopy(student).to("meta").train()(torch.empty(1, *shape, device="meta"))
    except ValueError as error:
        raise UserError(f"training.batch=1 is too small for this student: {error}") from None


def _schedule(schedule: dict, per: str, budget: Budget) -> dict:
    """mmengine's scheduler; a cosine always ends with the run, whatever its length."""
    end = budget.steps if per == "step" else budget.rounds
    schedule = dict(schedule, by_epoch=per == "round", end=end)
    if schedule["type"] == "CosineAnnealingLR":
        schedule["T_max"] = end
    return schedule


def _describe(method: Method, runner: Runner) -> dict | None:
    """What the synthetic images are like; None for bounds, and where none was made."""
    ctx, images, labels = runner.train_loop.ctx, None, None
    if len(ctx.buffer):
        images = ctx.buffer.images[: len(ctx.buffer)]
        labels = ctx.buffer.fields.get("labels")
    elif runner.model.latest is not None:  # it makes its images in `draw`
        images = to_bytes(runner.model.latest)
    if method.reference or images is None:
        return None
    return runner.val_loop.describe(ctx.teacher, images, labels if labels is None else labels[: len(images)])


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write to the work folder {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is running this cell in {folder}") from None
        for item in [] if resume else folder.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name not in ("lock", *MADE):
                item.unlink()
        yield


def _keep_student(cell: Resolved, loop: DataFreeLoop, folder: Path, facts: _Facts) -> None:
    """What an engineer came for: the student's weights with a card like the teacher's."""
    ctx = loop.ctx
    card = teachers.new_card(
        cell.run.data,
        cell.run.student,
        ctx.spec,
        "distilled",
        recipe=cell.config,
        seed=cell.run.seed,
        accuracy=loop.curve[-1]["value"],
        seconds=round(ctx.clock.scored, 2),
        data_digest=facts.data["digest"],
    )
    teachers.save(ctx.student.network, folder / "student.safetensors", card)


def work_name(
    cell: Resolved, card: dict, manifest: dict, device: torch.device, prior: dict | None
) -> str:
    """Where a run works, below the work folder. Of another configuration, code, data, teacher, prior or kind of device
    it is another place, so nothing is mixed up."""
    parts = (cell.digest, cell.entry.digest, catalog.harness_digest(), store.digest(manifest))
    parts += (str(card["digest"]), device.type, *((prior["digest"],) if prior else ()))
    return f"{cell.run.name}/{hashlib.sha256(''.join(parts).encode()).hexdigest()[:12]}"


class _Facts:
    """What a record says of a run beside its measurements, gathered before the guard is sealed."""

    def __init__(
        self, cell: Resolved, card: dict | None, manifest: dict, device: torch.device, prior: dict | None
    ) -> None:
        self.cell, self._prior_card = cell, prior
        # None of a teacher that is not there yet.
        self.card = card or dict.fromkeys(("digest", "origin", "accuracy"))
        self.method: Method | None = None
        self.report: dict[str, float] = {}
        self.diagnostics: dict | None = None
        self.peak_memory: int | None = None
        self.data = {"digest": store.digest(manifest), "changed": manifest.get("changed") or None}
        self.data |= {key: manifest[key] for key in ("test_changed", "subset") if key in manifest}
        self.code = {"method": cell.entry.digest, "harness": catalog.harness_digest()}
        # numpy and h5py ask for the processor when imported, which starts a process the first time.
        platform.processor()
        self.hardware, self.versions, self.commit = (
            machine.hardware(device),
            machine.versions(),
            machine.commit(),
        )
        self.work = work_name(cell, self.card, manifest, device, prior)

    @property
    def prior(self) -> dict:
        """What the method knew besides the teacher, and what that cost to train (0 where it is not known)."""
        kind = self.method.prior if self.method else self.cell.entry.prior
        card = self._prior_card if "diffusion" in kind else None
        facts = {key: card and card[key] for key in ("name", "trained_on", "digest", "origin")}
        return {"kind": kind, **facts, "seconds": card["seconds"] if card else 0.0}

    def record(
        self,
        loop: DataFreeLoop | None,
        clock: Clock,
        memory: machine.Memory,
        status: str,
        error: str | None,
    ) -> dict:
        """The record of the run as it stands; `loop` is None where it failed before there was one."""
        card, curve = self.card, loop.curve if loop else []
        values = [point["value"] for point in curve]
        return {
            "schema": records.VERSION,
            "status": status,
            "error": error,
            "work": self.work,
            "note": self.cell.note or None,
            "custom": self.cell.custom,
            "reference": self.cell.entry.reference,
            "identity": self.cell.run._asdict(),
            "metrics": {
                "name": self.cell.task.metric,
                "last": values[-1] if values and status == "ok" else None,
                "oracle_best": max(values, default=None),
                "teacher": card["accuracy"],
                "curve": curve,
            },
            "time": clock.report() | {"shared": round(loop.shared_seconds if loop else 0.0, 4)},
            "cost": {
                "images_synthesised": loop.ctx.images_synthesised if loop else 0,
                "student_steps": loop.ctx.student_steps if loop else 0,
                "teacher_forwards": loop.ctx.teacher.images_seen if loop else 0,
                "peak_memory_bytes": memory.peak() if self.peak_memory is None else self.peak_memory,
            },
            "prior": self.prior,
            "diagnostics": self.diagnostics,
            "report": self.report,
            "provenance": {
                "code": {**self.code, "external": self.cell.entry.external},
                "config": self.cell.digest,
                "data": self.data,
                "teacher": {key: card[key] for key in ("digest", "origin", "accuracy")},
                "commit": self.commit,
                "versions": self.versions,
                "hardware": self.hardware,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
            "config": {**self.cell.config, "args": {**self.cell.entry.arguments, **self.cell.config["args"]}},
        }
