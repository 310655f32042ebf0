"""`L_bn` against numpy in float64, its memory by hand, and the life of its hooks."""

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.synthesis.batchnorm import BatchNormLoss


def small_network():
    """1×1 convolution, BN, ReLU, 1×1 convolution, BN, linear with a 1-d BN that does not count."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.BatchNorm1d(2 * 4 * 5),
    )
    for layer in (network[1], network[4]):
        for values in (layer.running_mean, layer.weight.data, layer.bias.data):
            values.normal_()
        layer.running_var.uniform_(0.5, 2.0)
    return network.eval()


def reference(network, images):
    """The loss, with the forward pass written out."""
    state = {name: value.double().numpy() for name, value in network.state_dict().items()}
    x, total = images.double().numpy(), 0.0
    for convolution, norm in (("0", "1"), ("3", "4")):
        kernel, bias, mean, var, gain, shift = (
            state[name]
            for name in (
                f"{convolution}.weight",
                f"{convolution}.bias",
                f"{norm}.running_mean",
                f"{norm}.running_var",
                f"{norm}.weight",
                f"{norm}.bias",
            )
        )
        x = np.einsum("oc,nchw->nhwo", kernel[:, :, 0, 0], x) + bias
        m = x.mean((0, 1, 2))
        v = ((x - m) ** 2).mean((0, 1, 2))
        total += np.sqrt(((var - v) ** 2).sum()) + np.sqrt(((mean - m) ** 2).sum())
        x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * gain + shift, 0).transpose(0, 3, 1, 2)
    return total


def images_of(seed):
    # Three images of 4×5: so few that biased and unbiased variance differ by 2 %.
    return torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(seed))


def one_channel(momentum=None):
    """A bare BN layer with running mean 0 and variance 1."""
    return BatchNormLoss(nn.BatchNorm2d(1).eval(), momentum)


def feed(loss, *values):
    """One captured pass of a 1-channel image with the given pixels; returns the image."""
    images = torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1).requires_grad_(True)
    with loss.capture():
        loss.layers[0](images)
    return images


def hooks(network):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules())


def test_loss_equals_numpy():
    network = small_network()
    loss = BatchNormLoss(network)
    with loss.capture():
        network(images_of(1))
    assert loss.loss().item() == pytest.approx(reference(network, images_of(1)), rel=1e-5)


def test_the_last_pass_counts():
    network = small_network()
    loss = BatchNormLoss(network)
    with loss.capture():
        network(images_of(1))
        network(images_of(2))
    assert loss.loss().item() == pytest.approx(reference(network, images_of(2)), rel=1e-5)


def test_without_momentum_nothing_is_remembered():
    network = small_network()
    loss = BatchNormLoss(network)
    for seed in (1, 2):
        with loss.capture():
            network(images_of(seed))
            assert loss.loss().item() == pytest.approx(reference(network, images_of(seed)), rel=1e-5)
        loss.update()
    assert loss.state_dict()["memory"] == []


def test_half_precision_inputs_are_reduced_in_float32():
    loss = BatchNormLoss(nn.BatchNorm2d(1).eval())
    # Pixels 1 and 1 + 2⁻⁷ are exact in bfloat16; their mean, 1 + 2⁻⁸, is not.
    images = (1 + torch.arange(64) % 2 * 2**-7).view(1, 1, 8, 8).bfloat16()
    with loss.capture():
        loss.layers[0](images)
    assert loss.loss().item() == pytest.approx((1 + 2**-8) + (1 - 2**-16), abs=1e-6)


def test_momentum_over_three_calls():
    loss = one_channel(momentum=0.9)
    # Pixels (1, 3): m = 2, v = 1. First call plain: |1 − 1| + |0 − 2|.
    feed(loss, 1, 3)
    assert loss.loss().item() == pytest.approx(2.0)
    assert loss.loss().item() == pytest.approx(2.0), "the memory moves once a call, not with every loss"
    loss.update()
    # Pixels (2, 8): m = 5, v = 9. M = 2, V = 1 were copied: m̃ = .1·5 + .9·2 = 2.3, ṽ = .1·9 + .9·1 = 1.8.
    feed(loss, 2, 8)
    assert loss.loss().item() == pytest.approx(2.3 + 0.8)
    loss.update()
    # M = .9·2 + .1·5 = 2.3, V = 1.8 (the batch, not the blend, moves them: that would give 2.03).
    # Pixels (0, 0): m = v = 0: m̃ = 2.07, ṽ = 1.62.
    feed(loss, 0, 0)
    assert loss.loss().item() == pytest.approx(2.07 + 0.62)


def test_memory_moves_by_the_last_step_of_a_call():
    loss = one_channel(momentum=0.9)
    with loss.capture():
        for values in ((100.0, 300.0), (1.0, 3.0)):
            loss.layers[0](torch.tensor(values).view(1, 1, 1, 2))
            loss.loss()
    loss.update()
    feed(loss, 2, 8)
    assert loss.loss().item() == pytest.approx(2.3 + 0.8)


def test_gradient_is_scaled_by_one_minus_beta():
    loss = one_channel(momentum=0.9)
    first = feed(loss, 1, 3)
    loss.loss().backward()
    loss.update()
    before = first.grad.clone()
    # Plain: |0 − m| has gradient 1/2 per pixel; |1 − v| sits at its kink with gradient 0.
    assert before.flatten().tolist() == pytest.approx([0.5, 0.5])
    second = feed(loss, 2, 8)
    loss.loss().backward()
    # d|m̃|/dx = .1 · 1/2; d|ṽ − 1|/dx = .1 · 2(x − m)/2 = ∓.3
    assert second.grad.flatten().tolist() == pytest.approx([0.05 - 0.3, 0.05 + 0.3])
    assert torch.equal(first.grad, before), "the second call reached back into the first"
    assert not any(t.requires_grad for pair in loss.state_dict()["memory"] for t in pair)


def test_hooks_live_inside_capture_only():
    network = small_network()
    loss = BatchNormLoss(network, 0.9)
    assert hooks(network) == 0
    with loss.capture():
        assert hooks(network) == 2
        network(images_of(1))
    assert hooks(network) == 0
    inside = loss.loss().item()
    network(images_of(2))
    assert loss.loss().item() == inside


def test_hooks_are_removed_after_an_exception():
    network = small_network()
    loss = BatchNormLoss(network)
    with pytest.raises(RuntimeError, match="boom"), loss.capture():
        network(images_of(1))
        raise RuntimeError("boom")
    assert hooks(network) == 0


def test_capture_leaves_the_network_as_it_was():
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = network(images_of(1))
    with BatchNormLoss(network).capture():
        assert torch.equal(network(images_of(1)), plain)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_two_losses_on_one_network_do_not_mix():
    network = small_network()
    one, two = BatchNormLoss(network), BatchNormLoss(network)
    with one.capture():
        network(images_of(1))
        with two.capture():
            network(images_of(2))
        assert two.loss().item() == pytest.approx(reference(network, images_of(2)), rel=1e-5)
        network(images_of(1))
    assert one.loss().item() == pytest.approx(reference(network, images_of(1)), rel=1e-5)
    assert two.loss().item() == pytest.approx(reference(network, images_of(2)), rel=1e-5)


def test_state_round_trip(tmp_path):
    loss = one_channel(momentum=0.9)
    for values in ((1, 3), (2, 8)):
        feed(loss, *values)
        loss.update()
    torch.save(loss.state_dict(), tmp_path / "state.pt")
    other = one_channel(momentum=0.9)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for resumed in (loss, other):
        feed(resumed, 0, 0)
        assert resumed.loss().item() == pytest.approx(2.07 + 0.62)
        resumed.update()
        # M = .9·2.3, V = .9·1.8; pixels (0, 0) again.
        feed(resumed, 0, 0)
        assert resumed.loss().item() == pytest.approx(0.9 * 2.07 + 0.9 * 1.62 - 1)


def test_state_of_the_first_call_is_plain_too(tmp_path):
    torch.save(one_channel(momentum=0.9).state_dict(), tmp_path / "state.pt")
    loss = one_channel(momentum=0.9)
    loss.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    feed(loss, 1, 3)
    assert loss.loss().item() == pytest.approx(2.0)


def test_the_gradient_of_the_statistics_is_that_of_their_definition():
    from dfkd.synthesis.batchnorm import _VarMean

    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    variance, mean = _VarMean.apply(x)
    expected = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close((variance, mean), expected)
    assert torch.autograd.gradcheck(_VarMean.apply, (x,))
