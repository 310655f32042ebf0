"""The module that distils: it owns teacher, student, method and all that the method is handed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from torch import Tensor, nn

from dfkd import artifacts, priors
from dfkd.engine import compat, compiling, returned
from dfkd.engine.clock import Clock
from dfkd.engine.context import Context, Student, Teacher
from dfkd.engine.guard import DataFreeViolation
from dfkd.engine.hooks import checksum, fingerprint
from dfkd.engine.method import Budget, Method, Stage, build_method, refused_values
from dfkd.engine.module import TrainingModule
from dfkd.engine.seeds import Streams, seed_for, seed_globals
from dfkd.errors import UserError
from dfkd.identity import Run
from dfkd.networks import initialise
from dfkd.synthesis.augment import augment_for
from dfkd.synthesis.batchnorm import NoStatistics
from dfkd.synthesis.buffer import Batch, ReplayBuffer, Samples, to_bytes
from dfkd.tasks import InputSpec, task


class Declined(Exception):
    """The method does not apply to the task; `prior` is what it would have known besides the teacher."""

    status = "unsupported"

    def __init__(self, reason: str, prior: str | None = None) -> None:
        super().__init__(reason)
        self.prior = prior


@MODELS.register_module()
class Distillation(TrainingModule):
    """A student that learns from a teacher on the images that a method makes.

    Args:
        run: the names of the run, as `Run._asdict()` has them: its random streams depend on them.
        method: what `build_method` takes: name, file, arguments.
        teacher: `arch`, the `weights` file and the `spec` of its input.
        budget: `steps`, `batch`, `rounds` and `synthesis_batch` granted.
        precision: "fp32", "tf32" or "bf16".
        prior: `place` and `card` of the diffusion prior, or None.
        log: the file in which the replay buffer keeps every image, for resume.
        compile: whether the networks of a student step are compiled.
        clock: the run's; everything lives on its device.
        real: the training split, for reference methods that declare `needs_data`.
        seal: called before the method's file is imported, where no kernel confines this process.
    """

    def __init__(
        self,
        run: dict[str, Any],
        method: dict[str, Any],
        teacher: dict[str, Any],
        budget: dict[str, int],
        precision: str,
        prior: dict[str, Any] | None,
        log: str,
        compile: bool = False,
        *,
        clock: Clock,
        real: tuple[Tensor, Tensor] | None = None,
        seal: Callable[[], object] = lambda: None,
    ) -> None:
        self._run = Run(**run)
        seed = seed_for("run", *self._run.axes)
        seed_globals(seed)
        self.on, self._compile = task(self._run.data), compile
        spec, device = InputSpec.from_dict(teacher["spec"]), clock.device
        network = artifacts.load(Path(teacher["weights"]), teacher["arch"], spec)
        frozen = Teacher(network, spec).to(device).to(memory_format=torch.channels_last)
        model = priors.load(prior["place"], prior["card"], device, precision) if prior else None
        student = self._new_student(spec, device)
        # Before any line of the method runs.
        self._teacher_hash, self._first = fingerprint(frozen), fingerprint(student)
        seal()
        granted = Budget(**budget)
        self.method = built = build_method(**method)
        self.prior = str(built.prior)  # what it knows besides the teacher, as declared before it is given that
        reason = returned.reason(built.supports(self.on))
        if reason is not None:
            raise Declined(reason, self.prior)
        with refused_values(self._run.method):
            stages = _stages(built, granted)
            super().__init__(stages, clock)
            streams = Streams(device, *self._run.axes)
            self.ctx = self._context(frozen, student, granted, precision, Path(log), streams, real, model)
            with _declining(self.prior):
                built.setup(self.ctx)
            self.student, self.others = student, nn.ModuleList(returned.modules(built.modules()))
            self._check_new()
            returned.check_saved(built)
        self.latest: Tensor | None = None
        self.register_buffer("touched", torch.zeros_like(self.bad), persistent=False)  # like `bad`
        self.register_buffer("flags", self.bad.new_zeros(len(returned.FLAGS)), persistent=False)
        self._seen = checksum(student.parameters())  # after the last of the optimizer's steps
        seed_globals(seed % 2**32)  # whatever `setup` drew, the loop begins at the same place

    def _check_new(self) -> None:
        """Raise DataFreeViolation unless the student has its first weights."""
        if fingerprint(self.student) != self._first:
            raise DataFreeViolation("the method changed the student before its first step")

    def _new_student(self, spec: InputSpec, device: torch.device) -> Student:
        """The same initialisation for every method at equal data, pair and repetition."""
        run = self._run
        network = initialise(run.student, spec, seed_for("student-init", run.data, run.teacher, run.student, run.seed))
        return Student(network, spec).to(device).to(memory_format=torch.channels_last)

    def _context(
        self,
        teacher: Teacher,
        student: Student,
        granted: Budget,
        precision: str,
        log: Path,
        streams: Streams,
        real: tuple[Tensor, Tensor] | None,
        prior: Any,
    ) -> Context:
        spec, device, method = teacher.spec, self.clock.device, self.method
        shape = spec.shape
        capacity = returned.capacity(method.buffer_capacity(replace(granted)))
        if capacity < granted.synthesis_batch and any(stage.synthesis_steps for stage in self.stages):
            raise ValueError(f"a buffer of {capacity} cannot take a synthesis step of {granted.synthesis_batch} images")
        self.batch = granted.batch
        if granted.batch == 1:
            _check_trains_on_one(student, shape)
        return Context(
            teacher=teacher,
            student=student,
            new_student=lambda: self._new_student(spec, device),
            spec=spec,
            budget=replace(granted),
            device=device,
            rng=streams,
            buffer=ReplayBuffer(capacity, shape, device, method.replace, log),
            augmentation=augment_for(self.on),
            autocast=lambda: compat.autocast(device, precision),
            progress=self.progress,
            aside=partial(self.clock.aside, "synthesis"),
            # What the method does not declare it does not get.
            class_names=self.on.class_names if "class names" in self.prior else (),
            per_pixel=self.on.kind == "segmentation",
            real=real,
            prior=prior if "diffusion" in self.prior else None,
        )

    @property
    def trained(self) -> nn.Module:
        return self.student

    def check_teacher(self) -> None:
        """Raise DataFreeViolation if the teacher has changed, or a hook was left on it."""
        teacher = self.ctx.teacher
        if fingerprint(teacher) != self._teacher_hash:
            raise DataFreeViolation("the method changed the teacher's weights or buffers")
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        for name, module in teacher.named_modules():
            if any(getattr(module, kind) for kind in kinds):
                raise DataFreeViolation(f"the method left a hook on the teacher's module {name or '(root)'!r}")

    def weights(self) -> dict[str, Tensor]:
        """Of the network whose score is the run's; none where that is the teacher, which the harness has."""
        evaluated = self.method.evaluated(self.ctx) if self.method.reference else self.student
        return {} if evaluated is self.ctx.teacher else evaluated.state_dict()

    def _student_state(self) -> list[Tensor]:
        return [*self.student.parameters(), *self.student.buffers()]

    def _look(self) -> None:
        """Note on the device whether the student's weights are those that the optimizer's last step left."""
        self.touched |= checksum(self.student.parameters()) != self._seen

    def check_losses(self) -> None:
        for flag, (kind, what) in zip(self.flags.tolist(), returned.FLAGS, strict=True):
            if flag:
                raise kind(f"{what} by student step {self.progress.student_steps}")
        super().check_losses()
        self._look()
        if self.touched.item():
            raise DataFreeViolation("the method changed the student beside the optimizer's steps")

    def draw(self) -> Batch:
        ctx = self.ctx
        batch = returned.batch(self.method.draw(ctx), ctx.spec.shape, self.batch, ctx.device)
        if not (ctx.buffer.size or self.progress.images_synthesised or ctx.real is not None):
            told = "draw() returned images that nobody counted"
            raise returned.WrongReturn(f"{told}: make them in synthesize(), or inside `with ctx.making_images(count):`")
        self.flags |= returned.flags(batch.images)
        self.latest = batch.images
        return batch

    def train_step(self, data: Batch, optim_wrapper: OptimWrapper) -> None:
        before = self.student.images_trained
        with optim_wrapper.optim_context(self), self._compiling():
            outputs = self.method.distill(self.ctx, data)
            loss = returned.loss(outputs)
        if (images := self.student.images_trained - before) > self.batch:
            raise returned.WrongReturn(f"a student step of {images} images, {self.batch} are granted")
        self.bad |= ~torch.isfinite(loss.detach())
        optim_wrapper.backward(loss)
        self._look()
        if compat.is_hooked(optim_wrapper.optimizer):
            raise DataFreeViolation("the method hooked into the optimizer's steps")
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        self._seen = checksum(self.student.parameters())
        self.method.after_step(self.ctx, data, outputs)

    def _compiling(self) -> AbstractContextManager:
        return compiling.compiled(self.ctx.teacher, self.student) if self._compile else nullcontext()

    def synthesize(self) -> Samples:
        # The student's weights get no gradient here; only the images do.
        self.student.eval().requires_grad_(False)
        before = checksum(self._student_state())
        with self.ctx.autocast(), _declining(self.prior):
            made = self.method.synthesize(self.ctx)
        samples = returned.samples(made, self.ctx.spec.shape, self.ctx.per_pixel)
        self.touched |= checksum(self._student_state()) != before
        self.student.requires_grad_(True)
        return samples

    def keep(self, samples: Samples) -> None:
        # As bytes they would look like any image.
        returned.check_values(self.progress.synthesis_step, samples, self.ctx.spec.classes, self.ctx.per_pixel)
        self.ctx.buffer.add(samples)

    def reset_student(self) -> None:
        self.ctx.student = self.student = self._new_student(self.ctx.spec, self.clock.device)
        self._check_new()
        self._seen = checksum(self.student.parameters())

    def images(self) -> tuple[Tensor, Tensor | None] | None:
        """The synthetic images (uint8) at hand and their labels; None for reference methods, and where none was made.

        Of a method that makes its images in `draw` these are the last batch.
        """
        buffer = self.ctx.buffer
        if self.method.reference:
            return None
        if not buffer.size:
            return None if self.latest is None else (to_bytes(self.latest), None)
        labels = buffer.fields.get("labels")
        return buffer.images[: buffer.size], None if labels is None else labels[: buffer.size]

    def describe(self) -> str:
        steps = sum(s.rounds * s.student_steps for s in self.stages if s.scored)
        made = sum(stage.rounds * stage.synthesis_steps for stage in self.stages)
        synthesis = f"synthesis {self.progress.synthesis_step}/{made} · " if made else ""
        return f"{synthesis}step {self.progress.student_steps}/{steps}"

    def run_state(self) -> dict[str, Any]:
        ctx = self.ctx
        return super().run_state() | {
            # Of a method without a buffer; a reference method's are real images, and nobody asks for them.
            "latest": None if ctx.buffer.size or self.method.reference else self.latest,
            "buffer": ctx.buffer.state_dict(),
            "method": self.method.state_dict(),
            "streams": ctx.rng.state_dict(),
            "teacher_images": ctx.teacher.images_seen,
            "touched": self.touched,
            "flags": self.flags,
            "seen": self._seen,
        }

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        self.latest = state["latest"]
        self.touched.copy_(state["touched"])
        self.flags.copy_(state["flags"])
        self._seen = state["seen"].to(self._seen.device)
        self.ctx.buffer.load_state_dict(state["buffer"])
        self.method.load_state_dict(state["method"])
        self.ctx.rng.load_state_dict(state["streams"])
        self.ctx.teacher.images_seen = state["teacher_images"]


@contextmanager
def _declining(prior: str) -> Iterator[None]:
    """A network that lacks what the method works with is a task to which it does not apply."""
    try:
        yield
    except NoStatistics as error:
        raise Declined(str(error), prior) from None


def _stages(method: Method, granted: Budget) -> tuple[Stage, ...]:
    """The method's schedule, in copies that it has not had in hand."""
    return tuple(replace(stage) for stage in returned.stages(method.schedule(replace(granted))))


def _check_trains_on_one(student: Student, shape: tuple[int, int, int]) -> None:
    """A BatchNorm layer that gets one value a channel cannot train: found out beforehand, and without numbers."""
    try:
        copy.deepcopy(student).to("meta").train()(torch.empty(1, *shape, device="meta"))
    except ValueError as error:
        raise UserError(f"training.batch=1 is too small for this student: {error}") from None
