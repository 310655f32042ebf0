"""SSD-KD: a small replay buffer, filled in a balanced way and sampled by priority.

Liu et al., "Small Scale Data-Free Knowledge Distillation", CVPR 2024; ssdkd.md. **A reconstruction**: no code was
released and the full text was not at hand. Read in a source: the parts of φ and δ, the buffer of 10 % of the training
set with partial refresh, priority sampling with importance weights, the NYUv2 pair. Inherited by assumption from
Fast: generator, meta-learning, loss weights. Our choice, each a constructor argument or named in ssdkd.md 5: γ, β,
steps a round, oldest-out replacement, φ on the task term only and without gradient; on segmentation (ssdkd.md 1.10) φ
per pixel and δ per image, the mean over its pixels.
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
from dfkd.synthesis.buffer import Batch, Samples


@METHODS.register_module("ssdkd")
@dataclass(eq=False)
class SSDKD(Fast):
    """Fast's generator with the modulating function φ, and prioritised replay from a buffer of fixed size."""

    cites = "liu2024ssdkd"

    k: int = 10
    lr_g: float = 2e-3
    capacity: int = 5000  # entries N of the replay buffer
    gamma: float = 2.0  # focusing power of φ's difficulty part (E1)
    beta: float = 0.4  # power of the importance weights (E7); "recursive" oscillates at 1
    eps: float = 1e-6  # keeps every entry drawable (E6)
    diversity: bool = True  # the two factors of φ; both off is φ = 1
    difficulty: bool = True
    phi_on: str = "oh"  # or "oh+adv", to weight the adversarial term too
    phi_grad: bool = False  # let the gradient pass through φ's difficulty part
    # "recursive" is E8 (δ ← w·τ²KL), "per" fallback B (δ ← τ²KL, P ∝ (δ + eps)^alpha), "uniform" draws by shuffled
    # passes without weights.
    priority: str = "recursive"
    alpha: float = 0.6  # power of the priorities, used with "per" only
    replace: str = "oldest"  # or "lowest": the entries (of least δ) that leave a full buffer

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phi_on not in ("oh", "oh+adv"):
            raise ValueError(f"phi_on must be 'oh' or 'oh+adv', not {self.phi_on!r}")
        if self.priority not in ("recursive", "per", "uniform"):
            raise ValueError(f"priority must be 'recursive', 'per' or 'uniform', not {self.priority!r}")
        if self.priority == "recursive" and not 0 <= self.beta < 1:
            raise ValueError(f"beta must be in [0, 1) with priority 'recursive' (it oscillates at 1), not {self.beta}")

    def buffer_capacity(self, budget: Budget) -> int:
        return self.capacity

    def synthesize(self, ctx: Context) -> Samples:
        samples = super().synthesize(ctx)
        with torch.no_grad():
            teacher, student = ctx.teacher(samples.images), ctx.student(samples.images)
        # A new entry starts where E8 starts: w = 1.
        samples.fields["priority"] = losses.kl(teacher, student, self.temperature)
        samples.fields["teacher_class"] = _predicted(teacher)
        return samples

    def weights(self, ctx: Context, teacher: Tensor) -> tuple[Tensor | float, Tensor | float]:
        phi = self.phi(teacher, ctx.buffer.histogram("teacher_class", ctx.spec.classes), len(ctx.buffer))
        return phi, phi if self.phi_on == "oh+adv" else 1.0

    def phi(self, teacher: Tensor, histogram: Tensor, fill: int) -> Tensor | float:
        """φ = (1 − n_c/N)·(1 − p_c)^γ of each sample or pixel, c the teacher's class for it (ssdkd.md E1).

        Args: the teacher's logits, the class histogram of the buffer and its fill; an empty buffer balances nothing.
        Of label maps each entry gives the histogram its shares of pixels, so that n_c/N is the share of class c.
        """
        confidence, predicted = F.softmax(teacher.float(), dim=1).max(1)
        phi = torch.ones_like(confidence)
        if self.difficulty:
            phi = (1 - confidence if self.phi_grad else 1 - confidence.detach()) ** self.gamma
        if self.diversity and fill:
            phi = phi * (1 - histogram[predicted] / fill)
        return phi

    def draw(self, ctx: Context) -> Batch:
        if self.priority == "uniform":
            return super().draw(ctx)
        alpha = self.alpha if self.priority == "per" else 1.0
        batch = ctx.buffer.draw_by_priority(ctx.budget.batch, ctx.rng("draw"), alpha, self.beta, self.eps)
        batch.images = ctx.augment(batch.images)
        return batch

    def distill(self, ctx: Context, batch: Batch) -> dict[str, Tensor]:
        divergence = losses.kl(ctx.teach(batch.images), ctx.student(batch.images), self.temperature)
        if self.priority == "uniform":
            return {"kd": divergence.mean()}
        # E8 stores the unscaled weight; only the loss divides by the batch's largest (ssdkd.md 1.7).
        weights = batch.weights
        batch.fields["delta"] = (weights * divergence if self.priority == "recursive" else divergence).detach()
        return {"kd": (weights / weights.max() * divergence).mean()}

    def after_step(self, ctx: Context, batch: Batch, outputs: dict[str, Tensor]) -> None:
        if self.priority != "uniform":
            ctx.buffer.set_priority(batch.indices, batch.fields["delta"])


def _predicted(teacher: Tensor) -> Tensor:
    """What the histogram counts of each sample: the class, int64 N, or for maps the share of pixels of each, N×C."""
    predicted = teacher.argmax(1)
    if predicted.dim() == 1:
        return predicted
    return F.one_hot(predicted, teacher.shape[1]).float().mean((1, 2))
