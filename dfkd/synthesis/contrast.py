"""CMI's contrastive term: two views of an image are alike, and unlike everything made before (dda.md 1.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 1024  # of the matrix of similarities at a time
EMBEDDING = 256


class _Contrast(torch.autograd.Function):
    """Σ_i weight_i · (−log softmax_j(u_i·w_j/τ)[i]) for rows u and columns w, both M×E; the gradient is the rows'.

    The gradient of row i, weight_i/τ · (Σ_j p_ij·w_j − w_i), is known as soon as its row of the M×M matrix is, so the
    matrix is made a block of rows at a time and nothing of it is kept for the way back.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, weights: Tensor, temperature: float) -> Tensor:
        total, gradient = rows.new_zeros(()), torch.empty_like(rows)
        for first in range(0, len(rows), ROWS):
            part = slice(first, first + ROWS)
            log_p = (rows[part] @ columns.T / temperature).log_softmax(1)
            total -= weights[part] @ log_p.diagonal(first)
            pull = log_p.exp_() @ columns - columns[part]
            gradient[part] = weights[part, None] / temperature * pull
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.saved_tensors[0], None, None, None


def contrast(rows: Tensor, columns: Tensor, current: int, temperature: float) -> Tensor:
    """mean_{i≤N} ℓ_i + mean_{i>N} ℓ_i, ℓ_i = −log softmax_j(u_i·w_j/τ)[i], a scalar in float32.

    `rows` u and `columns` w are M×E of unit length; the first N = `current` belong to this batch, the others to the
    memory. Two means, so that the batch's gradient is not thinned out; one where the memory gives nothing. No
    gradient flows into the columns.
    """
    weights = rows.new_full((len(rows),), 1 / current, dtype=torch.float32)
    weights[current:] = 1 / max(1, len(rows) - current)
    with torch.autocast(rows.device.type, enabled=False):
        return _Contrast.apply(rows.float(), columns.detach().float(), weights, temperature)


class FeatureMemory:
    """A ring of raw features (float32, one row an image) on the device: `capacity` of the latest."""

    def __init__(self, capacity: int, size: int, device: torch.device | str = "cpu") -> None:
        self.features = torch.empty(capacity, size, device=device)
        self.filled = 0
        self._next = 0

    def add(self, features: Tensor) -> None:
        """Insert rows over the oldest where full; of more than `capacity` the last."""
        capacity = len(self.features)
        features = features[-capacity:]
        count = len(features)
        slots = torch.arange(self._next, self._next + count, device=self.features.device) % capacity
        self.features[slots] = features.detach()
        self._next = (self._next + count) % capacity
        self.filled = min(self.filled + count, capacity)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """min(count, filled) different rows."""
        picked = torch.randperm(self.filled, generator=generator, device=generator.device)[:count]
        return self.features[picked]

    def state_dict(self) -> dict:
        # A copy: of a mere view the whole ring would be written to the file.
        return {"features": self.features[: self.filled].clone(), "next": self._next}

    def load_state_dict(self, state: dict) -> None:
        self.filled, self._next = len(state["features"]), state["next"]
        self.features[: self.filled] = state["features"]


class Contrast:
    """The projection head h, its optimizer and the memory of features.

    Args:
        size: D, length of an image's raw feature; h is Linear(D, D), ReLU, Linear(D, 256), L2-normalised.
        capacity: images whose two raw features the memory holds.
        negatives: entries of the memory drawn in each step.
        temperature, lr: τ, and the rate of the head's Adam, whose betas are the default (.9, .999), as published.
    """

    def __init__(
        self,
        size: int,
        capacity: int,
        negatives: int,
        temperature: float,
        lr: float,
        device: torch.device | str = "cpu",
    ) -> None:
        head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, EMBEDDING))
        self.head, self.memory = head.to(device), FeatureMemory(capacity, 2 * size, device)
        self.negatives, self.temperature = negatives, temperature
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=lr)

    def loss(self, local: Tensor, world: Tensor, generator: torch.Generator) -> Tensor:
        """L_cr of a batch's raw features N×D, from its local and its global views; a scalar.

        Gradients reach `local` and, from the rows of batch and memory alike, the head.
        """
        cached_local, cached_world = self.memory.draw(self.negatives, generator).chunk(2, dim=1)
        # One after the other: through the rows of the memory no gradient is wanted but the head's.
        rows = torch.cat([self._embed(local), self._embed(cached_local)])
        with torch.no_grad():
            columns = self._embed(torch.cat([world, cached_world]))
        return contrast(rows, columns, len(local), self.temperature)

    def _embed(self, features: Tensor) -> Tensor:
        return F.normalize(self.head(features), dim=1)

    def _parts(self) -> dict[str, Any]:
        return {"head": self.head, "optimizer": self.optimizer, "memory": self.memory}

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
