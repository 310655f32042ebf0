"""A small diffusion model of pixels: diffusers' `UNet2DModel` under Stable Diffusion's schedule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dfkd.errors import UserError, reason
from dfkd.files import check_digest
from dfkd.priors.base import Condition, Prior, check_strength, check_weights, guided, resize
from dfkd.priors.folder import weights_path

if TYPE_CHECKING:
    from diffusers import UNet2DModel

# Stable Diffusion's, which every prior trained here has (diffdfkd.md 6).
SCHEDULE: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


def save(unet: UNet2DModel, folder: Path) -> None:
    """Write the folder that `PixelPrior.load` reads. Raises UserError where the system refuses."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from safetensors import SafetensorError

    try:
        unet.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        DDPMScheduler(**SCHEDULE, clip_sample=False).save_pretrained(folder / "scheduler")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {error}") from error


class PixelPrior(Prior):
    """Unconditional, or class-conditional with the last index as the null class; the latent is 2x − 1."""

    pixel_space = True

    def __init__(self, unet: UNet2DModel, card: dict[str, Any], schedule: Mapping[str, Any]) -> None:
        super().__init__(card, schedule)
        self.unet = unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.size = unet.config.sample_size
        if unet.config.num_class_embeds is not None:
            self.classes = unet.config.num_class_embeds - 1
        self.latent_shape = (3, self.size, self.size)

    @classmethod
    def load(cls, folder: Path | str, card: dict[str, Any], device: torch.device | str) -> PixelPrior:
        """The model of a `save_pretrained` folder with its `scheduler/`.

        Raises UserError where it differs from its card, or is no such model.
        """
        from diffusers import UNet2DModel
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        check_digest(weights_path(Path(folder)), card["digest"])
        try:
            unet = UNet2DModel.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
            schedule = DDPMScheduler.load_config(folder, subfolder="scheduler", local_files_only=True)
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise UserError(f"{folder} holds no UNet2DModel with a scheduler ({reason(error)})") from None
        if (unet.config.in_channels, unet.config.out_channels) != (3, 3) or not unet.config.sample_size:
            raise UserError(f"{folder}: a prior has 3 channels in and out and a `sample_size`")
        check_weights(folder, {"": unet})
        return cls(unet.to(device), card, schedule)

    def condition(
        self, count: int, prompt: str | list[str] = "", labels: Tensor | None = None, guidance: float = 1.0
    ) -> Condition | None:
        """As `Prior.condition`; the prompt says nothing to it. None for an unconditional model."""
        if self.classes is None:
            return None
        null = torch.full((count,), self.classes, device=self.unet.device)
        if labels is not None and labels.shape != (count,):
            raise ValueError(f"{count} labels expected, {tuple(labels.shape)} found")
        return Condition(null, null, 0.0) if labels is None else Condition(null, labels, guidance)

    def noise(self, z: Tensor, t: int, condition: Condition | None) -> Tensor:
        # Made on the device: a number copied there would be waited for.
        time = torch.full((), t, dtype=torch.int64, device=z.device)
        if condition is None:
            return self.unet(z, time).sample.to(z.dtype)

        def predict(z: Tensor, labels: Tensor) -> Tensor:
            return self.unet(z, time, class_labels=labels).sample

        return guided(predict, z, condition).to(z.dtype)

    def decode(self, clean: Tensor) -> Tensor:
        """As `Prior.decode`; here alone anything is clipped."""
        return (clean / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def augment(  # type: ignore[override]  # the options are its own
        self,
        images: Tensor,
        count: int,
        generator: torch.Generator,
        *,
        strength: float = 0.4,
        steps: int = 25,
        labels: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """As `Prior.augment`: noise up to `strength`, then DDIM (η = 0) back with ẑ_0 clipped (dda.md 4.2).

        `strength` 0 returns the images; 1 keeps nothing of them. `labels` (B) are for a class-conditional model.
        """
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        check_strength(strength)
        # With ᾱ = 1 after the last step: the result is ẑ_0, with no noise left in it.
        scheduler = DDIMScheduler.from_config(self._schedulers[True].config, set_alpha_to_one=True)
        scheduler.set_timesteps(steps)
        trajectory = self._retained(scheduler.timesteps.tolist(), strength)
        rows = images.repeat_interleave(count, 0)
        if trajectory:
            labels = labels if labels is None else labels.repeat_interleave(count)
            condition = self.condition(len(rows), labels=labels, guidance=guidance)
            x = 2 * resize(rows, self.size) - 1
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            start = self.alpha(trajectory[0])
            x = start**0.5 * x + (1 - start) ** 0.5 * noise
            for t in trajectory:
                x = scheduler.step(self.noise(x, t, condition), t, x).prev_sample
            rows = resize(self.decode(x), images.shape[-1])
        return rows.unflatten(0, (len(images), count))

    def _retained(self, timesteps: list[int], strength: float) -> list[int]:
        """The last of the timesteps, from the first that is as noisy as `strength` is on the linear schedule.

        The linear schedule counts strength s by index, the last ⌊25·s⌋ of 25 timesteps; this one asks for equal noise
        (dda.md 4.2): the first timestep, upwards, whose ᾱ is at most that of the linear one. So s means the same for
        any N.
        """
        kept = int(25 * strength + 1e-9)
        if not kept:
            return []
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        least = (1 - betas).cumprod(0)[(kept - 1) * 40].item()
        noisy = [i for i, t in enumerate(timesteps) if self.alpha(t) <= least]
        return timesteps[noisy[-1] if noisy else 0 :]
