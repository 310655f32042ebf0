"""Losses of data-free distillation (baselines.md 1.0).

Logits are N×C or N×C×H×W. Every function that says *per sample* returns N values: the sum over classes,
averaged over positions where there are any. So the same loss serves classification and segmentation. A `weight` is a
factor for each sample, N, or for each position, N×H×W.
All of them compute in float32, whatever precision the networks ran in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.metrics import IGNORE


def over_positions(values: Tensor) -> Tensor:
    """One value a sample, N, of values at each position, N×H×W; values of samples, N, as they are."""
    return values if values.dim() == 1 else values.flatten(1).mean(1)


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """τ²·KL(softmax(T/τ) ‖ softmax(S/τ)), per sample (`L_KD` is its mean)."""
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return temperature**2 * over_positions(divergence)


def cross_entropy(logits: Tensor, labels: Tensor | None, weight: Tensor | float = 1.0) -> Tensor:
    """CE(logits, labels), per sample (`L_oh` is its mean).

    Labels are N or N×H×W; of the latter those equal to `IGNORE` are left out of the average. None stands for the
    logits' own argmax, at each position: the task term where no labels can be drawn (baselines.md 1.5).
    """
    return _labelled(logits.float(), logits.argmax(1) if labels is None else labels, lambda ce: weight * ce)


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """(1 − p)^γ·CE(logits, labels), p the softmax probability of the label, per sample (baselines.md 1.5).

    Labels as for `cross_entropy`. γ 0 is the cross-entropy.
    """
    return _labelled(logits.float(), labels, lambda ce: (1 - torch.exp(-ce)) ** gamma * ce)


def _labelled(logits: Tensor, labels: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """`loss` of the cross-entropy at each position, averaged over the positions that have a label (0 without any)."""
    if labels.dim() == 1:
        return loss(F.cross_entropy(logits, labels, reduction="none"))
    values = loss(F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE))
    return values.flatten(1).sum(1) / (labels != IGNORE).flatten(1).sum(1).clamp_min(1)


def adversarial(teacher: Tensor, student: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """−1[argmax S = argmax T]·KL(T‖S) at temperature 1, per sample (`L_adv`; ssdkd.md E4).

    The gradient flows through both networks, as in CMI and Fast; pass `teacher.detach()` for DiffDFKD's form.
    """
    log_p, log_q = F.log_softmax(teacher.float(), dim=1), F.log_softmax(student.float(), dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    agree = teacher.argmax(1) == student.argmax(1)
    return -over_positions(weight * (agree * divergence))


def logits_l1(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean |T − S| of the logits over classes and positions, per sample (DFAD; baselines.md 1.5 and 1.6)."""
    return (teacher.float() - student.float()).abs().flatten(1).mean(1)


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """The divergence of Adaptive DeepInversion (`JS`), per sample.

    Probabilities are clamped to [0.01, 0.99] and not renormalised, and the mixture M is the first argument of
    both divergences, as published; so it may exceed ln 2, or fall below 0.
    """
    p = F.softmax(student.float() / temperature, dim=1)
    q = F.softmax(teacher.float() / temperature, dim=1)
    p, q, m = (x.clamp(0.01, 0.99) for x in (p, q, (p + q) / 2))
    divergence = 0.5 * (m * (m / p).log()).sum(1) + 0.5 * (m * (m / q).log()).sum(1)
    return over_positions(divergence)


def class_balance(logits: Tensor) -> Tensor:
    """Σ_c p̄_c log p̄_c of the batch mean p̄ of the softmax (`L_bal`): minimised when classes are balanced."""
    mean = F.softmax(logits.float(), dim=1).transpose(0, 1).flatten(1).mean(1)
    return (mean * mean.clamp_min(1e-12).log()).sum()


def activation(features: Tensor) -> Tensor:
    """−mean |f| of the pooled penultimate features, N×D (`L_act`, DAFL)."""
    return -features.float().abs().mean()


def total_variation(images: Tensor) -> Tensor:
    """Frobenius norms of the four one-pixel differences of the whole batch, N×C×H×W, summed (`TV2`)."""
    right = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    diagonal = images[..., 1:, 1:] - images[..., :-1, :-1]
    anti = images[..., 1:, :-1] - images[..., :-1, 1:]
    return sum(torch.linalg.vector_norm(d) for d in (right, down, diagonal, anti))
