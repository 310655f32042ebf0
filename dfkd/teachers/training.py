"""Supervised training of teachers: uint8 arrays held on the device, no loader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from torch import Tensor, nn

from dfkd import resumable
from dfkd.engine.clock import Clock
from dfkd.engine.compat import ClosedForm
from dfkd.engine.evaluation import Array, on_device
from dfkd.errors import UserError
from dfkd.networks.normalised import Normalised
from dfkd.synthesis import losses
from dfkd.synthesis.augment import augment_for
from dfkd.tasks import Task
from dfkd.teachers.recipes import check


def rate(recipe: Mapping[str, Any], epoch: int) -> float:
    """The learning rate of an epoch, from 0: cosine towards 0, or `lr` times `gamma` at each of `milestones`."""
    if recipe["schedule"] == "cosine":
        return recipe["lr"] * (1 + math.cos(math.pi * epoch / recipe["epochs"])) / 2
    return recipe["lr"] * recipe["gamma"] ** sum(epoch >= milestone for milestone in recipe["milestones"])


@PARAM_SCHEDULERS.register_module()
class TeacherRate(ClosedForm):
    """`rate`, epoch by epoch."""

    def rate(self, step: int) -> float:
        return rate(self.recipe, step)


def train(
    network: nn.Module,
    images: Array,
    labels: Array,
    on: Task,
    recipe: Mapping[str, Any],
    *,
    seed: int,
    device: str | torch.device = "cpu",
    **options: Any,
) -> float:
    """Supervised training of a bare network by SGD, in place, to the last epoch; returns the seconds it took.

    `on` gives normalisation and augmentation; the options are those of `resumable.finish`, whose errors it raises, and
    UserError for a bad recipe. The network stays on the device, in eval mode.
    """
    check(recipe)
    sgd = {key: recipe[key] for key in ("lr", "momentum", "weight_decay")}
    config = dict(
        model=dict(type="Supervised", recipe=dict(recipe), seed=seed),
        per="round",
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", **sgd)),
        param_scheduler=dict(type="TeacherRate", recipe=dict(recipe)),
        randomness=dict(seed=seed % 2**32),
    )
    given = {"network": network, "images": images, "labels": labels, "on": on}
    _, seconds = resumable.finish(config, given, device, **options)
    network.eval()
    return seconds


@MODELS.register_module()
class Supervised(resumable.Training):
    """A classifier or a segmentation network on labelled images; cross-entropy, or for maps the focal loss."""

    def __init__(
        self,
        recipe: Mapping[str, Any],
        seed: int,
        *,
        network: nn.Module,
        images: Array,
        labels: Array,
        on: Task,
        clock: Clock,
    ) -> None:
        batches, left = divmod(len(labels), recipe["batch"])
        # Pooled to 1x1 by ASPP, one image gives BatchNorm no variance.
        batches += left > (1 if labels.ndim > 1 else 0)
        if not batches:
            raise UserError(f"{on.name} has {len(labels)} training images: too few for a teacher")
        super().__init__(recipe["epochs"], int(batches), clock)
        self.recipe, device = recipe, clock.device
        self.images, self.labels = on_device(images, labels, device)
        self.network = Normalised(network, on.spec).to(device).to(memory_format=torch.channels_last)
        self.augment = augment_for(on)
        # Streams of their own: one draw more in one place must not move the others.
        self.shuffling = torch.Generator().manual_seed(seed)
        self.augmentation = torch.Generator(device).manual_seed(seed)
        self.order, self.drawn = torch.empty(0, dtype=torch.int64), 0
        torch.manual_seed(seed)  # dropout takes no generator

    @property
    def trained(self) -> nn.Module:
        return self.network.network

    def draw(self) -> tuple[Tensor, Tensor]:
        batch = self.drawn % self.stages[0].student_steps
        if batch == 0:
            self.order = torch.randperm(len(self.labels), generator=self.shuffling).to(self.clock.device)
        self.drawn += 1
        index = self.order[batch * self.recipe["batch"] : (batch + 1) * self.recipe["batch"]]
        images, target = self.augment.pair(self.images[index], self.labels[index], self.augmentation)
        return images.float() / 255, target

    def loss(self, data: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = data
        logits = self.network(images)
        if labels.dim() == 1:
            return F.cross_entropy(logits, labels)
        return losses.focal(logits, labels, self.recipe.get("focal", 0.0)).mean()

    def place(self) -> str:
        epochs, batches = self.stages[0].rounds, self.stages[0].student_steps
        return f"epoch {self.progress.student_steps / batches:.4g}/{epochs}"

    def run_state(self) -> dict[str, Any]:
        return super().run_state() | {
            "order": self.order,
            "drawn": self.drawn,
            "shuffling": self.shuffling.get_state(),
            "augmentation": self.augmentation.get_state(),
        }

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        self.order, self.drawn = state["order"], state["drawn"]
        self.shuffling.set_state(state["shuffling"].cpu())
        self.augmentation.set_state(state["augmentation"].cpu())
