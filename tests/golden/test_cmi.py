"""CMI: its loss by an independent formula, what a call keeps, its regimes (baselines.md 1.6, dda.md 1.2)."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import baselines.cmi
from baselines.cmi import CMI
from dfkd.engine.context import Context, Teacher
from dfkd.engine.method import Budget
from dfkd.engine.seeds import Streams
from dfkd.networks.normalised import Normalised
from dfkd.synthesis.augment import Augment
from dfkd.synthesis.buffer import ReplayBuffer
from dfkd.synthesis.generators import Generator, redraw
from dfkd.tasks import task
from dfkd.tasks.base import InputSpec

SIZE, CLASSES, BATCH = 8, 3, 12
BUDGET = Budget(steps=8, batch=4, rounds=2, synthesis_batch=BATCH)


class Network(nn.Module):
    """Two stages of a convolution with BatchNorm, global pooling, a linear layer: as `dfkd.networks` have them."""

    def __init__(self, seed, widths=(4, 6)):
        super().__init__()
        torch.manual_seed(seed)
        first, second = widths
        self.one = nn.Sequential(nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(first, second, 3, 2, 1), nn.BatchNorm2d(second), nn.ReLU())
        self.stages, self.fc = ["one", "two"], nn.Linear(second, CLASSES)
        nn.init.normal_(self.fc.weight, 0, 3)
        with torch.no_grad():
            # It remembers statistics near those of `patches`, or it would see one class everywhere.
            x = patches(BATCH)
            for stage in self.eval().one, self.two:
                inputs = stage[0](x)
                stage[1].running_mean.copy_(inputs.mean((0, 2, 3)) + 0.2 * torch.randn(inputs.shape[1]))
                stage[1].running_var.copy_(inputs.var((0, 2, 3)) * 1.5)
                x = stage(x)
            self.fc.bias -= self.fc(x.mean((2, 3))).mean(0)

    def features(self, images):
        return self.two(self.one(images)).mean((2, 3))

    def forward(self, images):
        return self.fc(self.features(images))


def patches(count, seed=5):
    """Images coarse enough that small networks tell them apart."""
    images = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed)).round()
    return images.repeat_interleave(SIZE // 2, 2).repeat_interleave(SIZE // 2, 3)


def context(capacity=256, budget=BUDGET, prior=None):
    spec = InputSpec(SIZE, 3, mean=(0.0,) * 3, std=(1.0,) * 3, classes=CLASSES)
    ctx = Context(
        teacher=Teacher(Network(0), spec),
        student=Normalised(Network(1, (3, 5)), spec),
        new_student=None,
        spec=spec,
        budget=budget,
        device=torch.device("cpu"),
        rng=Streams("cpu", "test"),
        buffer=ReplayBuffer(capacity, (3, SIZE, SIZE)),
        augmentation=Augment(0, flip=False),
        autocast=nullcontext,
        prior=prior,
    )
    ctx.student.eval().requires_grad_(False)  # as the loop hands it to a synthesis step
    return ctx


def plain_terms(ctx, images, labels):
    """L_bn, L_oh and L_adv in float64, from the layers' inputs."""
    teacher, inputs = copy.deepcopy(ctx.teacher.network).double(), []
    x = images.double()
    for stage in (teacher.one, teacher.two):
        inputs.append(stage[0](x))
        x = stage(x)
    bn = 0.0
    for stage, values in zip((teacher.one, teacher.two), inputs, strict=True):
        values = values.numpy()
        bn += np.linalg.norm(stage[1].running_mean.numpy() - values.mean((0, 2, 3)))
        bn += np.linalg.norm(stage[1].running_var.numpy() - values.var((0, 2, 3)))
    t = F.log_softmax(teacher(images.double()), 1).numpy()
    s = F.log_softmax(copy.deepcopy(ctx.student.network).double()(images.double()), 1).numpy()
    agree = t.argmax(1) == s.argmax(1)
    assert 0 < agree.sum() < len(images)
    return bn, -t[np.arange(len(images)), labels].mean(), -(agree * (np.exp(t) * (t - s)).sum(1)).mean()


