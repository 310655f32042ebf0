"""DAFL, ZSKT and DFQ: their generators' objectives by hand in float64 (baselines.md 1.6)."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.dafl import DAFL
from baselines.dfq import DFQ
from baselines.zskt import ZSKT
from dfkd.engine.method import Budget
from dfkd.synthesis.buffer import Batch
from dfkd.tasks import task
from tests.golden.test_cmi import Network, context, patches

IMAGES = patches(12)


@pytest.fixture
def ctx():
    made = context(budget=Budget(steps=40, batch=4, rounds=2, synthesis_batch=6))
    made.teacher.network.maps = lambda images: made.teacher.network.two(made.teacher.network.one(images))
    return made


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@torch.no_grad()
def exact(network: Network):
    """Logits, pooled features and the distance from the BatchNorm statistics of IMAGES, in float64."""
    network, x, distance = copy.deepcopy(network).double(), IMAGES.double(), 0.0
    for stage in (network.one, network.two):
        entering = stage[0](x).numpy()
        distance += np.linalg.norm(stage[1].running_mean.numpy() - entering.mean((0, 2, 3)))
        distance += np.linalg.norm(stage[1].running_var.numpy() - entering.var((0, 2, 3)))
        x = stage(x)
    features = x.mean((2, 3))
    return network.fc(features).numpy(), features.numpy(), distance


def terms(ctx):
    """L_oh with the teacher's own class, L_bn, L_bal, L_act, KL(T‖S)."""
    (teacher, features, bn), student = exact(ctx.teacher.network), exact(ctx.student.network)[0]
    p, q = softmax(teacher), softmax(student)
    mean = p.mean(0)
    found = {
        "oh": -np.log(p.max(1)).mean(),
        "bn": bn,
        "balance": (mean * np.log(mean)).sum(),
        "act": -np.abs(features).mean(),
        "kl": (p * np.log(p / q)).sum(1).mean(),
    }
    assert min(map(abs, found.values())) > 1e-2, "a term that is not seen"
    return found


def test_zskt_maximises_the_divergence(ctx):
    assert ZSKT().generator_loss(ctx, IMAGES).item() == pytest.approx(-terms(ctx)["kl"], rel=1e-5)


def test_dafl_wants_confident_balanced_and_active_images(ctx):
    each = terms(ctx)
    published = each["oh"] + 20 * each["balance"] + 0.001 * each["act"]
    assert DAFL().generator_loss(ctx, IMAGES).item() == pytest.approx(published, rel=1e-5)
    weighted = 0.5 * each["oh"] + 3 * each["balance"] + 7 * each["act"]
    method = DAFL(oh=0.5, balance=3.0, act=7.0)
    assert method.generator_loss(ctx, IMAGES).item() == pytest.approx(weighted, rel=1e-5)


def test_dfq_is_held_to_the_statistics_while_it_opposes(ctx):
    each = terms(ctx)
    for options, adversarial in (({}, each["kl"]), ({"opponent": "teacher"}, 0.0)):
        method = DFQ(nz=4, ngf=2, **options)
        method.setup(ctx)
        expected = each["oh"] + each["bn"] + 20 * each["balance"] - adversarial
        assert method.generator_loss(ctx, IMAGES).item() == pytest.approx(expected, rel=1e-5)
    method = DFQ(nz=4, ngf=2, oh=0.5, bn=3.0, balance=2.0, adv=7.0)
    method.setup(ctx)
    expected = 0.5 * each["oh"] + 3 * each["bn"] + 2 * each["balance"] - 7 * each["kl"]
    assert method.generator_loss(ctx, IMAGES).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [DAFL, ZSKT, DFQ])
def test_a_step_lowers_the_generators_loss_and_moves_nothing_else(ctx, kind):
    method = kind(nz=4, ngf=2, lr=0.01)
    method.setup(ctx)
    z = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

    def value():
        ctx.student.eval()
        with torch.no_grad():
            return method.generator_loss(ctx, method.generator(z)).item()

    weights = copy.deepcopy([ctx.teacher.state_dict(), ctx.student.state_dict()])
    before = value()
    for _ in range(20):
        method.explore(ctx)
        assert ctx.student.training and all(p.requires_grad for p in ctx.student.parameters())
    assert value() < before
    for network, state in zip((ctx.teacher, ctx.student), weights, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(("kind", "kd", "nz"), [(DAFL, 5, 512), (ZSKT, 5, 256), (DFQ, 10, 256)])
def test_the_published_rhythm_and_code(ctx, monkeypatch, kind, kd, nz):
    method, seen = kind(ngf=2), []
    assert (method.kd, method.nz, method.lr, method.beta1, method.beta2) == (kd, nz, 1e-3, 0.5, 0.999)
    method.setup(ctx)
    monkeypatch.setattr(method, "explore", lambda ctx: seen.append(ctx.student_steps))
    for ctx._progress.student_steps in range(21):
        assert method.draw(ctx).images.shape == (4, 3, 8, 8)
    assert seen == list(range(0, 21, kd))


@pytest.mark.parametrize("kind", [DAFL, ZSKT, DFQ])
def test_the_student_s_loss_is_kd_at_the_scripts_temperature(ctx, kind):
    ctx.student.eval()
    t, s = (exact(network.network)[0] / 20 for network in (ctx.teacher, ctx.student))
    p, q = softmax(t), softmax(s)
    expected = 400 * (p * np.log(p / q)).sum(1).mean()
    assert kind().distill(ctx, Batch(IMAGES))["kd"].item() == pytest.approx(expected, rel=1e-4)


def test_class_terms_decline_label_maps():
    maps = replace(task("digits"), kind="segmentation")
    assert "one class an image" in DAFL().supports(maps) and "one class an image" in DFQ().supports(maps)
    assert ZSKT().supports(maps) is None
    assert not any(kind().supports(task("digits")) for kind in (DAFL, ZSKT, DFQ))


@pytest.mark.parametrize(("kind", "wrong"), [(DAFL, {"kd": 0}), (ZSKT, {"opponent": "me"}), (DFQ, {"opponent": ""})])
def test_wrong_arguments_are_refused(kind, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(**wrong)
