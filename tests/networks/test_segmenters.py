"""Segmentation networks: sizes, padding and cropping, an encoder that starts from other weights."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfkd.artifacts.weights import load_encoder
from dfkd.errors import UserError
from dfkd.networks import build, fitting
from dfkd.networks.keys import adapt, mobilenetv2_encoder

# name: parameters for 13 classes, BatchNorm layers, output stride
TABLE = {
    "deeplabv3_resnet50": (39_636_813, 60, 8),  # as many as the field's (baselines.md 1.5)
    "deeplabv3_mobilenetv2": (12_651_021, 59, 8),  # the field's: 5,111,821
    "deeplabv3plus_mobilenetv2": (4_381_597, 61, 16),
    "deeplabv3plus_thin32": (1_438_445, 23, 16),
    "deeplabv3plus_thin16": (365_253, 23, 16),
}


def on_meta(arch, classes=13):
    with torch.device("meta"):
        return build(arch, classes)


@pytest.mark.parametrize("arch", fitting("segmentation"))
def test_sizes(arch):
    network = on_meta(arch)
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (sum(p.numel() for p in network.parameters()), len(layers), network.stride) == TABLE[arch]


@pytest.mark.parametrize("arch", fitting("segmentation"))
@pytest.mark.parametrize("sides", [(128, 128), (192, 256), (50, 71)])
def test_logits_have_the_size_of_the_image(arch, sides):
    network, images = on_meta(arch, 7).eval(), torch.empty(2, 3, *sides, device="meta")
    assert network(images).shape == (2, 7, *sides)
    assert network.features(images).shape[0] == 2 and network.features(images).dim() == 2


def test_what_is_padded_is_cropped_again():
    network = build("deeplabv3plus_thin16", 5).eval()
    images = torch.randn(1, 3, 30, 41)
    padded = torch.zeros(1, 3, 32, 48)
    padded[..., :30, :41] = images
    with torch.no_grad():
        torch.testing.assert_close(network(images), network(padded)[..., :30, :41])
        torch.testing.assert_close(network.features(images), network.features(padded))


@pytest.mark.parametrize("arch", ["deeplabv3plus_mobilenetv2", "deeplabv3plus_thin32", "deeplabv3plus_thin16"])
def test_no_tap_is_out_of_reach_of_a_crop(arch):
    """A tap that no crop reaches keeps its random weight, and whole images would meet it."""
    network = on_meta(arch)
    reach = max(m.dilation[0] for m in network.decoder.modules() if isinstance(m, nn.Conv2d))
    assert reach < 128 // network.stride


def old_spelling(key):
    """A key of torchvision's MobileNetV2 as the older layout has it, written out by hand per kind of layer."""
    for new, old in (
        (".conv.0.0.", ".conv.0."),
        (".conv.0.1.", ".conv.1."),
        (".conv.1.0.", ".conv.3."),
        (".conv.1.1.", ".conv.4."),
        (".conv.2.", ".conv.6."),
        (".conv.3.", ".conv.7."),
    ):
        if new in key and not key.startswith("features.1."):
            return key.replace(new, old)
    first = {
        ".conv.0.0.": ".conv.0.",
        ".conv.0.1.": ".conv.1.",
        ".conv.1.": ".conv.3.",
        ".conv.2.": ".conv.4.",
    }
    for new, old in first.items():
        if new in key and key.startswith("features.1."):
            return key.replace(new, old)
    return key


def test_an_encoder_of_either_spelling_is_taken(tmp_path):
    source = build("deeplabv3plus_mobilenetv2", 13).encoder.state_dict()
    old = {old_spelling(key): value for key, value in source.items()}
    assert len(old) == len(source) and "features.2.conv.7.running_mean" in old and "features.1.conv.4.weight" in old
    assert mobilenetv2_encoder(old).keys() == mobilenetv2_encoder(source).keys() == source.keys()
    halves = {key: value.half() if value.dim() == 4 else value for key, value in old.items()}
    save_file(halves, tmp_path / "encoder.safetensors")
    network = build("deeplabv3plus_mobilenetv2", 13)
    load_encoder(network, "encoder", [tmp_path / "elsewhere", tmp_path])
    for key, value in network.encoder.state_dict().items():
        expected = source[key].half().float() if source[key].dim() == 4 else source[key]
        assert torch.equal(value, expected), key


def test_an_encoder_that_is_missing_or_does_not_fit_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"starts from other\.safetensors, which is in no weights folder"):
        load_encoder(build("deeplabv3plus_thin16", 13), "other", [tmp_path])
    save_file({"features.0.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors does not fit the encoder: the checkpoint has no key"):
        load_encoder(build("deeplabv3plus_thin16", 13), "other", [tmp_path])


def test_a_checkpoint_of_smp_itself_is_taken():
    given = build("deeplabv3plus_thin16", 5).state_dict()
    state = {key.replace("head.", "segmentation_head."): value for key, value in given.items()}
    network = build("deeplabv3plus_thin16", 5)
    network.load_state_dict(adapt(state, network))
    assert torch.equal(network.head[0].weight, state["segmentation_head.0.weight"])
