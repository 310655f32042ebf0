"""Other people's checkpoints: their wrappers and spellings, turned into the keys of our networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.errors import UserError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")

# Spellings of chenyaofo/pytorch-cifar-models, karanchahal/distiller, the CMI and Fast programs, and smp.
RENAMES = (
    (re.compile(r"^(?:module\.)+"), ""),
    (re.compile(r"^(?:layer|block)(\d+)\.layer\."), r"layer\1."),
    (re.compile(r"\.(?:convShortcut|shortcut)\."), ".downsample."),
    (re.compile(r"^(?:linear|classifier)\."), "fc."),
    (re.compile(r"^segmentation_head\."), "head."),
)


def adapt(state: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
    """The checkpoint `state` with the keys, and the floating-point type, of `network` (float32).

    Raises UserError naming the first key that is missing, has another shape (in the network's order), or is
    not the network's (in the checkpoint's order).
    """
    state = _unwrap(state)
    spelled = {_rename(key): key for key in state}
    result: dict[str, Tensor] = {}
    for key, expected in network.state_dict().items():
        if key not in spelled:
            # A counter that inference never reads; files from before torch 0.4.1 lack it.
            if key.endswith("num_batches_tracked"):
                result[key] = torch.zeros_like(expected)
                continue
            raise UserError(f"the checkpoint has no key {key!r}")
        value = state[spelled[key]]
        if not isinstance(value, Tensor):
            raise UserError(f"the checkpoint's {spelled[key]!r} is no tensor but {type(value).__name__}")
        if value.shape != expected.shape:
            theirs, ours = tuple(value.shape), tuple(expected.shape)
            raise UserError(f"the checkpoint's {spelled[key]!r} has shape {theirs}, not {ours}")
        result[key] = value.to(expected.dtype)
    for key, spelling in spelled.items():
        if key not in result:
            raise UserError(f"the checkpoint's {spelling!r} is not a key of the network")
    return result


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


def _unwrap(state: Any) -> Mapping[str, Any]:
    while isinstance(state, Mapping):
        inner = next((state[name] for name in WRAPPERS if isinstance(state.get(name), Mapping)), None)
        if inner is None:
            return state
        state = inner
    raise UserError(f"the checkpoint is no dictionary of tensors but {type(state).__name__}")


def _rename(key: str) -> str:
    for pattern, spelling in RENAMES:
        key = pattern.sub(spelling, key)
    return key
