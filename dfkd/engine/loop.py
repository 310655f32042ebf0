"""The data-free loop: synthesis and distillation in turns, as a method's schedule says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from dfkd.engine.context import Context
from dfkd.engine.method import Method, Stage
from dfkd.signals import Stopped, stopping


class Diverged(Exception):
    """A loss or a weight of the student was not finite."""

    status = "diverged"


@dataclass
class Position:
    """Where the loop stands: everything before it is done."""

    stage: int = 0
    round: int = 0
    call: int = 0
    step: int = 0


class Distiller(BaseModel):
    """The model of the Runner: the student and whatever else its optimiser trains."""

    def __init__(self, student: nn.Module, modules: list[nn.Module], device: torch.device) -> None:
        super().__init__()
        self.student = student
        self.others = nn.ModuleList(modules)
        self.latest: Tensor | None = None
        # Accumulated on the device and read at evaluations and phase ends, so that no step waits for the host.
        self.register_buffer("bad", torch.zeros((), dtype=torch.bool, device=device), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.student(images)

    def train_step(self, data: tuple[Method, Context], optim_wrapper: OptimWrapper) -> None:
        """One student step. Returns nothing: mmengine's hooks would read log values one by one."""
        method, ctx = data
        batch = method.draw(ctx)
        if len(batch.images) > ctx.budget.batch:
            raise RuntimeError(
                f"a student batch of {len(batch.images)} images, {ctx.budget.batch} are granted"
            )
        self.latest = batch.images
        with optim_wrapper.optim_context(self):
            outputs = method.distill(ctx, batch)
        loss = sum(outputs.values())
        self.bad |= ~torch.isfinite(loss.detach())
        optim_wrapper.update_params(loss)
        method.after_step(ctx, batch, outputs)


