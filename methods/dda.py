"""DDA (diverse diffusion augmentation): a bank by contrastive inversion, multiplied by a diffusion model and filtered.

Li et al., "Towards Effective Data-Free Knowledge Distillation via Diverse Diffusion Augmentation", ACM MM 2024; dda.md.
A reconstruction: the paper's text was not at hand and its released code holds no diffusion, no filter and no contrast.
From that code: generator, inversion, rotation task, the student's loss, hint and head, schedule. From the paper's
figure: contrastive bank, variants, cosine filter. Ours (dda.md 3.3): the filter's embedding (the teacher's pooled
feature), threshold, K = 4, each variant against its own source, augmentation once and offline; the rotation task sees
the augmented images that the other losses see, in synthesis and in the head's step alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.cmi import CMI
from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Budget, Stage
from dfkd.networks.capture import outputs
from dfkd.synthesis import losses
from dfkd.synthesis.buffer import Batch, Samples, to_bytes
from dfkd.tasks import Task


class Adapter(nn.Sequential):
    """A: a student's last map to the shape C×H×W of the teacher's (dda.md 1.4)."""

    def __init__(self, student: torch.Size, teacher: torch.Size, width: int = 2) -> None:
        width *= teacher[0]
        super().__init__(
            nn.AdaptiveAvgPool2d(teacher[1:]) if student[1:] != teacher[1:] else nn.Identity(),
            nn.Conv2d(student[0], width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, teacher[0], 1, bias=False),
        )


class RotationHead(nn.Sequential):
    """The student's pooled feature, N×size, to 4·classes logits of unit length (no temperature, as released)."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 4 * classes))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(super().forward(features), dim=1)

    def redraw(self, generator: torch.Generator) -> None:
        """Weights from N(0, .02), biases 0, as released."""
        for layer in (m for m in self if isinstance(m, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, 0.02, generator=generator)
            nn.init.zeros_(layer.bias)


def rotations(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each of N square images turned by k·90°, k = 0..3, side by side: 4N images and their labels 4y + k."""
    turned = torch.stack([images.rot90(k, (2, 3)) for k in range(4)], dim=1).flatten(0, 1)
    turns = torch.arange(4, device=labels.device)
    return turned.contiguous(memory_format=torch.channels_last), (4 * labels[:, None] + turns).flatten()


@METHODS.register_module("dda")
@dataclass(eq=False)
class DDA(CMI):
    """CMI's inversion for a bank, diffusion variants of it that pass a filter, and a self-supervised opponent."""

    cites = "li2024dda"
    prior = "diffusion"
    # The adapter is the student's optimizer's, which the harness saves with it.
    saved = ("contrast", "head", "head_optimizer", "mean", "tally")  # type: ignore[assignment]

    adv: float = 0.0
    tau: float = 0.2
    memory: int = 40000
    bank_calls: int = 400
    bank_steps: int = 500  # Adam steps of a call that makes the bank; `steps` is of the calls between student steps
    bank_batch: int = 200  # images of such a call
    variants: int = 4  # K images that the diffusion model makes of each bank image; 0 does without it (`prior: none`)
    # How far a variant may drift from its source, in [0, 1] (dda.md 4.2); image variations have none, they begin from
    # pure noise.
    strength: float = 0.4
    diffusion_steps: int = 25  # of the whole trajectory, of which `strength` says how many are taken
    threshold: float = 0.6  # ω, the least cosine of a variant's and its source's embedding that lets it pass
    keep_ratio: float = 0.0  # instead of ω: the share of each call's variants that passes, best first; 0 is off
    centre: bool = False  # subtract the bank's mean embedding before taking the cosine
    rotation: float = 10.0  # weight λ_self of the rotation task in synthesis; 0 does without the head
    head_scale: float = 1.0  # factor of the head's unit logits
    head_images: int = 0  # images of the batch on which the head takes its step (four inputs each); 0 is all
    ce: float = 1.0  # weight of CE beside L_KD in the student's loss
    hint: float = 30.0  # weight of the hint's squared error there
    adapter_width: int = 2  # hidden channels of the hint's adapter, in multiples of the teacher's

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.strength <= 1 and 0 <= self.keep_ratio <= 1):
            raise ValueError(f"strength={self.strength} and keep_ratio={self.keep_ratio} must be in [0, 1]")
        self.at_least(bank_steps=1, bank_batch=1, variants=0, diffusion_steps=1, head_images=0, adapter_width=1)
        if self.diffusion_steps > 999:
            raise ValueError(f"diffusion_steps must be at most 999, not {self.diffusion_steps}")
        if self.variants and not self.bank_calls:
            raise ValueError(f"variants={self.variants} are made of the bank, and bank_calls=0 makes none")
        if not self.calls:
            self.rotation = 0.0  # the head matters to the calls between student steps only
        if not self.variants:
            self.prior = "none"

    def supports(self, task: Task) -> str | None:
        return None if task.kind == "classification" else "its inversion and rotation task take one label per image"

    def schedule(self, budget: Budget) -> list[Stage]:
        stages = super().schedule(budget)
        if self.variants:
            stages.insert(1, Stage("augment", 1, synthesis_steps=self.bank_calls, shared=True))
        return stages

    def buffer_capacity(self, budget: Budget) -> int:
        # Nothing ever leaves: bank image i is in slot i.
        bank = self.bank_calls * self.bank_batch * (1 + self.variants)
        return bank + budget.rounds * self.calls * budget.synthesis_batch

    def setup(self, ctx: Context) -> None:
        if self.variants and ctx.prior is None:
            raise ValueError(f"variants={self.variants} needs a diffusion model; without one say variants=0")
        if not self.variants and ctx.prior is not None:
            raise ValueError("variants=0 uses no diffusion model; say prior=none as well")
        super().setup(ctx)
        self.mean: Tensor | None = None  # of the bank's embeddings, from the first augmenting call on
        # Variants made, kept, and sums over the kept: cosine, centred cosine, agreement with the label.
        self.tally = torch.zeros(5, dtype=torch.float64, device=ctx.device)
        shape, teacher, student = self._shapes(ctx)
        self.adapter = None
        if self.hint:
            adapter = Adapter(student, teacher, self.adapter_width)
            self.adapter = adapter.to(ctx.device).to(memory_format=torch.channels_last)
        self.head = RotationHead(shape, ctx.spec.classes).to(ctx.device)
        self.head_optimizer = torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def _shapes(self, ctx: Context) -> tuple[int, torch.Size, torch.Size]:
        """Length of the student's pooled feature; C×H×W of the teacher's and the student's last maps."""
        probe, maps = torch.zeros(1, ctx.spec.channels, ctx.spec.size, ctx.spec.size, device=ctx.device), []
        mode = ctx.student.training
        ctx.student.eval()
        for network in (ctx.teacher.network, ctx.student.network):
            with torch.no_grad(), outputs(network, network.stages[-1:]) as found:
                pooled = network.features(probe)
            maps += [value.shape[1:] for value in found.values()]
        ctx.student.train(mode)
        return pooled.shape[1], *maps

    # --- synthesis

    def synthesize(self, ctx: Context) -> Samples:
        if ctx.synthesis_step <= self.bank_calls:
            return self.invert(ctx, self.bank_batch, self.bank_steps)
        if self.variants and ctx.synthesis_step <= 2 * self.bank_calls:
            return self.augment(ctx, ctx.synthesis_step - self.bank_calls - 1)
        self.head.requires_grad_(False)
        samples = super().synthesize(ctx)
        self.head.requires_grad_(True)
        self.head.redraw(ctx.rng("head"))  # its momentum stays, as released
        return samples

    def student_terms(self, ctx: Context, view: Tensor, teacher: Tensor, labels: Tensor) -> Tensor | float:
        """adv·L_adv − λ_self·CE of the rotation task: hard for the present student."""
        terms = super().student_terms(ctx, view, teacher, labels)
        return terms - self.rotation * self.rotation_loss(ctx, view, labels) if self.rotation else terms

    def rotation_loss(self, ctx: Context, images: Tensor, labels: Tensor) -> Tensor:
        """CE(head(student's pooled feature of each rotation), 4y + k), mean over the 4N."""
        turned, turns = rotations(images, labels)
        logits = self.head_scale * self.head(ctx.student.features(turned))
        return losses.cross_entropy(logits, turns).mean()

    def augment(self, ctx: Context, chunk: int) -> Samples:
        """Diffusion variants of one bank call's images that pass the filter, under the labels of their sources."""
        first, size = chunk * self.bank_batch, self.bank_calls * self.bank_batch
        rows = slice(first, first + self.bank_batch)
        if self.mean is None:
            parts = range(0, size, self.bank_batch)
            total: Any = sum(self._embed(ctx, ctx.buffer.images[i : i + self.bank_batch]).sum(0) for i in parts)
            self.mean = total / size
        sources = ctx.buffer.images[rows]
        options = {"strength": self.strength} if ctx.prior.guides else {}
        images = ctx.prior.augment(
            sources.float() / 255, self.variants, ctx.rng("variants"), steps=self.diffusion_steps, **options
        ).flatten(0, 1)
        labels = ctx.buffer.fields["labels"][rows].repeat_interleave(self.variants)
        embeddings = self._embed(ctx, to_bytes(images))
        own = self._embed(ctx, sources).repeat_interleave(self.variants, dim=0)
        raw = F.cosine_similarity(embeddings, own, dim=1)
        centred = F.cosine_similarity(embeddings - self.mean, own - self.mean, dim=1)
        kept = self.passes(centred if self.centre else raw)
        agree = ctx.teacher.network.fc(embeddings).argmax(1) == labels
        found = torch.stack([torch.ones_like(raw), kept, raw * kept, centred * kept, agree * kept])
        self.tally += found.double().sum(1)
        return Samples(images[kept], labels[kept], made=len(images))

    def passes(self, cosines: Tensor) -> Tensor:
        """Which variants the filter keeps, boolean: cosine at least ω, or the best `keep_ratio` of them."""
        if not self.keep_ratio:
            return cosines >= self.threshold
        kept = torch.zeros_like(cosines, dtype=torch.bool)
        kept[cosines.topk(round(self.keep_ratio * len(cosines))).indices] = True
        return kept

    @torch.no_grad()
    def _embed(self, ctx: Context, images: Tensor) -> Tensor:
        """The teacher's pooled feature of stored images (uint8), N×d in float32."""
        return ctx.teacher.features(images.float() / 255).float()

    # --- distillation

    def modules(self) -> list[nn.Module]:
        return [self.adapter] if self.adapter else []

    def distill(self, ctx: Context, batch: Batch) -> dict[str, Tensor]:
        """L_KD + ce·CE + hint·MSE(A(F_S), F_T), F the last stage's output, before pooling."""
        with outputs(ctx.teacher.network, ctx.teacher.network.stages[-1:]) as theirs:
            teacher = ctx.teach(batch.images)
        with outputs(ctx.student.network, ctx.student.network.stages[-1:]) as ours:
            student = ctx.student(batch.images)
        terms = {
            "kd": losses.kl(teacher, student, self.temperature).mean(),
            "ce": self.ce * losses.cross_entropy(student, batch.labels).mean(),
        }
        if self.adapter:
            (own,), (target,) = ours.values(), theirs.values()
            terms["hint"] = self.hint * F.mse_loss(self.adapter(own).float(), target.float())
        return terms

    def after_step(self, ctx: Context, batch: Batch, outputs: dict[str, Tensor]) -> None:
        """The head's own step on the same batch, the student's features standing still."""
        if not self.rotation:
            return
        count = self.head_images or len(batch.images)
        images, labels = rotations(batch.images[:count], batch.labels[:count])
        ctx.student.eval()
        with torch.no_grad(), ctx.autocast():
            features = ctx.student.features(images)
        ctx.student.train()
        loss = losses.cross_entropy(self.head_scale * self.head(features.float()), labels).mean()
        self.head_optimizer.zero_grad()
        loss.backward()
        self.head_optimizer.step()

    # --- record

    def report(self) -> dict[str, float]:
        """Share of the variants kept; of these the mean cosine, raw and centred, and the teacher's agreement."""
        made, kept, *sums = self.tally.tolist() if self.variants else (0.0, 0.0)
        if not made:
            return {}
        cosine, centred, agreement = (value / max(kept, 1.0) for value in sums)
        return {
            "filter_kept": kept / made,
            "cosine": cosine,
            "cosine_centred": centred,
            "agreement": agreement,
        }
