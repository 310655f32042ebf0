"""DFAD's two losses and the rhythm of its steps (baselines.md 1.5 and 1.6)."""

import itertools
import math

import pytest
import torch
from torch import nn

from baselines.dfad import DFAD
from baselines.fast import Fast
from dfkd.engine.method import Budget
from tests.golden.test_fast import IMAGES, context


@pytest.fixture
def ctx():
    made = context()
    made.budget = Budget(steps=20, batch=4, rounds=4, synthesis_batch=6)
    made.student.train()
    return made


def distance(ctx):
    """Mean |T − S| over images and classes, by hand."""
    teacher, student = ctx.teacher(IMAGES), ctx.student(IMAGES)
    return (
        sum(
            abs(a - b)
            for t, s in zip(teacher.tolist(), student.tolist(), strict=True)
            for a, b in zip(t, s, strict=True)
        )
        / 36
    )


def test_the_generators_objective(ctx):
    ctx.student.eval()
    expected = distance(ctx)
    assert expected > 0.1
    assert DFAD().generator_loss(ctx, IMAGES).item() == pytest.approx(-expected, rel=1e-5)
    assert DFAD(objective="log").generator_loss(ctx, IMAGES).item() == pytest.approx(-math.log(1 + expected), rel=1e-5)


def test_the_students_loss_is_l1(ctx):
    from dfkd.synthesis.buffer import Batch

    ctx.student.eval()
    assert DFAD().distill(ctx, Batch(IMAGES))["l1"].item() == pytest.approx(distance(ctx), rel=1e-5)


def test_a_generator_step_comes_before_every_kd_student_steps(ctx, monkeypatch):
    method, seen = DFAD(kd=3, nz=4, ngf=2), []
    method.setup(ctx)
    explore = method.explore
    monkeypatch.setattr(method, "explore", lambda ctx: (seen.append(ctx.student_steps), explore(ctx)))
    batches = []
    for ctx._progress.student_steps in range(8):
        batches.append(method.draw(ctx).images)
        assert ctx.student.training and all(p.requires_grad for p in ctx.student.parameters())
    assert seen == [0, 3, 6]
    assert ctx._progress.images_synthesised == 8 * 4
    assert all(images.shape == (4, 1, 8, 8) and not images.requires_grad for images in batches)
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(batches)), "fresh codes for each batch"


def test_a_generator_step_moves_the_images_away_from_agreement(ctx):
    method = DFAD(nz=4, ngf=2, lr=0.01)
    method.setup(ctx)
    z = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

    def value():
        with torch.no_grad():
            ctx.student.eval()
            return method.generator_loss(ctx, method.generator(z)).item()

    before, weights = value(), [p.clone() for p in ctx.student.parameters()]
    for _ in range(20):
        method.explore(ctx)
    assert value() < before
    assert all(torch.equal(a, b) for a, b in zip(weights, ctx.student.parameters(), strict=True))
    assert all(p.grad is None for p in (*ctx.student.parameters(), *ctx.teacher.parameters()))


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (9, 1.0), (10, 0.3), (19, 0.3), (20, 0.09)])
def test_the_generators_rate_falls_with_the_rounds(ctx, step, factor):
    """Five steps a round, the rate times .3 after every two rounds."""
    method = DFAD(nz=4, ngf=2, lr=1e-3, decay=0.3, decay_every=2)
    method.setup(ctx)
    ctx._progress.student_steps = step
    method.explore(ctx)
    assert method.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * factor)


@pytest.mark.parametrize("wrong", [{"objective": "l2"}, {"kd": 0}, {"opponent": "nobody"}, {"decay_every": 0}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DFAD(**wrong)


def test_large_images_come_from_the_deep_generator(ctx):
    from dataclasses import replace

    for size, per_pixel, deep in ((64, False, False), (128, False, True), (64, True, True)):
        ctx.spec, ctx.per_pixel = replace(ctx.spec, size=size), per_pixel
        method = DFAD(nz=4, ngf=2)
        method.setup(ctx)
        assert any(isinstance(m, nn.ConvTranspose2d) for m in method.generator.modules()) == deep
        assert isinstance(list(method.generator)[-1], nn.Sigmoid)


@pytest.mark.parametrize(("method", "std"), [(DFAD, 0.02), (Fast, None)])
def test_the_first_weights_for_label_maps_are_each_method_s_own(ctx, method, std):
    """DFAD's N(0, .02), with its biases left alone; torch's defaults in Fast's program (baselines.md 1.5)."""
    from dataclasses import replace

    ctx.spec, ctx.per_pixel = replace(ctx.spec, size=16), True
    built = method(nz=32, ngf=8)
    built.setup(ctx)
    generator = built.generator if method is DFAD else built.generator.slow
    linear, gain = generator[0], generator[2].weight
    default = (1 / 3 / linear.in_features) ** 0.5  # uniform within 1/√n
    assert linear.weight.std().item() == pytest.approx(std or default, rel=0.05)
    assert linear.bias.std().item() == pytest.approx(default, rel=0.1)
    assert gain.std().item() == pytest.approx(std or 0, rel=0.3)


def test_fast_s_program_hands_over_the_teacher_as_its_own_opponent(ctx):
    """So the term is 0 and teaches the generator nothing (baselines.md 1.6)."""
    method = DFAD(nz=4, ngf=2, opponent="teacher")
    method.setup(ctx)
    assert method.generator_loss(ctx, IMAGES).item() == 0
    before = [p.clone() for p in method.generator.parameters()]
    method.explore(ctx)
    assert all(torch.equal(a, b) for a, b in zip(before, method.generator.parameters(), strict=True))
