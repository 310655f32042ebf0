"""What the pieces of a run cost one by one; the README says what each number is."""

from __future__ import annotations

import pytest
import torch
from conftest import kd_step

from baselines.fast import Fast
from dfkd.engine.evaluation import Batches, confusion_of
from dfkd.synthesis.batchnorm import BatchNormLoss
from dfkd.synthesis.buffer import to_bytes

pytestmark = pytest.mark.benchmark(group="pieces")


def test_kd_step(world, measure):
    measure(kd_step(world, "fp32"), rounds=10)


def test_synthesis_call(world, measure):
    method = Fast(k=2)
    method.setup(world)
    # Past the warm-up: L_adv is on, and the harness has put the student aside.
    world._progress.synthesis_step = method.warmup + 1
    world.student.eval().requires_grad_(False)
    measure(lambda: method.synthesize(world), rounds=4)


@pytest.mark.parametrize("way", ["uniform", "by_priority"])
def test_buffer_draw(world, measure, way):
    draw = world.buffer.draw if way == "uniform" else world.buffer.draw_by_priority
    measure(lambda: draw(world.budget.batch, world.rng("draw")), rounds=200)


@pytest.mark.parametrize("loss", ["without", "with"])
def test_bn_loss(world, measure, loss):
    statistics = BatchNormLoss(world.teacher, momentum=0.9)
    images = torch.rand(world.budget.synthesis_batch, 3, 32, 32, device=world.device, requires_grad=True)

    def without() -> None:
        torch.autograd.grad(world.teacher(images).sum(), images)

    def with_loss() -> None:
        with statistics.capture():
            logits = world.teacher(images)
            torch.autograd.grad(logits.sum() + statistics.loss(), images)
        statistics.update()

    measure(without if loss == "without" else with_loss, rounds=10)


@pytest.mark.parametrize("kind", ["uint8", "float_with_backward"])
def test_augmentation(world, measure, kind):
    images = torch.rand(256, 3, 32, 32, device=world.device)
    stored, leaf, grad = to_bytes(images), images.requires_grad_(True), torch.rand_like(images)

    def with_backward() -> None:
        torch.autograd.grad(world.augment(leaf), leaf, grad)

    measure((lambda: world.augment(stored)) if kind == "uint8" else with_backward, rounds=50)


def test_evaluation(world, measure):
    batches = Batches(world.buffer.images[:1000], world.random_labels(1000), world.device)
    measure(lambda: confusion_of(world.student, batches, world.spec.classes), rounds=5)
