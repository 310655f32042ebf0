"""The meta-learned generator of Fast (baselines.md 1.3), which SSD-KD extends (ssdkd.md 1.5)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dfkd.synthesis.generators import Generators, reset

BETAS = (0.5, 0.999)
META = ("fomaml", "reptile", "none")


class MetaGenerator:
    """A generator that is adapted anew in each call and learns from call to call how to adapt fast.

    Args:
        generator: stays in train mode (batch statistics) at all times.
        steps: inner steps k of one call.
        lr_g, lr_z: Adam rates of the adapted copy G′ and of the latent code.
        meta: how the slow weights learn.
            `fomaml`: one outer Adam step with Σ_i ∂L_i/∂θ′_i over the inner steps, each gradient taken before
            its own update; `reptile`: with 67·(θ − θ′_k); `none`: the steps run on the generator itself.

    The outer Adam has rate lr_g·k and keeps its state between calls; the inner one starts anew in each.
    """

    def __init__(self, generator: Generators, steps: int, lr_g: float, lr_z: float, meta: str = "fomaml") -> None:
        if meta not in META:
            raise ValueError(f"meta must be one of {META}, not {meta!r}")
        if steps < 1:
            raise ValueError(f"k, the inner steps of a call, must be at least 1, not {steps}")
        self.slow, self.steps, self.lr_g, self.lr_z, self.meta = generator.train(), steps, lr_g, lr_z, meta
        self.outer = torch.optim.Adam(generator.parameters(), lr=lr_g * steps, betas=BETAS)
        self._fast = generator if meta == "none" else copy.deepcopy(generator)

    def invert(self, z: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """One call: the images, B×C×H×W, of the inner step with the lowest loss, before that step's update."""
        z = z.detach().clone().requires_grad_(True)
        if self.meta != "none":
            with torch.no_grad():
                # Parameters and BatchNorm buffers alike.
                for fast, slow in zip(self._fast.state_dict().values(), self.slow.state_dict().values(), strict=True):
                    fast.copy_(slow)
        weights = list(self._fast.parameters())
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": [z], "lr": self.lr_z}]
        inner = torch.optim.Adam(groups, lr=self.lr_g, betas=BETAS)
        gathered = [torch.zeros_like(weight) for weight in weights]
        for step in range(self.steps):
            images = self._fast(z)
            value = loss(images)
            inner.zero_grad()
            value.backward()
            with torch.no_grad():
                if step == 0:
                    best, lowest = images.detach(), value.detach()
                else:
                    # Chosen on the device: reading the loss here would make the host wait at every step.
                    better = value < lowest
                    best, lowest = torch.where(better, images, best), torch.where(better, value, lowest)
                torch._foreach_add_(gathered, [weight.grad for weight in weights])  # type: ignore[misc]
            inner.step()
        self._learn(gathered, weights)
        return best

    def _learn(self, gathered: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        if self.meta == "none":
            return
        self.outer.zero_grad()
        for i, (slow, fast) in enumerate(zip(self.slow.parameters(), weights, strict=True)):
            # With Adam the factor 67 is immaterial except against its eps.
            slow.grad = gathered[i] if self.meta == "fomaml" else 67 * (slow.detach() - fast.detach())
        self.outer.step()

    def reset_first_layers(self, generator: torch.Generator) -> None:
        """Fast's `reset_l0` of the slow weights; the outer Adam keeps its state."""
        reset(self.slow.first_layers(), generator)

    def state_dict(self) -> dict:
        return {"slow": self.slow.state_dict(), "outer": self.outer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.slow.load_state_dict(state["slow"])
        self.outer.load_state_dict(state["outer"])
