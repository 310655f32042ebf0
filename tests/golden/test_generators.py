"""The generators are those of baselines.md 1.3 and 1.5: sizes, widths, initialisation, reset."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dfkd.synthesis.generators import UPSAMPLING, DeepGenerator, Generator, build_generator, redraw, reset


def size_of(network):
    return sum(parameter.numel() for parameter in network.parameters())


def layers(network, *kinds):
    return [module for module in network.modules() if isinstance(module, kinds)]


def seeded(build, *args):
    torch.manual_seed(0)
    return build(*args)


def test_the_cifar_generator_has_the_published_size_and_cost():
    # Linear 256·8192 + 8192; BN 2·128; conv 9·128·128, BN 2·128; conv 9·128·64, BN 2·64; conv 9·64·3 + 3.
    expected = 256 * 8192 + 8192 + 256 + 147456 + 256 + 73728 + 128 + 1731
    with torch.device("meta"):
        generator = Generator(nz=256, ngf=64, size=32)
    assert size_of(generator) == expected == 2_328_899
    with FlopCounterMode(display=False) as counter:
        generator(torch.empty(2, 256, device="meta"))
    # MACs an image: 2.10 M linear, 37.75 M + 75.50 M + 1.77 M in the convolutions at 16², 32², 32².
    assert counter.get_total_flops() / 2 / 2 == 256 * 8192 + 147456 * 256 + 73728 * 1024 + 1728 * 1024


def test_the_cifar_generator_has_the_published_layers():
    with torch.device("meta"):
        generator = Generator()
    convolutions = layers(generator, nn.Conv2d)
    assert [(c.in_channels, c.out_channels, c.bias is not None) for c in convolutions] == [
        (128, 128, False),
        (128, 64, False),
        (64, 3, True),
    ]
    assert all(c.kernel_size == (3, 3) and c.padding == (1, 1) and c.stride == (1, 1) for c in convolutions)
    assert [n.num_features for n in layers(generator, nn.BatchNorm2d)] == [128, 128, 64]
    assert [a.negative_slope for a in layers(generator, nn.LeakyReLU)] == [0.2, 0.2]
    assert [(u.scale_factor, u.mode) for u in layers(generator, nn.Upsample)] == [(2, "nearest")] * 2
    # Upsampling precedes its convolution; the first BN has no activation of its own.
    assert [type(m).__name__ for m in generator] == [
        "Linear",
        "Unflatten",
        "BatchNorm2d",
        "Upsample",
        "Conv2d",
        "BatchNorm2d",
        "LeakyReLU",
        "Upsample",
        "Conv2d",
        "BatchNorm2d",
        "LeakyReLU",
        "Conv2d",
        "Sigmoid",
    ]


@pytest.mark.parametrize("size, channels", [(8, 1), (16, 3), (28, 1), (32, 3), (64, 3), (96, 3), (128, 3), (224, 3)])
def test_images_have_the_asked_size_and_range(size, channels):
    generator = seeded(build_generator, 5, 4, size, channels)
    assert generator.nz == 5
    images = generator(torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) * 50)
    assert images.shape == (3, channels, size, size)
    assert images.min() >= 0 and images.max() <= 1
    assert images.std() > 1e-4


def test_only_transposed_convolutions_begin_as_checkerboards():
    """Share of an image's variance inside blocks of 2×2 pixels; .05 in photographs of rooms."""
    shares = {}
    for upsampling in UPSAMPLING:
        torch.manual_seed(0)
        generator = build_generator(64, 16, 128, 3, upsampling=upsampling)
        images = generator(torch.randn(8, 64)).detach()
        assert images.shape == (8, 3, 128, 128)
        means = F.avg_pool2d(images, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        shares[upsampling] = ((images - means).var((1, 2, 3)) / images.var((1, 2, 3))).mean().item()
    assert shares["transposed"] > 0.4 and shares["nearest"] < 0.2


def test_nearest_upsampling_has_a_3x3_convolution_for_each_transposed_one():
    with torch.device("meta"):
        deep, other = (DeepGenerator(upsampling=upsampling) for upsampling in UPSAMPLING)
    widths = [(c.in_channels, c.out_channels) for c in layers(deep, nn.ConvTranspose2d)]
    convolutions = layers(other, nn.Conv2d)
    assert [(c.in_channels, c.out_channels) for c in convolutions[:-1]] == widths
    assert {c.kernel_size for c in convolutions} == {(3, 3)} and not layers(other, nn.ConvTranspose2d)
    assert len(layers(other, nn.Upsample)) == len(widths) == 4


@pytest.mark.parametrize(
    "size, per_pixel, kind",
    [(32, False, Generator), (64, False, Generator), (128, False, DeepGenerator), (64, True, DeepGenerator)],
)
def test_the_generator_follows_image_size_and_kind_of_task(size, per_pixel, kind):
    with torch.device("meta"):
        assert type(build_generator(8, 4, size, 3, per_pixel)) is kind


@pytest.mark.parametrize("size", [13, 15, 30, 100])
def test_the_deep_generator_refuses_other_sizes(size):
    with pytest.raises(ValueError, match=f"7 to 13 pixels times 2\\^k, not of {size}"):
        DeepGenerator(4, 2, size)


@pytest.mark.parametrize("size, widths", [(64, [512, 256, 128, 64]), (128, [512, 256, 128, 64, 64])])
def test_deep_generator_widths(size, widths):
    with torch.device("meta"):
        generator = DeepGenerator(nz=256, ngf=64, size=size)
    transposed = layers(generator, nn.ConvTranspose2d)
    assert [(c.in_channels, c.out_channels) for c in transposed] == list(pairwise(widths))
    for c in transposed:
        assert (c.kernel_size, c.stride, c.padding, c.bias) == ((4, 4), (2, 2), (1, 1), None)
    assert [n.num_features for n in layers(generator, nn.BatchNorm2d)] == [512, *widths[1:]]
    assert [a.negative_slope for a in layers(generator, nn.LeakyReLU)] == [0.2] * len(transposed)
    linear, (last,) = generator.first_layers()[0], layers(generator, nn.Conv2d)
    assert (linear.in_features, linear.out_features) == (256, 512 * 8 * 8)
    assert (last.in_channels, last.out_channels, last.kernel_size, last.padding) == (64, 3, (3, 3), (1, 1))


def test_the_deep_generator_as_dfad_draws_it():
    generator = seeded(DeepGenerator, 64, 32, 64)
    biases = [generator[0].bias.clone(), layers(generator, nn.Conv2d)[0].bias.clone()]
    redraw(generator, torch.Generator().manual_seed(0), biases=False)
    assert torch.equal(biases[0], generator[0].bias) and biases[0].any()
    assert torch.equal(biases[1], layers(generator, nn.Conv2d)[0].bias)
    weights = [m.weight for m in layers(generator, nn.Linear, nn.ConvTranspose2d, nn.Conv2d)]
    assert len(weights) == 1 + 3 + 1
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.02, rel=0.08)
        assert weight.mean().abs().item() < 0.002
    gains = torch.cat([m.weight for m in layers(generator, nn.BatchNorm2d)])
    assert gains.mean().item() == pytest.approx(1, abs=0.005)
    assert gains.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("kind, size", [(Generator, 32), (DeepGenerator, 64)])
