"""Reference rows: they see real data, or nothing at all. They are no data-free methods, and marked so.

They use the same loop, student recipe and clock as every method, and their records say `reference`. Those that declare
`needs_data` find the training split in `ctx.real`, `kd-public` what the table's diffusion prior was trained on; all are
confined like any method.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Budget, Method, Stage
from dfkd.synthesis import losses
from dfkd.synthesis.buffer import Batch, ShuffledPasses
from dfkd.tasks import Task


@METHODS.register_module("teacher")
class TeacherItself(Method):
    """The teacher itself, evaluated as a student would be."""

    reference = True

    def schedule(self, budget: Budget) -> list[Stage]:
        return []

    def evaluated(self, ctx: Context) -> nn.Module:
        return ctx.teacher


class _RealData(Method):
    """Student steps on the real training set, in shuffled passes."""

    reference = True
    needs_data = True
    saved = ("passes",)

    def schedule(self, budget: Budget) -> list[Stage]:
        return [Stage("distil", budget.rounds, student_steps=budget.steps_per_round)]

    def setup(self, ctx: Context) -> None:
        self.passes = ShuffledPasses()

    def draw(self, ctx: Context) -> Batch:
        images, labels = ctx.real
        indices = self.passes.draw(ctx.budget.batch, len(labels), ctx.rng("draw"))
        return Batch(*ctx.augment_pair(images[indices], labels[indices]))


@METHODS.register_module("student-real")
class StudentReal(_RealData):
    """The student trained on real images and labels, without the teacher."""

    def distill(self, ctx: Context, batch: Batch) -> dict[str, Tensor]:
        return {"ce": losses.cross_entropy(ctx.student(batch.images), batch.labels).mean()}


@METHODS.register_module("kd-real")
@dataclass(eq=False)
class KDReal(_RealData):
    """The student distilled on real images: what a data-free method would like to reach."""

    cites = "hinton2015distilling"

    share: float = 1.0  # of the training set, drawn at random once for each seed
    temperature: float = 20.0  # τ of the distillation loss

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} of the training set must be above 0 and at most 1")

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        if self.share < 1:
            count = len(ctx.real[0])
            chosen = torch.randperm(count, generator=ctx.rng("share"), device=ctx.device)
            chosen = chosen[: max(1, round(self.share * count))]
            images, labels = ctx.real
            ctx.real = images[chosen], labels[chosen]


@METHODS.register_module("kd-public")
@dataclass(eq=False)
class KDPublic(_RealData):
    """The student distilled on the pictures that the diffusion prior was trained on, without any diffusion.

    What is better than this row is the merit of a method that uses the prior, and not of public pictures as such.
    """

    prior = "public images"

    temperature: float = 20.0  # τ of the distillation loss

    def supports(self, task: Task) -> str | None:
        return None if task.kind == "classification" else "no table of label maps has a diffusion prior"

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        if not len(ctx.real[0]):
            raise ValueError("the table has no diffusion prior, or one whose training images are not at hand")

    def draw(self, ctx: Context) -> Batch:
        images = ctx.real[0]
        return Batch(ctx.augment(images[self.passes.draw(ctx.budget.batch, len(images), ctx.rng("draw"))]))


@METHODS.register_module("kd-noise")
@dataclass(eq=False)
class KDNoise(_RealData):
    """The student distilled on uniform noise in [0, 1]: what a data-free method has to beat."""

    needs_data = False

    temperature: float = 20.0  # τ of the distillation loss

    def draw(self, ctx: Context) -> Batch:
        spec = ctx.spec
        with ctx.making_images(ctx.budget.batch):
            shape = (ctx.budget.batch, spec.channels, spec.size, spec.size)
            images = torch.rand(shape, generator=ctx.rng("noise"), device=ctx.device)
        return Batch(images.to(memory_format=torch.channels_last))
