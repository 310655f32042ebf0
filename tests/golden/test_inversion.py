"""The meta-learned generator against a loop written out by hand, Adam included, in float64."""

import copy

import pytest
import torch
from torch import nn

from dfkd.synthesis.inversion import MetaGenerator

LR_G, LR_Z, STEPS = 0.02, 0.05, 4


class Small(nn.Sequential):
    """z (N×3) → N×1×2×2, in float64. Notes its mode and running mean at every pass."""

    notes: list = []

    def __init__(self):
        super().__init__(
            nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2)), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1), nn.Sigmoid()
        )
        self.double()

    def forward(self, z):
        Small.notes.append((self.training, self[2].running_mean.clone()))
        return super().forward(z)

    def first_layers(self):
        return self[0], self[2]


class Adam:
    """The textbook's, one state for a list of tensors."""

    def __init__(self, tensors, rates, betas=(0.5, 0.999), eps=1e-8):
        self.tensors, self.rates, self.betas, self.eps, self.t = tensors, rates, betas, eps, 0
        self.m, self.v = ([torch.zeros_like(x) for x in tensors] for _ in range(2))

    def step(self, gradients):
        self.t += 1
        one, two = self.betas
        with torch.no_grad():
            for i, g in enumerate(gradients):
                self.m[i] = one * self.m[i] + (1 - one) * g
                self.v[i] = two * self.v[i] + (1 - two) * g * g
                m, v = self.m[i] / (1 - one**self.t), self.v[i] / (1 - two**self.t)
                self.tensors[i] -= self.rates[i] * m / (v.sqrt() + self.eps)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    Small.notes = []
    return Small()


def noise(call):
    return torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(call))


def loss_of(images):
    """Depends on every pixel; far from its minimum, so that four steps of .02 do not reach it."""
    target = torch.tensor([[0.9, 0.1], [0.2, 0.7]], dtype=torch.float64)
    return ((images - target) ** 2).sum((1, 2, 3)).mean()


def by_hand(network, z, steps=STEPS):
    """The inner loop, on `network` itself: images, losses and weight gradients of every step."""
    z = z.clone().requires_grad_(True)
    weights = list(network.parameters())
    adam = Adam([*weights, z], [LR_G] * len(weights) + [LR_Z])
    images, values, gradients = [], [], []
    for _ in range(steps):
        x = network(z)
        value = loss_of(x)
        step = torch.autograd.grad(value, [*weights, z])
        images.append(x.detach().clone())
        values.append(value.item())
        gradients.append(step[:-1])
        adam.step(step)
    return images, values, gradients


def close(ones, twos, tolerance=1e-11):
    for one, two in zip(ones, twos, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=tolerance)


def test_fomaml_equals_the_loop_by_hand(generator):
    reference = copy.deepcopy(generator)
    meta = MetaGenerator(generator, STEPS, LR_G, LR_Z, "fomaml")
    weights = list(reference.parameters())
    outer = Adam(weights, [LR_G * STEPS] * len(weights))  # one state for all calls
    for call in range(3):
        images, values, gradients = by_hand(copy.deepcopy(reference), noise(call))
        total = [sum(g) for g in zip(*gradients, strict=True)]
        result = meta.invert(noise(call), loss_of)
        assert values == sorted(values, reverse=True), "the last step is the best here"
        torch.testing.assert_close(result, images[-1], rtol=0, atol=1e-11)
        # The sum over all inner steps, not their mean or the last one.
        close([w.grad for w in generator.parameters()], total)
        outer.step(total)
        close(generator.parameters(), weights)


def test_reptile_moves_towards_the_adapted_weights(generator):
    reference = copy.deepcopy(generator)
    meta = MetaGenerator(generator, STEPS, LR_G, LR_Z, "reptile")
    weights = list(reference.parameters())
    outer = Adam(weights, [LR_G * STEPS] * len(weights))
    for call in range(3):
        adapted = copy.deepcopy(reference)
        by_hand(adapted, noise(call))
        pairs = zip(weights, adapted.parameters(), strict=True)
        gradient = [67 * (slow.detach() - fast.detach()) for slow, fast in pairs]
        before = [w.detach().clone() for w in weights]
        meta.invert(noise(call), loss_of)
        close([w.grad for w in generator.parameters()], gradient)
        outer.step(gradient)
        close(generator.parameters(), weights)
        if call == 0:
            for old, new, fast in zip(before, generator.parameters(), adapted.parameters(), strict=True):
                assert ((new - old) * (fast - old)).sum() > 0


