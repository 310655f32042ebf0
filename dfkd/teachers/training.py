"""Supervised training of teachers, and their test scores: uint8 arrays held on the device, no loader."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd import resumable
from dfkd.errors import UserError, unknown
from dfkd.networks import build
from dfkd.networks.keys import check_finite
from dfkd.networks.normalised import Normalised
from dfkd.synthesis import losses
from dfkd.synthesis.augment import augment_for
from dfkd.tasks import IGNORE, InputSpec, Task

if TYPE_CHECKING:
    from torchmetrics.classification import MulticlassJaccardIndex

Array = np.ndarray | Tensor

RECIPE: dict[str, tuple[type, ...]] = {
    "epochs": (int,),
    "batch": (int,),
    "lr": (int, float),
    "momentum": (int, float),
    "weight_decay": (int, float),
    "schedule": (str,),
}
# γ of the focal loss (without it: the cross-entropy), and the weights file from which the encoder starts.
OPTIONAL: dict[str, tuple[type, ...]] = {"focal": (int, float), "encoder": (str,)}
SCHEDULES = {"cosine": {}, "multistep": {"milestones": (list, tuple), "gamma": (int, float)}}


def initialise(arch: str, spec: InputSpec, seed: int) -> nn.Module:
    """A bare network with first weights that depend on `seed` alone; global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(arch, spec.classes, spec.size)


def on_device(images: Array, labels: Array, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Arrays (uint8 N x H x W x C, int64 labels) as tensors on the device (uint8 N x C x H x W, channels last).

    Tensors are taken to be N x C x H x W already.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    if isinstance(labels, np.ndarray):
        labels = torch.from_numpy(np.array(labels, dtype=np.int64))
    return images.to(device), labels.to(device)


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
            raise UserError(
                f"the teacher's recipe: {key!r} is {recipe.get(key)!r}, not a {types[-1].__name__}"
            )
    epochs, lr = recipe["epochs"], recipe["lr"]
    if epochs < 1 or recipe["batch"] < 2:
        raise UserError("the teacher's recipe: 'epochs' must be at least 1 and 'batch' at least 2")
    if name == "cosine":
        return [lr * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]
    return [lr * recipe["gamma"] ** sum(epoch >= m for m in recipe["milestones"]) for epoch in range(epochs)]


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
    training = Training(network, images, labels, on, recipe, seed, device)
    if resume and state is not None and state.is_file():
        training.load_state_dict(resumable.load(state, device))
        say(f"going on from {training.progress()}")
    resumable.finish(training, state, until, say)
    try:
        check_finite(network.state_dict())
    except UserError as error:
        raise UserError(f"training diverged: {error}; lower lr") from None
    network.eval()
    return training.seconds


class Training(resumable.Training):
    """Of a classifier or a segmentation network."""

    def __init__(
        self,
        network: nn.Module,
        images: Array,
        labels: Array,
        on: Task,
        recipe: Mapping[str, Any],
        seed: int,
        device: str | torch.device,
    ) -> None:
        super().__init__(device)
        self.network, self.recipe, self.rates = network, recipe, rates(recipe)
        self.images, self.labels = on_device(images, labels, device)
        self.model = Normalised(network, on.spec).to(device, memory_format=torch.channels_last).train()
        self.augment = augment_for(on)
        batches, left = divmod(len(self.labels), recipe["batch"])
        # Pooled to 1x1 by ASPP, one image gives BatchNorm no variance.
        self.batches = batches + (left > (1 if self.labels.dim() > 1 else 0))
        self.steps = self.batches * recipe["epochs"]
        if not self.steps:
            raise UserError(f"{on.name} has {len(self.labels)} training images: too few for a teacher")
        # Streams of their own: one draw more in one place must not move the others.
        self.shuffling = torch.Generator().manual_seed(seed)
        self.augmentation = torch.Generator(device).manual_seed(seed)
        torch.manual_seed(seed)  # dropout takes no generator
        self.order = torch.empty(0, dtype=torch.int64)
        self.optimiser = torch.optim.SGD(
            network.parameters(), self.rates[0], recipe["momentum"], weight_decay=recipe["weight_decay"]
        )

    def advance(self) -> None:
        epoch, batch = divmod(self.step, self.batches)
        if batch == 0:
            self.order = torch.randperm(len(self.labels), generator=self.shuffling).to(self.device)
        self.optimiser.param_groups[0]["lr"] = self.rates[epoch]
        index = self.order[batch * self.recipe["batch"] : (batch + 1) * self.recipe["batch"]]
        images, target = self.augment.pair(self.images[index], self.labels[index], self.augmentation)
        loss = _loss(self.model(images.float() / 255), target, self.recipe)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.done(loss)

    def progress(self) -> str:
        return f"epoch {self.step / self.batches:.4g}/{len(self.rates)}"

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "order": self.order,
            "shuffling": self.shuffling.get_state(),
            "augmentation": self.augmentation.get_state(),
            "host": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.order = state["order"]
        self.shuffling.set_state(state["shuffling"].cpu())
        self.augmentation.set_state(state["augmentation"].cpu())
        torch.set_rng_state(state["host"].cpu())
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)


def _loss(logits: Tensor, labels: Tensor, recipe: Mapping[str, Any]) -> Tensor:
    """Cross-entropy, or for labels per pixel the focal loss, averaged over the labelled pixels of each image."""
    if labels.dim() == 1:
        return F.cross_entropy(logits, labels)
    return losses.focal(logits, labels, recipe.get("focal", 0.0)).mean()


def batch_of(images: Tensor) -> int:
    """How many of these images, N x C x H x W, are evaluated at once: 500, or fewer where they are large."""
    return max(1, min(500, 2**20 // (images.shape[2] * images.shape[3])))


def score(network: nn.Module, on: Task, images: Array, labels: Array, device: str | torch.device) -> float:
    """The task's metric of a network that takes images in [0, 1], as `accuracy` or `mean_iou` gives it."""
    if on.metric == "top1":
        return accuracy(network, images, labels, device)
    jaccard = mean_iou(on.spec.classes).to(device)
    for predicted, truth in _predictions(network, images, labels, device):
        jaccard.update(predicted, truth)
    return jaccard.compute().item()


def accuracy(network: nn.Module, images: Array, labels: Array, device: str | torch.device) -> float:
    """Top-1 accuracy in percent; it waits for the device once."""
    hits = sum(
        (predicted == truth).sum() for predicted, truth in _predictions(network, images, labels, device)
    )
    return 100.0 * hits.item() / len(labels)


def mean_iou(classes: int) -> MulticlassJaccardIndex:
    """Mean intersection over union as a fraction, from one confusion matrix of all predictions it is updated with.

    Pixels labelled `IGNORE` do not count. A class without a pixel in labels and predictions is left out of the mean
    (DFAD's convention; the CMI and Fast programs count it as 0).
    """
    # Takes seconds, and classifiers need none of it.
    from torchmetrics.classification import MulticlassJaccardIndex

    return MulticlassJaccardIndex(classes, average="macro", ignore_index=IGNORE, validate_args=False)


@torch.inference_mode()
def _predictions(
    network: nn.Module, images: Array, labels: Array, device: str | torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Predicted and true classes, batch by batch, of a network in eval mode; it is left in the mode it had."""
    images, labels = on_device(images, labels, device)
    training, batch = network.training, batch_of(images)
    network.eval()
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        yield network(x.float() / 255).argmax(1), y
    network.train(training)
