"""SSD-KD: a small replay buffer, filled in a balanced way and sampled by priority.

Liu et al., "Small Scale Data-Free Knowledge Distillation", CVPR 2024; ssdkd.md. **A reconstruction**: no code was
released and the full text was not at hand. Read in a source: the parts of φ and δ, the buffer of 10 % of the training
set with partial refresh, priority sampling with importance weights, the NYUv2 pair. Inherited by assumption from
Fast: generator, meta-learning, loss weights. Our choice, each a constructor argument or named in ssdkd.md 5: γ, β,
steps a round, oldest-out replacement, φ of the target class, on the task term only and without gradient (of the
readings tried none behaves as the paper says, ssdkd.md 6); on segmentation (ssdkd.md 1.10) φ per pixel and δ per image,
the mean over its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.fast import Fast
from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Budget
from dfkd.synthesis import losses
from dfkd.synthesis.buffer import Batch, Samples, class_counts

CHOICES = {
    "phi_of": ("target", "argmax"),
    "phi_on": ("oh", "adv", "oh+adv"),
    "phi_kd": ("none", "loss", "priority"),
    "count": ("buffer", "average"),
    "priority": ("recursive", "per", "uniform"),
    "importance": ("max", "raw"),
}
MEMORY = 0.9  # of the running average of classes, from one synthesis step to the next
TINY = 1e-12  # the mean of φ where every sample is certain


@METHODS.register_module("ssdkd")
@dataclass(eq=False)
class SSDKD(Fast):
    """Fast's generator with the modulating function φ, and prioritised replay from a buffer of fixed size.

    What the paper's text would settle is a switch; the default is E1 with the focal loss's class (ssdkd.md 6).
    """

    saved = (*Fast.saved, "seen")  # type: ignore[assignment]

    cites = "liu2024ssdkd"

    k: int = 10
    lr_g: float = 2e-3
    capacity: int = 5000  # entries N of the replay buffer
    gamma: float = 2.0  # focusing power of φ's difficulty part (E1)
    beta: float = 0.4  # power of the importance weights (E7), 0 for none; "recursive" oscillates at 1
    eps: float = 1e-6  # keeps every entry drawable (E6)
    diversity: bool = True  # the two factors of φ; both off is φ = 1
    difficulty: bool = True
    # Whose class and probability φ takes: "target", the one the image is made for, as in the focal loss, which keeps an
    # image of another class at full weight; or "argmax", the teacher's own, as "low confidence" may mean.
    phi_of: str = "target"
    normalised: bool = False  # φ over its batch mean: it shares a loss out among samples without shrinking it
    # The terms of the inversion loss that φ weighs, joined by "+": the task term, as a focal loss does; "adv", so that
    # hard samples get more push towards disagreement.
    phi_on: str = "oh"
    phi_grad: bool = False  # let the gradient pass through φ's difficulty part
    # Where φ acts in distillation ("both data inversion and distillation" are to be balanced): "none", on the "loss" of
    # each sample, or on its "priority".
    phi_kd: str = "none"
    count: str = "buffer"  # n_c/N of the entries that are there, or a running "average" over all that were made
    # "recursive" is E8 (δ ← w·τ²KL), "per" fallback B (δ ← τ²KL, P ∝ (δ + eps)^alpha), "uniform" draws by shuffled
    # passes without weights.
    priority: str = "recursive"
    alpha: float = 0.6  # power of the priorities, used with "per" only
    importance: str = "raw"  # w of the loss as in E9, or over the batch's largest ("max"), as in prioritised replay
    replace: str = "oldest"  # or "lowest": the entries (of least δ) that leave a full buffer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(capacity=1, gamma=0, beta=0, eps=0, alpha=0)
        for name, values in CHOICES.items():
            if (value := getattr(self, name)) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, not {value!r}")
        if self.priority == "recursive" and self.beta >= 1:
            raise ValueError(f"beta must be below 1 with priority 'recursive' (it oscillates at 1), not {self.beta}")

    def buffer_capacity(self, budget: Budget) -> int:
        return self.capacity

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.seen = torch.zeros(ctx.spec.classes, device=ctx.device)

    def synthesize(self, ctx: Context) -> Samples:
        samples = super().synthesize(ctx)
        with torch.no_grad():
            teacher, student = ctx.teacher(samples.images), ctx.student(samples.images)
        decided = _predicted(teacher)
        self.seen = MEMORY * self.seen + class_counts(decided, ctx.spec.classes)
        # A new entry starts where E8 starts: w = 1.
        priority = losses.kl(teacher, student, self.temperature)
        if self.phi_kd == "priority":
            priority = priority * losses.over_positions(self.phi(teacher, samples.labels, self.shares(ctx)))
        samples.fields |= {"priority": priority, "teacher_class": decided}
        return samples

    def weights(self, ctx: Context, teacher: Tensor, labels: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        phi = self.phi(teacher, labels, self.shares(ctx))
        oh, adv = (phi if term in self.phi_on.split("+") else 1.0 for term in ("oh", "adv"))
        return oh, adv

    def shares(self, ctx: Context) -> Tensor | None:
        """n_c/N of each class c, float32 of length C, by the teacher's decisions; None before there are any.

        Of label maps each entry gives its shares of pixels, so that n_c/N is the share of class c.
        """
        seen = self.seen if self.count == "average" else ctx.buffer.histogram("teacher_class", ctx.spec.classes)
        return seen / seen.sum() if len(ctx.buffer) else None

    def phi(self, teacher: Tensor, labels: Tensor | None, shares: Tensor | None) -> Tensor:
        """φ = (1 − n_c/N)·(1 − p_c)^γ of each sample, N, or pixel, N×H×W (ssdkd.md E1); no `shares` balance nothing.

        Args: the teacher's logits, the classes that the images were made for (maps have none: the teacher's own are
        taken) and the present share of each class.
        """
        classes = teacher.argmax(1) if labels is None or self.phi_of == "argmax" else labels
        probability = F.softmax(teacher.float(), dim=1).gather(1, classes.unsqueeze(1)).squeeze(1)
        phi = torch.ones_like(probability)
        if self.difficulty:
            phi = (1 - probability if self.phi_grad else 1 - probability.detach()) ** self.gamma
        if self.diversity and shares is not None:
            phi = phi * (1 - shares[classes])
        return phi / phi.detach().mean().clamp_min(TINY) if self.normalised else phi

    def draw(self, ctx: Context) -> Batch:
        if self.priority == "uniform":
            return super().draw(ctx)
        alpha = self.alpha if self.priority == "per" else 1.0
        batch = ctx.buffer.draw_by_priority(ctx.budget.batch, ctx.rng("draw"), alpha, self.beta, self.eps)
        batch.images = ctx.augment(batch.images)
        return batch

    def distill(self, ctx: Context, batch: Batch) -> dict[str, Tensor]:
        teacher = ctx.teach(batch.images)
        divergence = losses.kl(teacher, ctx.student(batch.images), self.temperature)
        phi = 1.0 if self.phi_kd == "none" else losses.over_positions(self.phi(teacher, batch.labels, self.shares(ctx)))
        loss = phi * divergence if self.phi_kd == "loss" else divergence
        if self.priority == "uniform":
            return {"kd": loss.mean()}
        # E8 stores the unscaled weight; only the loss may divide by the batch's largest (ssdkd.md 1.7).
        delta = batch.weights * divergence if self.priority == "recursive" else divergence
        batch.fields["delta"] = (phi * delta if self.phi_kd == "priority" else delta).detach()
        largest = batch.weights.max() if self.importance == "max" else 1.0
        return {"kd": (batch.weights / largest * loss).mean()}

    def after_step(self, ctx: Context, batch: Batch, outputs: dict[str, Tensor]) -> None:
        if self.priority != "uniform":
            ctx.buffer.set_priority(batch.indices, batch.fields["delta"])


def _predicted(teacher: Tensor) -> Tensor:
    """What the histogram counts of each sample: the class, int64 N, or for maps the share of pixels of each, N×C."""
    predicted = teacher.argmax(1)
    if predicted.dim() == 1:
        return predicted
    return F.one_hot(predicted, teacher.shape[1]).float().mean((1, 2))