def test_none_adapts_the_generator_itself(generator):
    reference = copy.deepcopy(generator)
    meta = MetaGenerator(generator, STEPS, LR_G, LR_Z, "none")
    calls = []
    generator.register_forward_hook(lambda *_: calls.append(1))
    for call in range(2):
        # A fresh Adam in each call, no outer step.
        images, _, _ = by_hand(reference, noise(call))
        torch.testing.assert_close(meta.invert(noise(call), loss_of), images[-1], rtol=0, atol=1e-11)
        close(generator.parameters(), reference.parameters())
        close(generator.buffers(), reference.buffers())
    assert len(calls) == 2 * STEPS


@pytest.mark.parametrize("kind", ["fomaml", "reptile"])
def test_with_meta_learning_the_slow_generator_makes_no_image(generator, kind):
    calls = []
    meta = MetaGenerator(generator, STEPS, LR_G, LR_Z, kind)
    generator.register_forward_hook(lambda *_: calls.append(1))
    meta.invert(noise(0), loss_of)
    assert calls == []


@pytest.mark.parametrize("offsets, best", [((3, 1, 2, 4), 1), ((0, 1, 2, 3), 0), ((3, 2, 1, 0), 3)])
def test_the_image_of_the_lowest_loss_is_kept(generator, offsets, best):
    seen = []

    def loss(images):
        seen.append(images.detach().clone())
        return offsets[len(seen) - 1] + 1e-3 * images.mean()

    result = MetaGenerator(generator, STEPS, LR_G, LR_Z).invert(noise(0), loss)
    assert torch.equal(result, seen[best])
    assert sum(torch.equal(result, images) for images in seen) == 1
    assert not result.requires_grad


def test_the_latent_code_of_the_caller_is_left_alone(generator):
    z = noise(0)
    MetaGenerator(generator, STEPS, LR_G, LR_Z).invert(z, loss_of)
    assert torch.equal(z, noise(0)) and not z.requires_grad and z.grad is None


def test_the_generator_stays_in_train_mode(generator):
    meta = MetaGenerator(generator.eval(), STEPS, LR_G, LR_Z)
    meta.invert(noise(0), loss_of)
    assert [training for training, _ in Small.notes] == [True] * STEPS
    assert generator.training


def test_batchnorm_buffers_start_anew_from_the_slow_ones(generator):
    generator[2].running_mean.fill_(7.0)
    meta = MetaGenerator(generator, STEPS, LR_G, LR_Z)
    for call in range(2):
        Small.notes = []
        meta.invert(noise(call), loss_of)
        starts = [mean for _, mean in Small.notes]
        assert starts[0].tolist() == [7.0, 7.0]
        assert (starts[1] != 7.0).all()
    assert generator[2].running_mean.tolist() == [7.0, 7.0]
    assert generator[2].num_batches_tracked == 0
    # What the slow generator's buffers become is what the next call starts from.
    generator[2].running_mean.fill_(-1.0)
    Small.notes = []
    meta.invert(noise(5), loss_of)
    assert Small.notes[0][1].tolist() == [-1.0, -1.0]


def test_state_round_trip_keeps_the_outer_adam(generator, tmp_path):
    meta = MetaGenerator(generator, STEPS, LR_G, LR_Z)
    for call in range(2):
        meta.invert(noise(call), loss_of)
    torch.save(meta.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(1)
    again = MetaGenerator(Small(), STEPS, LR_G, LR_Z)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(meta.invert(noise(2), loss_of), again.invert(noise(2), loss_of))
    close(meta.slow.state_dict().values(), again.slow.state_dict().values(), 0)
    # An outer Adam that had started anew would have taken another step.
    fresh = MetaGenerator(Small(), STEPS, LR_G, LR_Z)
    fresh.slow.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)["slow"])
    fresh.invert(noise(2), loss_of)
    assert not torch.allclose(fresh.slow[0].weight, meta.slow[0].weight, atol=1e-4)


def test_reset_first_layers_keeps_the_outer_adam(generator):
    meta = MetaGenerator(generator, STEPS, LR_G, LR_Z)
    meta.invert(noise(0), loss_of)
    before = copy.deepcopy(meta.state_dict())
    meta.reset_first_layers(torch.Generator().manual_seed(2))
    after = meta.state_dict()
    changed = {n for n in before["slow"] if not torch.equal(before["slow"][n], after["slow"][n])}
    assert changed == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for old, new in zip(before["outer"]["state"].values(), after["outer"]["state"].values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    # The next call adapts the new weights.
    reference = copy.deepcopy(generator)
    images, _, _ = by_hand(reference, noise(1))
    torch.testing.assert_close(meta.invert(noise(1), loss_of), images[-1], rtol=0, atol=1e-11)


def test_unknown_meta_is_refused(generator):
    with pytest.raises(ValueError, match="meta"):
        MetaGenerator(generator, 1, LR_G, LR_Z, "maml")
