"""Diagnostics of synthetic sets: values by hand and in closed form, and what they may not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from scipy.linalg import sqrtm
from torch import nn

from dfkd import records
from dfkd.engine import diagnostics
from dfkd.engine.context import Teacher
from dfkd.report.columns import IMAGES
from dfkd.tasks.base import InputSpec


class Brightest(nn.Module):
    """Features: the first pixel's three channels; the class is the brightest of them."""

    def features(self, x):
        return x[:, :, 0, 0]

    def forward(self, x):
        return self.features(x)


class BrightestOfEachPixel(Brightest):
    def forward(self, x):
        return x


def teacher(network=None, size=1):
    return Teacher(network or Brightest(), InputSpec(size, 3, mean=(0.0,) * 3, std=(1.0,) * 3, classes=3))


def pixels(*colours):
    """uint8 N×3×1×1."""
    return torch.tensor(colours, dtype=torch.uint8).view(-1, 3, 1, 1)


def gaussian(n, d, seed):
    """n×d vectors with correlated coordinates and a mean of their own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x @ torch.randn(d, d, generator=generator, dtype=torch.float64) + seed


def test_by_hand():
    images = pixels((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 0))
    real = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    found = diagnostics.describe(teacher(), images, torch.tensor([0, 1, 1, 2]), real)
    # Five of the six pairs are √2 apart and one not at all; the real pair is 2 apart.
    # μ: (½, ¼, ¼) and (1, 0, 0). C: (⅓, ¼, ¼ on the diagonal, covariances) and 2 in the first coordinate alone, so
    # tr (C_a C_b)^½ = √(⅓ · 2).
    frechet = (1 / 4 + 1 / 16 + 1 / 16) + (1 / 3 + 1 / 4 + 1 / 4) + 2 - 2 * (2 / 3) ** 0.5
    assert found == {
        "images": 4,
        "agreement": 0.5,
        "classes": [0.5, 0.25, 0.25],
        # Logits are (1, 0, 0) or the like: e/(e + 2) = .576 each.
        "confidence": [0.0] * 5 + [1.0] + [0.0] * 4,
        "difficulty": pytest.approx(2 / (np.e + 2), abs=1e-6),
        "diversity": pytest.approx(5 / 6 * 2**0.5 / 2, abs=1e-6),
        "frechet": pytest.approx(frechet, abs=1e-6),
    }


def test_a_class_nobody_chose_has_its_place():
    found = diagnostics.describe(teacher(), pixels((9, 0, 0), (8, 0, 0)), None, torch.eye(3))
    assert found["classes"] == [1.0, 0.0, 0.0]
    assert found["agreement"] is None


def test_the_teachers_range_is_that_of_images_in_zero_to_one():
    features = diagnostics.features_of(teacher(), pixels((255, 51, 0), (0, 102, 255)), batch=1)
    assert torch.equal(features, torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.4, 1.0]]))
    assert not features.requires_grad


def test_confidence_is_counted_in_equal_parts_up_to_certainty():
    class Table(nn.Module):
        def forward(self, x):
            p = torch.tensor([[1.0, 0, 0], [0.31, 0.345, 0.345], [0.55, 0.45, 0], [0.98, 0.01, 0.01]])
            return p[: len(x)].log().clamp_min(-1e4)

        features = forward

    found = diagnostics.describe(teacher(Table()), pixels(*[(9, 0, 0)] * 4), None, torch.eye(3))
    assert found["confidence"] == [0, 0, 0, 0.25, 0, 0.25, 0, 0, 0, 0.5]
    assert found["difficulty"] == pytest.approx((0 + 0.655 + 0.45 + 0.02) / 4, abs=1e-6)


def test_classes_of_pixels_are_counted_and_agree_with_nothing():
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    images[:, 1] = 100
    images[0, 2, 0, 0] = 200  # one pixel of eight
    labels = torch.ones(2, 2, 2, dtype=torch.int64)
    for intended in (labels, labels[:, 0, 0], None):
        found = diagnostics.describe(teacher(BrightestOfEachPixel(), 2), images, intended, torch.eye(3))
        assert (found["classes"], found["agreement"]) == ([0.0, 0.875, 0.125], None)


def test_neither_order_nor_batch_matters():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (301, 3, 1, 1), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (301,), generator=generator)
    real = torch.rand(200, 3, generator=generator)
    expected = diagnostics.describe(teacher(), images, labels, real)
    order = torch.randperm(301, generator=generator)
    assert 0.1 < expected["agreement"] < 0.9 and expected["frechet"] > 1e-4
    for found in (
        diagnostics.describe(teacher(), images[order], labels[order], real.flip(0)),
        diagnostics.describe(teacher(), images, labels, real, batch=7),
    ):
        assert found["agreement"] == expected["agreement"] and found["classes"] == expected["classes"]
        assert found["diversity"] == pytest.approx(expected["diversity"], abs=2e-6)
        assert found["frechet"] == pytest.approx(expected["frechet"], abs=2e-6)


def test_of_many_images_a_choice_is_looked_at_that_labels_in_turn_do_not_mislead():
    labels = torch.arange(4 * diagnostics.LIMIT) % 2
    images = pixels((255, 0, 0), (0, 255, 0))[labels]
    network = teacher()
    found = diagnostics.describe(network, images, labels, torch.eye(3))
    assert found["images"] == diagnostics.LIMIT and found["agreement"] == 1.0
    assert 0.45 < found["classes"][0] < 0.55
    assert any(column.meaning.endswith(f"at most {diagnostics.LIMIT:,}") for column in IMAGES)
    assert network.images_seen == 2 * diagnostics.LIMIT
    assert found == diagnostics.describe(teacher(), images, labels, torch.eye(3))


def test_the_set_itself_is_as_diverse_as_itself_and_at_no_distance():
    images = torch.randint(0, 256, (60, 3, 1, 1), dtype=torch.uint8)
    found = diagnostics.describe(teacher(), images, None, diagnostics.features_of(teacher(), images.flip(0)))
    assert (found["diversity"], found["frechet"]) == (1.0, 0.0)


def test_a_collapsed_set_has_no_diversity_and_a_collapsed_real_one_no_scale_for_it():
    found = diagnostics.describe(teacher(), pixels(*[(200, 10, 30)] * 50), None, torch.eye(3))
    assert found["diversity"] == 0.0
    found = diagnostics.describe(teacher(), pixels((9, 0, 0), (0, 9, 0)), None, torch.ones(4, 3))
    assert found["diversity"] is None


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_have_no_spread(count):
    images = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
    assert diagnostics.describe(teacher(), images, None, torch.eye(3)) is None


def test_a_record_takes_what_describe_gives():
    found = diagnostics.describe(teacher(), pixels((255, 0, 0), (0, 9, 0)), None, torch.eye(3))
    schema = records.SCHEMA["properties"]["diagnostics"]
    Draft202012Validator(schema).validate(found)
    assert found.keys() == set(schema["properties"])


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_spread_counts_every_pair(chunk):
    x = gaussian(40, 5, seed=2)
    pairs = [(x[i] - x[j]).norm() for i in range(40) for j in range(i)]
    assert diagnostics.spread(x, chunk) == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-8)


def test_spread_is_not_lost_far_from_the_origin():
    assert diagnostics.spread(torch.tensor([[1e6, 0.0], [1e6, 0.25]])) == pytest.approx(0.25, rel=1e-9)


def crosses(a, b, at):
    """Four points with mean `at` and the covariance diag(2a²/3, 2b²/3)."""
    points = torch.tensor([[a, 0.0], [-a, 0.0], [0.0, b], [0.0, -b]], dtype=torch.float64)
    return points + torch.tensor(at, dtype=torch.float64)


def test_frechet_distance_of_diagonal_gaussians():
    found = diagnostics.frechet_distance(crosses(1, 3, at=(0, 0)), crosses(2, 5, at=(1, -2)))
    # |Δμ|² + Σ (σ − σ')², with σ² = 2a²/3.
    assert found == pytest.approx((1 + 4) + 2 / 3 * ((2 - 1) ** 2 + (5 - 3) ** 2), rel=1e-12)


def test_frechet_distance_of_sets_that_span_nothing_in_common():
    a, b = torch.zeros(3, 6), torch.zeros(2, 6)
    a[:, 0] = torch.tensor([-1.0, 0.0, 1.0])  # variance 1
    b[:, 4] = torch.tensor([-1.0, 1.0])  # variance 2
    assert diagnostics.frechet_distance(a, b) == pytest.approx(3, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(50, 70, 6), (5, 70, 12), (4, 5, 12)])
def test_frechet_distance_by_matrix_root(n, m, d):
    a, b = gaussian(n, d, seed=3), gaussian(m, d, seed=4)
    cov_a, cov_b = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    root = np.trace(sqrtm(cov_a @ cov_b).real)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert diagnostics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert diagnostics.frechet_distance(b, a) == pytest.approx(diagnostics.frechet_distance(a, b), rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(50, 6), (5, 12), (2, 30)])
def test_a_set_has_no_distance_to_itself_in_another_order(n, d):
    x = gaussian(n, d, seed=5)
    assert diagnostics.frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_shrinks_with_the_features_scale():
    a, b = gaussian(30, 4, seed=6), gaussian(40, 4, seed=7)
    assert diagnostics.frechet_distance(3 * a, 3 * b) == pytest.approx(9 * diagnostics.frechet_distance(a, b))
