"""Diffusion priors: models of images behind one interface (`Prior`); where they come from `dfkd.artifacts` knows.

`folder` and `recipes` import no torch; diffusers is imported when a prior is loaded, for that takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfkd.priors.auxiliary import check_disjoint, public_images
from dfkd.priors.folder import digests_path

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from dfkd.priors.base import Prior, resize

__all__ = ["Prior", "check_disjoint", "digests_path", "load", "public_images", "resize"]


def load(place: Path | str, card: dict[str, Any], device: torch.device | str, precision: str) -> Prior:
    """The model of an artifact, its folder and card: frozen, in eval mode, on the device.

    `precision` is the protocol's. The pixel model stays in float32 and follows the autocast of its caller; the
    pipelines of Stable Diffusion are held in bfloat16 for `bf16` on CUDA. Raises UserError for a folder that is
    missing, damaged, or does not hold such a model.
    """
    if card["kind"] == "pixel":
        from dfkd.priors.pixel import PixelPrior

        return PixelPrior.load(place, card, device)
    from dfkd.priors import stable_diffusion

    backend = {
        "stable-diffusion": stable_diffusion.StableDiffusion,
        "image-variations": stable_diffusion.ImageVariations,
    }[card["kind"]]
    return backend.load(place, card, device, precision)


def __getattr__(name: str) -> Any:
    # These need torch, which reading a card does not.
    if name in ("Prior", "resize"):
        from dfkd.priors import base

        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
