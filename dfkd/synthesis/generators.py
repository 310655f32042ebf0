"""Generators of synthetic images. Both end in a sigmoid: images are in [0, 1]."""

from __future__ import annotations

import itertools

import torch
from torch import nn


class Generator(nn.Sequential):
    """The CIFAR generator of Fast and SSD-KD (baselines.md 1.3): z (N×nz) → N×channels×size×size.

    2,328,899 parameters at nz 256, ngf 64, size 32. `size` is a multiple of 4.
    """

    def __init__(self, nz: int = 256, ngf: int = 64, size: int = 32, channels: int = 3) -> None:
        if size % 4:
            raise ValueError(f"the generator makes images of a multiple of 4 pixels, not {size}")
        start = size // 4
        super().__init__(
            nn.Linear(nz, 2 * ngf * start * start),
            nn.Unflatten(1, (2 * ngf, start, start)),
            nn.BatchNorm2d(2 * ngf),
            nn.Upsample(scale_factor=2),
            *_convolution(2 * ngf, 2 * ngf),
            nn.Upsample(scale_factor=2),
            *_convolution(2 * ngf, ngf),
            nn.Conv2d(ngf, channels, 3, padding=1),
            nn.Sigmoid(),
        )
        self.nz = nz

    def first_layers(self) -> tuple[nn.Linear, nn.BatchNorm2d]:
        """The linear layer and the first BatchNorm, which Fast draws anew once (`reset_l0`)."""
        return self[0], self[2]


class DeepGenerator(nn.Sequential):
    """The DCGAN-like generator (baselines.md 1.5), for images of 64 pixels and more: z (N×nz) → N×channels×size×size.

    `size` is doubled from the first maps, of 5 to 8 pixels: 128 = 8·2^4 gives widths 512, 256, 128, 64, 64, and
    224 = 7·2^5 one more of 64. Weights N(0, .02), BatchNorm gain N(1, .02).
    """

    def __init__(self, nz: int = 256, ngf: int = 64, size: int = 128, channels: int = 3) -> None:
        doublings = max(0, (size - 1) // 8).bit_length()
        start = size >> doublings
        if size != start << doublings or size < 5:
            raise ValueError(f"the generator makes images of 5 to 8 times 2^k pixels, not {size}")
        widths = [8 * ngf] + [max(ngf, 4 * ngf >> i) for i in range(doublings)]
        layers: list[nn.Module] = [
            nn.Linear(nz, widths[0] * start * start),
            nn.Unflatten(1, (widths[0], start, start)),
            nn.BatchNorm2d(widths[0]),
        ]
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(widths[-1], channels, 3, padding=1), nn.Sigmoid())
        self.nz = nz
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def first_layers(self) -> tuple[nn.Linear, nn.BatchNorm2d]:
        return self[0], self[2]


def build_generator(nz: int, ngf: int, size: int, channels: int) -> Generator | DeepGenerator:
    """The generator the field uses at this image size (pixels)."""
    return (Generator if size < 64 else DeepGenerator)(nz, ngf, size, channels)


def _convolution(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]


def reset(layers: tuple[nn.Linear, nn.BatchNorm2d], generator: torch.Generator) -> None:
    """Fast's `reset_l0`: weights from N(0, .02), the BatchNorm gain too (around 0, not 1), biases 0."""
    for layer in layers:
        nn.init.normal_(layer.weight, 0.0, 0.02, generator=generator)
        nn.init.zeros_(layer.bias)


def redraw(network: nn.Module, generator: torch.Generator) -> None:
    """CMI's start of every call: weights from N(0, .02), BatchNorm gains from N(1, .02), biases 0 (dda.md 1.2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d):
            mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            nn.init.normal_(module.weight, mean, 0.02, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
