"""The losses of baselines.md 1.0 against numbers worked out by hand or by numpy in float64."""

import math

import numpy as np
import pytest
import torch

from dfkd.synthesis import losses

LN2, LN3 = math.log(2), math.log(3)
# Logits (0, ln 3) are the probabilities (1/4, 3/4); (0, ln 2) are (1/3, 2/3); (0, 0) are (1/2, 1/2).
QUARTER, THIRD, HALF = (0.0, LN3), (0.0, LN2), (0.0, 0.0)
# KL((1/4, 3/4) || (1/2, 1/2)) = 1/4 ln 1/2 + 3/4 ln 3/2; the other way round it is 0.143841.
QUARTER_TO_HALF = 0.1308120
# KL((1/4, 3/4) || (1/3, 2/3)) = 1/4 ln 3/4 + 3/4 ln 9/8.
QUARTER_TO_THIRD = 0.0164167


def tensor(*rows, grad=False):
    return torch.tensor(rows, dtype=torch.float32).requires_grad_(grad)


def pixels(*rows):
    """Logits of one image whose pixels, in a row, have the given logits: 1×C×1×W."""
    return tensor(*rows).T[None, :, None, :].contiguous()


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def close(value, expected, tolerance=2e-6):
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=tolerance)


def logits_of(seed, *shape, scale=3.0):
    return np.random.default_rng(seed).normal(size=shape) * scale


# --- kl


def test_kl_is_of_the_teacher_from_the_student_and_per_sample():
    close(losses.kl(tensor(QUARTER, HALF), tensor(HALF, QUARTER)), [QUARTER_TO_HALF, 0.1438410])


def test_kl_has_the_factor_tau_squared():
    # The logits are twice as large, so at τ = 2 the probabilities are those of above.
    close(losses.kl(tensor((0.0, 2 * LN3)), tensor(HALF), temperature=2.0), [4 * QUARTER_TO_HALF])


def test_kl_gradient_is_tau_times_the_difference_of_probabilities():
    student = tensor(HALF, grad=True)
    losses.kl(tensor((0.0, 2 * LN3)), student, temperature=2.0).sum().backward()
    close(student.grad, [[2 * (1 / 2 - 1 / 4), 2 * (1 / 2 - 3 / 4)]])


def test_kl_of_pixels_sums_classes_and_averages_positions():
    close(losses.kl(pixels(QUARTER, HALF, HALF, HALF), pixels(HALF, HALF, HALF, HALF)), [QUARTER_TO_HALF / 4])


@pytest.mark.parametrize("tau", [1.0, 4.0, 20.0])
def test_kl_equals_numpy(tau):
    t, s = logits_of(1, 6, 5, 2, 3), logits_of(2, 6, 5, 2, 3)
    p, q = softmax(t / tau), softmax(s / tau)
    expected = tau**2 * (p * np.log(p / q)).sum(1).mean((1, 2))
    close(losses.kl(torch.tensor(t), torch.tensor(s), tau), expected, 1e-4)


def test_kl_of_half_precision_logits_is_computed_in_float32():
    value = losses.kl(tensor(QUARTER).bfloat16(), tensor(HALF).bfloat16())
    p = 1 / (1 + math.exp(-float(torch.tensor(LN3).bfloat16())))
    assert value.dtype == torch.float32
    close(value, [p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))])


def test_kl_survives_probabilities_that_underflow():
    # KL((~0, 1) || (1, ~0)) at a distance of 1000 logits is 1000.
    close(losses.kl(tensor((0.0, 1000.0)), tensor((1000.0, 0.0))), [1000.0])


# --- cross entropy


def test_cross_entropy_per_sample():
    # −ln 1/4 and −ln 3/4.
    close(losses.cross_entropy(tensor(QUARTER, QUARTER), torch.tensor([0, 1])), [1.3862944, 0.2876821])


def test_cross_entropy_of_pixels_is_the_mean_over_positions():
    labels = torch.tensor([[[0, 1]]])
    close(losses.cross_entropy(pixels(QUARTER, QUARTER), labels), [(1.3862944 + 0.2876821) / 2])


# --- adversarial


def test_adversarial_counts_only_samples_on_which_both_agree():
    teacher, student = tensor(QUARTER, QUARTER), tensor(THIRD, (LN2, 0.0))
    close(losses.adversarial(teacher, student), [-QUARTER_TO_THIRD, 0.0])


def test_adversarial_decides_pixel_by_pixel():
    teacher, student = pixels(QUARTER, QUARTER), pixels(THIRD, (LN2, 0.0))
    close(losses.adversarial(teacher, student), [-QUARTER_TO_THIRD / 2])


