"""NAYER: what its generator is fed, when it starts anew, its loss by an independent formula (baselines.md 1.6)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines.nayer import NAYER
from dfkd.engine.method import Budget
from dfkd.synthesis.generators import Generator
from tests.golden.test_cmi import BATCH, CLASSES, context, patches, plain_terms

NAMES = ("cat", "dog", "emu")


def made(batch=BATCH, **options):
    ctx = context(budget=Budget(steps=8, batch=4, rounds=4, synthesis_batch=batch))
    ctx.class_names = NAMES
    method = NAYER(**{"k": 2, "noise": 8, "ngf": 2, **options})
    method.setup(ctx)
    return ctx, method


def calls(ctx, method, monkeypatch, last):
    """Calls 1 to `last` without the inner steps: of each the generator's weights and whether it is adversarial."""
    seen = []

    def invert(ctx, labels, adversarial):
        seen.append((copy.deepcopy(method.generator.state_dict()), adversarial))
        ctx.teacher(patches(len(labels)))  # whose statistics the memory takes
        return patches(len(labels))

    monkeypatch.setattr(method, "invert", invert)
    for ctx._progress.synthesis_step in range(1, last + 1):
        method.synthesize(ctx)
    return seen


def test_the_generator_is_that_of_the_field_behind_noisy_layers():
    """BN1d, a noisy layer for each block of C rows, and then layers 0 to 6 of 1.3 with the noise as its code."""
    ctx, method = made(batch=7)
    assert isinstance(method.generator.images, Generator) and method.generator.images[0].in_features == 8
    assert [(layer.in_features, layer.out_features) for layer in method.generator.noisy] == [(512, 8)] * 3
    labels = method.labels(ctx)
    assert labels[:6].tolist() == [0, 1, 2, 0, 1, 2] and 0 <= labels[6] < 3
    given = method.embeddings[labels]
    hidden = F.batch_norm(given, None, None, training=True)
    noisy = torch.cat([layer(hidden[3 * j : 3 * j + 3]) for j, layer in enumerate(method.generator.noisy)])
    torch.testing.assert_close(method.generator(given), method.generator.images(noisy), atol=1e-5, rtol=1e-4)


def test_the_published_numbers_are_the_defaults():
    method = NAYER()
    assert (method.lr, method.bn, method.oh, method.adv, method.bn_momentum) == (4e-3, 10.0, 0.5, 1.33, 0.9)
    assert (method.noise, method.warmup, method.warmup_calls, method.calls, method.rebuild_every) == (
        1000,
        20,
        10,
        2,
        10,
    )
    stages = method.schedule(Budget(steps=800, batch=512, rounds=2, synthesis_batch=400))
    assert [(s.rounds, s.synthesis_steps, s.student_steps) for s in stages] == [(20, 10, 0), (2, 2, 400)]


def test_noise_is_drawn_before_every_call_and_the_rest_every_few_rounds(monkeypatch):
    ctx, method = made(noise=64, warmup=2, warmup_calls=3, calls=2, rebuild_every=3)
    seen = calls(ctx, method, monkeypatch, 12)
    for name in ("noisy.0.weight", "images.0.weight"):
        changed = [i for i in range(2, 13) if not torch.equal(seen[i - 2][0][name], seen[i - 1][0][name])]
        # Rounds of 3, 3, 2, 2, 2 calls; round 3 (from 0) begins with call 9.
        assert changed == (list(range(2, 13)) if name.startswith("noisy") else [9])
    for state, _ in seen:
        assert state["noisy.0.weight"].std().item() == pytest.approx(1, rel=0.05)
        assert not state["noisy.0.bias"].any()


def test_it_opposes_the_student_after_the_warm_up_only(monkeypatch):
    ctx, method = made(warmup=2, warmup_calls=3, calls=2)
    assert [adversarial for _, adversarial in calls(ctx, method, monkeypatch, 8)] == [False] * 6 + [True] * 2


@torch.no_grad()
@pytest.mark.parametrize("adversarial", [False, True])
def test_the_loss_is_the_sum_of_its_terms(adversarial):
    ctx, method = made(bn=0.5, oh=0.4, adv=1.1)
    images, labels = patches(BATCH), torch.arange(BATCH) % CLASSES
    with method.statistics.capture():
        value = method.inversion_loss(ctx, images, labels, adversarial)
    bn, oh, adv = plain_terms(ctx, images, labels.numpy())
    assert value.item() == pytest.approx(0.5 * bn + 0.4 * oh + (1.1 * adv if adversarial else 0), rel=1e-5)


def test_the_best_step_is_kept_before_its_update(monkeypatch):
    ctx, method = made(k=4)
    seen = []

    def loss(ctx, images, labels, adversarial):
        seen.append(images.detach().clone())
        return images.mean() * 1e-3 + (3.0, 0.5, 1.0, 0.7)[len(seen) - 1]

    monkeypatch.setattr(method, "inversion_loss", loss)
    assert torch.equal(method.invert(ctx, torch.arange(BATCH) % 3, False), seen[1])
    assert not torch.equal(seen[0], seen[1]), "the generator has moved"
    monkeypatch.setattr(method, "inversion_loss", lambda ctx, images, labels, _: images.mean() * float("nan"))
    assert method.invert(ctx, torch.arange(BATCH) % 3, False).isnan().all()


def test_side_information_is_what_it_is_fed():
    assert NAYER().prior == "class names"
    assert NAYER(text_encoder="clip-vit-base-patch32").prior == "class names, text encoder"


def test_a_rebuilt_generator_has_torch_s_first_weights():
    _, method = made(noise=64)
    with torch.no_grad():
        for p in method.generator.parameters():
            p.fill_(3.0)
    method.generator.rebuild()
    for module in method.generator.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.weight.abs().max() <= module.weight[0].numel() ** -0.5
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.weight.min() == module.weight.max() == 1 and not module.bias.any()


@pytest.mark.parametrize("wrong", [{"k": 0}, {"calls": 0}, {"warmup": -1}, {"rebuild_every": -1}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NAYER(**wrong)
