"""Which precision fits the machine, where a protocol leaves it open (`precision: auto`)."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

import torch
import torch.nn.functional as F

from dfkd.engine import machine
from dfkd.engine.compat import autocast
from dfkd.tables.definition import AUTO
from dfkd.tables.resolve import Resolved

GAIN = 1.2  # how many times faster bf16 has to be
REPEATS = 6


def settled(resolved: Resolved, device: torch.device) -> Resolved:
    """The run with the precision that it runs in; as it came unless that is `auto`."""
    return replace(resolved, precision=chosen(device)) if resolved.precision == AUTO else resolved


@functools.cache
def chosen(device: torch.device) -> str:
    """`bf16` where the device is at least `GAIN` times faster in it, else `fp32`; found out once a process.

    Processors without bf16 instructions emulate them, several times slower, so that the answer is never close.
    """
    return "bf16" if gain(device) >= GAIN else "fp32"


def gain(device: torch.device) -> float:
    """How many times faster a convolution, forward and backward, is in bf16; some 0.2 seconds on two cores.

    The shapes are those of a residual block of the field's small networks. Best of several, in turns, and a processor's
    own seconds: other work on the machine would else decide, and a run that goes on or is asked for again would be in
    another precision, so another run.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    random = torch.Generator(device).manual_seed(0)
    images = torch.rand(64, 32, 16, 16, device=device, generator=random).contiguous(memory_format=torch.channels_last)
    weight = torch.rand(64, 32, 3, 3, device=device, generator=random).requires_grad_()
    took: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(REPEATS):
        for precision, seconds in took.items():
            machine.wait(device)
            start = clock()
            with autocast(device, precision):
                for _ in range(2):
                    F.conv2d(images, weight, padding=1).sum().backward()
            machine.wait(device)
            seconds.append(clock() - start)
    return min(took["fp32"]) / min(took["bf16"])
