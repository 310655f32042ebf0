"""DDA: augmentation and filter, rotation task, hint and head by independent formulas (dda.md 1.3, 1.4, 3.3, 4.5)."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd.engine.method import Budget
from dfkd.synthesis.buffer import Samples, to_bytes
from dfkd.tasks import task
from methods.dda import DDA, Adapter, RotationHead, rotations
from tests.golden.test_cmi import BATCH, CLASSES, SIZE, context, patches, plain_terms

TINY = {"nz": 4, "ngf": 2, "memory": 40, "steps": 2, "bank_steps": 2, "bank_batch": 5, "bank_calls": 2}


class Jitter:
    """A stand-in for a diffusion model: adds noise of deviation `strength`."""

    guides = True

    def __init__(self):
        self.asked = []

    def augment(self, images, count, generator, **options):
        self.asked.append((images.clone(), count, options))
        rows = images.repeat_interleave(count, 0)
        noise = torch.randn(rows.shape, generator=generator) * options.get("strength", 1.0)
        return (rows + noise).clamp(0, 1).unflatten(0, (len(images), count))


def built(ctx, **options):
    method = DDA(**{**TINY, "variants": 0, **options})
    method.setup(ctx)
    return method


def augmenting(prior=None, **options):
    """A context whose bank holds two calls of five images, and the method before its first augmenting call."""
    ctx = context(prior=prior or Jitter())
    method = built(ctx, **{"variants": 3, **options})
    ctx.buffer.add(Samples(patches(10), torch.arange(10) % CLASSES))
    ctx._progress.synthesis_step = 2
    return ctx, method


def call(ctx, method):
    ctx._progress.synthesis_step += 1
    samples = method.synthesize(ctx)
    ctx.buffer.add(samples)
    return samples


# --- rotations and their head


def test_the_label_of_a_rotation_is_4y_plus_k():
    images = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    turned, labels = rotations(images, torch.tensor([2, 0, 7]))
    assert labels.tolist() == [8, 9, 10, 11, 0, 1, 2, 3, 28, 29, 30, 31]
    for i in range(3):
        for k in range(4):
            np.testing.assert_array_equal(turned[4 * i + k].numpy(), np.rot90(images[i].numpy(), k, (1, 2)))


def test_the_heads_logits_have_length_one():
    torch.manual_seed(0)
    head = RotationHead(6, 10)
    assert [tuple(p.shape) for p in head.parameters()] == [(6, 6), (6,), (40, 6), (40,)]
    features = torch.randn(50, 6)
    hidden = torch.relu(features @ head[0].weight.T + head[0].bias) @ head[2].weight.T + head[2].bias
    np.testing.assert_allclose(
        head(features).detach().numpy(), (hidden / hidden.norm(dim=1, keepdim=True)).detach().numpy(), rtol=1e-5
    )


def rotation_term(method, ctx, images, labels, scale=1.0):
    """CE of the rotation task in float64."""
    student, head = (copy.deepcopy(m).double() for m in (ctx.student.network, method.head))
    total = 0.0
    for image, label in zip(images.double(), labels.tolist(), strict=True):
        for k in range(4):
            turned = torch.from_numpy(np.rot90(image.numpy(), k, (1, 2)).copy())
            logits = scale * head(student.features(turned[None]))
            total += F.cross_entropy(logits, torch.tensor([4 * label + k])).item()
    return total / (4 * len(images))


@torch.no_grad()
@pytest.mark.parametrize("options, scale", [({}, 1.0), ({"head_scale": 5.0}, 5.0)])
def test_the_released_preset_is_csds_loss(options, scale):
    """No contrast, no diffusion: CE + L_bn in the bank, less 10 times the rotation task's CE between student steps."""
    ctx = context()
    method = built(ctx, cr=0.0, **options)
    images, labels = patches(BATCH), torch.arange(BATCH) % CLASSES
    bn, oh, _ = plain_terms(ctx, images, labels.numpy())
    values = []
    for ctx._progress.synthesis_step in (2, 3):
        before = ctx.teacher.images_seen
        values.append(method.inversion_loss(ctx, images, labels)[0].item())
        assert ctx.teacher.images_seen - before == BATCH
    expected = [bn + oh, bn + oh - 10 * rotation_term(method, ctx, images, labels, scale)]
    assert values == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_contrast_and_adversary_come_on_top():
    ctx = context()
    ctx._progress.synthesis_step = 3
    images, labels = patches(BATCH), torch.arange(BATCH) % CLASSES
    *_, adv = plain_terms(ctx, images, labels.numpy())
    values = {}
    for name, options in {"released": {"cr": 0.0}, "adv": {"cr": 0.0, "adv": 2.0}, "cr": {}}.items():
        torch.manual_seed(0)
        method = built(ctx, **options)
        method.head.load_state_dict(RotationHeadWeights)
        values[name] = method.inversion_loss(ctx, images, labels)[0].item()
    assert values["adv"] - values["released"] == pytest.approx(2 * adv, rel=1e-3)
    assert values["cr"] - values["released"] > 0.8 * 0.1  # ln of the rows' number at most, and never negative


