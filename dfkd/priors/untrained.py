"""Stable Diffusion with weights that nobody trained: small pipelines that run on anything, and the published networks
without memory, whose operations can be counted.

Neither time nor agreement of devices depends on what a model knows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionImageVariationPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn

WIDTH = 32  # of the embeddings that the small ones are conditioned on


def published(images: int = 512) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """U-Net and VAE of Stable Diffusion v1 as its repository's `unet/config.json` and `vae/config.json` have them, on
    the meta device. Its image variations have the same; `images` is their side.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=images // 8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=images,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    return unet.eval(), vae.eval()


def save_text_to_image(folder: Path) -> Path:
    """Save a Stable Diffusion of some ten thousand weights there, which makes 16×16 images; give the folder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = tokenizer(folder / "words")
        ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        text = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, **_transformer(), **ids)
        given = {"tokenizer": words, "text_encoder": CLIPTextModel(text)}
        return _save(StableDiffusionPipeline(**_parts(), **given, requires_safety_checker=False), folder)


def save_image_variations(folder: Path) -> Path:
    """The same of a pipeline that varies images."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = CLIPVisionConfig(projection_dim=WIDTH, image_size=24, patch_size=8, **_transformer())
        encoder = CLIPVisionModelWithProjection(vision)
        parts = _parts()
        return _save(
            StableDiffusionImageVariationPipeline(**parts, image_encoder=encoder, requires_safety_checker=False), folder
        )


def _save(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def _transformer() -> dict[str, int]:
    return {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}


def tokenizer(folder: Path) -> Any:
    """One that knows every byte and a word; its two files are written there."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "ph", "pho", "to</w>", "photo</w>"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps({word: i for i, word in enumerate(words)})
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\np h\nph o\nt o</w>\npho to</w>\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def _parts() -> dict[str, nn.Module | PNDMScheduler | None]:
    """U-Net, VAE and scheduler; latents are 4×8×8."""
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=8,
        cross_attention_dim=WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    # As the published repositories have it.
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    return {"unet": unet, "vae": vae, "scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
