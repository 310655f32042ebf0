"""Networks as the field of data-free distillation defines them (they are not torchvision's).

Every network has `forward(x) -> logits` and `features(x) -> pooled vector`; x is B x 3 x H x W and normalised already
(see `normalised.py`). Logits are B x classes x H x W of a segmentation network, and B x classes of a classifier, for
which `forward(x) == fc(features(x))`; a classifier also has `maps(x)` -> the post-ReLU input of the pooling, and
`stages`, the names of its stage modules in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfkd.errors import unknown
from dfkd.networks.names import ARCHITECTURES, CLASSIFIERS, SEGMENTERS

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARCHITECTURES", "CLASSIFIERS", "SEGMENTERS", "build"]


def build(arch: str, classes: int, size: int = 32) -> nn.Module:
    """A freshly initialised network for `classes` classes and images of `size` x `size` pixels.

    The weights are drawn from torch's global generator. Raises UserError for an unknown `arch`.
    """
    if arch not in ARCHITECTURES:
        raise unknown("network", arch, ARCHITECTURES)
    # torch is imported only here, so that listing names stays instant.
    if arch in SEGMENTERS:
        from dfkd.networks.segmentation import segmenter

        return segmenter(arch, classes)
    if arch.startswith("resnet"):
        from dfkd.networks.resnet import resnet

        return resnet(int(arch.removeprefix("resnet")), classes)
    if arch.startswith("wrn"):
        from dfkd.networks.wrn import WideResNet

        depth, widening = arch.removeprefix("wrn").split("_")
        return WideResNet(int(depth), int(widening), classes)
    from dfkd.networks.vgg import VGG11

    return VGG11(classes, size)
