"""VGG-11 with BatchNorm for small images: five blocks, global average pool, one linear layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.networks.wrn import initialise


class VGG11(nn.Module):
    """Blocks of 64, 128, 256 256, 512 512, 512 512 channels; convolutions keep their bias.

    Maps are halved after the first three blocks, and after the fourth only for 64-pixel images (diffdfkd.md 3: at 224
    pixels, too, it is left out).
    """

    def __init__(self, classes: int, size: int = 32) -> None:
        super().__init__()
        inputs, plan = 3, ((64,), (128,), (256, 256), (512, 512), (512, 512))
        self.stages = [f"block{i}" for i in range(5)]
        self.pooled = self.stages[: 4 if size == 64 else 3]
        for name, widths in zip(self.stages, plan, strict=True):
            layers: list[nn.Module] = []
            for width in widths:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width)]
                layers += [nn.ReLU(inplace=True)]
                inputs = width
            self.add_module(name, nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)
        initialise(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def maps(self, x: Tensor) -> Tensor:
        for name in self.stages:
            x = getattr(self, name)(x)
            if name in self.pooled:
                x = F.max_pool2d(x, 2)
        return x

    def features(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))
