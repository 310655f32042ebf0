"""One batched evaluation, for teachers and students alike: a network, a test set, one confusion matrix, a metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import LOOPS, METRICS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from dfkd.engine import diagnostics
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
    matrix = sum(confusion(network(images).argmax(1), labels, classes) for images, labels in batches)
    network.train(training)
    return matrix


def score(network: nn.Module, on: Task, images: Array, labels: Array, device: str | torch.device) -> float:
    """The task's metric of a network that takes images in [0, 1]; it waits for the device once."""
    return metric(on.metric).of(confusion_of(network, Batches(images, labels, device), on.spec.classes).cpu())


@METRICS.register_module()
class ConfusionMetric(BaseMetric):
    """A metric of `dfkd.metrics`, by name, over the sum of the confusion matrices that it is given."""

    default_prefix = "test"

    def __init__(self, name: str) -> None:
        super().__init__()
        self.metric = metric(name)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        self.results += [sample["confusion"] for sample in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {self.metric.name: self.metric.of(sum(results))}


@LOOPS.register_module()
class EvaluationLoop(BaseLoop):
    """Evaluates what the Runner's model names, on a test set of `Batches` that nothing hands on. Uncharged."""

    def __init__(self, runner: Runner, dataloader: Batches, evaluator: Evaluator | dict, classes: int) -> None:
        super().__init__(runner, dataloader)
        self.evaluator = runner.build_evaluator(evaluator) if isinstance(evaluator, dict) else evaluator
        self.classes, self.clock = classes, runner.model.clock

    def run(self) -> float:
        model = self.runner.model
        with self.clock.phase("evaluation"):
            self.runner.call_hook("before_val")
            seen = model.ctx.teacher.images_seen  # where it is the teacher that is evaluated
            matrix = confusion_of(model.evaluated(), self.dataloader, self.classes)
            model.ctx.teacher.images_seen = seen
            self.evaluator.process([{"confusion": matrix}])
            (value,) = self.evaluator.evaluate(1).values()
        return value

    @torch.no_grad()
    def describe(self) -> dict | None:
        """What the model's synthetic images are like beside the test set, to the teacher's eye; None without images."""
        model = self.runner.model
        made = model.images()
        if made is None:
            return None
        with self.clock.phase("evaluation"):
            teacher, size = model.ctx.teacher, self.dataloader.size
            seen = teacher.images_seen
            real = diagnostics.features_of(teacher, self.dataloader.images, size)
            facts = diagnostics.describe(teacher, *made, real, size)
            teacher.images_seen = seen
        return facts
