"""Training a pixel prior on a pool: ε mean squared error, AdamW, EMA; it can be stopped and gone on with exactly."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.catalog import ROOT
from dfkd.errors import UserError
from dfkd.files import replacing
from dfkd.priors import cards
from dfkd.priors.pixel import SCHEDULE
from dfkd.priors.recipes import check
from dfkd.signals import stopping
from dfkd.synthesis.buffer import ShuffledPasses
from dfkd.tasks import Task, pool, store
from dfkd.teachers import file_digest
from dfkd.units import duration

if TYPE_CHECKING:
    from diffusers import UNet2DModel

WORK = ROOT / "work" / "priors"
SAVE_EVERY, SPEAK_EVERY = 60.0, 20.0  # seconds


class Stopped(UserError):
    """A signal asked the training to stop; its state has been saved."""


def train(
    name: str,
    recipe: Mapping[str, Any],
    own: Path,
    data_root: Path,
    device: torch.device | str,
    *,
    seed: int = 0,
    resume: bool = True,
    say: Callable[[str], None] = print,
) -> tuple[Path, dict[str, Any]]:
    """Train the prior `name` and keep folder, card and image digests in `own`; returns folder and card.

    With `resume` it goes on from the state that a stopped training of the same recipe left in `work/priors/<name>`; the
    result is bit for bit that of a training that was never stopped. Raises UserError for a recipe or pool that will not
    do and where the loss diverges, `Stopped` at SIGINT and SIGTERM.
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
    key = json.dumps([recipe, data_digest, seed, torch.device(device).type], sort_keys=True)
    state = WORK / name / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"

    training = Training(recipe, source, images, device, seed)
    if resume and state.is_file():
        training.load_state_dict(_read(state, device))
    say(f"prior {name}: training {recipe['steps']} steps on {len(images)} images, from step {training.step}")
    asked: list[str] = []
    with stopping(asked.append):
        _run(training, asked, state, lambda line: say(f"prior {name}: {line}"))

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


class Training:
    """Everything the next step depends on, and the step."""

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

        self.recipe, self.flip, self.device = recipe, source.flip, torch.device(device)
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
        self.step, self.seconds = 0, 0.0
        self.loss = torch.zeros((), device=device)  # running mean over some 100 steps, read when it is told

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
        """One step; nothing waits for the device."""
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
        self.step += 1
        self.loss = self.loss.lerp(loss.detach(), 1 / min(self.step, 100))

    def averaged(self) -> UNet2DModel:
        """The network with the averaged weights; the training is over with it."""
        self.ema.copy_to(self.unet.parameters())
        return self.unet.cpu().eval()

    def state_dict(self) -> dict[str, Any]:
        return {
            "unet": self.unet.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema.state_dict(),
            "passes": self.passes.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in ("unet", "optimiser", "ema", "passes"):
            getattr(self, part).load_state_dict(state[part])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]


def _run(training: Training, asked: list[str], state: Path, say: Callable[[str], None]) -> None:
    """Step to the end, saving and telling on the way."""
    steps, begun, before = training.recipe["steps"], training.step, training.seconds
    start = saved = time.perf_counter()
    spoke = start - SPEAK_EVERY  # the first estimate comes early
    while training.step < steps:
        training.advance()
        last, now = training.step == steps, time.perf_counter()
        if asked or last or (now - spoke > SPEAK_EVERY and training.step - begun >= 10):
            loss = training.loss.item()  # waits for the device
            if not math.isfinite(loss):
                raise UserError(f"training diverged before step {training.step}; lower lr")
            spoke = now = time.perf_counter()
            left = duration((now - start) / (training.step - begun) * (steps - training.step))
            say(f"step {training.step}/{steps}, loss {loss:.4f}, about {left} left")
        training.seconds = before + now - start
        if not last and (asked or now - saved > SAVE_EVERY):
            with replacing(state) as file:
                torch.save(training.state_dict(), file)
            saved = time.perf_counter()
        if asked and not last:
            raise Stopped(f"{asked[0]} at step {training.step} of {steps}; the same with --resume goes on")


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}); delete it to start afresh"
        ) from None


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
