"""What the generative baselines share: a generator's step, then student steps on its images, and no bank.

As the programs of CMI and Fast run them (baselines.md 1.6). Ours: the student in eval mode and without weight gradients
in the generator's step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.engine.context import Context
from dfkd.engine.method import Budget, Method, Stage
from dfkd.synthesis.buffer import Batch
from dfkd.synthesis.generators import build_generator

OPPONENTS = ("student", "teacher")


@dataclass(eq=False)
class Generative(Method):
    """A generator that is trained along with the student; fresh latent codes for each of its batches."""

    saved = ("generator", "optimizer")

    kd: int = 5  # student steps between two steps of the generator
    lr: float = 1e-3  # of the generator's Adam, as are its betas
    beta1: float = 0.5
    beta2: float = 0.999
    nz: int = 256  # size of the latent code
    ngf: int = 64  # width of the generator

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(kd=1, nz=1, ngf=1)

    def schedule(self, budget: Budget) -> list[Stage]:
        return [Stage("distil", budget.rounds, student_steps=budget.steps_per_round)]

    def setup(self, ctx: Context) -> None:
        generator = build_generator(self.nz, self.ngf, ctx.spec.size, ctx.spec.channels, ctx.per_pixel)
        self.generator = generator.to(ctx.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.generator.parameters(), self.lr, (self.beta1, self.beta2))

    def draw(self, ctx: Context) -> Batch:
        with ctx.making_images(ctx.budget.batch), ctx.autocast():
            if ctx.student_steps % self.kd == 0:
                self.explore(ctx)
            with torch.no_grad():
                return Batch(self.generator(ctx.noise(ctx.budget.batch, self.nz)))

    def explore(self, ctx: Context) -> None:
        """One step of the generator on `generator_loss`."""
        ctx.student.eval().requires_grad_(False)
        loss = self.generator_loss(ctx, self.generator(ctx.noise(ctx.budget.synthesis_batch, self.nz)))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        ctx.student.train().requires_grad_(True)

    def generator_loss(self, ctx: Context, images: Tensor) -> Tensor:
        """What the generator minimises, of its images, N×C×H×W in [0, 1]; a scalar."""
        raise NotImplementedError


@dataclass(eq=False)
class Adversarial(Generative):
    """A generator that looks for images on which its opponent is far from the teacher."""

    # "teacher" is what Fast's program does: it hands over the teacher in the student's place, so that the adversarial
    # term is 0 (baselines.md 1.6).
    opponent: str = "student"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.opponent not in OPPONENTS:
            raise ValueError(f"opponent must be one of {OPPONENTS}, not {self.opponent!r}")

    def rival(self, ctx: Context) -> nn.Module:
        """The network that stands for S in the adversarial term."""
        return ctx.teacher if self.opponent == "teacher" else ctx.student
