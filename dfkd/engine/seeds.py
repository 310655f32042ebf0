"""Seeds by axis: a seed is computed from the names of the things that should share randomness."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_for(*names: str | int) -> int:
    """A seed in [0, 2^63) from names: `seed_for("student-init", "cifar10", "resnet8", 0)` is one for all methods."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Streams:
    """One random generator per consumer, on the device, so that a new draw in one place moves no other."""

    def __init__(self, device: torch.device | str, *identity: str | int) -> None:
        self.device, self.identity = torch.device(device), identity
        self._generators: dict[str, torch.Generator] = {}

    def __call__(self, name: str) -> torch.Generator:
        return self._stream(name, self.device)

    def host(self, name: str) -> torch.Generator:
        """A generator of the host, for draws that steer Python code: reading them waits for no device."""
        return self._stream(f"host:{name}", torch.device("cpu"))

    def _stream(self, name: str, device: torch.device) -> torch.Generator:
        if name not in self._generators:
            generator = torch.Generator(device)
            generator.manual_seed(seed_for("stream", name, *self.identity))
            self._generators[name] = generator
        return self._generators[name]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            device = torch.device("cpu") if name.startswith("host:") else self.device
            self._stream(name, device).set_state(value.cpu())


def seed_globals(seed: int) -> None:
    """Seed the process-wide generators, for code that takes none (dropout, default initialisation)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def global_state() -> dict:
    """The process-wide random states as tensors and plain containers."""
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = state
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def load_global_state(state: dict) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])
