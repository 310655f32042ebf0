"""The teacher owns its input specification and applies it itself; everybody else lives in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfkd.tasks.base import InputSpec


class Normalised(nn.Module):
    """A network that takes images in [0, 1], B x C x H x W.

    The constants are not persistent; what is saved is the bare `network`.
    """

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        for name in ("mean", "std"):
            constant = torch.tensor(getattr(spec, name)).view(1, -1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        return self.network.features(self.normalise(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images))
