"""Supervised training of teachers: uint8 arrays held on the device, no loader."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from torch import Tensor, nn

from dfkd import resumable
from dfkd.engine.clock import Clock
from dfkd.engine.compat import ClosedForm
from dfkd.engine.evaluation import Array, on_device
from dfkd.errors import UserError, unknown
from dfkd.networks.normalised import Normalised
from dfkd.synthesis import losses
from dfkd.synthesis.augment import augment_for
from dfkd.tasks import Task

RECIPE: dict[str, tuple[type, ...]] = {
    "epochs": (int,),
    "batch": (int,),
    "lr": (int, float),
    "momentum": (int, float),
    "weight_decay": (int, float),
    "schedule": (str,),
}
# γ of the focal loss (without it: the cross-entropy), and the weights file from which all but the head starts.
OPTIONAL: dict[str, tuple[type, ...]] = {"focal": (int, float), "encoder": (str,), "encoder_sha256": (str,)}
SCHEDULES = {"cosine": {}, "multistep": {"milestones": (list, tuple), "gamma": (int, float)}}


def rates(recipe: Mapping[str, Any]) -> list[float]:
    """The learning rate of each epoch: cosine towards 0, or `lr` times `gamma` at each of `milestones`.

    Raises UserError for a missing or unknown key, a value of the wrong type, an unknown schedule.
    """
    name = recipe.get("schedule")
    if name not in SCHEDULES:
        raise unknown("schedule", str(name), SCHEDULES)
    keys = RECIPE | SCHEDULES[name] | {key: OPTIONAL[key] for key in recipe.keys() & OPTIONAL.keys()}
    for key in recipe.keys() - keys.keys():
        raise unknown("key of a teacher's recipe", key, keys | OPTIONAL)
    for key, types in keys.items():
        if not isinstance(recipe.get(key), types) or isinstance(recipe[key], bool):
            raise UserError(f"the teacher's recipe: {key!r} is {recipe.get(key)!r}, not a {types[-1].__name__}")
    epochs, lr = recipe["epochs"], recipe["lr"]
    if epochs < 1 or recipe["batch"] < 2:
        raise UserError("the teacher's recipe: 'epochs' must be at least 1 and 'batch' at least 2")
    if name == "cosine":
        return [lr * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]
    return [lr * recipe["gamma"] ** sum(epoch >= m for m in recipe["milestones"]) for epoch in range(epochs)]


@PARAM_SCHEDULERS.register_module()
class TeacherRate(ClosedForm):
    """`rates`, epoch by epoch."""

    def rate(self, step: int) -> float:
        epochs = rates(self.recipe)
        return epochs[min(step, len(epochs) - 1)]


def train(
    network: nn.Module,
    images: Array,
    labels: Array,
    on: Task,
    recipe: Mapping[str, Any],
    *,
    seed: int,
    device: str | torch.device = "cpu",
    state: Path | None = None,
    resume: bool = True,
    until: float = math.inf,
    say: Callable[[str], None] = lambda line: None,
) -> float:
    """Supervised training of a bare network by SGD, in place, to the last epoch; returns the seconds it took.

    `on` gives normalisation and augmentation. With `resume` it goes on from what a stopped training left in `state`,
    and ends with the same weights, bit for bit. The network stays on the device, in eval mode. UserError for a bad
    recipe and where the loss diverges, `Stopped` as `resumable.finish` raises it.
    """
    rates(recipe)
    sgd = {key: recipe[key] for key in ("lr", "momentum", "weight_decay")}
    config = dict(
        model=dict(type="Supervised", recipe=dict(recipe), seed=seed),
        per="round",
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", **sgd)),
        param_scheduler=dict(type="TeacherRate", recipe=dict(recipe)),
        randomness=dict(seed=seed % 2**32),
    )
    given = {"network": network, "images": images, "labels": labels, "on": on}
    _, seconds = resumable.finish(config, given, device, state=state, resume=resume, until=until, say=say)
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
        self.network = Normalised(network, on.spec).to(device, memory_format=torch.channels_last)
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