torch.manual_seed(0)
RotationHeadWeights = RotationHead(5, CLASSES).state_dict()


def test_synthesis_moves_neither_teacher_nor_student_nor_head():
    ctx = context()
    method = built(ctx)
    before = [copy.deepcopy(m.state_dict()) for m in (ctx.teacher, ctx.student, method.head)]
    ctx._progress.synthesis_step = 2
    samples = method.invert(ctx, BATCH, 2)  # a bank call
    ctx._progress.synthesis_step, method.head.redraw = 3, lambda generator: None
    samples = method.synthesize(ctx)
    for module, state in zip((ctx.teacher, ctx.student, method.head), before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
    assert all(p.requires_grad for p in method.head.parameters())
    assert samples.images.shape == (BATCH, 3, SIZE, SIZE) and not samples.images.requires_grad


def student_batch(ctx, count=8):
    if not len(ctx.buffer):
        ctx.buffer.add(Samples(patches(16), torch.arange(16) % CLASSES))
    ctx.budget = replace(ctx.budget, batch=count)
    ctx.student.train().requires_grad_(True)


@pytest.mark.parametrize("head_images, count", [(0, 8), (3, 3), (99, 8)])
def test_the_head_takes_its_own_step_of_sgd(head_images, count):
    ctx = context()
    method = built(ctx, head_images=head_images)
    student_batch(ctx)
    student = copy.deepcopy(ctx.student.state_dict())
    twin = copy.deepcopy(method.head)
    optimiser = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(3):
        batch = method.draw(ctx)
        method.after_step(ctx, batch, {})
        still = copy.deepcopy(ctx.student.network).eval()
        turned, labels = rotations(batch.images[:count], batch.labels[:count])
        optimiser.zero_grad()
        F.cross_entropy(twin(still.features(turned).detach()), labels).backward()
        optimiser.step()
    for mine, expected in zip(method.head.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(student[name], value) for name, value in ctx.student.state_dict().items())
    assert ctx.student.training and all(p.grad is None for p in ctx.student.parameters())


def test_the_head_starts_anew_after_each_call_between_steps_and_keeps_its_momentum():
    ctx = context()
    method = built(ctx)
    momentum, weights = [], []
    for ctx._progress.synthesis_step in (1, 2, 3, 4):
        ctx.student.eval().requires_grad_(False)
        method.synthesize(ctx)
        weights.append([p.detach().clone() for p in method.head.parameters()])
        momentum.append(copy.deepcopy(method.head_optimizer.state_dict()["state"]))
        if ctx.synthesis_step > 2:
            student_batch(ctx)
            method.after_step(ctx, method.draw(ctx), {})
            method.after_step(ctx, method.draw(ctx), {})
            stepped = copy.deepcopy(method.head_optimizer.state_dict()["state"])
    bank, last, first_online, second_online = weights
    assert all(torch.equal(a, b) for a, b in zip(bank, last, strict=True))
    assert not torch.equal(last[0], first_online[0]) and not torch.equal(first_online[0], second_online[0])
    for weight, bias in (second_online[:2], second_online[2:]):  # N(0, .02) and 0, as released
        assert weight.std().item() == pytest.approx(0.02, rel=0.4) and not bias.any()
    assert not momentum[2] and momentum[3].keys() == stepped.keys()
    assert any(state["momentum_buffer"].abs().max() > 0 for state in momentum[3].values())


def test_without_the_rotation_task_the_head_rests():
    for options in ({"rotation": 0.0}, {"calls": 0}):
        ctx = context()
        method = built(ctx, **options)
        student_batch(ctx)
        before = [p.clone() for p in method.head.parameters()]
        method.after_step(ctx, method.draw(ctx), {})
        assert all(torch.equal(a, b) for a, b in zip(before, method.head.parameters(), strict=True))


# --- the student's loss


def test_the_students_loss_is_kl_ce_and_hint():
    ctx = context()
    method = built(ctx, ce=0.7, hint=30.0, temperature=20.0)
    student_batch(ctx)
    batch = method.draw(ctx)
    twin, adapter = copy.deepcopy(ctx.student.network).double(), copy.deepcopy(method.adapter).double()
    teacher = copy.deepcopy(ctx.teacher.network).double()
    outputs = method.distill(ctx, batch)
    sum(outputs.values()).backward()

    x = batch.images.double()
    maps = twin.two(twin.one(x)), teacher.two(teacher.one(x)).detach()
    s, t = (net.fc(m.mean((2, 3))) for net, m in zip((twin, teacher), maps, strict=True))
    p = F.softmax(t.detach() / 20, 1)
    expected = {
        "kd": 400 * (p * (p.log() - F.log_softmax(s / 20, 1))).sum(1).mean(),
        "ce": 0.7 * -F.log_softmax(s, 1)[torch.arange(8), batch.labels].mean(),
        "hint": 30 * (adapter(maps[0]) - maps[1]).square().mean(),
    }
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        assert outputs[name].item() == pytest.approx(value.item(), rel=1e-4), name
    sum(expected.values()).backward()
    assert method.modules() == [method.adapter]
    for mine, theirs in ((ctx.student.network, twin), (method.adapter, adapter)):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-2, atol=1e-4)
    assert all(p.grad is None for p in ctx.teacher.parameters())
    assert not any(m._forward_hooks for net in (ctx.teacher, ctx.student) for m in net.modules())