def plain_contrast(method, local, world, cached):
    """L_cr in float64 with the whole matrix."""
    head, size = copy.deepcopy(method.contrast.head).double(), local.shape[1]
    rows = F.normalize(head(torch.cat([local, cached[:, :size]]).double()), dim=1)
    columns = F.normalize(head(torch.cat([world, cached[:, size:]]).double()), dim=1)
    each = F.cross_entropy(rows @ columns.T / method.tau, torch.arange(len(rows)), reduction="none")
    return (each[: len(local)].mean() + (each[len(local) :].mean() if len(cached) else 0)).item()


def features_of(network, images, kind):
    one = network.one(images)
    inputs = {"bn": (network.one[0](images), network.two[0](one)), "stages": (images, one)}[kind]
    return torch.cat([values.mean((2, 3)) for values in inputs], 1)


@torch.no_grad()
@pytest.mark.parametrize("features", ["bn", "stages"])
@pytest.mark.parametrize("cached", [0, 7])
@pytest.mark.parametrize("call, adversarial", [(2, False), (3, True)])
def test_the_loss_is_the_sum_of_its_terms(call, adversarial, cached, features):
    ctx = context()
    method = CMI(bn=0.5, oh=0.4, adv=1.1, cr=0.8, tau=0.2, features=features, bank_calls=2, nz=4, ngf=2, memory=40)
    method.setup(ctx)
    method.local = lambda images, generator: images.flip(2)  # the other view
    images, labels, ctx._progress.synthesis_step = patches(BATCH), torch.arange(BATCH) % CLASSES, call
    size = {"bn": 4 + 6, "stages": 3 + 4}[features]
    memory = torch.rand(cached, 2 * size)
    method.contrast.memory.add(memory)
    value, kept = method.inversion_loss(ctx, images, labels)

    bn, oh, adv = plain_terms(ctx, images, labels.numpy())
    views = [features_of(ctx.teacher.network, view, features) for view in (images.flip(2), images)]
    cr = plain_contrast(method, *views, memory)
    expected = 0.5 * bn + 0.4 * oh + 0.8 * cr + (1.1 * adv if adversarial else 0)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert min(abs(0.5 * bn), abs(0.4 * oh), abs(0.8 * cr), abs(1.1 * adv)) > 1e-3 * value, "a term that is not seen"
    np.testing.assert_allclose(kept.numpy(), torch.cat(views, 1).numpy(), rtol=1e-4, atol=1e-6)


def test_without_contrast_the_teacher_sees_one_view():
    for cr, views in ((0.8, 2), (0.0, 1)):
        ctx, method = context(), CMI(cr=cr, steps=3, bank_calls=1, nz=4, ngf=2, memory=40)
        method.setup(ctx)
        before, ctx._progress.synthesis_step = ctx.teacher.images_seen, 1
        method.synthesize(ctx)
        assert ctx.teacher.images_seen - before == 3 * views * BATCH
        assert (method.contrast is None) == (cr == 0)


def test_the_call_learns_generator_code_and_head_and_nothing_else(monkeypatch):
    built = []

    class Adam(torch.optim.Adam):
        def __init__(self, parameters, **options):
            super().__init__(parameters, **options)
            built.append((self.param_groups[0]["params"], options))

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    ctx, method = context(), CMI(steps=2, lr=3e-3, nz=4, ngf=2, memory=40)
    method.setup(ctx)
    before = {name: value.clone() for name, value in ctx.teacher.state_dict().items()}
    heads = [p.clone() for p in method.contrast.head.parameters()]
    for ctx._progress.synthesis_step in (1, 2):
        method.synthesize(ctx)
    (head, options), *calls = built
    assert [set(map(id, head))] == [set(map(id, method.contrast.head.parameters()))]
    assert options == {"lr": 3e-3}, "the head's betas are Adam's own, (.9, .999)"
    assert len(calls) == 2, "the generator's optimiser starts anew in each call, the head's does not"
    for parameters, options in calls:
        assert options == {"lr": 3e-3, "betas": (0.5, 0.999)}
        *weights, z = parameters
        assert set(map(id, weights)) == set(map(id, method.generator.parameters()))
        assert z.shape == (BATCH, 4) and z.grad.abs().max() > 0
    assert all(not torch.equal(a, b) for a, b in zip(heads, method.contrast.head.parameters(), strict=True))
    assert all(p.grad is None for network in (ctx.teacher, ctx.student) for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in ctx.teacher.state_dict().items())


