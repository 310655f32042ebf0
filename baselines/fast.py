"""Fast (FastDFKD): a meta-learned generator that synthesises a batch in a few steps.

Fang et al., "Up to 100x Faster Data-free Knowledge Distillation", AAAI 2022; baselines.md 1.3.
Exact, from the published program: generator, inversion loss, inner and outer steps, meta variants, reset, schedule,
loss weights. Ours: images stay on the device as bytes instead of passing through PNG files, a short last batch of a
pass over the bank is completed from the next pass, teacher and student get no weight gradients in synthesis.
On segmentation **a reconstruction** (baselines.md 1.5): L_oh is the cross-entropy to the teacher's own argmax at each
pixel, L_adv and L_KD are averaged over pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Budget, Method, Stage
from dfkd.synthesis import losses
from dfkd.synthesis.batchnorm import BatchNormLoss
from dfkd.synthesis.buffer import Samples
from dfkd.synthesis.generators import UPSAMPLING, build_generator
from dfkd.synthesis.inversion import META, MetaGenerator


@METHODS.register_module("fast")
@dataclass(eq=False)
class Fast(Method):
    """Meta-learned generator inversion with a growing bank."""

    cites = "fang2022fast"
    saved = ("generator", "statistics")

    k: int = 5  # inner steps of a synthesis step
    lr_g: float = 3e-3  # Adam's rate for the adapted generator
    lr_z: float = 1e-2  # Adam's rate for the latent code
    meta: str = "fomaml"  # or "reptile", "none"
    bn: float = 10.0  # weight of L_bn
    oh: float = 0.5  # weight of L_oh
    adv: float = 1.0  # weight of L_adv
    bn_momentum: float = 0.9  # β of L_bn
    nz: int = 256  # size of the latent code
    ngf: int = 64  # width of the generator
    upsampling: str = "transposed"  # or "nearest": how the generator of larger images doubles its maps
    # Synthesis steps before the first student step. L_adv is on from synthesis step `warmup` (1-based), one before the
    # student has seen an image, as published.
    warmup: int = 20
    reset_at: int = 140  # the synthesis step before which the generator's first layers are drawn anew; 0: never
    temperature: float = 20.0  # τ of the distillation loss

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(k=1, nz=1, ngf=1, warmup=0, reset_at=0)
        if self.meta not in META:
            raise ValueError(f"meta must be one of {META}, not {self.meta!r}")
        if self.upsampling not in UPSAMPLING:
            raise ValueError(f"upsampling must be one of {UPSAMPLING}, not {self.upsampling!r}")

    def schedule(self, budget: Budget) -> list[Stage]:
        return [
            Stage("warm-up", self.warmup, synthesis_steps=1),
            Stage("distil", budget.rounds, synthesis_steps=1, student_steps=budget.steps_per_round),
        ]

    def setup(self, ctx: Context) -> None:
        size, channels = ctx.spec.size, ctx.spec.channels
        generator = build_generator(self.nz, self.ngf, size, channels, ctx.per_pixel, self.upsampling)
        generator = generator.to(ctx.device).to(memory_format=torch.channels_last)
        self.generator = MetaGenerator(generator, self.k, self.lr_g, self.lr_z, self.meta)
        self.statistics = BatchNormLoss(ctx.teacher, self.bn_momentum)

    def synthesize(self, ctx: Context) -> Samples:
        if self.meta != "none" and ctx.synthesis_step == self.reset_at:
            self.generator.reset_first_layers(ctx.rng("reset"))
        count = ctx.budget.synthesis_batch
        z, labels = ctx.noise(count, self.nz), ctx.random_labels(count)
        with self.statistics.capture():
            images = self.generator.invert(z, lambda x: self.inversion_loss(ctx, x, labels))
        self.statistics.update()
        return Samples(images, labels)

    def inversion_loss(self, ctx: Context, images: Tensor, labels: Tensor | None) -> Tensor:
        """bn·L_bn + mean(oh·L_oh + adv·L_adv) of augmented images, each weighted as `weights` says."""
        images = ctx.augment(images, "synthesis-augment")
        teacher = ctx.teacher(images)
        weight_oh, weight_adv = self.weights(ctx, teacher, labels)
        loss = self.bn * self.statistics.loss()
        loss = loss + self.oh * losses.cross_entropy(teacher, labels, weight_oh).mean()
        if self.adv and ctx.synthesis_step >= self.warmup:
            loss = loss + self.adv * losses.adversarial(teacher, ctx.student(images), weight_adv).mean()
        return loss

    def weights(self, ctx: Context, teacher: Tensor, labels: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """Factors of L_oh and L_adv, per sample or per pixel; SSD-KD puts φ here."""
        return 1.0, 1.0
