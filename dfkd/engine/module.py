"""What the Runner trains: a module that owns all that a step needs, so that `train_step` gets data and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from dfkd.engine.clock import Clock
from dfkd.engine.context import Progress
from dfkd.engine.method import Stage
from dfkd.synthesis.buffer import Samples


class Diverged(Exception):
    """A loss, an image or a weight of what is trained was not finite."""

    status = "diverged"


class TrainingModule(BaseModel):
    """Base of what is trained: the student with its method, a teacher, a diffusion prior.

    Its parameters are what the optimizer trains; all else that it holds stays out of reach of `parameters`.
    """

    def __init__(self, stages: Sequence[Stage], clock: Clock) -> None:
        super().__init__()
        self.stages, self.clock, self.progress = tuple(stages), clock, Progress()
        # Accumulated on the device and read at evaluations and phase ends, so that no step waits for the host.
        self.register_buffer("bad", torch.zeros((), dtype=torch.bool, device=clock.device), persistent=False)

    @property
    def trained(self) -> nn.Module:
        """The network whose weights are the result."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Nothing: weights come from named seeds, and mmengine would draw some of its own."""

    def forward(self, images: Tensor) -> Tensor:
        return self.trained(images)

    def begin_steps(self) -> None:
        self.trained.train()

    def draw(self) -> Any:
        """The data of the next step."""
        raise NotImplementedError

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> None:
        """One step. Returns nothing: mmengine's hooks would read log values one by one."""
        raise NotImplementedError

    def synthesize(self) -> Samples:
        """New training images, of the stages that have synthesis steps."""
        raise NotImplementedError

    def keep(self, samples: Samples) -> None:
        """Put new images where `draw` finds them."""
        raise NotImplementedError

    def reset_student(self) -> None:
        """Begin with a new network, the first weights of which are those of before."""
        raise NotImplementedError

    def check_losses(self) -> None:
        """Raise Diverged if a loss was not finite. Waits for the device."""
        if self.bad.item():
            raise Diverged(f"the loss was not finite by student step {self.progress.student_steps}")

    def check_weights(self) -> None:
        """Raise Diverged if a weight is not finite. Waits for the device."""
        weights = (w for w in self.trained.state_dict().values() if w.is_floating_point())
        if not torch.stack([w.isfinite().all() for w in weights]).all().item():
            raise Diverged(f"a weight of the student was not finite by step {self.progress.student_steps}")

    def describe(self) -> str:
        """How far it is, for people."""
        raise NotImplementedError

    def run_state(self) -> dict[str, Any]:
        """Everything that the next step depends on and that loop, optimizer and clock do not hold."""
        return {"weights": self.state_dict(), "bad": self.bad}

    def load_run_state(self, state: dict[str, Any]) -> None:
        self.load_state_dict(state["weights"])
        self.bad.copy_(state["bad"])
