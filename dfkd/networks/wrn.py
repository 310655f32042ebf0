"""Wide residual networks WRN-d-k, pre-activation, without dropout (Zagoruyko and Komodakis, 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.networks.resnet import conv3x3


class WideBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv added to the raw input, or, where the width changes, to a 1x1 convolution
    (no BN) of the *activated* input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        residual = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return residual + (x if self.downsample is None else self.downsample(active))


class WideResNet(nn.Module):
    """Three stages of (depth - 4) / 6 blocks with 16k, 32k, 64k channels, strides 1, 2, 2; images of any `size`."""

    def __init__(self, depth: int, widening: int, classes: int, size: int) -> None:
        super().__init__()
        blocks, channels = (depth - 4) // 6, 16
        self.conv1 = conv3x3(3, channels)
        stages = []
        for width, stride in ((16 * widening, 1), (32 * widening, 2), (64 * widening, 2)):
            stage = [WideBlock(channels, width, stride)]
            stage += [WideBlock(width, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            channels = width
        self.layer1, self.layer2, self.layer3 = stages
        self.stages = ["layer1", "layer2", "layer3"]
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def maps(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return F.relu(self.bn1(x), inplace=True)

    def features(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def initialise(network: nn.Module) -> None:
    """Convolutions from N(0, 2 / (kernel area x output channels)), their biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