def test_reset_draws_the_first_two_layers_anew(kind, size):
    generator = seeded(kind, 64, 32, size)
    for module in layers(generator, nn.BatchNorm2d):
        module.running_mean.fill_(0.5)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    reset(generator.first_layers(), torch.Generator().manual_seed(3))
    changed = {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])}
    # The BN bias was 0 already, and its running statistics stay.
    assert changed == {"0.weight", "0.bias", "2.weight"}
    linear, norm = generator.first_layers()
    assert linear is generator[0] and norm is generator[2]
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not linear.bias.any() and not norm.bias.any()
    # The gain too is drawn around 0, not 1, as published.
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.25)
    assert norm.weight.abs().max() < 0.1


def test_reset_clears_the_batchnorm_bias():
    generator = seeded(Generator, 8, 4, 8)
    nn.init.ones_(generator.first_layers()[1].bias)
    reset(generator.first_layers(), torch.Generator())
    assert not generator.first_layers()[1].bias.any()


def test_reset_draws_from_its_generator_alone():
    one, two = seeded(Generator, 8, 4, 8), seeded(Generator, 8, 4, 8)
    before = torch.get_rng_state()
    for generator in (one, two):
        reset(generator.first_layers(), torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[0].weight, two[0].weight) and torch.equal(one[2].weight, two[2].weight)
