"""Losses of data-free distillation (baselines.md, section 1.0).

Logits are N×C or N×C×H×W. Every function that says *per sample* returns N values: the sum over classes,
averaged over positions where there are any. So the same loss serves classification and segmentation.
All of them compute in float32, whatever precision the networks ran in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _over_positions(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values.flatten(1).mean(1)


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """τ²·KL(softmax(T/τ) ‖ softmax(S/τ)), per sample (`L_KD` is its mean)."""
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return temperature**2 * _over_positions(divergence)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """CE(logits, labels), per sample (`L_oh` is its mean). Labels are N or N×H×W."""
    return _over_positions(F.cross_entropy(logits.float(), labels, reduction="none"))


def adversarial(teacher: Tensor, student: Tensor) -> Tensor:
    """−1[argmax S = argmax T]·KL(T‖S) at temperature 1, per sample (`L_adv`; ssdkd.md E4).

    The gradient flows through both networks, as in CMI and Fast; pass `teacher.detach()` for DiffDFKD's form.
    """
    log_p, log_q = F.log_softmax(teacher.float(), dim=1), F.log_softmax(student.float(), dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    agree = teacher.argmax(1) == student.argmax(1)
    return -_over_positions(agree * divergence)


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """The divergence of Adaptive DeepInversion (`JS`), per sample.

    Probabilities are clamped to [0.01, 0.99] and not renormalised, and the mixture M is the first argument of
    both divergences, as published; so it may exceed ln 2, or fall below 0.
    """
    p = F.softmax(student.float() / temperature, dim=1)
    q = F.softmax(teacher.float() / temperature, dim=1)
    p, q, m = (x.clamp(0.01, 0.99) for x in (p, q, (p + q) / 2))
    divergence = 0.5 * (m * (m / p).log()).sum(1) + 0.5 * (m * (m / q).log()).sum(1)
    return _over_positions(divergence)


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
