"""One cell from start to record: assembles teacher, student, method and Runner, and writes what was measured."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import importlib
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

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
from dfkd.errors import UserError
from dfkd.networks.normalised import Normalised
from dfkd.protocols import ResolvedCell
from dfkd.synthesis.augment import augment_for
from dfkd.synthesis.buffer import ReplayBuffer, to_bytes
from dfkd.tasks import InputSpec, Task, store, task
from dfkd.teachers.training import initialise, on_device

WORK = catalog.ROOT / "work"


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
    cell: ResolvedCell,
    teacher_weights: Path,
    card: dict,
    options: Options,
    prior: tuple[Path | str, dict] | None = None,
) -> dict:
    """Run one cell and return its record, not yet written.

    `teacher_weights` is the teacher's safetensors file and `card` its card; `prior` is where the cell's diffusion model
    lies, with its card, for a cell that names one. Statuses `ok`, `diverged` and `partial`
    are returned; a violation of the data-free rule or a crash raises, after the record of status `failed` has been
    attached to the exception as `record`.
    """
    device = machine.device_of(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        cell.config["precision"] == "tf32"
    )
    the_task, memory = task(cell.identity["data"]), machine.Memory(device)
    facts = _Facts(cell, card, the_task.manifest(options.data_root), device, prior[1] if prior else None)
    folder = options.work / facts.work
    clock = Clock(device)
    seed = seed_for("run", *cell.identity.values())
    if folder.resolve().is_relative_to(options.data_root.resolve()):
        raise UserError(f"the work folder {folder} lies inside the data root, which a run may not open")
    runner, status, error = None, "ok", None
    with ExitStack() as stack:
        stack.enter_context(_exclusive(folder, options.resume))
        try:
            with _violations_first(), clock.phase("setup"):
                seed_globals(seed)
                spec = InputSpec.from_dict(card["spec"])
                teacher = _teacher(cell, teacher_weights, spec, device)
                model = priors.load(*prior, device, cell.config["precision"]) if prior else None
                with clock.phase("evaluation"):
                    if prior:
                        digests = priors.digests_path(prior[0])
                        priors.check_disjoint(prior[1], digests, the_task, options.data_root)
                    test = _arrays(the_task, "test", options.data_root, device)
                    metric = metric_of(the_task)
                real = (
                    _arrays(the_task, "train", options.data_root, device) if cell.entry.needs_data else None
                )
                # From here to the end nothing in this process opens real data; the method is imported inside.
                stack.enter_context(nullcontext() if cell.entry.needs_data else guard.seal(options.data_root))
                facts.method = method = build_method(cell)
                reason = method.supports(the_task)
                if reason is not None:
                    return facts.record(None, clock, memory, "unsupported", reason)
                with _refused_values(cell):
                    ctx = _context(cell, method, teacher, spec, the_task, device, clock, folder)
                    ctx.real, ctx.prior = real, model
                    method.setup(ctx)
                runner = _runner(cell, method, ctx, test, metric, options, folder, facts, seed)
            with _violations_first():
                runner.train()
            facts.peak_memory = memory.peak()  # of the run, not of looking at what it made
            facts.diagnostics = _describe(method, runner)
        except Diverged as problem:
            status, error = "diverged", str(problem)
        except Stopped as problem:
            status, error = "partial", str(problem)
        except UserError:
            raise
        except Exception as problem:
            problem.record = facts.record(runner and runner.train_loop, clock, memory, "failed", str(problem))
            raise
        if status != "partial":
            with clock.phase("bookkeeping"):
                if status == "ok" and runner.train_loop.total_steps:
                    _keep_student(cell, ctx, runner.train_loop, folder, facts)
                (folder / "state.pt").unlink(missing_ok=True)
                (folder / "bank.bin").unlink(missing_ok=True)
        return facts.record(runner.train_loop, clock, memory, status, error)


def build_method(cell: ResolvedCell) -> Method:
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
def _refused_values(cell: ResolvedCell) -> Iterator[None]:
    """A ValueError of a constructor or of `setup` is about a value somebody gave: one line, not a crash."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{cell.identity['method']}: {error}") from error


def import_file(path: Path) -> None:
    """Import a method's file once: as `methods.x` or `baselines.x` inside the project, by path elsewhere."""
    if path.is_relative_to(catalog.ROOT):
        name = ".".join(path.relative_to(catalog.ROOT).with_suffix("").parts)
        if name.split(".")[0] in catalog.FOLDERS:
            importlib.import_module(name)
            return
    name = f"imported_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise


