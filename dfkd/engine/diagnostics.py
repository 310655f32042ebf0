"""What a set of synthetic images is like in the teacher's eyes, beside the real test set.

The evaluator's business: it needs real images, comes after the run and is charged to nobody. Nothing ranks by it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfkd.networks.normalised import Normalised

LIMIT = 4096  # images looked at
BINS = 10  # of the histogram of confidences


@torch.no_grad()
def describe(
    teacher: Normalised, images: Tensor, labels: Tensor | None, real_features: Tensor, batch: int = 500
) -> dict | None:
    """A record's `diagnostics`; None for fewer than two images, which have no spread.

    Args:
        teacher: images in [0, 1] → logits N×C, or N×C×H×W for a class per pixel; in eval mode.
        images: uint8 N×3×H×W.
        labels: int64 N, the classes that the images were made for; or per pixel; or None.
        real_features: M×D, `features_of` the real test images, M ≥ 2.

    Returns:
        images: how many were looked at.
        agreement: share that the teacher gives the intended class; None where images have no class to agree with.
        classes: share of each class among the teacher's decisions, one an image or one a pixel.
        confidence: share of those decisions in each of BINS equal parts of [0, 1] of the teacher's probability.
        difficulty: mean of 1 minus that probability.
        diversity: `spread` of the features over that of the real ones; None where the real ones do not differ.
        frechet: `frechet_distance` between their features and the real ones.
    """
    if len(images) < 2:
        return None
    images, labels = chosen(images, labels)
    features = features_of(teacher, images, batch)
    certain, decided = _decisions(teacher, images, batch)
    counts = torch.bincount(decided.flatten(), minlength=teacher.spec.classes).double()
    bins = torch.bincount((certain.flatten() * BINS).long().clamp_max(BINS - 1), minlength=BINS).double()
    agreed = None
    if labels is not None and labels.ndim == decided.ndim == 1:
        agreed = round((decided == labels).double().mean().item(), 6)
    real = spread(real_features)
    return {
        "images": len(images),
        "agreement": agreed,
        "classes": [round(share, 6) for share in (counts / counts.sum()).tolist()],
        "confidence": [round(share, 6) for share in (bins / bins.sum()).tolist()],
        "difficulty": round(1 - certain.double().mean().item(), 6),
        "diversity": round(spread(features) / real, 6) if real else None,
        "frechet": round(frechet_distance(features, real_features), 6),
    }


def chosen(images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The images to look at, with their labels: all, or of more than LIMIT a fixed random choice.

    (Every n-th would miss classes where labels come in turn, and the early images of each trajectory where several were
    kept.)
    """
    if len(images) <= LIMIT:
        return images, labels
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:LIMIT].to(images.device)
    return images[order], None if labels is None else labels[order]


def _decisions(teacher: Normalised, images: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """The teacher's probability of its decision, and the decision: one an image, N, or one a pixel, N×H×W."""
    parts = [teacher(_as_floats(part)).float().softmax(1).max(1) for part in images.split(batch)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices.short() for part in parts])


@torch.no_grad()
def features_of(teacher: Normalised, images: Tensor, batch: int = 500) -> Tensor:
    """The teacher's pooled penultimate vectors, N×D, of uint8 images N×3×H×W."""
    return torch.cat([teacher.features(_as_floats(part)) for part in images.split(batch)])


def spread(features: Tensor, chunk: int = 256) -> float:
    """The mean Euclidean distance over all pairs of N×D vectors, N ≥ 2; every pair counts, in float64."""
    x = features.double()
    x = x - x.mean(0)  # distances come from differences of squares, which had better be small
    total: Any = sum(torch.cdist(part, x).sum() for part in x.split(chunk))
    return total.item() / (len(x) * (len(x) - 1))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance |μ_a − μ_b|² + tr(C_a + C_b − 2 (C_a C_b)^½) of Gaussians fitted to N×D and M×D vectors.

    Covariances have the divisor N − 1; N may be below D. In float64. The trace of (C_a C_b)^½ is the sum of the
    singular values of C_a^½ C_b^½, so only symmetric matrices need a root. Like every
    estimate from samples it is too high for few images: compare at like numbers.
    """
    (mean_a, cov_a), (mean_b, cov_b) = _gaussian(a), _gaussian(b)
    cross = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())  # equal sets may miss zero by rounding


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double()
    centred = x - x.mean(0)
    return x.mean(0), centred.T @ centred / (len(x) - 1)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _as_floats(images: Tensor) -> Tensor:
    return images.float().div_(255)
