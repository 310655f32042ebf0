"""SSD-KD's formulas, ssdkd.md E1 and E5 to E9: by hand, and run on networks that are look-up tables."""

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
from dfkd.synthesis.buffer import Batch, ReplayBuffer, Samples
from dfkd.tasks.base import InputSpec
from methods.ssdkd import CHOICES, SSDKD

# Probabilities (1/4, 3/4) and (2/3, 1/3).
QUARTER, TWO_THIRDS = (0.0, float(np.log(3))), (float(np.log(2)), 0.0)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def kl(t, s, tau):
    """τ²·KL per sample, in float64."""
    p, q = softmax(np.float64(t) / tau), softmax(np.float64(s) / tau)
    return tau**2 * (p * np.log(p / q)).sum(1)


def context(teacher, student, classes, size, capacity=64, batch=4, channels=1):
    spec = InputSpec(size, channels, mean=(0.0,) * channels, std=(1.0,) * channels, classes=classes)
    return Context(
        teacher=Teacher(teacher, spec),
        student=Normalised(student, spec).eval(),
        new_student=None,
        spec=spec,
        budget=Budget(steps=8, batch=batch, rounds=2, synthesis_batch=6),
        device=torch.device("cpu"),
        rng=Streams("cpu", "test"),
        buffer=ReplayBuffer(capacity, (channels, size, size)),
        augmentation=Augment(0, flip=False),
        autocast=nullcontext,
    )


