"""The teacher owns its input specification and applies it itself; everybody else lives in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.networks.capture import outputs
from dfkd.synthesis.cam import Inspection
from dfkd.tasks.base import InputSpec


class Normalised(nn.Module):
    """A network that takes images in [0, 1], B x C x H x W.

    The constants are not persistent; what is saved is the bare `network`.
    """

    network: Any  # of `dfkd.networks`
    mean: Tensor
    std: Tensor
    compiled: Callable[[Tensor], Tensor] | None = None
    """The network's forward pass, compiled; taken while `fast`, unless a hook looks into a module."""
    fast = False

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        for name in ("mean", "std"):
            constant = torch.tensor(getattr(spec, name)).view(1, -1, 1, 1)
            self.register_buffer(name, constant, persistent=False)
        self._expanded: dict[tuple, tuple[Tensor, Tensor]] = {}

    def normalise(self, images: Tensor) -> Tensor:
        # Broadcasting 1 x C x 1 x 1 over channels-last images is ten times slower on a CPU than equal shapes.
        key = (images.shape[1:], images.device)
        if key not in self._expanded:
            mean, std = (
                constant.expand(1, *images.shape[1:]).contiguous(memory_format=torch.channels_last)
                for constant in (self.mean, self.std)
            )
            self._expanded[key] = mean, std
        mean, std = self._expanded[key]
        return (images - mean) / std

    def features(self, images: Tensor) -> Tensor:
        return self.network.features(self.normalise(images))

    def inspect(self, images: Tensor) -> Inspection:
        """A forward pass with the maps before pooling and the output of every stage."""
        network = self.network
        with outputs(network, network.stages) as found:
            maps = network.maps(self.normalise(images))
        logits = network.fc(maps.mean((2, 3)))
        return Inspection(logits, maps, network.fc.weight, [found[name] for name in network.stages])

    def forward(self, images: Tensor) -> Tensor:
        images = self.normalise(images)
        if self.compiled and self.fast and not any(m._forward_hooks for m in self.network.modules()):
            return self.compiled(images)
        return self.network(images)
