"""How fast this machine trains and runs the networks of a cell, by which its time is predicted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dfkd.engine import machine
from dfkd.engine.compat import autocast
from dfkd.engine.operations import Operations
from dfkd.engine.precision import settled
from dfkd.errors import one_line
from dfkd.identity import Run
from dfkd.networks import initialise
from dfkd.networks.normalised import Normalised
from dfkd.synthesis.batchnorm import BatchNormLoss
from dfkd.synthesis.generators import build_generator
from dfkd.tables import costs
from dfkd.tables.costs import GENERATOR, TRAINING, Speed, Speeds, place
from dfkd.tables.resolve import Resolved, resolve
from dfkd.tasks import Task

NOISE = 256  # size of the latent code of the generator that stands for all
MOST = (2e10, 1e12)  # operations of a forward pass, on a CPU and on a GPU: what is larger is no faster
SECONDS = 0.2  # for which each step is repeated; the fastest counts, as on a machine that does nothing else


def name_of(device: torch.device) -> str:
    """What `plan --device` calls this machine."""
    return machine.hardware(device, "fp32")["class"]


def speeds(resolved: Resolved, device: torch.device) -> Speeds:
    """What this machine reaches with the networks of a run, in its precision; measured where that is not known yet."""
    name, size, precision = name_of(device), resolved.task.spec.size, resolved.precision
    known = costs.devices().get(name, {}).get(precision, {})
    wanted = {place(part, size): part for part in (*resolved.run[1:3], GENERATOR)}
    measured = {at: _measure(part, resolved, device) for at, part in wanted.items() if at not in known}
    if measured:
        costs.keep_speeds(name, precision, measured)
    return costs.devices()[name]


def measure(runs: Iterable[Run]) -> None:
    """Measure what these runs, or the first seed of each pair of them, would on this machine."""
    device = machine.device_of(None)
    for run in {(run.data, run.protocol, run.pair): run for run in runs}.values():
        speeds(settled(resolve(run.data, run.protocol, run.method, run.pair), device), device)


def predicted(resolved: Resolved, device: torch.device) -> float | None:
    """Seconds of a run on this machine; None where its cost is not known, or where something goes wrong.

    It is said then what: a run that has ended well does not fail for it.
    """
    try:
        known = costs.passes(resolved)
        return costs.predicted(resolved, speeds(resolved, device) if any(known) else {}) if known else None
    except Exception as error:
        print(f"no time is predicted: {one_line(error)}", file=sys.stderr)
        return None


def _measure(part: str, resolved: Resolved, device: torch.device) -> Speed:
    spec, network = resolved.task.spec, _network(part, resolved.task)
    shape = (NOISE,) if part == GENERATOR else spec.shape
    with Operations() as operations, torch.no_grad():
        network.eval()(torch.rand(1, *shape))
    each = operations.flops.total()
    batch = max(4, min(resolved.config["training"]["batch"], int(MOST[device.type == "cuda"] / each)))
    network, given = network.to(device, memory_format=torch.channels_last).train(), torch.rand(batch, *shape)
    given = given.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)

    def forward() -> Tensor:
        with autocast(device, resolved.precision):
            return network(given)

    def train() -> None:
        loss = forward().float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    training = TRAINING * batch * each / _fastest(train, device)
    statistics = BatchNormLoss(network.eval().requires_grad_(False))
    given.requires_grad_()

    def invert() -> None:
        with statistics.capture():
            made = forward()
        (made.float().square().mean() + statistics.loss()).backward()

    inversion = 2 * batch * each / _fastest(invert, device)
    with torch.no_grad():
        return Speed(batch * each / _fastest(forward, device), inversion, training)


def _network(part: str, on: Task) -> Any:
    """With random weights: a network, or the generator that stands for all else."""
    spec = on.spec
    if part == GENERATOR:
        return build_generator(NOISE, 64, spec.size, spec.channels, on.kind == "segmentation")
    return Normalised(initialise(part, spec, 0), spec)


def _fastest(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several; the first, which allocates, is not among them."""
    action()
    found, end = list[float](), time.perf_counter() + SECONDS
    while len(found) < 2 or time.perf_counter() < end:
        machine.wait(device)
        start = time.perf_counter()
        action()
        machine.wait(device)
        found.append(time.perf_counter() - start)
    return min(found)
