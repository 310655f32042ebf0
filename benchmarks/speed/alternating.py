"""A method that only distils, and between blocks of harness steps times blocks of a bare loop's.

`test_overhead.py` runs it as any method is run. It knows nothing of the harness but a method's surface: the call of
`draw` that begins a block is the one point at which it takes the time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Budget, Method, Stage
from dfkd.synthesis.buffer import Batch, Samples

SLOTS = 5000
PADDING = 4


class Moment(NamedTuple):
    """Seconds on the wall, and of the processor over all threads, which other people's work hardly touches."""

    wall: float
    processor: float

    def since(self, earlier: Moment) -> Moment:
        return Moment(self.wall - earlier.wall, self.processor - earlier.processor)


def now(device: torch.device) -> Moment:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Moment(time.perf_counter(), time.process_time())


@METHODS.register_module("alternating")
@dataclass(eq=False)
class Alternating(Method):
    """Distils from a buffer of noise, filled once; `Alternating.last` holds what each block took.

    Args:
        block: steps of a block.
    """

    last = None  # the one that was made last
    block: int = 3

    def __post_init__(self) -> None:
        self.harness: list[Moment] = []
        self.bare: list[Moment] = []
        Alternating.last = self

    def schedule(self, budget: Budget) -> list[Stage]:
        return [
            Stage("fill", 1, synthesis_steps=1),
            Stage("distil", budget.rounds, student_steps=budget.steps_per_round),
        ]

    def buffer_capacity(self, budget: Budget) -> int:
        return SLOTS

    def setup(self, ctx: Context) -> None:
        self.loop = BareLoop(ctx, self.temperature)
        self.draws, self.mark = 0, None

    def synthesize(self, ctx: Context) -> Samples:
        images = torch.rand(SLOTS, ctx.spec.channels, ctx.spec.size, ctx.spec.size, device=ctx.device)
        self.loop.images = (images * 255).to(torch.uint8)
        return Samples(images)

    def draw(self, ctx: Context) -> Batch:
        if self.draws % self.block == 0:
            start = now(ctx.device)
            if self.mark is not None:
                self.harness.append(start.since(self.mark))
            for _ in range(self.block):
                self.loop.step()
            self.mark = now(ctx.device)
            if self.harness:  # a pair is a harness block and the bare block after it
                self.bare.append(self.mark.since(start))
        self.draws += 1
        return super().draw(ctx)


class BareLoop:
    """The student step as somebody in a hurry would write it, in plain torch: no clock, no hooks, no priorities."""

    def __init__(self, ctx: Context, temperature: float) -> None:
        self.teacher, self.student = ctx.teacher.network, ctx.new_student().network.train()
        self.mean, self.std, self.autocast = ctx.teacher.mean, ctx.teacher.std, ctx.autocast
        self.sgd = torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        self.batch, self.device, self.temperature = ctx.budget.batch, ctx.device, temperature

    def step(self) -> None:
        images = (self.crops() / 255 - self.mean) / self.std
        with self.autocast():
            with torch.no_grad():
                taught = self.teacher(images).float()
            learnt = self.student(images).float()
        target, output = (F.log_softmax(logits / self.temperature, 1) for logits in (taught, learnt))
        loss = self.temperature**2 * F.kl_div(output, target, reduction="batchmean", log_target=True)
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()

    def crops(self) -> Tensor:
        """A batch, each image shifted by up to four pixels and flipped half the time; uint8, channels last."""
        count, size, device = self.batch, self.images.shape[-1], self.device
        picked = self.images[torch.randint(len(self.images), (count,), device=device)]
        padded = F.pad(picked, (PADDING,) * 4).permute(0, 2, 3, 1)
        pixels = torch.arange(size, device=device)
        top, left = torch.randint(2 * PADDING + 1, (2, count, 1), device=device)
        flip = torch.rand(count, 1, device=device) < 0.5
        rows, columns = top + pixels, left + torch.where(flip, size - 1 - pixels, pixels)
        sample = torch.arange(count, device=device)[:, None, None]
        return padded[sample, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
