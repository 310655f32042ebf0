"""DFAD: a generator that looks for images on which student and teacher differ.

Fang et al., "Data-Free Adversarial Distillation", arXiv 1912.11006; baselines.md 1.6, on segmentation
baselines.md 1.5. Exact: a generator step, then `kd` student steps on fresh latent codes; L1 between logits as the
student's loss; the generator's objective −L1, or −log(1 + L1) on segmentation (`objective`); no bank, no augmentation,
the generator in train mode also for the student's batches (as in the Fast program); the deep generator's first weights.
Ours: a sigmoid at the end of the generator in place of tanh, since images live in [0, 1]; the student in eval mode and
without weight gradients in the generator's step; the generator's step comes before its student steps, as on
classification, on segmentation too; Adam's betas (.5, .999) unless the recipe says otherwise (none are published for
segmentation).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.generative import Adversarial
from dfkd.engine.context import Context
from dfkd.engine.method import METHODS
from dfkd.synthesis import losses
from dfkd.synthesis.buffer import Batch
from dfkd.synthesis.generators import redraw


@METHODS.register_module("dfad")
@dataclass(eq=False)
class DFAD(Adversarial):
    """Adversarial exploration by a generator, without a bank."""

    cites = "fang2019dfad"

    objective: str = "l1"  # minimises −L1; "log": −log(1 + L1)
    decay: float = 1.0  # factor on `lr` after each `decay_every` rounds
    decay_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in ("l1", "log"):
            raise ValueError(f"objective must be 'l1' or 'log', not {self.objective!r}")
        self.at_least(decay_every=1)

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        if ctx.per_pixel:
            redraw(self.generator, ctx.rng("generator"), biases=False)

    def explore(self, ctx: Context) -> None:
        rounds = ctx.student_steps // ctx.budget.steps_per_round
        self.optimizer.param_groups[0]["lr"] = self.lr * self.decay ** (rounds // self.decay_every)
        super().explore(ctx)

    def generator_loss(self, ctx: Context, images: Tensor) -> Tensor:
        distance = losses.logits_l1(ctx.teacher(images), self.rival(ctx)(images)).mean()
        return -torch.log(1 + distance) if self.objective == "log" else -distance

    def distill(self, ctx: Context, batch: Batch) -> dict[str, Tensor]:
        return {"l1": losses.logits_l1(ctx.teach(batch.images), ctx.student(batch.images)).mean()}
