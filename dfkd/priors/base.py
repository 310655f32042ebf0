"""The interface of a diffusion prior, and what every backend shares: schedule, DDPM step, guidance, resizing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.errors import UserError
from dfkd.networks.keys import check_finite


@dataclass
class Condition:
    """What classifier-free guidance steers by: rows for the null and for the given condition, and the scale w."""

    null: Tensor
    given: Tensor
    guidance: float


class Prior:
    """A frozen diffusion model; images are B×3×size×size in [0, 1], latents B×latent_shape, eps is its ε̂.

    Equation numbers are those of diffdfkd.md 1.4.
    """

    card: dict[str, Any]
    size: int
    """Side in pixels of the images that it makes."""
    latent_shape: tuple[int, int, int]
    pixel_space: bool
    """The latent is the image, scaled to [−1, 1]: there is no decoder."""
    classes: int | None = None
    """Of a class-conditional model: how many, the null class not counted."""
    guides = True
    """False: only `augment` works (image variations)."""

    def __init__(self, card: dict[str, Any], schedule: Mapping[str, Any]) -> None:
        """`schedule` is the configuration of any diffusers scheduler; of it the betas are used."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self.card = card
        if schedule.get("prediction_type", "epsilon") != "epsilon":
            raise UserError(f"prior {card['name']} predicts {schedule['prediction_type']!r}, not the noise")
        # Two schedulers, so that clipping is an option of the call and no state. Neither is ever moved to the device:
        # its numbers are scalars, and looking one up there would wait for it.
        self._schedulers = {
            clip: DDPMScheduler.from_config(
                schedule,
                clip_sample=clip,
                timestep_spacing="leading",
                steps_offset=1,
                variance_type="fixed_small",
            )
            for clip in (False, True)
        }
        self._alphas: list[float] = self._schedulers[False].alphas_cumprod.double().tolist()

    def timesteps(self, steps: int) -> list[int]:
        """The timesteps of a trajectory, descending: 981, 961, …, 1 for 50. `step` goes between those asked for last.

        Raises UserError for a number of steps that the schedule does not have.
        """
        if not 1 <= steps < len(self._alphas):
            raise UserError(f"a trajectory takes 1 to {len(self._alphas) - 1} steps, not {steps}")
        for scheduler in self._schedulers.values():
            scheduler.set_timesteps(steps)
        return self._schedulers[False].timesteps.tolist()

    def alpha(self, t: int) -> float:
        """ᾱ_t, the share of the image's variance left at timestep t."""
        return self._alphas[t]

    def condition(
        self, count: int, prompt: str | list[str] = "", labels: Tensor | None = None, guidance: float = 1.0
    ) -> Condition | None:
        """What `noise` is to be guided by, for `count` samples: the prompt's text or the labels, whichever it knows."""
        raise NotImplementedError

    def noise(self, z: Tensor, t: int, condition: Any) -> Tensor:
        """ε̂ of z at timestep t (equation 1); the gradient reaches z through the U-Net."""
        raise NotImplementedError

    def clean(self, z: Tensor, t: int, eps: Tensor) -> Tensor:
        """ẑ_0, the clean latent that z and ε̂ imply (equation 2); not clipped."""
        return (z - (1 - self.alpha(t)) ** 0.5 * eps) / self.alpha(t) ** 0.5

    def decode(self, clean: Tensor) -> Tensor:
        """The image of a clean latent, clamped to [0, 1] (equation 3); with gradient."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, z: Tensor, t: int, eps: Tensor, generator: torch.Generator, clip: bool = False) -> Tensor:
        """One ancestral DDPM step (equation 10): posterior mean plus noise, to the next of `timesteps`.

        After the last timestep that is ẑ_0 without noise. `clip` clamps ẑ_0 to [−1, 1], for pixels.
        """
        return self._schedulers[clip].step(eps, t, z, generator=generator, return_dict=False)[0]

    def augment(self, images: Tensor, count: int, generator: torch.Generator, **options: Any) -> Tensor:
        """`count` variants of each image: B×3×H×H in [0, 1] → B×count×3×H×H in [0, 1]; without gradient."""
        raise NotImplementedError


def check_strength(strength: float) -> None:
    """Raises UserError for a strength of image-to-image outside [0, 1]."""
    if not 0 <= strength <= 1:
        raise UserError(f"strength lies between 0 and 1, not at {strength:g}")


def check_weights(folder: Path | str, parts: Mapping[str, Any]) -> None:
    """Raises UserError, naming folder and key, where a network among the parts holds what no weight can be."""
    for name, part in parts.items():
        try:
            check_finite(part.state_dict() if isinstance(part, torch.nn.Module) else {})
        except UserError as error:
            raise UserError(f"{Path(folder) / name}: {error}") from None


@torch.no_grad()
def sample(prior: Prior, count: int, generator: torch.Generator, steps: int = 50) -> Tensor:
    """`count` unguided images, count×3×size×size in [0, 1], on the generator's device."""
    z = torch.randn(count, *prior.latent_shape, generator=generator, device=generator.device)
    condition = prior.condition(count)
    for t in prior.timesteps(steps):
        z = prior.step(z, t, prior.noise(z, t, condition), generator, clip=prior.pixel_space)
    return prior.decode(z)


def guided(predict: Callable[[Tensor, Tensor], Tensor], z: Tensor, condition: Condition) -> Tensor:
    """Classifier-free guidance (equation 1) in one pass of 2B rows, or of B where w = 0 or 1 leaves one of them."""
    w = condition.guidance
    if w in (0, 1):
        return predict(z, condition.given if w else condition.null)
    null, given = predict(torch.cat([z, z]), torch.cat([condition.null, condition.given])).chunk(2)
    return null + w * (given - null)


def resize(images: Tensor, size: int, clamp: bool = True) -> Tensor:
    """B×C×H×H to B×C×size×size: bicubic, antialiased; the images themselves where H = size.

    Bicubic interpolation overshoots; `clamp` brings the result back into [0, 1], where no gradient passes.
    """
    if images.shape[-1] == size:
        return images
    images = F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return images.clamp(0, 1) if clamp else images