class Table(nn.Module):
    """One-pixel images, whose byte is the row of a table of logits."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.as_tensor(rows, dtype=torch.float32))

    def forward(self, images):
        return self.rows[(images.flatten() * 255).round().long()]


def tables(teacher, student, priority, **options):
    """A context whose buffer holds one image for each row of the two tables."""
    count = len(teacher)
    ctx = context(Table(teacher), Table(student), classes=2, size=1, capacity=count, **options)
    images = (torch.arange(count).view(-1, 1, 1, 1) + 0.5) / 255
    ctx.buffer.add(Samples(images, fields={"priority": torch.as_tensor(priority, dtype=torch.float32)}))
    return ctx


def convolutional(classes, seed):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, classes),
    )
    nn.init.normal_(network[1].running_mean)
    nn.init.normal_(network[5].weight, 0, 3)
    with torch.no_grad():
        network[5].bias -= network.eval()(patches(12)).mean(0)  # or it would see one class everywhere
    return network


def patches(count):
    """Images coarse enough that small networks tell them apart."""
    images = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(5)).round()
    return images.repeat_interleave(4, 2).repeat_interleave(4, 3)


# --- E1

ARGMAX = {"phi_of": "argmax", "normalised": False}


def phi(teacher, shares=(0.75, 0.25), labels=None, **options):
    labels = None if labels is None else torch.tensor(labels)
    shares = None if shares is None else torch.tensor(shares)
    return SSDKD(**{"normalised": False, **options}).phi(torch.tensor(teacher), labels, shares)


def test_phi_by_hand():
    # Class 1 at 3/4: (1 − 1/4)·(1/4)²; class 0 at 2/3: (1 − 3/4)·(1/3)².
    value = phi([QUARTER, TWO_THIRDS], phi_of="argmax")
    assert value.tolist() == pytest.approx([0.75 / 16, 0.25 / 9])


def test_phi_of_the_target_takes_its_class_and_its_probability():
    # Made for class 0, which has 1/4: (1 − 3/4)·(3/4)²; made for class 0, which has 2/3: as the teacher's own.
    value = phi([QUARTER, TWO_THIRDS], labels=[0, 0], phi_of="target")
    assert value.tolist() == pytest.approx([0.25 * 9 / 16, 0.25 / 9])
    assert phi([QUARTER], labels=[0], phi_of="argmax").tolist() == pytest.approx([0.75 / 16])


def test_without_targets_phi_is_of_the_teachers_class():
    assert torch.equal(phi([QUARTER, TWO_THIRDS], phi_of="target"), phi([QUARTER, TWO_THIRDS], phi_of="argmax"))


def test_normalised_phi_has_mean_1_and_keeps_its_ratios():
    raw = phi([QUARTER, TWO_THIRDS], labels=[0, 1])
    value = phi([QUARTER, TWO_THIRDS], labels=[0, 1], normalised=True)
    assert value.mean().item() == pytest.approx(1.0)
    assert (value / raw).tolist() == pytest.approx([1 / raw.mean().item()] * 2)


def test_normalised_phi_of_certain_samples_is_finite():
    assert phi([[0.0, 200.0]], normalised=True).tolist() == [0.0]


def test_phi_without_shares_balances_nothing():
    assert phi([QUARTER], None).tolist() == pytest.approx([1 / 16])


def test_phi_of_a_balanced_buffer_has_the_factor_1_minus_1_over_k():
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    confidence = softmax(logits.double().numpy()).max(1)
    value = SSDKD(**ARGMAX).phi(logits, None, torch.full((10,), 0.1))
    np.testing.assert_allclose(value.numpy(), 0.9 * (1 - confidence) ** 2, rtol=1e-5)


def test_phi_of_a_full_class_is_zero():
    assert phi([QUARTER], (0.0, 1.0)).tolist() == [0.0]


@pytest.mark.parametrize("gamma, difficulty", [(0.0, 1.0), (1.0, 1 / 4), (2.0, 1 / 16), (5.0, 1 / 1024)])
def test_gamma_is_the_power_of_the_difficulty(gamma, difficulty):
    assert phi([QUARTER], gamma=gamma).tolist() == pytest.approx([0.75 * difficulty], rel=1e-5)


@pytest.mark.parametrize(
    "diversity, difficulty, expected", [(True, False, 0.75), (False, True, 1 / 16), (False, False, 1.0)]
)
def test_switches_of_phi(diversity, difficulty, expected):
    value = phi([QUARTER], diversity=diversity, difficulty=difficulty)
    assert value.tolist() == pytest.approx([expected])


def test_phi_carries_a_gradient_only_where_asked():
    teacher, shares = torch.tensor([QUARTER], requires_grad=True), torch.tensor([0.75, 0.25])
    assert not SSDKD().phi(teacher, None, shares).requires_grad
    SSDKD(phi_grad=True, normalised=False).phi(teacher, None, shares).sum().backward()
    # dφ/dT_c = −.75·γ·(1 − p)·p(1 − p) = −.75·2·(1/4)·(3/16), the other logit the opposite.
    assert teacher.grad.flatten().tolist() == pytest.approx([0.0703125, -0.0703125])


def test_the_mean_of_a_normalised_phi_is_a_constant():
    teacher, shares = torch.tensor([QUARTER], requires_grad=True), torch.tensor([0.75, 0.25])
    SSDKD(phi_grad=True, normalised=True).phi(teacher, None, shares).sum().backward()
    # As above, over φ = .75/16; were the mean differentiated too, φ of one sample would always be 1.
    assert teacher.grad.flatten().tolist() == pytest.approx([1.5, -1.5])


@pytest.mark.parametrize(
    "phi_on, adv, oh", [("oh", 1.0, 0.75 / 16), ("adv", 0.75 / 16, 1.0), ("oh+adv",) + 2 * (0.75 / 16,)]
)
def test_phi_counts_the_teachers_classes_not_the_labels(phi_on, adv, oh):
    ctx = context(convolutional(2, 0), convolutional(2, 1), classes=2, size=8)
    classes = {"teacher_class": torch.tensor([0, 0, 0, 1]), "priority": torch.ones(4)}
    ctx.buffer.add(Samples(torch.rand(4, 1, 8, 8), torch.tensor([1, 1, 1, 1]), classes))
    weights = SSDKD(phi_on=phi_on, **ARGMAX).weights(ctx, torch.tensor([QUARTER]), None)
    assert [float(w) for w in weights] == pytest.approx([oh, adv])


def test_shares_of_the_buffer_or_of_all_that_were_made():
    ctx = context(convolutional(2, 0), convolutional(2, 1), classes=2, size=8)
    method = SSDKD(count="average", k=1, nz=4, ngf=2)
    method.setup(ctx)
    assert method.shares(ctx) is None and SSDKD().shares(ctx) is None
    seen = torch.zeros(2)
    for step in (1, 2):
        ctx._progress.synthesis_step = step
        samples = method.synthesize(ctx)
        made = samples.fields["teacher_class"].bincount(minlength=2)
        seen = 0.9 * seen + made
        ctx.buffer.add(samples)
    assert method.shares(ctx).tolist() == pytest.approx((seen / seen.sum()).tolist())
    assert seen.sum().item() == pytest.approx(11.4), "6 new ones and 0.9 of the 6 before"
    there = ctx.buffer.fields["teacher_class"][:12].bincount(minlength=2)
    assert SSDKD().shares(ctx).tolist() == pytest.approx((there / 12).tolist())


# --- E5


@pytest.mark.parametrize("phi_of, normalised", [("argmax", False), ("target", True)])
@pytest.mark.parametrize("phi_on", ["oh", "adv", "oh+adv"])
@pytest.mark.parametrize("call, adversarial", [(19, False), (20, True), (21, True)])
def test_the_inversion_loss_is_e5(phi_of, normalised, phi_on, call, adversarial):
    ctx = context(convolutional(3, 0), convolutional(3, 1), classes=3, size=8)
    ctx._progress.synthesis_step = call
    classes = {"teacher_class": torch.tensor([0, 0, 1, 2, 2]), "priority": torch.ones(5)}
    ctx.buffer.add(Samples(torch.rand(5, 1, 8, 8), fields=classes))
    switches = {"phi_of": phi_of, "normalised": normalised, "phi_on": phi_on}
    method = SSDKD(bn=0.5, oh=0.4, adv=1.1, warmup=20, nz=4, ngf=2, **switches)
    method.setup(ctx)
    images, labels = patches(12), torch.arange(12) % 3
    with torch.no_grad(), method.statistics.capture():
        value = method.inversion_loss(ctx, images, labels).item()
        t, s = (network(images).double().numpy() for network in (ctx.teacher.network, ctx.student.network))
        x = ctx.teacher.network[0](images).double().numpy()
    norm = ctx.teacher.network[1]
    bn = np.linalg.norm(norm.running_var.numpy() - x.var((0, 2, 3)))
    bn += np.linalg.norm(norm.running_mean.numpy() - x.mean((0, 2, 3)))
    p, q = softmax(t), softmax(s)
    agree = t.argmax(1) == s.argmax(1)
    assert 0 < agree.sum() < 12
    shares = np.array([2, 1, 2]) / 5
    of = t.argmax(1) if phi_of == "argmax" else labels.numpy()
    weight = (1 - shares[of]) * (1 - p[np.arange(12), of]) ** 2
    weight = weight / weight.mean() if normalised else weight
    task = 0.4 * ((weight if "oh" in phi_on else 1) * -np.log(p[np.arange(12), labels])).mean()
    adv = -1.1 * ((weight if "adv" in phi_on else 1) * agree * (p * np.log(p / q)).sum(1)).mean()
    assert value == pytest.approx(0.5 * bn + task + (adv if adversarial else 0), rel=1e-5)
    assert abs(adv) > 1e-3 * abs(value) and task > 1e-3 * value, "the example does not see every term"


def test_fast_is_ssdkd_without_phi():
    ctx = context(convolutional(3, 0), convolutional(3, 1), classes=3, size=8)
    ctx._progress.synthesis_step = 20
    images, labels = patches(12), torch.arange(12) % 3
    values = []
    for method in (Fast(nz=4, ngf=2), SSDKD(nz=4, ngf=2, diversity=False, difficulty=False, phi_on="oh+adv")):
        method.setup(ctx)
        with torch.no_grad(), method.statistics.capture():
            values.append(method.inversion_loss(ctx, images, labels).item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)


# --- new entries


@pytest.mark.parametrize("phi_kd", ["none", "priority"])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_a_new_entry_starts_at_tau_squared_kl(temperature, phi_kd):
    ctx = context(convolutional(3, 0), convolutional(3, 1), classes=3, size=8)
    ctx._progress.synthesis_step = 1
    method = SSDKD(k=2, nz=4, ngf=2, temperature=temperature, phi_kd=phi_kd, **ARGMAX)
    method.setup(ctx)
    samples = method.synthesize(ctx)
    assert samples.images.shape == (6, 1, 8, 8) and samples.labels.shape == (6,)
    with torch.no_grad():
        t, s = (n.network(samples.images).double().numpy() for n in (ctx.teacher, ctx.student))
    expected = kl(t, s, temperature)
    if phi_kd == "priority":  # of the empty buffer, so of the difficulty alone
        expected = expected * (1 - softmax(t).max(1)) ** 2
    np.testing.assert_allclose(samples.fields["priority"].numpy(), expected, rtol=1e-3)
    assert samples.fields["teacher_class"].tolist() == t.argmax(1).tolist()
    assert not samples.images.requires_grad and not samples.fields["priority"].requires_grad


# --- E6 to E9

T3 = [[0.0, 1.0], [2.0, 0.0], [0.0, 40.0]]
S3 = [[1.0, 0.0], [2.0, 0.5], [0.0, 3.0]]


def batch_of(ctx, indices, weights):
    indices = torch.tensor(indices)
    return Batch(ctx.buffer.images[indices] / 255, None, indices, torch.tensor(weights))


@pytest.mark.parametrize("priority", ["recursive", "per"])
def test_the_loss_divides_by_the_largest_weight_and_the_stored_priority_does_not(priority):
    ctx = tables(T3, S3, [1.0, 1.0, 1.0])
    method = SSDKD(temperature=20.0, priority=priority, importance="max")
    batch = batch_of(ctx, [0, 2, 1], [0.5, 4.0, 2.0])
    divergence, weights = kl(T3, S3, 20.0)[[0, 2, 1]], np.array([0.5, 4.0, 2.0])
    outputs = method.distill(ctx, batch)
    assert list(outputs) == ["kd"]
    assert outputs["kd"].item() == pytest.approx((weights / 4 * divergence).mean(), rel=1e-3)
    stored = weights * divergence if priority == "recursive" else divergence
    np.testing.assert_allclose(batch.fields["delta"].numpy(), stored, rtol=1e-3)
    assert not batch.fields["delta"].requires_grad
    outputs["kd"].backward()
    # τ(q − p)·w/max w/3, and nothing for the teacher.
    p, q = softmax(np.array(T3) / 20), softmax(np.array(S3) / 20)
    scale = np.array([0.5, 2.0, 4.0])[:, None] / 4 / 3
    gradient = ctx.student.network.rows.grad.numpy()
    np.testing.assert_allclose(gradient, 20 * (q - p) * scale, rtol=1e-4, atol=1e-6)
    assert ctx.teacher.network.rows.grad is None


def test_raw_weights_leave_the_loss_at_e9():
    ctx = tables(T3, S3, [1.0, 1.0, 1.0])
    batch = batch_of(ctx, [0, 2, 1], [0.5, 4.0, 2.0])
    loss = SSDKD(temperature=20.0, importance="raw").distill(ctx, batch)["kd"].item()
    assert loss == pytest.approx((np.array([0.5, 4.0, 2.0]) * kl(T3, S3, 20.0)[[0, 2, 1]]).mean(), rel=1e-3)


@pytest.mark.parametrize("priority", ["recursive", "per"])
@pytest.mark.parametrize("phi_kd", ["loss", "priority"])
def test_phi_in_distillation_weighs_the_loss_or_the_priorities(phi_kd, priority):
    ctx = tables(T3, S3, [1.0, 1.0, 1.0])
    ctx.buffer.fields["teacher_class"] = torch.tensor([1, 0, 1])
    method = SSDKD(temperature=1.0, phi_kd=phi_kd, priority=priority, importance="raw", **ARGMAX)
    batch, w, order = batch_of(ctx, [0, 2, 1], [0.5, 4.0, 2.0]), np.array([0.5, 4.0, 2.0]), [0, 2, 1]
    loss = method.distill(ctx, batch)["kd"].item()
    p = softmax(np.float64(T3)).max(1)
    # Class 1 has two thirds of the buffer, class 0 one third.
    phi = (np.array([1 / 3, 2 / 3, 1 / 3]) * (1 - p) ** 2)[order]
    divergence = kl(T3, S3, 1.0)[order]
    delta = w * divergence if priority == "recursive" else divergence
    assert loss == pytest.approx((w * divergence * (phi if phi_kd == "loss" else 1)).mean(), rel=1e-5)
    stored = delta * (phi if phi_kd == "priority" else 1)
    np.testing.assert_allclose(batch.fields["delta"].numpy(), stored, rtol=1e-4, atol=1e-12)


def test_phi_weighs_the_loss_of_a_uniform_draw_too():
    ctx = tables(T3, S3, [1.0, 1.0, 1.0])
    method = SSDKD(temperature=1.0, phi_kd="loss", priority="uniform", diversity=False, **ARGMAX)
    batch = Batch(ctx.buffer.images / 255)
    phi = (1 - softmax(np.float64(T3)).max(1)) ** 2
    assert method.distill(ctx, batch)["kd"].item() == pytest.approx((phi * kl(T3, S3, 1.0)).mean(), rel=1e-5)


def test_only_what_was_drawn_is_written_back():
    ctx = tables(T3, S3, [7.0, 8.0, 9.0])
    method = SSDKD(temperature=1.0)
    batch = batch_of(ctx, [2, 0, 2], [1.0, 2.0, 3.0])
    method.after_step(ctx, batch, method.distill(ctx, batch))
    divergence = kl(T3, S3, 1.0)
    # The entry drawn twice keeps the mean of 1·KL and 3·KL.
    expected = [2 * divergence[0], 8.0, 2 * divergence[2]]
    np.testing.assert_allclose(ctx.buffer.fields["priority"].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("priority, power", [("recursive", 1.0), ("per", 0.6)])
def test_alpha_is_of_per_only(priority, power):
    ctx = tables(T3, S3, [1.0, 4.0, 0.0], batch=4000)
    batch = SSDKD(priority=priority, alpha=0.6, beta=0.4, eps=0.1).draw(ctx)
    mass = np.array([1.1, 4.1, 0.1]) ** power
    probability = mass / mass.sum()
    indices = batch.indices.numpy()
    np.testing.assert_allclose(batch.weights.numpy(), (3 * probability[indices]) ** -0.4, rtol=1e-5)
    expected = 4000 * probability
    observed = np.bincount(indices, minlength=3)
    assert ((observed - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom: p = .001
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images.flatten(), batch.indices / 255)


def test_uniform_draws_passes_without_weights():
    ctx = tables(T3, S3, [1.0, 4.0, 0.0], batch=3)
    method = SSDKD(priority="uniform", temperature=1.0)
    batch = method.draw(ctx)
    assert sorted(batch.indices.tolist()) == [0, 1, 2] and batch.weights is None
    outputs = method.distill(ctx, batch)
    method.after_step(ctx, batch, outputs)
    assert outputs["kd"].item() == pytest.approx(kl(T3, S3, 1.0).mean(), rel=1e-5)
    assert ctx.buffer.fields["priority"].tolist() == [1.0, 4.0, 0.0]


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.4, 0.7])
def test_the_recursion_settles_at_kl_to_the_1_over_1_plus_beta(beta):
    """With networks that stand still, δ ∝ KL^(1/(1 + β)): drawn, weighted and written back by the real code.

    At the fixed point δ = w·KL with w = (δ/mean δ)^(−β), so δ^(1 + β) = KL·(mean δ)^β.
    """
    count = 64
    teacher = np.stack([np.zeros(count), 20 * np.geomspace(0.2, 4, count)], 1)
    divergence = kl(teacher, np.zeros((count, 2)), 20.0)
    assert divergence.max() / divergence.min() > 100
    start = np.random.default_rng(0).permutation(divergence)  # to be forgotten
    ctx = tables(teacher, np.zeros((count, 2)), start, batch=256)
    method = SSDKD(beta=beta, temperature=20.0, eps=1e-6)
    for _ in range(150):
        batch = method.draw(ctx)
        with torch.no_grad():
            method.after_step(ctx, batch, method.distill(ctx, batch))
    delta = ctx.buffer.fields["priority"].double().numpy()
    slope, _ = np.polyfit(np.log(divergence), np.log(delta), 1)
    assert slope == pytest.approx(1 / (1 + beta), abs=2e-3)
    np.testing.assert_allclose(delta ** (1 + beta), divergence * delta.mean() ** beta, rtol=0.02)


# --- arguments


@pytest.mark.parametrize("beta", [1.0, 1.5, -0.1])
def test_beta_of_1_is_refused_with_the_recursion(beta):
    with pytest.raises(ValueError, match="beta"):
        SSDKD(beta=beta)
    SSDKD(beta=1.0, priority="per")


@pytest.mark.parametrize("argument", CHOICES)
def test_unknown_values_are_refused(argument):
    with pytest.raises(ValueError, match=argument):
        SSDKD(**{argument: "other"})


def test_the_buffer_is_small_and_the_rest_is_fast():
    method, budget = SSDKD(capacity=5000), Budget(20_000, 256, 200, 256)
    assert method.buffer_capacity(budget) == 5000 and method.replace == "oldest"
    assert SSDKD(replace="lowest").replace == "lowest"
    stages = method.schedule(budget)
    assert stages == Fast().schedule(budget)
    assert [(s.rounds, s.synthesis_steps, s.student_steps) for s in stages] == [(20, 1, 0), (200, 1, 100)]
