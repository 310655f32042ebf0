"""When Fast resets its generator and when it becomes adversarial (baselines.md 1.3)."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from baselines.fast import Fast
from dfkd.engine.context import Context, Teacher
from dfkd.engine.method import Budget
from dfkd.engine.seeds import Streams
from dfkd.networks.normalised import Normalised
from dfkd.synthesis.augment import Augment
from dfkd.synthesis.buffer import ReplayBuffer
from dfkd.tasks.base import InputSpec

IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(1, 3, 8), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 3, bias=False))
    nn.init.normal_(layers[3].weight, 0, 3)
    with torch.no_grad():
        layers[1].running_mean.copy_(layers[0](IMAGES).mean((0, 2, 3)))  # or it would see one class everywhere
    return layers.eval()


def context():
    spec = InputSpec(8, 1, mean=(0.0,), std=(1.0,), classes=3)
    return Context(
        teacher=Teacher(network(0), spec),
        student=Normalised(network(1), spec).eval(),
        new_student=None,
        spec=spec,
        budget=Budget(steps=8, batch=4, rounds=2, synthesis_batch=12),
        device=torch.device("cpu"),
        rng=Streams("cpu", "test"),
        buffer=ReplayBuffer(64, (1, 8, 8)),
        augmentation=Augment(0, flip=False),
        autocast=nullcontext,
    )


def calls(method, last, monkeypatch):
    """Calls 1 to `last`, the generator's own step left out: of each the loss of IMAGES, and the slow weights that
    it would start from."""
    ctx, seen = context(), []
    method.setup(ctx)

    def invert(z, loss):
        slow = {name: value.clone() for name, value in method.generator.slow.state_dict().items()}
        seen.append((loss(IMAGES).item(), slow))
        return IMAGES

    monkeypatch.setattr(method.generator, "invert", invert)
    with torch.no_grad():
        for ctx._progress.synthesis_step in range(1, last + 1):
            method.synthesize(ctx)
    return [value for value, _ in seen], [slow for _, slow in seen]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [140]),
        ({"meta": "reptile"}, [140]),
        ({"meta": "none"}, []),
        ({"reset_at": 0}, []),
        ({"reset_at": 7}, [7]),
        ({"reset_at": 7, "meta": "none"}, []),
    ],
)
def test_the_first_layers_are_drawn_anew_before_call_140_only(options, expected, monkeypatch):
    _, slow = calls(Fast(nz=4, ngf=2, **options), 220, monkeypatch)
    fired = [call for call in range(2, 221) if not torch.equal(slow[call - 1]["0.weight"], slow[call - 2]["0.weight"])]
    assert fired == expected


def test_the_reset_is_around_zero_and_of_the_first_layers_only(monkeypatch):
    method = Fast(nz=16, ngf=32, reset_at=2)
    _, (before, after) = calls(method, 2, monkeypatch)
    linear, norm = "0.", "2."
    for layer in (linear, norm):
        assert after[layer + "weight"].mean().item() == pytest.approx(0, abs=0.01)
        assert after[layer + "weight"].std().item() == pytest.approx(0.02, rel=0.3)
        assert not after[layer + "bias"].any()
    assert before[linear + "bias"].any() and before[norm + "weight"].min() == 1
    for name in before:
        if name not in {layer + part for layer in (linear, norm) for part in ("weight", "bias")}:
            assert torch.equal(before[name], after[name]), name


def adversarial():
    """−mean 1[argmax S = argmax T]·KL(T‖S), in float64."""
    with torch.no_grad():
        t, s = (network(seed)(IMAGES).double().numpy() for seed in (0, 1))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (t, s))
    agree = t.argmax(1) == s.argmax(1)
    assert 0 < agree.sum() < 12
    value = -(agree * (p * np.log(p / q)).sum(1)).mean()
    assert value < -1e-2
    return value


@pytest.mark.parametrize("options, first", [({}, 20), ({"warmup": 5}, 5), ({"warmup": 0}, 1)])
def test_the_loss_is_adversarial_from_call_warmup_on(options, first, monkeypatch):
    values, _ = calls(Fast(nz=4, ngf=2, bn=0.0, oh=0.0, adv=1.33, **options), 30, monkeypatch)
    assert values == pytest.approx([0.0] * (first - 1) + [1.33 * adversarial()] * (31 - first), rel=1e-4)


def test_the_other_terms_are_there_from_the_first_call(monkeypatch):
    for options in ({"bn": 0.0}, {"oh": 0.0}):
        values, _ = calls(Fast(nz=4, ngf=2, adv=0.0, **options), 30, monkeypatch)
        assert min(values) > 0.1