def test_the_best_step_is_kept_with_its_features(monkeypatch):
    ctx, method = context(), CMI(steps=5, nz=4, ngf=2, memory=40)
    method.setup(ctx)
    seen = []

    def loss(ctx, images, labels):
        value = images.mean() * 1e-3 + (3.0, 2.0, 0.5, 1.0, 0.7)[len(seen)]
        seen.append(images.detach().clone())
        return value, torch.full((BATCH, 20), float(len(seen)))

    monkeypatch.setattr(method, "inversion_loss", loss)
    ctx._progress.synthesis_step = 1
    samples = method.synthesize(ctx)
    assert torch.equal(samples.images, seen[2]) and not samples.images.requires_grad
    assert not torch.equal(seen[1], seen[2])
    assert method.contrast.memory.features[:BATCH].unique().tolist() == [3.0]
    assert samples.labels.shape == (BATCH,) and samples.made is None


def test_every_call_begins_with_a_generator_drawn_anew(monkeypatch):
    drawn = []

    def record(network, generator):
        redraw(network, generator)
        drawn.append(copy.deepcopy(network.state_dict()))

    monkeypatch.setattr(baselines.cmi, "redraw", record)
    ctx, method = context(), CMI(steps=2, nz=16, ngf=16, memory=40)
    method.setup(ctx)
    for ctx._progress.synthesis_step in (1, 2):
        method.synthesize(ctx)
    first, second = drawn
    for name in first:
        if name.endswith("weight"):
            assert not torch.equal(first[name], second[name])


def test_what_is_drawn_is_as_published():
    generator = Generator(nz=64, ngf=32, size=16)
    redraw(generator, torch.Generator().manual_seed(0))
    for module in generator:
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            expected = 1 if isinstance(module, nn.BatchNorm2d) else 0
            assert module.weight.mean().item() == pytest.approx(expected, abs=0.01)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.3)
            assert module.bias is None or not module.bias.any()
    again = Generator(nz=64, ngf=32, size=16)
    redraw(again, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), again.parameters(), strict=True))


# --- regimes and refusals


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [("distil", 2, 1, 4, False)]),
        ({"bank_calls": 9, "calls": 0}, [("bank", 1, 9, 0, True), ("distil", 2, 0, 4, False)]),
        ({"bank_calls": 9, "calls": 3}, [("bank", 1, 9, 0, True), ("distil", 2, 3, 4, False)]),
    ],
)
def test_the_regimes(options, expected):
    method = CMI(**options)
    stages = method.schedule(BUDGET)
    assert [(s.name, s.rounds, s.synthesis_steps, s.student_steps, s.shared) for s in stages] == expected
    assert method.buffer_capacity(BUDGET) == BATCH * sum(s.rounds * s.synthesis_steps for s in stages)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"calls": 0}, "bank_calls=0 and calls=0 make no images"),
        ({"bank_calls": -1}, "bank_calls must be at least 0, not -1"),
        ({"features": "fc"}, "features must be one of"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"memory": 0}, "memory must be at least 1, not 0"),
    ],
)
def test_contradictions_are_refused_in_one_line(options, words):
    with pytest.raises(ValueError, match=words):
        CMI(**options)


def test_it_takes_a_label_for_each_image():
    assert CMI().supports(task("digits")) is None
    assert "one label per image" in CMI().supports(replace(task("digits"), kind="segmentation"))
