"""DeepInversion: its loss by an independent formula, its jitter, its optimiser (baselines.md 1.0 to 1.2)."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from baselines.deepinv import DeepInv
from dfkd.engine.context import Context, Teacher
from dfkd.engine.method import Budget
from dfkd.engine.seeds import Streams
from dfkd.networks.normalised import Normalised
from dfkd.synthesis.augment import Augment
from dfkd.synthesis.buffer import ReplayBuffer
from dfkd.tasks.base import InputSpec

MEAN, STD, BATCH = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), 6


def network(seed, favourite=0, gap=0.0):
    """Classes of three; `gap` is the lead of the favourite one."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    nn.init.normal_(layers[1].running_mean)
    nn.init.normal_(layers[5].weight)
    with torch.no_grad():
        layers[5].bias[favourite] += gap
    return layers.eval()


def context(size=8, flip=True, gap=0.0):
    spec = InputSpec(size, 3, mean=MEAN, std=STD, classes=3)
    return Context(
        teacher=Teacher(network(0, 0, gap), spec),
        student=Normalised(network(1, 1, gap), spec).eval(),
        new_student=None,
        spec=spec,
        budget=Budget(steps=8, batch=4, rounds=2, synthesis_batch=BATCH),
        device=torch.device("cpu"),
        rng=Streams("cpu", "test"),
        buffer=ReplayBuffer(64, (3, size, size)),
        augmentation=Augment(0, flip=flip),
        autocast=nullcontext,
    )


# --- the loss


class Recording(DeepInv):
    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def _loss(self, ctx, normalised, images, labels, student_statistics):
        value = super()._loss(ctx, normalised, images, labels, student_statistics)
        self.seen.append((normalised.detach().clone(), images.detach().clone(), labels, value.item()))
        return value


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def look(layers, normalised):
    """Logits and L_bn of a network, in float64."""
    with torch.no_grad():
        x = layers[0](normalised).double().numpy()
        logits = layers(normalised).double().numpy()
    bn = np.sqrt(((layers[1].running_var.numpy() - x.var((0, 2, 3))) ** 2).sum())
    return logits, bn + np.sqrt(((layers[1].running_mean.numpy() - x.mean((0, 2, 3))) ** 2).sum())


def jensen_shannon(s, t):
    p, q = softmax(s / 3), softmax(t / 3)
    m = (p + q) / 2
    p, q, m = (np.minimum(np.maximum(x, 0.01), 0.99) for x in (p, q, m))
    return (0.5 * (m * np.log(m / p)).sum(1) + 0.5 * (m * np.log(m / q)).sum(1)).mean()


def total_variation(x):
    differences = (
        x[:, :, :, 1:] - x[:, :, :, :-1],
        x[:, :, 1:, :] - x[:, :, :-1, :],
        x[:, :, 1:, 1:] - x[:, :, :-1, :-1],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
    )
    return sum(np.sqrt((d**2).sum()) for d in differences)


WEIGHTS = {"bn": 0.7, "oh": 0.9, "adv": 3.0, "student_bn": 0.3, "tv": 0.02, "l2": 0.05}


@pytest.mark.parametrize(
    "options, gap",
    [
        ({}, 0.0),
        ({}, 60.0),
        ({"clamp_js": True}, 0.0),
        ({"clamp_js": True}, 60.0),
        ({"student_bn": 0.0}, 0.0),
        ({"adv": 0.0}, 0.0),
        ({"tv": 0.0}, 0.0),
        ({"l2": 0.0}, 0.0),
        ({"oh": 0.0}, 0.0),
        ({"bn": 0.0}, 0.0),
    ],
)
def test_the_loss(options, gap):
    ctx, weights = context(gap=gap), WEIGHTS | options
    method = Recording(steps=3, lr=0.1, **weights)
    method.setup(ctx)
    method.synthesize(ctx)
    assert len(method.seen) == 3
    for normalised, images, labels, value in method.seen:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        torch.testing.assert_close(images, normalised * std + mean)
        t, bn = look(ctx.teacher.network, normalised)
        s, student_bn = look(ctx.student.network, normalised)
        js = jensen_shannon(s, t)
        assert (js > 1) == (gap > 0), "the example does not see the clamp"
        if weights.get("clamp_js"):
            js = min(max(js, 0), 1)
        x = normalised.double().numpy()
        terms = {
            "bn": weights["bn"] * bn,
            "oh": weights["oh"] * -np.log(softmax(t)[np.arange(BATCH), labels.numpy()]).mean(),
            "adv": -weights["adv"] * js,
            # Only while the adversarial term is on.
            "student_bn": -weights["bn"] * weights["student_bn"] * student_bn * (weights["adv"] > 0),
            "tv": weights["tv"] * total_variation(x),
            "l2": weights["l2"] * np.sqrt((x**2).sum()),
        }
        assert value == pytest.approx(sum(terms.values()), rel=1e-5)
        if not options:
            assert min(map(abs, terms.values())) > 1e-3 * abs(value), "the example does not see every term"