class DataFreeLoop(BaseLoop):
    """Runs a method's schedule under mmengine's Runner.

    Hooks get `before_synthesis`, `after_synthesis`, `before_train_iter`, `after_train_iter` and `after_round`
    beside mmengine's own; each of the last four is a point at which the whole state may be saved.
    """

    def __init__(
        self,
        runner: Runner,
        method: Method,
        ctx: Context,
        stages: list[Stage],
        evaluations: int,
        evaluate: Callable[[], float],
        renew: Callable[[], None],
        time_limit: float | None,
        step_schedule: str,
        prior_seconds: float = 0.0,
    ) -> None:
        super().__init__(runner, dataloader=[])
        self.method, self.ctx, self.stages, self.clock = method, ctx, stages, ctx.clock
        self.evaluate, self.renew, self.step_schedule = evaluate, renew, step_schedule
        self.prior_seconds = prior_seconds
        self.total_steps = sum(s.rounds * s.steps for s in stages if s.counted)
        self.moments = {round(self.total_steps * i / evaluations) for i in range(1, evaluations + 1)}
        self.position = Position()
        self.curve: list[dict] = []
        self.shared_seconds = 0.0
        self.stop_reason: str | None = None
        self._deadline = time.monotonic() + time_limit if time_limit else None

    @property
    def iter(self) -> int:
        """Student steps so far, for mmengine."""
        return self.ctx.student_steps

    @property
    def max_iters(self) -> int:
        return self.total_steps

    @property
    def max_epochs(self) -> int:
        """Rounds in all; mmengine asks for it where a schedule goes by rounds."""
        return sum(stage.rounds for stage in self.stages)

    def run(self) -> None:
        """The whole schedule from the present position. Raises Diverged or Stopped."""
        with stopping(self._stop):
            self.runner.call_hook("before_train")
            if not self.clock.resumes:
                self.clock.add("prior", self.prior_seconds)
            for index in range(self.position.stage, len(self.stages)):
                self._stage(self.stages[index])
                self.position = Position(stage=index + 1)
            if not (self.total_steps or self.curve):
                self._measure()
            self._check_student()
            self.runner.call_hook("after_train")

    def _stage(self, stage: Stage) -> None:
        at = self.position
        if stage.fresh_student and at == Position(stage=at.stage):
            with self.clock.phase("setup"):
                self.renew()
        while at.round < stage.rounds:
            while at.call < stage.calls:
                before = self.clock.scored
                self._synthesize()
                self.shared_seconds += (self.clock.scored - before) * stage.shared
                at.call += 1
                self._safe_point("after_synthesis")
            if stage.steps:
                self._distill(stage)
            at.round, at.call, at.step = at.round + 1, 0, 0
            self._safe_point("after_round")

    def _synthesize(self) -> None:
        ctx = self.ctx
        self.runner.call_hook("before_synthesis")
        ctx.calls += 1
        with self.clock.phase("synthesis"):
            # The student's weights get no gradient here; only the images do.
            ctx.student.eval().requires_grad_(False)
            with ctx.autocast():
                samples = self.method.synthesize(ctx)
            ctx.student.requires_grad_(True)
        self.runner.model.bad |= ~torch.isfinite(
            samples.images
        ).all()  # as bytes they would look like any image
        with self.clock.phase("buffer"):
            ctx.buffer.add(samples)
        ctx.images_synthesised += len(samples.images) if samples.made is None else samples.made

    def _distill(self, stage: Stage) -> None:
        at, ctx, runner = self.position, self.ctx, self.runner
        with self.clock.phase("distillation" if stage.counted else "synthesis"):
            ctx.student.train()
            while at.step < stage.steps:
                runner.call_hook("before_train_iter", batch_idx=at.step)
                runner.model.train_step((self.method, ctx), optim_wrapper=runner.optim_wrapper)
                at.step += 1
                if self.step_schedule == "step":
                    self._step_schedules()
                if stage.counted:
                    ctx.student_steps += 1
                    if ctx.student_steps in self.moments:
                        self._measure()
                self._safe_point("after_train_iter")
            if self.step_schedule == "round":
                self._step_schedules()
        self.check_finite()

    def _step_schedules(self) -> None:
        for schedule in self.runner.param_schedulers or ():
            schedule.step()

    def _measure(self) -> None:
        self.check_finite()
        self._check_student()
        seconds = self.clock.scored
        value = self.evaluate()
        point = {"step": self.ctx.student_steps, "seconds": round(seconds, 4), "value": round(value, 6)}
        self.curve.append(point)
        with self.clock.phase("bookkeeping"):
            self.runner.call_hook("after_val_epoch", metrics={"value": value})

    def check_finite(self) -> None:
        """Read the accumulated flag: the only place where a loss reaches the host."""
        if self.runner.model.bad.item():
            raise Diverged(f"the loss was not finite by student step {self.ctx.student_steps}")

    def _check_student(self) -> None:
        """A loss may be finite and a weight not: after its last step, or where a method writes into the student."""
        with self.clock.phase("evaluation"):
            weights = (w for w in self.ctx.student.state_dict().values() if w.is_floating_point())
            if not torch.stack([w.isfinite().all() for w in weights]).all().item():
                raise Diverged(f"a weight of the student was not finite by step {self.ctx.student_steps}")

    def _safe_point(self, hook: str) -> None:
        if hook == "after_train_iter":
            self.runner.call_hook(hook, batch_idx=self.position.step, data_batch=None, outputs=None)
        else:
            self.runner.call_hook(hook)
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.stop_reason = self.stop_reason or "the time limit was reached"
        if self.stop_reason:
            self.runner.call_hook("save_state")
            raise Stopped(self.stop_reason)

    def _stop(self, reason: str) -> None:
        self.stop_reason = reason

    def state_dict(self) -> dict:
        counters = ("calls", "student_steps", "images_synthesised")
        return {
            "position": asdict(self.position),
            "curve": self.curve,
            "shared_seconds": self.shared_seconds,
            "counters": {name: getattr(self.ctx, name) for name in counters},
            "teacher_images": self.ctx.teacher.images_seen,
        }

    def load_state_dict(self, state: dict) -> None:
        self.position, self.curve = Position(**state["position"]), state["curve"]
        self.shared_seconds = state["shared_seconds"]
        for name, value in state["counters"].items():
            setattr(self.ctx, name, value)
        self.ctx.teacher.images_seen = state["teacher_images"]