def test_the_adapter_is_as_released():
    adapter = Adapter(torch.Size((64, 8, 8)), torch.Size((128, 8, 8)))
    kinds = [type(layer).__name__ for layer in adapter]
    assert kinds == ["Identity", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    convolutions = [layer for layer in adapter if isinstance(layer, nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [(256, 64, 1, 1), (256, 256, 3, 3), (128, 256, 1, 1)]
    assert all(c.bias is None for c in convolutions)
    smaller = Adapter(torch.Size((6, 8, 8)), torch.Size((4, 4, 4)), width=1)
    assert smaller[1].out_channels == 4
    x = torch.rand(2, 6, 8, 8)
    np.testing.assert_allclose(smaller[0](x).numpy(), F.avg_pool2d(x, 2).numpy(), rtol=1e-5)
    assert smaller(x).shape == (2, 4, 4, 4)


def test_without_hint_there_is_no_adapter():
    ctx = context()
    method = built(ctx, hint=0.0)
    student_batch(ctx)
    assert method.modules() == [] and method.distill(ctx, method.draw(ctx)).keys() == {"kd", "ce"}


# --- variants and filter


def scores(ctx, method, samples_images, chunk):
    """Raw and centred cosines of variants and their sources' embeddings, in float64."""
    network = copy.deepcopy(ctx.teacher.network).double()
    with torch.no_grad():
        bank = network.features(ctx.buffer.images[:10].double() / 255).numpy()
        own = bank[5 * chunk : 5 * chunk + 5].repeat(method.variants, 0)
        theirs = network.features(to_bytes(samples_images).double() / 255).numpy()

    def cosine(a, b):
        return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    return cosine(theirs, own), cosine(theirs - bank.mean(0), own - bank.mean(0))


def variants_of(prior, chunk):
    """All variants of a call, made once more."""
    stream = context().rng("variants")
    for images, count, options in prior.asked[: chunk + 1]:
        made = Jitter().augment(images, count, stream, **options)
    return made.flatten(0, 1)


@pytest.mark.parametrize("centre", [False, True])
def test_the_filter_keeps_what_is_near_its_source(centre):
    threshold = 0.6 if centre else 0.97
    ctx, method = augmenting(centre=centre, threshold=threshold, strength=0.6)
    tally, made = np.zeros(5), 0
    for chunk in (0, 1):
        samples = call(ctx, method)
        images = variants_of(ctx.prior, chunk)
        raw, centred = scores(ctx, method, images, chunk)
        kept = (centred if centre else raw) >= threshold
        assert 0 < kept.sum() < 15, "an example in which the filter does something"
        assert torch.equal(samples.images, images[torch.from_numpy(kept)])
        labels = (np.arange(10) % CLASSES)[5 * chunk : 5 * chunk + 5].repeat(3)
        assert samples.labels.tolist() == labels[kept].tolist()
        assert samples.made == 15
        with torch.no_grad():
            agree = ctx.teacher(to_bytes(samples.images) / 255).argmax(1) == samples.labels
        tally += [15, kept.sum(), raw[kept].sum(), centred[kept].sum(), agree.sum().item()]
        made += 15
    report = method.report()
    assert report.keys() == {"filter_kept", "cosine", "cosine_centred", "agreement"}
    assert report["filter_kept"] == pytest.approx(tally[1] / made)
    assert list(report.values())[1:] == pytest.approx((tally[2:] / tally[1]).tolist(), rel=1e-4)


def test_each_call_takes_the_images_of_one_bank_call():
    ctx, method = augmenting(threshold=-1.0)
    for chunk in (0, 1):
        call(ctx, method)
        images, count, options = ctx.prior.asked[chunk]
        assert torch.equal(to_bytes(images), ctx.buffer.images[5 * chunk : 5 * chunk + 5])
        assert count == 3 and options == {"strength": 0.4, "steps": 25}
    ctx._progress.synthesis_step += 1
    assert len(method.synthesize(ctx).images) == BATCH and len(ctx.prior.asked) == 2, "the next one is no variant"


def test_image_variations_have_no_strength():
    prior = Jitter()
    prior.guides = False
    ctx, method = augmenting(prior, diffusion_steps=7)
    call(ctx, method)
    assert prior.asked[0][2] == {"steps": 7}


@pytest.mark.parametrize("threshold, kept", [(-1.0, 30), (1.01, 0)])
def test_the_threshold_may_keep_all_or_none(threshold, kept):
    ctx, method = augmenting(threshold=threshold)
    total = sum(len(call(ctx, method).images) for _ in range(2))
    assert total == kept and len(ctx.buffer) == 10 + kept
    assert method.report()["filter_kept"] == kept / 30


@pytest.mark.parametrize("ratio, kept", [(0.2, 3), (0.5, 8), (1.0, 15)])
def test_a_ratio_keeps_the_nearest_of_each_call(ratio, kept):
    ctx, method = augmenting(keep_ratio=ratio, threshold=1.01, strength=0.3)
    samples = call(ctx, method)
    images = variants_of(ctx.prior, 0)
    raw, _ = scores(ctx, method, images, 0)
    nearest = np.sort(np.argsort(-raw)[:kept])
    assert torch.equal(samples.images, images[torch.from_numpy(nearest)])


def test_the_bank_s_mean_embedding_is_that_of_the_bank_alone():
    ctx, method = augmenting(threshold=-1.0)
    call(ctx, method)
    after_one = method.mean.clone()
    call(ctx, method)
    with torch.no_grad():
        expected = ctx.teacher.features(ctx.buffer.images[:10] / 255).mean(0)
    np.testing.assert_allclose(method.mean.numpy(), expected.numpy(), rtol=1e-5)
    assert torch.equal(after_one, method.mean)


@pytest.fixture
def pixels(prior):
    from dfkd.priors import load

    return load(*prior, "cpu", "fp32")


def test_at_strength_0_a_variant_is_its_source(pixels):
    ctx, method = augmenting(pixels, strength=0.0)
    samples = call(ctx, method)
    assert method.report()["filter_kept"] == 1.0
    for i, source in enumerate(ctx.buffer.images[:5]):
        for variant in to_bytes(samples.images[3 * i : 3 * i + 3]):
            assert (variant.int() - source.int()).abs().max() <= 1


def test_equal_seeds_give_equal_variants_and_each_variant_is_another(pixels):
    sets = []
    for _ in range(2):
        ctx, method = augmenting(pixels, threshold=-1.0, strength=0.5, diffusion_steps=4)
        sets.append(call(ctx, method).images)
    assert torch.equal(*sets)
    assert len({tuple(image.flatten().tolist()) for image in sets[0]}) == 15


def test_variants_drift_as_the_strength_grows(pixels):
    cosines = []
    for strength in (0.0, 0.1, 0.3, 0.8):
        ctx, method = augmenting(pixels, threshold=-1.0, strength=strength, variants=8)
        call(ctx, method)
        cosines.append(method.report()["cosine"])
    assert cosines[0] == pytest.approx(1.0, abs=1e-3) and cosines == sorted(cosines, reverse=True)
    assert cosines[-1] < 0.99


# --- schedule and refusals


def test_bank_and_variants_are_made_once_for_a_teacher():
    budget = Budget(steps=80, batch=128, rounds=4, synthesis_batch=40)
    method = DDA(bank_calls=6, bank_batch=20, variants=4)
    stages = [(s.name, s.rounds, s.synthesis_steps, s.student_steps, s.shared) for s in method.schedule(budget)]
    assert stages == [("bank", 1, 6, 0, True), ("augment", 1, 6, 0, True), ("distil", 4, 1, 20, False)]
    assert method.buffer_capacity(budget) == 6 * 20 * 5 + 4 * 40
    without = DDA(bank_calls=6, bank_batch=20, variants=0)
    assert [s.name for s in without.schedule(budget)] == ["bank", "distil"]
    assert without.buffer_capacity(budget) == 6 * 20 + 4 * 40
    assert without.prior == "none" and method.prior == DDA.prior == "diffusion"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"variants": -1}, "variants must be at least 0, not -1"),
        ({"bank_calls": 0}, "variants=4 are made of the bank, and bank_calls=0 makes none"),
        ({"strength": 1.5}, "strength=1.5 and keep_ratio=0.0 must be in"),
        ({"keep_ratio": 2.0}, "keep_ratio=2.0 must be in"),
        ({"bank_batch": 0}, "bank_batch must be at least 1, not 0"),
    ],
)
def test_contradictory_arguments_are_refused_in_one_line(options, words):
    with pytest.raises(ValueError, match=words) as error:
        DDA(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "variants, prior, words", [(2, None, "variants=2 needs a diffusion model"), (0, Jitter(), "say prior=none")]
)
def test_variants_and_prior_belong_together(variants, prior, words):
    with pytest.raises(ValueError, match=words):
        built(context(prior=prior), variants=variants)


def test_the_filter_s_numbers_and_the_dropped_images_are_in_the_record(tiny, execute):
    record = execute(tiny("dda", "keep_ratio=.25"))
    assert record["report"]["filter_kept"] == 0.25
    bank, variants, online = 2 * 6, 2 * 6 * 2, 2 * 8
    assert record["cost"]["images_synthesised"] == bank + variants + online
    assert record["time"]["shared"] > 0 and record["prior"]["kind"] == "diffusion"


def test_without_variants_the_record_names_no_prior(tiny, execute):
    record = execute(tiny("dda", "variants=0", "prior=none"))
    assert record["status"] == "ok" and record["report"] == {}
    assert record["prior"]["kind"] == "none" and record["prior"]["trained_on"] is None


def test_labels_are_needed():
    assert DDA().supports(task("digits")) is None
    reason = DDA().supports(replace(task("digits"), kind="segmentation"))
    assert "rotation task" in reason and "one label per image" in reason
