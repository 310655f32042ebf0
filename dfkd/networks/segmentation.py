"""Segmentation networks, built by segmentation-models-pytorch, for images of any size.

Where they differ from the field's DeepLabV3 (baselines.md 1.5):

- `deeplabv3_resnet50`: atrous rates 12/24/36, as in the CMI and Fast sources (DFAD: 12/24/32), and the same
  39,636,813 parameters.
- `deeplabv3_mobilenetv2`: the encoder goes on to the last 1x1 convolution of 1,280 channels, where the field stops at
  the 320 before it: 12,651,021 parameters instead of 5,111,821.
- upsampling aligns corners.

Output stride 8 with rate 36 (or 24) has taps that lie outside every crop of 128 and are never trained, in the field's
networks too. The others here have output stride 16 and rates of which none is out of reach of a crop.
"""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT = 0.1  # of the head (CMI and Fast; DFAD has 0.5)


class Segmenter(nn.Module):
    """Encoder, decoder and head of an smp model; images B x C x H x W → logits B x classes x H x W.

    The image is padded with zeros, at the right and below, to a multiple of the encoder's stride, and the logits are
    cropped back.
    """

    def __init__(self, model: smp.base.SegmentationModel) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = model.encoder, model.decoder, model.segmentation_head
        self.stride = model.encoder.output_stride

    def features(self, x: Tensor) -> Tensor:
        """The mean over positions of the encoder's last map."""
        return self.encoder(self._padded(x))[-1].mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.decoder(self.encoder(self._padded(x))))
        return logits[..., : x.shape[-2], : x.shape[-1]]

    def _padded(self, x: Tensor) -> Tensor:
        below, right = (-side % self.stride for side in x.shape[-2:])
        return F.pad(x, (0, right, 0, below)) if below or right else x


def deeplabv3(encoder: str, classes: int, size: int) -> Segmenter:
    """DeepLabV3 at output stride 8."""
    return _segmenter("deeplabv3", encoder, classes, (12, 24, 36))


def deeplabv3plus(encoder: str, classes: int, size: int) -> Segmenter:
    """DeepLabV3+ at output stride 16."""
    return _segmenter("deeplabv3plus", encoder, classes, (2, 4, 6))


def thin(width: int, classes: int, size: int) -> Segmenter:
    """DeepLabV3+ on a ResNet-10 (one basic block a stage) of `width`, 2x, 4x, 8x `width` channels."""
    channels = (width, 2 * width, 4 * width, 8 * width)
    blocks = {"layers": (1, 1, 1, 1), "channels": channels, "stem_type": "deep", "stem_width": width // 2}
    return _segmenter("deeplabv3plus", "tu-resnet18", classes, (1, 2, 3), decoder_channels=3 * width, **blocks)


def _segmenter(arch: str, encoder: str, classes: int, rates: tuple[int, ...], **options: Any) -> Segmenter:
    """A freshly initialised network; nothing is downloaded."""
    options |= {"decoder_atrous_rates": rates, "decoder_aspp_dropout": DROPOUT}
    return Segmenter(smp.create_model(arch, encoder, encoder_weights=None, classes=classes, **options))
