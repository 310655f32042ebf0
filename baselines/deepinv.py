"""DeepInversion, with images optimised pixel by pixel.

Yin et al., "Dreaming to Distill", CVPR 2020, as run for the CIFAR tables by CMI and Fast (baselines.md 1.2); the
official program's loss (baselines.md 1.1) by arguments: `tv`, `l2`, `clamp_js`, `jitter=2, flip=False, clip=False,
beta1=.9, beta2=.999, student_bn=0`.
Exact: loss, jitter, optimizer, the last iterate as result. Ours: the student's own BatchNorm term only while the
adversarial one is on (the program uses it always and stops without), no PNG files.
On segmentation **a reconstruction**, for which nothing is published: L_oh is the cross-entropy to the teacher's own
argmax at each pixel, JS and L_KD are averaged over pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Method
from dfkd.synthesis import losses
from dfkd.synthesis.batchnorm import BatchNormLoss
from dfkd.synthesis.buffer import Samples


@METHODS.register_module("deepinv")
@dataclass(eq=False)
class DeepInv(Method):
    """Pixel optimisation against BatchNorm statistics, labels and the student."""

    cites = "yin2020deepinversion"

    steps: int = 2000  # of Adam in one synthesis step
    lr: float = 0.1  # of Adam on normalised pixels, as are its betas
    beta1: float = 0.5
    beta2: float = 0.99
    bn: float = 10.0  # weight of L_bn
    oh: float = 1.0  # weight of L_oh
    adv: float = 1.0  # weight of −JS
    student_bn: float = 0.001  # share of the student's own L_bn subtracted inside L_bn (Fast's version; 0 in CMI's)
    clamp_js: bool = False  # clamp the batch's JS to [0, 1], as the official program does
    tv: float = 0.0  # weight of TV2, on the jittered normalised images (baselines.md 1.1)
    l2: float = 0.0  # weight of ‖x‖₂ of the same
    jitter: int = 0  # largest circular shift per axis in pixels; 0: an eighth of the image
    flip: bool = True  # flip the whole batch with p = .5 in each step, where the task allows flips
    clip: bool = True  # clamp to the valid pixel range after each step
    temperature: float = 20.0  # τ of the distillation loss

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(steps=1, jitter=0)

    def setup(self, ctx: Context) -> None:
        self.statistics = BatchNormLoss(ctx.teacher)

    def synthesize(self, ctx: Context) -> Samples:
        count, spec, mean, std = ctx.budget.synthesis_batch, ctx.spec, ctx.teacher.mean, ctx.teacher.std
        labels = ctx.random_labels(count)
        pixels = ctx.noise(count, spec.channels, spec.size, spec.size)  # normalised
        pixels = pixels.to(memory_format=torch.channels_last).requires_grad_(True)
        optimizer = torch.optim.Adam([pixels], lr=self.lr, betas=(self.beta1, self.beta2))
        student_statistics = BatchNormLoss(ctx.student)
        with self.statistics.capture(), student_statistics.capture():
            for _ in range(self.steps):
                jittered = self._jitter(ctx, pixels)
                loss = self._loss(ctx, jittered, jittered * std + mean, labels, student_statistics)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if self.clip:
                    with torch.no_grad():
                        pixels.copy_(torch.clamp(pixels, -mean / std, (1 - mean) / std))
        images = (pixels.detach() * std + mean).clamp(0, 1)
        return Samples(images, labels)

    def _jitter(self, ctx: Context, pixels: Tensor) -> Tensor:
        host = ctx.rng.host("jitter")
        reach = self.jitter or ctx.spec.size // 8
        down, right = (int(x) for x in torch.randint(-reach, reach + 1, (2,), generator=host))
        rolled = torch.roll(pixels, (down, right), dims=(2, 3))
        flip = self.flip and ctx.augmentation.flip and torch.rand((), generator=host) < 0.5
        return rolled.flip(3) if flip else rolled

    def _loss(
        self,
        ctx: Context,
        normalised: Tensor,
        images: Tensor,
        labels: Tensor,
        student_statistics: BatchNormLoss,
    ) -> Tensor:
        teacher = ctx.teacher(images)
        loss = self.bn * self.statistics.loss() + self.oh * losses.cross_entropy(teacher, labels).mean()
        if self.adv:
            student = ctx.student(images)
            divergence = losses.jensen_shannon(student, teacher).mean()
            loss = loss - self.adv * (divergence.clamp(0, 1) if self.clamp_js else divergence)
            if self.student_bn:
                loss = loss - self.bn * self.student_bn * student_statistics.loss()
        if self.tv:
            loss = loss + self.tv * losses.total_variation(normalised)
        if self.l2:
            loss = loss + self.l2 * torch.linalg.vector_norm(normalised)
        return loss
