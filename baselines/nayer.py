"""NAYER: a generator that is fed the class's name, through a layer that is drawn anew to bring the noise.

Tran et al., "NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge Distillation", CVPR
2024; baselines.md 1.6. Exact, from a summary of the published program: input, noisy layers, generator, loss, inner
steps, schedule. Ours: the noisy layers are optimised together with the generator; L_adv is on from the first synthesis
step after the warm-up; a rebuilt generator gets torch's initial weights; and where there is no text encoder the letters
of the names take its place (`dfkd/priors/text.py`), which tell classes apart and say nothing of their likeness.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Budget, Method, Stage
from dfkd.priors import text
from dfkd.synthesis import losses
from dfkd.synthesis.batchnorm import BatchNormLoss
from dfkd.synthesis.buffer import Samples
from dfkd.synthesis.generators import build_generator
from dfkd.synthesis.inversion import BETAS
from dfkd.tasks import Task


class NamedGenerator(nn.Module):
    """B×d embeddings → images; block j of `classes` rows goes through noisy layer j."""

    def __init__(self, size: int, width: int, classes: int, blocks: int, images: nn.Module) -> None:
        super().__init__()
        self.norm, self.classes, self.images = nn.BatchNorm1d(size), classes, images
        self.noisy = nn.ModuleList(nn.Linear(size, width) for _ in range(blocks))

    def forward(self, embeddings: Tensor) -> Tensor:
        parts = self.norm(embeddings).split(self.classes)
        return self.images(torch.cat([layer(part) for layer, part in zip(self.noisy, parts, strict=True)]))

    def redraw_noise(self, generator: torch.Generator) -> None:
        """Weights N(0, 1), biases 0."""
        for layer in (m for m in self.noisy if isinstance(m, nn.Linear)):
            nn.init.normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def rebuild(self) -> None:
        """First weights and statistics for all of it."""
        for module in self.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()


@METHODS.register_module("nayer")
@dataclass(eq=False)
class NAYER(Method):
    """Noisy layers over class-name embeddings, and a growing bank."""

    cites = "tran2024nayer"
    prior = "class names"
    saved = ("generator", "statistics")

    text_encoder: str = ""  # a folder or the name of one (`priors/text.py`); by default the letters of the names
    prompt: str = "a image of {}"  # what the text encoder reads of a class (sic)
    k: int = 30  # inner steps of a synthesis step
    lr: float = 4e-3  # of the generator's Adam
    bn: float = 10.0  # weight of L_bn
    oh: float = 0.5  # weight of L_oh
    adv: float = 1.33  # weight of L_adv
    bn_momentum: float = 0.9  # β of L_bn
    noise: int = 1000  # width of a noisy layer
    ngf: int = 64  # width of the generator
    warmup: int = 20  # rounds before the first student step
    warmup_calls: int = 10  # synthesis steps of each of these
    calls: int = 2  # synthesis steps of every other round
    rebuild_every: int = 10  # rounds after which the generator starts anew; 0: never
    temperature: float = 20.0  # τ of the distillation loss

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(k=1, noise=1, ngf=1, warmup=0, warmup_calls=0, calls=1, rebuild_every=0)
        if self.text_encoder:
            self.prior = "class names, text encoder"

    def supports(self, task: Task) -> str | None:
        return None if task.kind == "classification" else "its generator is fed the name of one class per image"

    def schedule(self, budget: Budget) -> list[Stage]:
        return [
            Stage("warm-up", self.warmup, synthesis_steps=self.warmup_calls),
            Stage("distil", budget.rounds, synthesis_steps=self.calls, student_steps=budget.steps_per_round),
        ]

    def setup(self, ctx: Context) -> None:
        names, classes = ctx.class_names, ctx.spec.classes
        if self.text_encoder:
            embeddings = text.clip([self.prompt.format(name) for name in names], self.text_encoder)
        else:
            embeddings = text.letters(names)
        self.embeddings = embeddings.to(ctx.device)
        images = build_generator(self.noise, self.ngf, ctx.spec.size, ctx.spec.channels)
        blocks = -(-ctx.budget.synthesis_batch // classes)
        generator = NamedGenerator(embeddings.shape[1], self.noise, classes, blocks, images)
        self.generator = generator.to(ctx.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.statistics = BatchNormLoss(ctx.teacher, self.bn_momentum)

    def round_of(self, step: int) -> tuple[int, int]:
        """The round of a synthesis step, warm-up rounds included, and its place there; all counted from 0."""
        before = self.warmup * self.warmup_calls
        if step <= before:
            return divmod(step - 1, self.warmup_calls)
        later, place = divmod(step - 1 - before, self.calls)
        return self.warmup + later, place

    def synthesize(self, ctx: Context) -> Samples:
        number, place = self.round_of(ctx.synthesis_step)
        if self.rebuild_every and number and number % self.rebuild_every == 0 and place == 0:
            self.generator.rebuild()
        self.generator.redraw_noise(ctx.rng("generator"))
        labels = self.labels(ctx)
        with self.statistics.capture():
            images = self.invert(ctx, labels, adversarial=number >= self.warmup)
        self.statistics.update()
        return Samples(images, labels)

    def labels(self, ctx: Context) -> Tensor:
        """0 to C−1 again and again, a remainder at random."""
        whole, rest = divmod(ctx.budget.synthesis_batch, ctx.spec.classes)
        return torch.cat([torch.arange(ctx.spec.classes, device=ctx.device).repeat(whole), ctx.random_labels(rest)])

    def invert(self, ctx: Context, labels: Tensor, adversarial: bool) -> Tensor:
        """The images, B×C×H×W, of the inner step with the lowest loss, before that step's update."""
        optimizer = torch.optim.Adam(self.generator.parameters(), self.lr, BETAS)
        best = lowest = None
        for _ in range(self.k):
            images = self.generator(self.embeddings[labels])
            loss = self.inversion_loss(ctx, images, labels, adversarial)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found, value = images.detach(), loss.detach()
            if best is not None:
                # Chosen on the device: reading the loss here would make the host wait at every step.
                found, value = torch.where(value < lowest, found, best), torch.minimum(value, lowest)
            best, lowest = found, value
        # A loss that is no number loses every comparison: without this the call would pass for a good one.
        return torch.where(lowest.isfinite(), best, torch.nan)

    def inversion_loss(self, ctx: Context, images: Tensor, labels: Tensor, adversarial: bool) -> Tensor:
        """L = bn·L_bn + oh·L_oh + adv·L_adv of augmented images, a scalar."""
        view = ctx.augment(images, "synthesis-augment")
        teacher = ctx.teacher(view)
        loss = self.bn * self.statistics.loss() + self.oh * losses.cross_entropy(teacher, labels).mean()
        if self.adv and adversarial:
            loss = loss + self.adv * losses.adversarial(teacher, ctx.student(view)).mean()
        return loss
