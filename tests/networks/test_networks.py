"""The networks are the field's: sizes, cost and initialisation as their papers and programs have them."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dfkd.errors import UserError
from dfkd.networks import build, fitting
from dfkd.networks.normalised import Normalised
from dfkd.tasks import InputSpec

# name: BN layers, sum of BN channels, parameters for 10, 100, 200 classes, MMAC of a 32-pixel image
TABLE = {
    "resnet18": (20, 4800, 11_173_962, 11_220_132, 11_271_432, 555),
    "resnet34": (36, 8512, 21_282_122, 21_328_292, 21_379_592, 1159),
    "resnet50": (53, 26560, 23_520_842, 23_705_252, 23_910_152, 1298),
    "wrn16_1": (13, 464, 175_066, 180_916, 187_416, 26.7),
    "wrn16_2": (13, 912, 691_674, 703_284, 716_184, 101),
    "wrn40_1": (37, 1360, 563_930, 569_780, 576_280, 83.3),
    "wrn40_2": (37, 2704, 2_243_546, 2_255_156, 2_268_056, 328),
    "vgg11": (8, 2752, 9_231_114, 9_277_284, 9_328_584, 209),
}
# Of the public checkpoints, with 10 and 100 classes.
THIN = {
    "resnet20": (272_474, 278_324),
    "resnet56": (855_770, 861_620),
    "wrn28_1": (369_498, 375_348),
    "wrn16_1": (175_066, 180_916),
    "resnet8": (78_042, 83_892),
}


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


def on_meta(arch, classes=10, pixels=32):
    with torch.device("meta"):
        return build(arch, classes, pixels)


@pytest.mark.parametrize("arch", TABLE)
def test_sizes_are_those_of_the_table(arch):
    layers, channels, *parameters, _ = TABLE[arch]
    assert [size(on_meta(arch, classes)) for classes in (10, 100, 200)] == parameters
    widths = [m.num_features for m in on_meta(arch).modules() if isinstance(m, nn.BatchNorm2d)]
    assert (len(widths), sum(widths)) == (layers, channels)


@pytest.mark.parametrize("arch", TABLE)
def test_cost_is_that_of_the_table(arch):
    network = on_meta(arch).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() / 2e6 == pytest.approx(TABLE[arch][-1], rel=0.005)


@pytest.mark.parametrize("arch", THIN)
def test_thin_sizes(arch):
    assert tuple(size(on_meta(arch, classes)) for classes in (10, 100)) == THIN[arch]


@pytest.mark.parametrize("pixels", [16, 32, 64])
@pytest.mark.parametrize("arch", fitting("classification"))
def test_shapes_for_every_input_size(arch, pixels):
    real = arch.startswith("efficientnet")  # a network of a library is looked at by a pass when it is built
    network = (build if real else on_meta)(arch, 7, pixels).eval()
    images = torch.zeros(2, 3, pixels, pixels, device="cpu" if real else "meta")
    features = network.features(images)
    assert features.shape == (2, network.fc.in_features)
    assert network(images).shape == (2, 7)


def test_logits_are_the_linear_layer_of_the_features():
    network = build("wrn16_1", 10).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(images), network.fc(network.features(images)))


@pytest.mark.parametrize(("pixels", "last"), [(32, 4), (64, 4)])
def test_vgg_pools_a_fourth_time_for_64_pixels_only(pixels, last):
    network, seen = on_meta("vgg11", 10, pixels), []
    with network.block4.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1])):
        network(torch.empty(2, 3, pixels, pixels, device="meta"))
    assert seen == [last]


@pytest.mark.parametrize("arch", ["wrn16_2", "vgg11"])
def test_initialisation(arch):
    torch.manual_seed(0)
    network = build(arch, 10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.15)
            assert module.bias is None or not module.bias.any()
    assert not network.fc.bias.any()
    if arch == "vgg11":
        assert network.fc.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_a_shortcut_that_changes_width_takes_the_activated_input():
    network = build("wrn16_1", 10).eval()
    block = network.layer2[0]
    seen = []
    with block.downsample.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0])):
        network(torch.randn(2, 3, 32, 32))
    assert seen[0].min() == 0


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown network 'wrn40-2' .nearest: 'wrn40_2'"):
        build("wrn40-2", 10)


def test_normalised_takes_unit_range_images_and_adds_no_keys():
    network = build("resnet8", 10).eval()
    spec = InputSpec(32, 3, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0), 10)
    wrapped, images = Normalised(network, spec).eval(), torch.rand(2, 3, 32, 32)
    by_hand = torch.stack([(images[:, c] - spec.mean[c]) / spec.std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(wrapped(images), network(by_hand))
    torch.testing.assert_close(wrapped.features(images), network.features(by_hand))
    assert set(wrapped.state_dict()) == {f"network.{key}" for key in network.state_dict()}