# --- jitter


def draws(method, ctx, count=600):
    """(down, right, flipped) of that many draws; each of them holds for the whole batch."""
    size = ctx.spec.size
    x, found = torch.arange(2.0 * 3 * size * size).view(2, 3, size, size), []
    for _ in range(count):
        y = method._jitter(ctx, x)
        down, right = divmod(y[0, 0].argmin().item(), size)
        flipped = y[0, 0, down, (right + 1) % size] != 1
        right = size - 1 - right if flipped else right
        down, right = ((v + size // 2) % size - size // 2 for v in (down, right))
        expected = torch.roll(x, (down, right), dims=(2, 3))
        assert torch.equal(y, expected.flip(3) if flipped else expected)
        found.append((down, right, bool(flipped)))
    return found


@pytest.mark.parametrize("size, jitter, reach", [(32, 0, 4), (16, 0, 2), (32, 2, 2), (64, 0, 8)])
def test_jitter_reaches_an_eighth_of_the_image(size, jitter, reach):
    found = draws(DeepInv(jitter=jitter), context(size=size))
    assert {down for down, _, _ in found} == {right for _, right, _ in found} == {*range(-reach, reach + 1)}
    assert len({(down, right) for down, right, _ in found}) > 2 * reach + 1, "the axes move together"


@pytest.mark.parametrize("method, task", [(True, True), (True, False), (False, True), (False, False)])
def test_flips_need_the_method_and_the_task(method, task):
    share = np.mean([flipped for _, _, flipped in draws(DeepInv(flip=method), context(flip=task))])
    assert share == (pytest.approx(0.5, abs=0.08) if method and task else 0)


# --- optimiser, clip, result

CURVATURE = (1.0, 5.0, 0.2)


class Quadratic(DeepInv):
    """Pulls pixels to 1 (normalised) in a way that no jitter changes; every step's loss is above the last one's."""

    def __init__(self, **options):
        super().__init__(**options)
        self.images, self.losses = [], []

    def _loss(self, ctx, normalised, images, labels, student_statistics):
        curvature = torch.tensor(CURVATURE).view(1, 3, 1, 1)
        value = (curvature * (normalised - 1) ** 2).sum() / 2 + 1e5 * len(self.losses)
        self.images.append(images.detach().clone())
        self.losses.append(value.item())
        return value


def run(**options):
    ctx = context()
    method = Quadratic(**options)
    method.setup(ctx)
    return method, method.synthesize(ctx)


def adam(steps, lr, beta1, beta2, clip):
    """Adam by its definition, from the same noise; images after the last step, not clamped."""
    x = context().noise(BATCH, 3, 8, 8).double().numpy()
    mean, std, curvature = (np.array(v).reshape(1, 3, 1, 1) for v in (MEAN, STD, CURVATURE))
    m, v = 0.0, 0.0
    for i in range(1, steps + 1):
        g = curvature * (x - 1)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        x = x - lr * (m / (1 - beta1**i)) / (np.sqrt(v / (1 - beta2**i)) + 1e-8)
        if clip:
            x = np.clip(x, -mean / std, (1 - mean) / std)
    return x * std + mean


ADAM = {"lr": 0.1, "beta1": 0.5, "beta2": 0.99}  # baselines.md 1.2, the defaults


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("changes", [{}, {"lr": 0.05, "beta1": 0.9, "beta2": 0.999}])
def test_the_result_is_the_last_iterate_of_adam(changes, clip):
    method, samples = run(steps=8, clip=clip, **changes)
    assert method.losses == sorted(method.losses) and len(method.losses) == 8
    expected = adam(8, **ADAM | changes, clip=clip)
    np.testing.assert_allclose(samples.images.numpy(), expected.clip(0, 1), atol=2e-5)
    for other in ({"lr": 0.101}, {"beta1": 0.51}, {"beta2": 0.98}):
        assert np.abs(adam(8, **ADAM | changes | other, clip=clip) - expected).max() > 2e-4
    assert np.abs(adam(7, **ADAM | changes, clip=clip) - expected).max() > 1e-2
    assert not samples.images.requires_grad


def test_clip_keeps_every_iterate_in_the_valid_range():
    clipped, samples = run(steps=4, clip=True)
    assert clipped.images[0].min() < -0.01 and clipped.images[0].max() > 1.01  # the noise itself
    for images in clipped.images[1:]:
        assert images.min() > -1e-6 and images.max() < 1 + 1e-6
    assert samples.images.min() >= 0 and samples.images.max() <= 1
    free, samples = run(steps=4, clip=False)
    assert all(images.min() < -0.01 for images in free.images)
    assert samples.images.min() >= 0 and samples.images.max() <= 1
