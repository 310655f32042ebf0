"""Stable Diffusion as a prior, and its image variations: diffusers' pipelines, from a local folder.

No safety checker is loaded, so that no black placeholder of one can get among the images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
import transformers
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from torch import Tensor

from dfkd.errors import UserError, reason
from dfkd.priors.base import Condition, Prior, check_strength, check_weights, guided, resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Images that `augment` makes at a time: with guidance 32 rows for the U-Net, some 10 GB at 512 pixels.
ROWS = 16


class LatentPrior(Prior):
    """A pipeline of diffusers with U-Net and VAE. Weights are held in half precision on CUDA; images are float32."""

    pixel_space = False
    kind: type[DiffusionPipeline]

    def __init__(self, pipeline: DiffusionPipeline, card: dict[str, Any]) -> None:
        super().__init__(card, pipeline.scheduler.config)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        self.pipeline, self.unet, self.vae = pipeline, pipeline.unet, pipeline.vae
        pipeline.set_progress_bar_config(disable=True)
        side = self.unet.config.sample_size
        self.latent_shape, self.size = (self.unet.config.in_channels, side, side), side * pipeline.vae_scale_factor
        self.vae.enable_slicing()  # one image at a time

    @classmethod
    def load(cls, folder: Path | str, card: dict[str, Any], device: torch.device | str, precision: str) -> LatentPrior:
        """The pipeline of a `save_pretrained` folder; `precision` is that of `priors.load`.

        Raises UserError where the folder holds no such pipeline.
        """
        device = torch.device(device)
        half = torch.bfloat16 if precision == "bf16" else torch.float16  # as published
        dtype = half if device.type == "cuda" else torch.float32
        # A run has progress lines of its own.
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        try:
            pipeline = cls.kind.from_pretrained(
                folder,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                local_files_only=True,
                dtype=dtype,
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise UserError(f"{folder} holds no {cls.kind.__name__} ({reason(error)})") from None
        check_weights(folder, pipeline.components)
        return cls(pipeline.to(device), card)


class StableDiffusion(LatentPrior):
    """Text-conditional."""

    kind = StableDiffusionPipeline

    def __init__(self, pipeline: StableDiffusionPipeline, card: dict[str, Any]) -> None:
        super().__init__(pipeline, card)
        # Guidance goes back through both. Recomputing their blocks instead of keeping what is inside them, beside
        # decoding one image at a time, is what lets a 24 GB card do it.
        self.unet.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        self._image_to_image = StableDiffusionImg2ImgPipeline(
            **{**pipeline.components, "scheduler": scheduler}, requires_safety_checker=False
        )
        self._image_to_image.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def condition(
        self, count: int, prompt: str | list[str] = "", labels: Tensor | None = None, guidance: float = 1.0
    ) -> Condition:
        """As `Prior.condition`: embeddings of the empty text and of one prompt for all or one for each."""
        given, null = self.pipeline.encode_prompt(prompt, self.unet.device, 1, True)
        if not isinstance(prompt, str) and len(prompt) != count:
            raise ValueError(f"{count} prompts expected, {len(prompt)} found")
        return Condition(null[:1].expand(count, -1, -1), given.expand(count, -1, -1), guidance)

    def noise(self, z: Tensor, t: int, condition: Condition) -> Tensor:
        time = torch.full((), t, dtype=torch.int64, device=z.device)

        def predict(z: Tensor, text: Tensor) -> Tensor:
            with torch.autocast(z.device.type, enabled=False):
                return self.unet(z.to(self.unet.dtype), time, encoder_hidden_states=text).sample.to(z.dtype)

        return guided(predict, z, condition)

    def decode(self, clean: Tensor) -> Tensor:
        """As `Prior.decode`, through the VAE."""
        latent = (clean / self.vae.config.scaling_factor).to(self.vae.dtype)
        with torch.autocast(clean.device.type, enabled=False):
            image = self.vae.decode(latent).sample.to(clean.dtype)
        return (image / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def augment(  # type: ignore[override]  # the options are its own
        self,
        images: Tensor,
        count: int,
        generator: torch.Generator,
        *,
        strength: float = 0.6,
        steps: int = 25,
        guidance: float = 3.0,
        prompt: str = "A realistic photo.",
    ) -> Tensor:
        """As `Prior.augment`: image-to-image, the last ⌊steps·strength⌋ of `steps` DDIM steps (none: the images)."""
        check_strength(strength)
        if not int(steps * strength):
            return images.repeat_interleave(count, 0).unflatten(0, (len(images), count))

        def vary(rows: Tensor) -> Tensor:
            return self._image_to_image(
                prompt=[prompt] * len(rows),
                image=resize(rows, self.size),
                strength=strength,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generator,
                output_type="pt",
            ).images

        return _in_parts(vary, images, count)


class ImageVariations(LatentPrior):
    """Variations of an image from its CLIP embedding and fresh noise: it augments, and cannot guide."""

    kind = StableDiffusionImageVariationPipeline
    guides = False

    @torch.no_grad()
    def augment(  # type: ignore[override]  # the options are its own
        self,
        images: Tensor,
        count: int,
        generator: torch.Generator,
        *,
        steps: int = 25,
        guidance: float = 3.0,
    ) -> Tensor:
        """As `Prior.augment`, from pure noise; how much of the image stays is the model's own."""
        size = self.pipeline.image_encoder.config.image_size
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))

        def vary(rows: Tensor) -> Tensor:
            # Not antialiased, as the model was trained; for images smaller than `size` there is no difference.
            rows = F.interpolate(rows, (size, size), mode="bicubic", align_corners=False)
            return self.pipeline(
                image=(rows - mean) / std,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generator,
                output_type="pt",
            ).images

        return _in_parts(vary, images, count)


def _in_parts(vary: Any, images: Tensor, count: int) -> Tensor:
    """`vary` on each image `count` times, `ROWS` at a time, back in the size of the images."""
    parts = images.repeat_interleave(count, 0).split(ROWS)
    rows = torch.cat([resize(vary(part).to(images.dtype), images.shape[-1]) for part in parts])
    return rows.unflatten(0, (len(images), count))