def test_adversarial_gradient_flows_through_both_networks():
    teacher = tensor(QUARTER, QUARTER, grad=True)
    student = tensor(THIRD, (LN2, 0.0), grad=True)
    losses.adversarial(teacher, student).sum().backward()
    # d(−KL)/dS_k = p_k − q_k.
    close(student.grad, [[1 / 4 - 1 / 3, 3 / 4 - 2 / 3], [0, 0]])
    # d(−KL)/dT_k = −p_k (ln p_k/q_k − KL) = −1/4 (ln 3/4 − 0.0164167).
    close(teacher.grad, [[0.0760247, -0.0760247], [0, 0]])


def test_adversarial_with_a_detached_teacher_leaves_it_alone():
    teacher, student = tensor(QUARTER, grad=True), tensor(THIRD, grad=True)
    losses.adversarial(teacher.detach(), student).sum().backward()
    assert teacher.grad is None
    close(student.grad, [[1 / 4 - 1 / 3, 3 / 4 - 2 / 3]])


# --- Jensen-Shannon as published


def test_jensen_shannon_has_the_mixture_first():
    # P = (1/2, 1/2), Q = (1/4, 3/4), M = (3/8, 5/8):
    # ½[3/8 ln 3/4 + 5/8 ln 5/4] + ½[3/8 ln 3/2 + 5/8 ln 5/6] = 0.0348403; with M second it is 0.033822.
    close(losses.jensen_shannon(tensor(HALF), tensor((0.0, 3 * LN3))), [0.0348403])


def test_jensen_shannon_clamps():
    # P = (.99, .01), Q = (.01, .99), M = (.5, .5): ½ ln(.5/.99) + ½ ln(.5/.01), well above ln 2.
    close(losses.jensen_shannon(tensor((90.0, 0.0)), tensor((0.0, 90.0))), [1.6144630])


def test_jensen_shannon_does_not_renormalise_and_mixes_before_clamping():
    s, t = logits_of(3, 40, 7, scale=9.0), logits_of(4, 40, 7, scale=9.0)

    def divergence(p, q, m):
        return (m * np.log(m / p) + m * np.log(m / q)).sum(1) / 2

    def clamp(x):
        return np.clip(x, 0.01, 0.99)

    p, q = softmax(s / 3), softmax(t / 3)
    expected = divergence(clamp(p), clamp(q), clamp((p + q) / 2))
    close(losses.jensen_shannon(torch.tensor(s), torch.tensor(t)), expected, 5e-6)
    # The examples do tell other readings apart: clamped first, and renormalised.
    late = divergence(clamp(p), clamp(q), (clamp(p) + clamp(q)) / 2)
    sums = [clamp(x) / clamp(x).sum(1, keepdims=True) for x in (p, q, (p + q) / 2)]
    assert np.abs(late - expected).max() > 1e-3 and np.abs(divergence(*sums) - expected).max() > 1e-3


def test_jensen_shannon_takes_its_temperature_and_is_per_sample():
    close(losses.jensen_shannon(tensor(HALF, HALF), tensor(QUARTER, HALF), temperature=1.0), [0.0348403, 0.0])


# --- class balance, activation


def test_class_balance_is_the_negative_entropy_of_the_mean():
    balanced, skewed = tensor(QUARTER, (LN3, 0.0)), tensor(QUARTER, QUARTER)
    close(losses.class_balance(balanced), -LN2)
    close(losses.class_balance(skewed), 0.25 * math.log(0.25) + 0.75 * math.log(0.75))


def test_class_balance_takes_pixels_as_samples():
    close(losses.class_balance(pixels(QUARTER, (LN3, 0.0))), -LN2)


def test_class_balance_of_a_single_class_is_finite():
    logits = tensor((500.0, 0.0), grad=True)
    value = losses.class_balance(logits)
    value.backward()
    close(value, 0.0)
    assert torch.isfinite(logits.grad).all()


def test_activation():
    close(losses.activation(tensor((1.0, -2.0), (3.0, 0.0))), -1.5)


# --- total variation


def test_total_variation_by_hand():
    # Differences of [[1, 2], [4, 8]]: right (1, 4), down (3, 6), diagonal 8 − 1, anti-diagonal 4 − 2.
    image = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    expected = math.sqrt(17) + math.sqrt(45) + 7 + 2
    close(losses.total_variation(image), expected, 1e-5)


def test_total_variation_is_one_norm_over_the_whole_batch():
    image = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    expected = (math.sqrt(17) + math.sqrt(45) + 7 + 2) * math.sqrt(6)  # 2 images of 3 channels
    close(losses.total_variation(image.expand(2, 3, 2, 2)), expected, 1e-5)


def test_total_variation_equals_numpy():
    x = logits_of(5, 2, 3, 5, 6)
    steps = [(0, 1), (1, 0), (1, 1), (1, -1)]
    total = 0.0
    for down, right in steps:
        square = 0.0
        for i in range(5):
            for j in range(6):
                if i + down < 5 and 0 <= j + right < 6:
                    square += ((x[:, :, i + down, j + right] - x[:, :, i, j]) ** 2).sum()
        total += math.sqrt(square)
    assert losses.total_variation(torch.tensor(x)).item() == pytest.approx(total, rel=1e-12)
