"""A method of a few lines, for what the loop makes of it."""

from __future__ import annotations

import pytest

HEAD = """
import time
import torch
from dataclasses import dataclass
from dfkd.engine.method import METHODS, Method, Stage
from dfkd.synthesis.buffer import Batch, Samples

def rand(ctx, count, stream="noise"):
    shape = (count, ctx.spec.channels, ctx.spec.size, ctx.spec.size)
    return torch.rand(shape, generator=ctx.rng(stream))

class Noise(Method):
    def synthesize(self, ctx):
        return Samples(rand(ctx, ctx.budget.synthesis_batch))

@METHODS.register_module("probe", force=True)
@dataclass(eq=False)
class Probe(Noise):
    SEEN = []
"""


@pytest.fixture
def probe(tiny, tmp_path):
    """probe(body, *changes, seed=0): the cell of a method that makes noise, with `body` in its class."""
    count = iter(range(99))

    def make(body: str, *changes: str, seed: int = 0):
        path = tmp_path / f"probe_{next(count)}.py"
        path.write_text(f"{HEAD}\n{body}")
        return tiny("probe", *changes, seed=seed, extra=str(path))

    return make
