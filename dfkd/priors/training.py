"""Training a pixel prior on a pool: ε mean squared error, AdamW, EMA; it can be stopped and gone on with exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from torch import Tensor

from dfkd import resumable
from dfkd.engine.clock import Clock
from dfkd.engine.compat import ClosedForm
from dfkd.errors import UserError
from dfkd.priors.pixel import SCHEDULE
from dfkd.priors.recipes import check
from dfkd.synthesis.buffer import ShuffledPasses
from dfkd.tasks import Task

if TYPE_CHECKING:
    from diffusers import UNet2DModel


def train(
    recipe: Mapping[str, Any],
    source: Task,
    images: np.ndarray,
    *,
    seed: int,
    device: torch.device | str,
    **options: Any,
) -> tuple[UNet2DModel, float]:
    """Train a U-Net on the auxiliary `images` (uint8, N×H×W×3) of `source`: it with averaged weights, and the seconds.

    The options are those of `resumable.finish`, whose errors it raises, and UserError for a recipe or images that will
    not do.
    """
    check(recipe)
    if source.spec.size % recipe["size"]:
        raise UserError(f"{recipe['data']} has {source.spec.size} pixels, which {recipe['size']} does not divide")
    optimizer = dict(type="AdamW", lr=recipe["lr"], betas=(0.9, 0.99), weight_decay=recipe["weight_decay"])
    config = dict(
        model=dict(type="Denoising", recipe=dict(recipe), seed=seed),
        per="step",
        optim_wrapper=dict(type="OptimWrapper", optimizer=optimizer),
        param_scheduler=dict(type="PriorRate", recipe=dict(recipe)),
        randomness=dict(seed=seed % 2**32),
    )
    given = {"flip": source.flip, "images": images}
    training, seconds = resumable.finish(config, given, device, **options)
    return training.averaged(), seconds


def network(recipe: Mapping[str, Any], seed: int) -> UNet2DModel:
    """A U-Net with first weights that depend on `seed` alone; attention in its middle block only."""
    from diffusers import UNet2DModel

    levels = len(recipe["channels"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=recipe["size"],
            block_out_channels=tuple(recipe["channels"]),
            layers_per_block=recipe["layers"],
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=8,
        )


def rate(recipe: Mapping[str, Any], step: int) -> float:
    """The learning rate of a step, from 0: a linear rise, then `lr`, then a cosine down to a fiftieth of it."""
    lr, steps, falling = recipe["lr"], recipe["steps"], recipe["decay"] * recipe["steps"]
    if step < recipe["warmup"]:
        return lr * (step + 1) / recipe["warmup"]
    if step < steps - falling:
        return lr
    progress = (step - (steps - falling)) / falling
    return lr * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


@PARAM_SCHEDULERS.register_module()
class PriorRate(ClosedForm):
    """`rate`, step by step."""

    def rate(self, step: int) -> float:
        return rate(self.recipe, step)


@MODELS.register_module()
class Denoising(resumable.Training):
    """A U-Net that predicts the noise in auxiliary images, with averaged weights."""

    def __init__(self, recipe: Mapping[str, Any], seed: int, *, images: np.ndarray, flip: bool, clock: Clock) -> None:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.training_utils import EMAModel

        super().__init__(1, recipe["steps"], clock)
        self.recipe, self.flip, device = recipe, flip, clock.device
        # As bytes in their own size; each batch is scaled as it is drawn.
        self.images = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(device)
        self.unet = network(recipe, seed).to(device).to(memory_format=torch.channels_last)
        self.schedule = DDPMScheduler(**SCHEDULE)
        # Its decay rises as (1 + n)/(10 + n), so that the first weights are soon forgotten.
        self.ema = EMAModel(self.unet.parameters(), decay=recipe["ema"], foreach=True)
        self.passes = ShuffledPasses()
        self.generator = torch.Generator(device).manual_seed(seed)

    @property
    def trained(self) -> UNet2DModel:
        return self.unet

    def opening(self) -> str:
        return f"training {self.steps} steps on {len(self.images)} images, from step {self.progress.student_steps}"

    def draw(self) -> Tensor:
        """A batch in [−1, 1], B×3×size×size: area-averaged, flipped where the auxiliary data allow it."""
        index = self.passes.draw(self.recipe["batch"], len(self.images), self.generator)
        batch = self.images[index].float() / 127.5 - 1
        batch = F.avg_pool2d(batch, batch.shape[-1] // self.recipe["size"])
        if self.flip:
            flipped = torch.rand(len(batch), 1, 1, 1, generator=self.generator, device=batch.device) < 0.5
            batch = torch.where(flipped, batch.flip(3), batch)
        return batch.contiguous(memory_format=torch.channels_last)

    def loss(self, data: Tensor) -> Tensor:
        draw: dict[str, Any] = {"generator": self.generator, "device": data.device}
        noise = torch.randn(data.shape, **draw)
        times = torch.randint(0, SCHEDULE["num_train_timesteps"], (len(data),), **draw)
        return F.mse_loss(self.unet(self.schedule.add_noise(data, noise, times), times).sample, noise)

    def update(self, loss: Tensor, optim_wrapper: OptimWrapper) -> None:
        optim_wrapper.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)  # the wrapper's own reads the norm at each step
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        self.ema.step(self.unet.parameters())

    def averaged(self) -> UNet2DModel:
        """The network with the averaged weights; the training is over with it."""
        self.ema.copy_to(self.unet.parameters())
        return self.unet.cpu().eval()

    def run_state(self) -> dict[str, Any]:
        averages = {"ema": self.ema.state_dict(), "passes": self.passes.state_dict()}
        return super().run_state() | averages | {"generator": self.generator.get_state()}

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        self.ema.load_state_dict(state["ema"])
        self.passes.load_state_dict(state["passes"])
        self.generator.set_state(state["generator"].cpu())
