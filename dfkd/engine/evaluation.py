"""The judge: test images that only it holds, and the metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import METRICS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from dfkd.engine import diagnostics
from dfkd.engine.clock import Clock
from dfkd.teachers.training import batch_of, mean_iou

if TYPE_CHECKING:
    from dfkd.tasks import Task


@METRICS.register_module()
class TopOne(BaseMetric):
    """Top-1 accuracy in percent over the whole set."""

    default_prefix = "test"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            correct = (sample["logits"].argmax(1) == sample["labels"]).sum()
            self.results.append((correct, len(sample["labels"])))

    def compute_metrics(self, results: list) -> dict[str, float]:
        correct, count = zip(*results, strict=True)
        return {"top1": 100.0 * torch.stack(list(correct)).sum().item() / sum(count)}


@METRICS.register_module()
class MeanIoU(BaseMetric):
    """Mean intersection over union as a fraction, from one confusion matrix of the whole set (see `mean_iou`)."""

    default_prefix = "test"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.jaccard = mean_iou(classes)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            self.jaccard.to(sample["labels"].device).update(sample["logits"].argmax(1), sample["labels"])
            self.results.append(len(sample["labels"]))

    def compute_metrics(self, results: list) -> dict[str, float]:
        value = self.jaccard.compute().item()
        self.jaccard.reset()
        return {"miou": value}


def metric_of(task: Task) -> dict:
    """The configuration of the task's metric; what that needs is imported, which may take seconds."""
    if task.metric == "miou":
        mean_iou(task.spec.classes)
    return {"top1": dict(type="TopOne"), "miou": dict(type="MeanIoU", classes=task.spec.classes)}[task.metric]


class Judge(BaseLoop):
    """Evaluates a network on the test split; an mmengine validation loop without a loader.

    The images, uint8 on the device, are loaded before the guard is sealed, and nothing hands them on.
    """

    def __init__(
        self,
        runner: Runner,
        evaluator: Evaluator,
        images: Tensor,
        labels: Tensor,
        clock: Clock,
    ) -> None:
        super().__init__(runner, dataloader=[])
        self.evaluator, self._clock, self._batch = evaluator, clock, batch_of(images)
        self.__images, self.__labels = images, labels

    @torch.no_grad()
    def describe(self, teacher: nn.Module, images: Tensor, labels: Tensor | None) -> dict:
        """What synthetic images (uint8) are like beside the test set, to the teacher's eye. Uncharged, uncounted."""
        with self._clock.phase("evaluation"):
            seen = teacher.images_seen
            real = diagnostics.features_of(teacher, self.__images, self._batch)
            facts = diagnostics.describe(teacher, images, labels, real, self._batch)
            teacher.images_seen = seen
        return facts

    @torch.no_grad()
    def run(self, network: nn.Module) -> float:
        """The metric of `network` (images in [0, 1] → logits), left in the mode it was in. Uncharged."""
        training = network.training
        with self._clock.phase("evaluation"):
            network.eval()
            self.runner.call_hook("before_val")
            for first in range(0, len(self.__labels), self._batch):
                images = self.__images[first : first + self._batch].float().div_(255)
                sample = {"logits": network(images), "labels": self.__labels[first : first + self._batch]}
                self.evaluator.process([sample])
            (value,) = self.evaluator.evaluate(len(self.__labels)).values()
            network.train(training)
        return value
