"""Trainings of teachers and diffusion priors: the Runner, loop, state and signals of a distillation.

They can be stopped and gone on with, to the same result bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from dfkd import catalog
from dfkd.engine.clock import Clock
from dfkd.engine.hooks import ProgressHook
from dfkd.engine.method import Stage
from dfkd.engine.module import Diverged, TrainingModule
from dfkd.engine.runner import PlainRunner
from dfkd.errors import CannotWrite, UserError
from dfkd.networks.keys import check_finite
from dfkd.signals import Stopped

SAVE_EVERY, SPEAK_EVERY = 60.0, 20.0  # seconds


class Training(TrainingModule):
    """Base of what is trained on data: `rounds` epochs, or one, of `steps`."""

    def __init__(self, rounds: int, steps: int, clock: Clock) -> None:
        super().__init__([Stage("training", rounds, student_steps=steps)], clock)
        self.mean_loss = torch.zeros((), device=clock.device)  # over some 100 steps, read when it is told

    @property
    def steps(self) -> int:
        """How many there are in all."""
        return self.stages[0].rounds * self.stages[0].student_steps

    def loss(self, data: Any) -> Tensor:
        raise NotImplementedError

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> None:
        loss = self.loss(data)
        self.bad |= ~torch.isfinite(loss.detach())
        self.mean_loss = self.mean_loss.lerp(loss.detach(), 1 / min(self.progress.student_steps + 1, 100))
        self.update(loss, optim_wrapper)

    def update(self, loss: Tensor, optim_wrapper: OptimWrapper) -> None:
        optim_wrapper.update_params(loss)

    def check_losses(self) -> None:
        if self.bad.item():
            raise Diverged(f"training diverged before {self.place()}: the loss is not finite; lower lr")

    def check_weights(self) -> None:
        try:
            check_finite(self.trained.state_dict())
        except UserError as error:
            raise Diverged(f"training diverged: {error}; lower lr") from None

    def place(self) -> str:
        """How far it is, such as `step 4/6`."""
        return f"step {self.progress.student_steps}/{self.steps}"

    def opening(self) -> str | None:
        """What is said first."""
        return f"going on from {self.place()}" if self.progress.student_steps else None

    def describe(self) -> str:
        return f"{self.place()}, loss {self.mean_loss.item():.4f}"

    def run_state(self) -> dict[str, Any]:
        return super().run_state() | {"mean_loss": self.mean_loss}

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        self.mean_loss = state["mean_loss"]


@HOOKS.register_module()
class TellingHook(ProgressHook):
    """Progress in lines for the Runner's `say`, with the loss, which is looked at on the occasion."""

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if opening := runner.model.opening():
            runner.say(opening)

    def tell(self, runner: Runner) -> None:
        runner.train_loop.check_finite()
        runner.say(f"{runner.model.describe()}, about {self.left(runner)} left")

    def after_train(self, runner: Runner) -> None:
        self.tell(runner)


def state_path(folder: Path, *facts: Any) -> Path:
    """Where the state of a training lies that depends on these facts, and on the code: no other goes on from it."""
    key = json.dumps([*facts, catalog.harness_digest()], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"


def finish(
    config: dict[str, Any],
    given: dict[str, Any],
    device: str | torch.device,
    *,
    state: Path | None = None,
    resume: bool = True,
    until: float = math.inf,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Training, float]:
    """Train the model of `config` to the end, saving to `state` (unless None) and telling on the way; and the seconds.

    With `resume` it goes on from what a stopped training left in `state`. Raises `Stopped`, with the state saved, at
    a signal and at the moment `until` (seconds of `time.monotonic`); UserError where the loss diverges, and without
    `resume` where there is a state, which would be lost.
    """
    clock = Clock(device)
    limit = None if until == math.inf else until - time.monotonic()
    hooks: list[dict] = [dict(type="TellingHook", every=SPEAK_EVERY)]
    if state is not None:
        if state.is_file() and not resume:  # perhaps of hours
            raise UserError(f"{state} is a saved state of this training: pass --resume to go on from it, or remove it")
        hooks.append(dict(type="StateHook", path=str(state), interval=SAVE_EVERY, resume=resume))
    loop = dict(type="StageLoop", per=config["per"], time_limit=limit)
    parts = {key: value for key, value in config.items() if key != "per"}
    with tempfile.TemporaryDirectory() as folder:
        parts |= {"train_cfg": loop, "custom_hooks": hooks}
        runner = PlainRunner(parts, Path(folder), {"clock": clock, **given}, say=say)
    model = runner.model
    try:
        runner.train()
    except Diverged as error:
        raise UserError(str(error)) from None
    except CannotWrite as error:  # the disk is full; the state before this one is still there
        raise Stopped(f"{error}; the same with --resume goes on") from None
    except Stopped as error:
        raise Stopped(f"{error} at {model.place()}; the same with --resume goes on") from None
    return model, clock.seconds["distillation"]
