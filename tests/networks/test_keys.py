"""Checkpoints in other people's spelling fit; one that does not fit names the first mismatching key."""

import re

import pytest
import torch
from torch import nn

from dfkd.errors import UserError
from dfkd.networks import build
from dfkd.networks.keys import adapt

# How public programs spell our keys.
SPELLINGS = {
    "released WRN": (
        "wrn16_1",
        [(r"^layer(\d)\.", r"layer\1.layer."), (r"\.downsample\.", ".convShortcut."), (r"^fc", "linear")],
    ),
    "CMI WRN": ("wrn16_1", [(r"^layer(\d)\.", r"block\1.layer."), (r"\.downsample\.", ".convShortcut.")]),
    "CMI ResNet": ("resnet20", [(r"\.downsample\.", ".shortcut."), (r"^fc", "linear")]),
    "CMI VGG": ("vgg11", [(r"^fc", "classifier")]),
    "data parallel": ("resnet8", [(r"^", "module.")]),
    "compiled": ("resnet8", [(r"^", "_orig_mod.")]),
    "compiled, then parallel": ("resnet8", [(r"^", "module._orig_mod.")]),
    "parallel, then compiled": ("resnet8", [(r"^", "_orig_mod.module.")]),
    "inside a module": ("resnet8", [(r"^", "model.")]),
    "inside two": ("resnet8", [(r"^", "net.network.")]),
    "all of it": ("vgg11", [(r"^fc", "classifier"), (r"^", "model._orig_mod.module.net._orig_mod.")]),
    "a part compiled": ("resnet8", [(r"^layer2\.", "layer2._orig_mod."), (r"^layer1\.0\.", "layer1.0.module.")]),
}


def respelled(state, renames):
    result = {}
    for key, value in state.items():
        for pattern, spelling in renames:
            key = re.sub(pattern, spelling, key)
        result[key] = value
    return result


@pytest.mark.parametrize("family", SPELLINGS)
def test_public_spellings_fit(family):
    arch, renames = SPELLINGS[family]
    network = build(arch, 10)
    state = respelled(network.state_dict(), renames)
    assert state.keys() != network.state_dict().keys()
    adapted = adapt(state, network)
    network.load_state_dict(adapted, strict=True)
    assert all(torch.equal(adapted[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
def test_wrappers_are_taken_off(wrapper):
    network = build("resnet8", 10)
    assert adapt({wrapper: network.state_dict(), "epoch": 3}, network).keys() == network.state_dict().keys()


def test_half_precision_becomes_float32_and_counters_may_be_missing():
    network = build("resnet8", 10)
    state = {k: v.half() for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    adapted = adapt(state, network)
    assert all(adapted[key].dtype == value.dtype for key, value in network.state_dict().items())
    network.load_state_dict(adapted, strict=True)


def refusal(change):
    network = build("resnet8", 10)
    state = dict(network.state_dict())
    change(state)
    with pytest.raises(UserError) as caught:
        adapt(state, network)
    return str(caught.value)


def test_the_first_mismatching_key_is_named():
    def drop(state):
        del state["layer1.0.bn1.weight"], state["layer3.0.conv1.weight"]

    assert "no key 'layer1.0.bn1.weight'" in refusal(drop)
    assert "'aux.weight' is not a key" in refusal(lambda s: s.update({"aux.weight": torch.zeros(1)}))
    assert "'fc.bias' has shape (100,), not (10,)" in refusal(lambda s: s.update({"fc.bias": torch.zeros(100)}))
    assert "'conv1.weight' is no tensor but int" in refusal(lambda s: s.update({"conv1.weight": 3}))


class Own(nn.Module):
    """A network whose own names are what others' are renamed to ours from."""

    def __init__(self):
        super().__init__()
        self.classifier, self.module = nn.Linear(2, 2), nn.Linear(2, 2)
        self.linear = nn.Sequential(nn.Linear(2, 2))


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_what_is_a_key_of_the_network_is_not_renamed(prefix):
    network = Own()
    state = {prefix + key: value for key, value in network.state_dict().items()}
    if prefix:
        state = {key: value for key, value in state.items() if ".module." not in key} | {
            f"module.{name}": value for name, value in network.module.state_dict().items()
        }
    assert adapt(state, network).keys() == network.state_dict().keys()


def test_keys_that_become_one_are_refused():
    for other in ("module.fc.bias", "linear.bias", "model.classifier.bias", "fc._orig_mod.bias"):
        message = refusal(lambda state, other=other: state.update({other: torch.zeros(10)}))
        assert f"'fc.bias' and '{other}' are one key of the network, 'fc.bias'" in message


def test_anything_but_a_dictionary_is_refused():
    with pytest.raises(UserError, match="no dictionary of tensors but list"):
        adapt([torch.zeros(1)], build("resnet8", 10))
