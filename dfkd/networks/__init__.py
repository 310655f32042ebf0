"""Networks as the field of data-free distillation defines them, one line each, and those of torchvision and timm.

The field's are not torchvision's. Those are called by their library and name, `torchvision/resnet34`; the slash becomes
a dot wherever the name is part of a path.

Every network has `forward(x) -> logits` and `features(x) -> pooled vector`; x is B x 3 x H x W and normalised already
(see `normalised.py`). Logits are B x classes x H x W of a segmentation network, and B x classes of a classifier, for
which `forward(x) == fc(features(x))`; a classifier also has `maps(x)` -> the post-ReLU input of the pooling, and
`stages`, the names of its stage modules in order.

Importing this imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from dfkd.errors import named

if TYPE_CHECKING:
    from torch import nn

    from dfkd.tasks import InputSpec


class Network(NamedTuple):
    """The `kind` of task it is for, and what builds it: `module:callable` taking classes, size and `options`."""

    kind: str
    builder: str
    options: dict[str, Any]


def _classifier(builder: str, **options: Any) -> Network:
    return Network("classification", f"dfkd.networks.{builder}", options)


def _segmenter(builder: str, **options: Any) -> Network:
    return Network("segmentation", f"dfkd.networks.segmentation:{builder}", options)


NETWORKS: dict[str, Network] = {
    "resnet8": _classifier("resnet:thin", depth=8),
    "resnet20": _classifier("resnet:thin", depth=20),
    "resnet56": _classifier("resnet:thin", depth=56),
    "resnet18": _classifier("resnet:wide", depth=18),
    "resnet34": _classifier("resnet:wide", depth=34),
    "resnet50": _classifier("resnet:wide", depth=50),
    "wrn16_1": _classifier("wrn:WideResNet", depth=16, widening=1),
    "wrn16_2": _classifier("wrn:WideResNet", depth=16, widening=2),
    "wrn28_1": _classifier("wrn:WideResNet", depth=28, widening=1),
    "wrn40_1": _classifier("wrn:WideResNet", depth=40, widening=1),
    "wrn40_2": _classifier("wrn:WideResNet", depth=40, widening=2),
    "vgg11": _classifier("vgg:VGG11"),
    # timm's, made for 224 pixels: of 64 it sees more when they are enlarged to 96 (bilinear), which it does itself.
    "efficientnet_lite0_96": _classifier("library:timm", name="tf_efficientnet_lite0", side=96),
    "deeplabv3_resnet50": _segmenter("deeplabv3", encoder="resnet50"),
    "deeplabv3_mobilenetv2": _segmenter("deeplabv3", encoder="mobilenet_v2"),
    "deeplabv3plus_mobilenetv2": _segmenter("deeplabv3plus", encoder="mobilenet_v2"),
    "deeplabv3plus_thin32": _segmenter("thin", width=32),
    "deeplabv3plus_thin16": _segmenter("thin", width=16),
}


LIBRARIES = ("timm", "torchvision")


def network(arch: str) -> Network:
    """The network of that name. Raises UserError naming the nearest one; of a library's the library knows."""
    library, _, name = arch.replace("/", ".", 1).partition(".")
    if library in LIBRARIES and name:
        return _classifier(f"library:{library}", name=name)
    return named("network", arch, NETWORKS)


def fitting(kind: str) -> tuple[str, ...]:
    """The names of the networks for tasks of this kind, "classification" or "segmentation"."""
    return tuple(name for name, found in NETWORKS.items() if found.kind == kind)


def build(arch: str, classes: int, size: int = 32) -> nn.Module:
    """A freshly initialised network for `classes` classes and images of `size` x `size` pixels.

    The weights are drawn from torch's global generator. Raises UserError for an unknown `arch`.
    """
    _, builder, options = network(arch)
    module, name = builder.split(":")
    return getattr(importlib.import_module(module), name)(classes=classes, size=size, **options)


def initialise(arch: str, spec: InputSpec, seed: int) -> nn.Module:
    """A bare network with first weights that depend on `seed` alone; global random state is left alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(arch, spec.classes, spec.size)
