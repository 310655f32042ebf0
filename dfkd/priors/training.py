"""Training a pixel prior on a pool: ε mean squared error, AdamW, EMA; it can be stopped and gone on with exactly."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd import resumable
from dfkd.errors import UserError
from dfkd.priors import cards
from dfkd.priors.pixel import SCHEDULE
from dfkd.priors.recipes import check
from dfkd.synthesis.buffer import ShuffledPasses
from dfkd.tasks import Task, pool, store
from dfkd.teachers import file_digest

if TYPE_CHECKING:
    from diffusers import UNet2DModel

WORK = resumable.WORK / "priors"


def train(
    name: str,
    recipe: Mapping[str, Any],
    own: Path,
    data_root: Path,
    device: torch.device | str,
    *,
    seed: int = 0,
    resume: bool = True,
    until: float = math.inf,
    say: Callable[[str], None] = print,
) -> tuple[Path, dict[str, Any]]:
    """Train the prior `name` and keep folder, card and image digests in `own`; returns folder and card.

    With `resume` it goes on from the state that a stopped training of the same recipe left in `work/priors/<name>`; the
    result is bit for bit that of a training that was never stopped. Raises UserError for a recipe or pool that will not
    do and where the loss diverges, `Stopped` at SIGINT, SIGTERM and the moment `until` (of `time.monotonic`).
    """
    check(recipe)
    source = pool(recipe["data"])
    if source.spec.size % recipe["size"]:
        raise UserError(
            f"{recipe['data']} has {source.spec.size} pixels, which {recipe['size']} does not divide"
        )
    manifest = source.manifest(data_root)
    images, _ = source.load("train", data_root)
    data_digest = store.digest(manifest)
    state = resumable.state_path(WORK / name, recipe, data_digest, seed, torch.device(device).type)
    training = Training(recipe, source, images, device, seed)
    if resume and state.is_file():
        training.load_state_dict(resumable.load(state, device))
    say(f"prior {name}: training {recipe['steps']} steps on {len(images)} images, from step {training.step}")
    resumable.finish(training, state, until, lambda line: say(f"prior {name}: {line}"))

    target = own / name
    partial = _save(training.averaged(), target)
    cards.write_digests(own / f"{name}.images.npy", images)
    card = cards.new_card(
        name,
        "pixel",
        f"{recipe['data']}: {len(images):,} {manifest['changed']}, at {recipe['size']} pixels",
        "trained",
        data=recipe["data"],
        data_digest=data_digest,
        images=dict(zip(("count", "height", "width"), images.shape, strict=False)),
        size=recipe["size"],
        recipe=dict(recipe),
        seed=seed,
        seconds=round(training.seconds, 2),
        digest=file_digest(cards.weights_path(partial)),
    )
    cards.write_card(own / f"{name}.json", card)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)  # last, so that a folder in place always has its card
    state.unlink(missing_ok=True)
    return target, card


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


class Training(resumable.Training):
    """Of a U-Net on the images of a pool."""

    def __init__(
        self,
        recipe: Mapping[str, Any],
        source: Task,
        images: np.ndarray,
        device: torch.device | str,
        seed: int,
    ) -> None:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.training_utils import EMAModel

        super().__init__(device)
        self.recipe, self.flip, self.steps = recipe, source.flip, recipe["steps"]
        # As bytes in the pool's own size; each batch is scaled as it is drawn.
        self.images = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(device)
        self.unet = network(recipe, seed).to(device, memory_format=torch.channels_last).train()
        self.schedule = DDPMScheduler(**SCHEDULE)
        self.optimiser = torch.optim.AdamW(
            self.unet.parameters(), recipe["lr"], (0.9, 0.99), weight_decay=recipe["weight_decay"]
        )
        # Its decay rises as (1 + n)/(10 + n), so that the first weights are soon forgotten.
        self.ema = EMAModel(self.unet.parameters(), decay=recipe["ema"], foreach=True)
        self.passes = ShuffledPasses()
        self.generator = torch.Generator(device).manual_seed(seed)

    def draw(self) -> Tensor:
        """A batch in [−1, 1], B×3×size×size: area-averaged, flipped where the pool allows it."""
        index = self.passes.draw(self.recipe["batch"], len(self.images), self.generator)
        batch = self.images[index].float() / 127.5 - 1
        batch = F.avg_pool2d(batch, batch.shape[-1] // self.recipe["size"])
        if self.flip:
            flipped = torch.rand(len(batch), 1, 1, 1, generator=self.generator, device=self.device) < 0.5
            batch = torch.where(flipped, batch.flip(3), batch)
        return batch.contiguous(memory_format=torch.channels_last)

    def advance(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.recipe, self.step)
        clean, draw = self.draw(), {"generator": self.generator, "device": self.device}
        noise = torch.randn(clean.shape, **draw)
        times = torch.randint(0, SCHEDULE["num_train_timesteps"], (len(clean),), **draw)
        predicted = self.unet(self.schedule.add_noise(clean, noise, times), times).sample
        loss = F.mse_loss(predicted, noise)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimiser.step()
        self.ema.step(self.unet.parameters())
        self.done(loss)

    def averaged(self) -> UNet2DModel:
        """The network with the averaged weights; the training is over with it."""
        self.ema.copy_to(self.unet.parameters())
        return self.unet.cpu().eval()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "unet": self.unet.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema.state_dict(),
            "passes": self.passes.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for part in ("unet", "optimiser", "ema", "passes"):
            getattr(self, part).load_state_dict(state[part])
        self.generator.set_state(state["generator"].cpu())


def _save(unet: UNet2DModel, target: Path) -> Path:
    """The folder that `PixelPrior.load` reads, still beside its place. Raises UserError where the system refuses."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from safetensors import SafetensorError

    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        unet.to(memory_format=torch.contiguous_format).save_pretrained(partial)
        DDPMScheduler(**SCHEDULE, clip_sample=False).save_pretrained(partial / "scheduler")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {partial}: {error}") from error
    return partial