def _arrays(the_task: Task, split: str, root: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    return on_device(*the_task.load(split, root), device)


def _teacher(cell: ResolvedCell, weights: Path, spec: InputSpec, device: torch.device) -> Teacher:
    network = teachers.load(weights, cell.identity["teacher"], spec)
    return Teacher(network, spec).to(device, memory_format=torch.channels_last)


def _context(
    cell: ResolvedCell,
    method: Method,
    teacher: Teacher,
    spec: InputSpec,
    the_task: Task,
    device: torch.device,
    clock: Clock,
    folder: Path,
) -> Context:
    identity, config = cell.identity, cell.config
    budget = Budget(
        config["training"]["steps"], config["training"]["batch"], config["rounds"], config["synthesis_batch"]
    )

    capacity = method.capacity(budget)
    if capacity < budget.synthesis_batch and any(stage.calls for stage in method.schedule(budget)):
        raise ValueError(f"a buffer of {capacity} cannot take a call of {budget.synthesis_batch} images")

    def new_student() -> Normalised:
        # The same initialisation for every method at equal data, pair and repetition.
        axes = (identity["data"], identity["teacher"], identity["student"], identity["seed"])
        network = initialise(identity["student"], spec, seed_for("student-init", *axes))
        return Normalised(network, spec).to(device, memory_format=torch.channels_last)

    shape = (spec.channels, spec.size, spec.size)
    return Context(
        teacher=teacher,
        student=new_student(),
        new_student=new_student,
        spec=spec,
        budget=budget,
        device=device,
        rng=Streams(device, *identity.values()),
        buffer=ReplayBuffer(capacity, shape, device, method.replay, folder / "bank.bin"),
        augmentation=augment_for(the_task),
        autocast=lambda: compat.autocast(device, config["precision"]),
        clock=clock,
        class_names=the_task.class_names,
        per_pixel=the_task.kind == "segmentation",
    )


def _runner(
    cell: ResolvedCell,
    method: Method,
    ctx: Context,
    test: tuple[Tensor, Tensor],
    metric: dict,
    options: Options,
    folder: Path,
    facts: _Facts,
    seed: int,
) -> Runner:
    """mmengine's Runner around the data-free loop and the judge."""
    training, stages = cell.config["training"], method.schedule(ctx.budget)
    counted = sum(stage.rounds * stage.steps for stage in stages if stage.counted)
    if counted != ctx.budget.steps and not (cell.entry.reference and counted == 0):
        granted = f"the protocol grants {ctx.budget.steps}"
        raise UserError(f"{cell.identity['method']} schedules {counted} counted student steps, {granted}")
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
        ProgressHook(cell.name),
        SamplesHook(folder / "samples.png"),
    ]
    visualizer = None
    if options.tensorboard:
        hooks.append(CurveHook())
        visualizer = dict(
            type="Visualizer", vis_backends=[dict(type="TensorboardVisBackend")], save_dir=str(folder)
        )
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
        visualizer=visualizer,
        log_level="WARNING",
        experiment_name=f"{cell.identity['method']}-{id(ctx)}",
        randomness=dict(seed=seed % 2**32),
    )
    runner.model.to(ctx.device)  # mmengine moves it to CUDA wherever there is one
    return runner


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


@contextmanager
def _violations_first() -> Iterator[None]:
    """However the block ends, a refused access to real data is what it ends with."""
    try:
        yield
    finally:
        guard.check()


@contextmanager
def _exclusive(folder: Path, resume: bool) -> Iterator[None]:
    """The work folder for this process alone; emptied, once it is ours, unless the run may resume from it."""
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
            elif item.name != "lock":
                item.unlink()
        yield


def _keep_student(cell: ResolvedCell, ctx: Context, loop: DataFreeLoop, folder: Path, facts: _Facts) -> None:
    """What an engineer came for: the student's weights with a card like the teacher's."""
    card = teachers.new_card(
        cell.identity["data"],
        cell.identity["student"],
        ctx.spec,
        "distilled",
        recipe=cell.config,
        seed=cell.identity["seed"],
        accuracy=loop.curve[-1]["value"],
        seconds=round(ctx.clock.scored, 2),
        data_digest=facts.data["digest"],
    )
    teachers.save(ctx.student.network, folder / "student.safetensors", card)


class _Facts:
    """What a record says of a run beside its measurements, gathered before the guard is sealed."""

    def __init__(
        self, cell: ResolvedCell, card: dict, manifest: dict, device: torch.device, prior: dict | None
    ) -> None:
        self.cell, self.card, self._prior_card = cell, card, prior
        self.method: Method | None = None
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
        parts = (cell.digest, *self.code.values(), self.data["digest"], str(card["digest"]), device.type)
        parts += (prior["digest"],) if prior else ()
        digest = hashlib.sha256("".join(parts).encode()).hexdigest()
        # Of another configuration, code, data, teacher or kind of device: another folder, so nothing is mixed up.
        self.work = f"{cell.name}/{digest[:12]}"

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
            "identity": self.cell.identity,
            "metrics": {
                "name": task(self.cell.identity["data"]).metric,
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
            "report": self.method.report() if loop else {},
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
