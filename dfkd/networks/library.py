"""Classifiers of torchvision and timm, by the library's own name, with what the field's networks offer.

Pooled features, last maps and stages are found by watching one forward pass, not by knowing any architecture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.errors import UserError, reason, unknown
from dfkd.networks.capture import outputs


class LibraryNetwork(nn.Module):
    """Somebody's classifier of N x 3 x `size` x `size` images.

    `fc` is its last linear layer and the features are that layer's input. `stages` are the names of the last blocks at
    each size of map, and `maps` the map whose mean over positions the features are; of some networks (VGG, vision
    transformers) there is none. Either raises ValueError where it is asked for in vain. With `side` the model
    itself is given images of that size (bilinear).
    """

    def __init__(self, model: nn.Module, classes: int, size: int, side: int | None = None) -> None:
        super().__init__()
        self.model, self._side = model, side
        linear = [name for name, module in self.named_modules() if isinstance(module, nn.Linear)]
        ends = [name for name in linear if self._ends_in(name, classes)]
        if not ends:
            raise UserError(f"{type(model).__name__} does not end in a linear layer of {classes} classes")
        self._classifier = ends[-1]
        self._stages, self._last = self._look(size)

    def _ends_in(self, name: str, classes: int) -> bool:
        layer = self.get_submodule(name)
        return isinstance(layer, nn.Linear) and layer.out_features == classes

    @property
    def fc(self) -> nn.Linear:
        return cast(nn.Linear, self.get_submodule(self._classifier))

    @property
    def stages(self) -> list[str]:
        if not self._stages:
            raise ValueError(f"{type(self.model).__name__} has no stages of feature maps")
        return self._stages

    def maps(self, x: Tensor) -> Tensor:
        if self._last is None:
            raise ValueError(f"{type(self.model).__name__} does not classify by the mean of a feature map")
        with outputs(self, [self._last]) as found:
            self(x)
        return found[self._last]

    def features(self, x: Tensor) -> Tensor:
        with _input(self.fc) as found:
            self(x)
        return found[-1]

    def forward(self, x: Tensor) -> Tensor:
        if self._side is not None:
            x = F.interpolate(x, size=(self._side, self._side), mode="bilinear", align_corners=False)
        return self.model(x)

    @torch.no_grad()
    def _look(self, size: int) -> tuple[list[str], str | None]:
        """The names of the stages, and of the module whose output, averaged over positions, are the features."""
        blocks = [
            name
            for name, module in self.named_modules()
            if name.count(".") in (1, 2) and any(module.children()) and "Pool" not in type(module).__name__
        ]
        probe = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
        training = self.training
        self.eval()
        with outputs(self, blocks) as made, _input(self.fc) as features:
            self(probe)
        self.train(training)
        found = {name: output for name, output in made.items() if isinstance(output, Tensor) and output.dim() == 4}
        last = {map.shape[-1]: name for name, map in found.items()}  # at each size
        pooled = features[-1]
        fitting = (name for name in reversed(last.values()) if _averages_to(found[name], pooled))
        return list(last.values()), next(fitting, None)


def _averages_to(map: Tensor, pooled: Tensor) -> bool:
    mean = map.mean((2, 3))
    return mean.shape == pooled.shape and torch.allclose(mean, pooled, rtol=1e-4, atol=1e-6)


@contextmanager
def _input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer is given in the forward passes made inside."""
    found: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0])):
        yield found


def torchvision(name: str, classes: int, size: int) -> LibraryNetwork:
    """A classifier of torchvision, such as `resnet34`, of random weights. Raises UserError."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown("network of torchvision", name, known)
    alone = (
        {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    )  # no second output in training
    return _fitted(models.get_model(name, weights=None, num_classes=classes, **alone), classes, size)


def timm(name: str, classes: int, size: int, side: int | None = None) -> LibraryNetwork:
    """A classifier of timm, such as `efficientnet_lite0`, of random weights. Raises UserError."""
    import timm as library

    known = library.list_models()
    if name not in known:
        raise unknown("network of timm", name, known)
    return _fitted(library.create_model(name, num_classes=classes), classes, size, side)


def _fitted(model: nn.Module, classes: int, size: int, side: int | None = None) -> LibraryNetwork:
    try:
        return LibraryNetwork(model, classes, size, side)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f"{type(model).__name__} does not take images of {size} x {size} ({reason(error)})") from None
