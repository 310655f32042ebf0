"""DFAD: a generator that looks for images on which student and teacher differ.

Fang et al., "Data-Free Adversarial Distillation", arXiv 1912.11006; baselines.md 1.6, on segmentation
baselines.md 1.5. Exact: a generator step, then `kd` student steps on fresh latent codes; L1 between logits as the
student's loss; the generator's objective −L1, or −log(1 + L1) on segmentation (`objective`); no bank, no augmentation,
the generator in train mode also for the student's batches (as in the Fast program).
Ours: a sigmoid at the end of the generator in place of tanh, since images live in [0, 1]; the student in eval mode and
without weight gradients in the generator's step; the generator's step comes before its student steps, as on
classification, on segmentation too; Adam's betas (.5, .999) unless the recipe says otherwise (none are published for
segmentation).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Budget, Method, Stage
from dfkd.synthesis import losses
from dfkd.synthesis.buffer import Batch
from dfkd.synthesis.generators import build_generator


@METHODS.register_module("dfad")
@dataclass(eq=False)
class DFAD(Method):
    """Adversarial exploration by a generator, without a bank."""

    cites = "fang2019dfad"
    saved = ("generator", "optimizer")

    objective: str = "l1"  # minimises −L1; "log": −log(1 + L1)
    kd: int = 5  # student steps between two steps of the generator
    lr: float = 1e-3  # of the generator's Adam, as are its betas
    beta1: float = 0.5
    beta2: float = 0.999
    decay: float = 1.0  # factor on `lr` after each `decay_every` rounds
    decay_every: int = 100
    nz: int = 256  # size of the latent code
    ngf: int = 64  # width of the generator

    def __post_init__(self) -> None:
        if self.objective not in ("l1", "log"):
            raise ValueError(f"objective must be 'l1' or 'log', not {self.objective!r}")
        if min(self.kd, self.decay_every) < 1:
            raise ValueError(f"kd and decay_every must be at least 1, not {self.kd} and {self.decay_every}")

    def schedule(self, budget: Budget) -> list[Stage]:
        return [Stage("distil", budget.rounds, student_steps=budget.steps_per_round)]

    def setup(self, ctx: Context) -> None:
        generator = build_generator(self.nz, self.ngf, ctx.spec.size, ctx.spec.channels)
        self.generator = generator.to(ctx.device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.Adam(self.generator.parameters(), self.lr, (self.beta1, self.beta2))

    def draw(self, ctx: Context) -> Batch:
        with ctx.making_images(ctx.budget.batch), ctx.autocast():
            if ctx.student_steps % self.kd == 0:
                self.explore(ctx)
            with torch.no_grad():
                return Batch(self.generator(ctx.noise(ctx.budget.batch, self.nz)))

    def explore(self, ctx: Context) -> None:
        """One step of the generator towards images on which the student is far from the teacher."""
        rounds = ctx.student_steps // ctx.budget.steps_per_round
        self.optimizer.param_groups[0]["lr"] = self.lr * self.decay ** (rounds // self.decay_every)
        ctx.student.eval().requires_grad_(False)
        loss = self.generator_loss(ctx, self.generator(ctx.noise(ctx.budget.synthesis_batch, self.nz)))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        ctx.student.train().requires_grad_(True)

    def generator_loss(self, ctx: Context, images: Tensor) -> Tensor:
        distance = losses.logits_l1(ctx.teacher(images), ctx.student(images)).mean()
        return -torch.log(1 + distance) if self.objective == "log" else -distance

    def distill(self, ctx: Context, batch: Batch) -> dict[str, Tensor]:
        return {"l1": losses.logits_l1(ctx.teach(batch.images), ctx.student(batch.images)).mean()}
