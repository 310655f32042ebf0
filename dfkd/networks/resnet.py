"""Residual networks for CIFAR: ResNet-18/34/50 with a 3x3 stem and no max-pool, and the thin ResNet-8/20/56.

He et al., "Deep residual learning for image recognition" (2016). The thin ones take a 1x1 convolution with
BatchNorm as the shortcut where the shape changes, as the public CIFAR checkpoints do, not zero padding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Block(nn.Module):
    """What the basic and the bottleneck block share: the shortcut."""

    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.downsample(x), inplace=True)


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.conv1, self.bn1 = conv3x3(inputs, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(x))


class Bottleneck(Block):
    """1x1, 3x3 (with the stride), 1x1 to four times the width."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        outputs = width * self.expansion
        super().__init__(inputs, outputs, stride)
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return self.bn3(self.conv3(x))


class ResNet(nn.Module):
    """Stem, a stage for each of `depths` (all but the first halve the map), global average pool, `fc`."""

    def __init__(self, block: type[Block], depths: list[int], widths: list[int], classes: int) -> None:
        super().__init__()
        channels = widths[0]
        self.conv1, self.bn1 = conv3x3(3, channels), nn.BatchNorm2d(channels)
        self.stages = [f"layer{i}" for i in range(1, len(depths) + 1)]
        for stage, depth, width in zip(self.stages, depths, widths, strict=True):
            blocks = []
            for i in range(depth):
                blocks.append(block(channels, width, 2 if i == 0 and stage != "layer1" else 1))
                channels = width * block.expansion
            self.add_module(stage, nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def maps(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x

    def features(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


WIDE_DEPTHS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}


def wide(depth: int, classes: int, size: int) -> ResNet:
    """ResNet-18, 34 or 50, with 64 channels in the first stage; of any `size`."""
    block = Bottleneck if depth >= 50 else BasicBlock
    return ResNet(block, WIDE_DEPTHS[depth], [64, 128, 256, 512], classes)


def thin(depth: int, classes: int, size: int) -> ResNet:
    """The ResNet of depth 6n + 2 with 16 channels in the first stage; of any `size`."""
    return ResNet(BasicBlock, [(depth - 2) // 6] * 3, [16, 32, 64], classes)
