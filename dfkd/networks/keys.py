"""Other people's checkpoints: their wrappers and spellings, turned into the keys of our networks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.errors import UserError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")

# What DataParallel and torch.compile put in anywhere, and what a network is called inside a module of others.
WRAPPED = re.compile(r"(?:(?<=\.)|^)(?:(?:module|_orig_mod)\.)+")
OUTER = re.compile(r"^(?:(?:model|net|network)\.)+")

# Spellings of chenyaofo/pytorch-cifar-models, karanchahal/distiller, the CMI and Fast programs, and smp.
RENAMES = (
    (re.compile(r"^(?:layer|block)(\d+)\.layer\."), r"layer\1."),
    (re.compile(r"\.(?:convShortcut|shortcut)\."), ".downsample."),
    (re.compile(r"^(?:linear|classifier)\."), "fc."),
    (re.compile(r"^segmentation_head\."), "head."),
)


def adapt(
    state: Mapping[str, Any], network: nn.Module, head: str | None = None, rows: Sequence[int] = ()
) -> dict[str, Tensor]:
    """The checkpoint `state` with the keys, and the floating-point type, of `network` (float32).

    The layer named `head` gets these `rows` of the checkpoint's; without them it keeps what the network has, whatever
    the checkpoint says of it. Raises UserError naming the first key that is missing, has another shape or holds what no
    weight can be (in the network's order), or is not the network's (in the checkpoint's order).
    """
    state, own = _unwrap(state), network.state_dict()
    spelled = _spelled(state, own)
    result: dict[str, Tensor] = {}
    for key, expected in own.items():
        of_head = head is not None and key.startswith(f"{head}.")
        if of_head and not rows:
            result[key] = expected
        elif key in spelled:
            value = state[spelled[key]]
            result[key] = _value(_chosen(value, rows) if of_head else value, expected, spelled[key])
        elif key.endswith("num_batches_tracked"):
            # A counter that inference never reads; files from before torch 0.4.1 lack it.
            result[key] = torch.zeros_like(expected)
        else:
            raise UserError(f"the checkpoint has no key {key!r}; {_listed(state)}")
    for key, spelling in spelled.items():
        if key not in result:
            raise UserError(f"the checkpoint's {spelling!r} is not a key of the network")
    return result


def _spelled(state: Mapping[Any, Any], own: Mapping[str, Tensor]) -> dict[str, str]:
    """The network's names of the checkpoint's keys, each with the key."""
    found: dict[str, str] = {}
    for key in state:
        if not isinstance(key, str):
            raise UserError(f"the checkpoint's key {str(key)[:80]} is no name; {_listed(state)}")
        name = _rename(key, own)
        if name in found:
            raise UserError(f"the checkpoint's {found[name]!r} and {key!r} are one key of the network, {name!r}")
        found[name] = key
    return found


def _chosen(value: Any, rows: Sequence[int]) -> Any:
    if not isinstance(value, Tensor) or not value.dim():
        return value
    if max(rows) >= len(value):
        raise UserError(f"the checkpoint's last layer is of {len(value)} classes, and has none of number {max(rows)}")
    return value[list(rows)]


def _value(value: Any, expected: Tensor, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(f"the checkpoint's {name!r} is no tensor but {type(value).__name__}")
    if value.shape != expected.shape:
        theirs, ours = tuple(value.shape), tuple(expected.shape)
        raise UserError(f"the checkpoint's {name!r} has shape {theirs}, not {ours}")
    if value.layout != torch.strided or value.is_meta:
        raise UserError(f"the checkpoint's {name!r} is no plain tensor but {'meta' if value.is_meta else value.layout}")
    if expected.is_floating_point() and not value.is_floating_point():
        raise UserError(f"the checkpoint's {name!r} has type {value.dtype}, not {expected.dtype}")
    value = value.to(expected.dtype)
    check_finite({name: value})
    return value


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raise UserError naming the first tensor with nan, an infinity, or a variance below 0."""
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        if not torch.isfinite(value).all():
            raise UserError(f"{name!r} holds nan or infinity")
        if name.endswith("running_var") and (value < 0).any():
            raise UserError(f"{name!r} holds a variance below 0")


def _listed(state: Mapping[Any, Any]) -> str:
    """What a checkpoint has, in a few words."""
    first = ", ".join(repr(key)[:60] for key in list(state)[:3])
    return f"its {len(state)} keys are {first}{', …' if len(state) > 3 else ''}" if state else "it is empty"


def mobilenetv2_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileNetV2 features from before torchvision grouped a block's layers, with the keys it has since.

    In `conv`, 0, 1, 3, 4, 6, 7 are 0.0, 0.1, 1.0, 1.1, 2, 3; in the first block, which does not expand, 0, 1, 3, 4 are
    0.0, 0.1, 1, 2. Keys that are spelled so already stay.
    """
    blocks = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
    first = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}

    def renamed(match: re.Match) -> str:
        places = first if match[1] == "features.1.conv." else blocks
        return f"{match[1]}{places[match[2]]}.{match[3]}"

    old = any(re.match(r"features\.\d+\.conv\.[47]\.", key) for key in state)
    pattern = re.compile(r"^(features\.\d+\.conv\.)(\d)\.(\w+)$")
    return {pattern.sub(renamed, key) if old else key: value for key, value in state.items()}


LITE0 = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage of EfficientNet-Lite0


def efficientnet_lite0(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-Lite0 as the PyTorch ports of the TensorFlow program spell it (`_blocks.3._bn1`), with timm's keys.

    A block that expands has three convolutions, the first one two. Keys that are spelled otherwise stay.
    """
    places: dict[int, str] = {}
    for stage, repeats in enumerate(LITE0):
        places |= {len(places) + i: f"blocks.{stage}.{i}" for i in range(repeats)}
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    block = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    block |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    inner = re.compile(r"^_blocks\.(\d+)\.(\w+)\.(\w+)$")
    result = {}
    for key, value in state.items():
        if (match := inner.match(key)) and int(match[1]) in places:
            number, layer, part = match.groups()
            spelled = block if f"_blocks.{number}._expand_conv.weight" in state else first
            key = f"{places[int(number)]}.{spelled.get(layer, layer)}.{part}"
        elif key.partition(".")[0] in outer:
            layer, _, part = key.partition(".")
            key = f"{outer[layer]}.{part}"
        result[key] = value
    return result


def _unwrap(state: Any) -> Mapping[str, Any]:
    for _ in range(8):  # one that holds itself never ends
        if not isinstance(state, Mapping):
            break
        inner = next((state[name] for name in WRAPPERS if isinstance(state.get(name), Mapping)), None)
        if inner is None:
            return state
        state = inner
    raise UserError(f"the checkpoint is no dictionary of tensors but {type(state).__name__}")


def _rename(key: str, own: Mapping[str, Tensor]) -> str:
    """A key as the network spells it; what is a key of the network already stays."""
    for pattern, spelling in ((WRAPPED, ""), (OUTER, ""), *RENAMES):
        if key in own or f"model.{key}" in own:
            break
        key = pattern.sub(spelling, key)
    # A library's own file of a network that we hold as `model` (`dfkd.networks.library`).
    return f"model.{key}" if f"model.{key}" in own else key
