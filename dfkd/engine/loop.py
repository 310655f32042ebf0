"""The one loop: synthesis and training in turns, as a schedule of stages says, for students, teachers and priors."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, Runner

from dfkd.signals import Stopped, stopping

if TYPE_CHECKING:
    from dfkd.engine.method import Stage


@dataclass
class Position:
    """Where the loop stands: everything before it is done."""

    stage: int = 0
    round: int = 0
    synthesis_step: int = 0
    student_step: int = 0


def moments(steps: int, evaluations: int) -> set[int]:
    """After which scored steps the student is evaluated: evenly spread, the last one among them."""
    return {round(steps * i / evaluations) for i in range(1, evaluations + 1)} - ({0} if steps else set())


@LOOPS.register_module()
class StageLoop(BaseLoop):
    """Runs the stages of the Runner's model, a `TrainingModule`: that makes the data and takes the steps.

    Hooks get `before_synthesis`, `after_synthesis`, `before_train_iter`, `after_train_iter` and `after_round`
    beside mmengine's own; each of those three "after" is a point at which the whole state may be saved.

    Args:
        evaluations: how many times the model's weights are sent to be evaluated, evenly spread over the scored steps.
        per: when learning-rate schedules step, "step" or "round".
        time_limit: seconds from now after which the loop stops at the next such point; None is never.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: object,
        evaluations: int = 0,
        per: str = "step",
        time_limit: float | None = None,
    ) -> None:
        super().__init__(runner, dataloader=[])
        self.model, self.clock, self.per = runner.model, runner.model.clock, per
        self.stages, self.progress = self.model.stages, self.model.progress
        self.total_steps = sum(s.rounds * s.student_steps for s in self.stages if s.scored)
        self.moments = moments(self.total_steps, evaluations)
        self.position = Position()
        self.shared_seconds = 0.0
        self.stop_reason: str | None = None
        self._deadline = None if time_limit is None else time.monotonic() + time_limit

    @property
    def iter(self) -> int:
        """Student steps so far, for mmengine."""
        return self.progress.student_steps

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
            for index in range(self.position.stage, len(self.stages)):
                self._stage(self.stages[index])
                self.position = Position(stage=index + 1)
            if 0 in self.moments:  # there are no steps, and something is to be evaluated
                self._measure()
            self._check_weights()
            self.runner.call_hook("after_train")

    def _stage(self, stage: Stage) -> None:
        at = self.position
        if stage.reset_student and at == Position(stage=at.stage):
            with self.clock.phase("setup"):
                self.model.reset_student()
                self.runner.rebuild_optimizer()
        while at.round < stage.rounds:
            while at.synthesis_step < stage.synthesis_steps:
                before = self.clock.scored
                self._synthesize()
                self.shared_seconds += (self.clock.scored - before) * stage.shared
                at.synthesis_step += 1
                self._safe_point("after_synthesis")
            if stage.student_steps:
                self._distill(stage)
            at.round, at.synthesis_step, at.student_step = at.round + 1, 0, 0
            self._safe_point("after_round")

    def _synthesize(self) -> None:
        self.runner.call_hook("before_synthesis")
        self.progress.synthesis_step += 1
        with self.clock.phase("synthesis"):
            samples = self.model.synthesize()
        with self.clock.phase("buffer"):
            self.model.keep(samples)
        self.progress.images_synthesised += max(len(samples.images), samples.made or 0)

    def _distill(self, stage: Stage) -> None:
        at, runner = self.position, self.runner
        with self.clock.phase("distillation" if stage.scored else "synthesis"):
            self.model.begin_steps()
            while at.student_step < stage.student_steps:
                runner.call_hook("before_train_iter", batch_idx=at.student_step)
                runner.model.train_step(self.model.draw(), optim_wrapper=runner.optim_wrapper)
                at.student_step += 1
                if self.per == "step":
                    self._step_schedules()
                if stage.scored:
                    self.progress.student_steps += 1
                    if self.progress.student_steps in self.moments:
                        self._measure()
                self._safe_point("after_train_iter")
            if self.per == "round":
                self._step_schedules()
        self.check_finite()

    def _step_schedules(self) -> None:
        for schedule in self.runner.param_schedulers or ():
            schedule.step()

    def _measure(self) -> None:
        self.check_finite()
        self._check_weights()
        with self.clock.phase("evaluation"):  # by the harness, which has the test set; what it is worth is not told
            self.runner.tell("student", {"step": self.progress.student_steps}, self.model.weights())
        with self.clock.phase("bookkeeping"):
            self.runner.call_hook("after_val_epoch", metrics={})

    def check_finite(self) -> None:
        """Read the accumulated flag: the only place where a loss reaches the host."""
        self.model.check_losses()

    def _check_weights(self) -> None:
        """A loss may be finite and a weight not: after its last step, or where a method writes into the student."""
        with self.clock.phase("evaluation"):
            self.model.check_weights()

    def _safe_point(self, hook: str) -> None:
        if hook == "after_train_iter":
            self.runner.call_hook(hook, batch_idx=self.position.student_step, data_batch=None, outputs=None)
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
        return {
            "position": asdict(self.position),
            "shared_seconds": self.shared_seconds,
            "progress": asdict(self.progress),
        }

    def load_state_dict(self, state: dict) -> None:
        self.position = Position(**state["position"])
        self.shared_seconds = state["shared_seconds"]
        for name, value in state["progress"].items():
            setattr(self.progress, name, value)
