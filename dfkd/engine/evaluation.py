"""One batched evaluation, for teachers and students alike: a network, a test set, one confusion matrix, a metric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dfkd.metrics import confusion, metric

if TYPE_CHECKING:
    from dfkd.tasks import Task

Array = np.ndarray | Tensor


def on_device(images: Array, labels: Array, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Arrays (uint8 N x H x W x C, int64 labels) as tensors on the device (uint8 N x C x H x W, channels last).

    Tensors are taken to be N x C x H x W already. On a CPU a memory map stays one: only what is drawn of it is read.
    """
    if isinstance(images, np.ndarray):
        mapped = isinstance(images, np.memmap) and images.flags.writeable  # torch wants no others
        images = torch.from_numpy(images if mapped else np.array(images)).permute(0, 3, 1, 2)
    if isinstance(labels, np.ndarray):
        labels = torch.from_numpy(np.array(labels, dtype=np.int64))
    return images.to(device), labels.to(device)


class Batches:
    """A test set on the device, in batches as large as an evaluation takes at once: images in [0, 1], labels."""

    def __init__(self, images: Array, labels: Array, device: str | torch.device) -> None:
        self.images, self.labels = on_device(images, labels, device)
        # 500 images, or fewer where they are large.
        self.size = max(1, min(500, 2**20 // (self.images.shape[2] * self.images.shape[3])))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(self.images.split(self.size), self.labels.split(self.size), strict=True):
            yield images.float().div_(255), labels

    def __len__(self) -> int:
        return -(-len(self.labels) // self.size)


@torch.no_grad()
def confusion_of(network: nn.Module, batches: Batches, classes: int) -> Tensor:
    """The confusion matrix of a network (images in [0, 1] → logits), which is left in the mode it was in."""
    training = network.training
    network.eval()
    matrix: Any = sum(confusion(network(images).argmax(1), labels, classes) for images, labels in batches)
    network.train(training)
    return matrix


def score(network: nn.Module, on: Task, images: Array, labels: Array, device: str | torch.device) -> float:
    """The task's metric of a network that takes images in [0, 1]; it waits for the device once."""
    return metric(on.metric).of(confusion_of(network, Batches(images, labels, device), on.spec.classes).cpu())
