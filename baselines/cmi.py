"""CMI (contrastive model inversion): a generator re-drawn for every batch, and images unlike all earlier ones.

Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021; baselines.md 1.6 and
dda.md 1.2.
Exact, from the published program: losses, views, image features, projection head and its optimizer, memory, best step
kept. Ours: Fast's generator (the published one is wider); features stay on the device; a draw from the memory without
replacement in each step; augmentation as the task allows (digits are not flipped).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Budget, Method, Stage
from dfkd.synthesis import losses
from dfkd.synthesis.augment import ResizedCrop
from dfkd.synthesis.batchnorm import BatchNormLoss, channel_means
from dfkd.synthesis.buffer import Samples
from dfkd.synthesis.contrast import Contrast
from dfkd.synthesis.generators import build_generator, redraw
from dfkd.synthesis.inversion import BETAS
from dfkd.tasks import Task

FEATURES = ("bn", "stages")


@METHODS.register_module("cmi")
@dataclass(eq=False)
class CMI(Method):
    """Model inversion with a contrastive term that keeps the images apart.

    The published regimes: from scratch (the defaults), a bank only (`bank_calls` > 0, `calls` 0), and a bank first
    with adversarial calls afterwards (both > 0, the value of the tables).
    """

    cites = "fang2021cmi"
    saved = ("contrast",)  # the generator is drawn anew by every synthesis step

    steps: int = 200  # Adam steps of one call
    lr: float = 1e-3  # of generator, latent code and projection head
    bn: float = 1.0  # weight of L_bn
    oh: float = 1.0  # weight of L_oh
    adv: float = 0.5  # weight of L_adv
    cr: float = 0.8  # weight of the contrastive L_cr; 0 leaves the second view out
    tau: float = 0.1  # temperature of L_cr
    # An image's feature: channel means of the inputs of all BatchNorm layers ("bn") or, for ResNet-34, of the stages
    # ("stages").
    features: str = "bn"
    memory: int = 40960  # images whose features are remembered
    negatives: int = 4096  # those drawn in each step
    nz: int = 256  # size of the latent code
    ngf: int = 64  # width of the generator
    bank_calls: int = 0  # calls before the student trains, without L_adv
    calls: int = 1  # calls in each round, with it
    temperature: float = 20.0  # τ of the distillation loss

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(steps=1, memory=1, negatives=0, nz=1, ngf=1, bank_calls=0, calls=0, tau=1e-3)
        if self.features not in FEATURES:
            raise ValueError(f"features must be one of {FEATURES}, not {self.features!r}")
        if self.bank_calls + self.calls == 0:
            raise ValueError(f"bank_calls={self.bank_calls} and calls={self.calls} make no images")

    def supports(self, task: Task) -> str | None:
        return None if task.kind == "classification" else "its inversion takes one label per image"

    def schedule(self, budget: Budget) -> list[Stage]:
        bank = [Stage("bank", 1, synthesis_steps=self.bank_calls, shared=True)] if self.bank_calls else []
        return [*bank, Stage("distil", budget.rounds, synthesis_steps=self.calls, student_steps=budget.steps_per_round)]

    def setup(self, ctx: Context) -> None:
        generator = build_generator(self.nz, self.ngf, ctx.spec.size, ctx.spec.channels, ctx.per_pixel)
        self.generator = generator.to(ctx.device).to(memory_format=torch.channels_last)
        self.statistics = BatchNormLoss(ctx.teacher)
        self.contrast = None
        if self.cr:
            network = ctx.teacher.network
            stages = [network.get_submodule(name) for name in network.stages]
            self.layers = self.statistics.layers if self.features == "bn" else stages
            self.local = ResizedCrop(flip=ctx.augmentation.flip)
            probe = torch.zeros(1, ctx.spec.channels, ctx.spec.size, ctx.spec.size, device=ctx.device)
            with torch.no_grad(), channel_means(self.layers) as means:
                network(probe)
            size = sum(mean.shape[1] for mean in means)
            self.contrast = Contrast(size, self.memory, self.negatives, self.tau, self.lr, ctx.device)

    def online(self, ctx: Context) -> bool:
        """Whether this call stands between student steps (the first one just before them, as published)."""
        return ctx.synthesis_step > self.bank_calls

    def synthesize(self, ctx: Context) -> Samples:
        return self.invert(ctx, ctx.budget.synthesis_batch, self.steps)

    def invert(self, ctx: Context, count: int, steps: int) -> Samples:
        """One call: `count` images of the step with the lowest loss, before that step's update."""
        redraw(self.generator, ctx.rng("generator"))
        z, labels = ctx.noise(count, self.nz).requires_grad_(True), ctx.random_labels(count)
        optimizers = [torch.optim.Adam([*self.generator.parameters(), z], lr=self.lr, betas=BETAS)]
        optimizers += [self.contrast.optimizer] if self.contrast else []
        best: Any = None
        finite: Any = True
        for _ in range(steps):
            images = self.generator(z)
            loss, features = self.inversion_loss(ctx, images, labels)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            found: Any = (loss.detach(), images.detach(), features)
            finite = loss.detach().isfinite() & finite
            if best is not None:
                # Chosen on the device: reading the loss here would make the host wait at every step.
                better = found[0] < best[0]
                found = tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))
            best = found
            for optimizer in optimizers:
                optimizer.step()
        self.statistics.update()
        if self.contrast:
            self.contrast.memory.add(best[2])
        # A loss that is no number loses every comparison: without this the call would pass for a good one.
        return Samples(torch.where(finite, best[1], torch.nan), labels)

    def inversion_loss(self, ctx: Context, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """L = bn·L_bn + oh·L_oh + cr·L_cr and, between student steps, what `student_terms` adds.

        Returns it with the raw features of the two views, N×2D without gradient (N×0 without contrast).
        """
        view = ctx.augment(images, "synthesis-augment")
        with self.statistics.capture(), channel_means(self.layers if self.contrast else []) as means:
            teacher = ctx.teacher(view)
        loss = self.bn * self.statistics.loss() + self.oh * losses.cross_entropy(teacher, labels).mean()
        if self.online(ctx):
            loss = loss + self.student_terms(ctx, view, teacher, labels)
        if not self.contrast:
            return loss, loss.new_empty(len(images), 0)
        world = torch.cat(means, dim=1).detach()
        with channel_means(self.layers) as means:
            ctx.teacher(self.local(images, ctx.rng("local-view")))
        local = torch.cat(means, dim=1)
        loss = loss + self.cr * self.contrast.loss(local, world, ctx.rng("memory"))
        return loss, torch.cat([local.detach(), world], dim=1)

    def student_terms(self, ctx: Context, view: Tensor, teacher: Tensor, labels: Tensor) -> Tensor | float:
        """What makes images hard for the present student: adv·L_adv. `teacher` are its logits of the view."""
        return self.adv * losses.adversarial(teacher, ctx.student(view)).mean() if self.adv else 0.0
