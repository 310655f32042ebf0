"""`bench.py check`: whether a device computes what the CPU computes, for every method on every kind of task.

Each method makes two rounds of a tiny run on the device and on the CPU, with a teacher of random weights and from the
same random numbers; then its images and its student are compared. A few further runs ask what else a device must be
able to do.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from dfkd import catalog
from dfkd.engine import machine, trial
from dfkd.engine.distillation import Declined
from dfkd.engine.runner import PlainRunner
from dfkd.signals import Stopped
from dfkd.tables.resolve import Resolved, resolve

# A task of each kind with the smallest pair that it has.
KINDS = {"digits": "resnet8-resnet8", "digit-scenes": "deeplabv3plus_thin16-deeplabv3plus_thin16"}
# The largest differences that rounding may make: of images, as a share of their range, on average over pixels; of the
# student, as a share of how far it was trained. Adam divides a gradient by its size, so that the sign of one that is
# all but zero is rounding too; such an image differs visibly while most do not.
TOLERANCES = {"fp32": (0.02, 0.05), "tf32": (0.05, 0.3), "bf16": (0.05, 0.5)}


@dataclass(frozen=True)
class Line:
    """One line of the table. `good` is None where there is nothing to compare."""

    what: str
    data: str
    found: str
    good: bool | None


class OneRandomness(TorchFunctionMode):
    """Draws everything on the CPU, whatever the device, so that devices can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self._hosts: dict[tuple[int, int], tuple[torch.Generator, torch.Generator]] = {}

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is None:
            return func(*args, **kwargs)
        # Of the CPU's too, so that both do the same; the generator itself is kept, so that no other gets its id.
        key = id(generator), generator.initial_seed()
        host, _ = self._hosts.setdefault(key, (_like(generator), generator))
        on_host = tree_map_only(Tensor, Tensor.cpu, kwargs) | {"generator": host}
        if "device" in kwargs:
            on_host["device"] = "cpu"
        drawn = func(*tree_map_only(Tensor, Tensor.cpu, args), **on_host)
        if not func.__name__.endswith("_"):
            return drawn.to(generator.device)
        target = args[0] if args else kwargs["tensor"]  # of `torch.nn.init`
        with torch.no_grad():
            return target.copy_(drawn)

    @staticmethod
    def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        kept = torch.rand(x.shape).to(x.device) >= p if training else 1
        return x * kept / (1 - p if training else 1)


def _like(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(generator.initial_seed())


def show(name: str | None) -> int:
    """Print the table of a device, by default CUDA where there is one, each line when it is known; returns the exit
    status of the command, 1 where something differs."""
    device = machine.device_of(name)
    start, bad = time.perf_counter(), 0
    print(f"{device} against the CPU, torch {torch.__version__}: tiny runs from the same random numbers")
    for line in check(device):
        mark = {True: "ok", False: "DIFFERS", None: "-"}[line.good]
        print(f"{line.what:<14} {line.data:<13} {mark:<8} {line.found}", flush=True)
        bad += line.good is False
    print(f"{bad} of the lines differ" if bad else "all agree", f"({time.perf_counter() - start:.0f} s)")
    return 1 if bad else 0


def check(device: torch.device) -> Iterator[Line]:
    """Every line as soon as it is known: methods first, then the device's abilities."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.set_num_threads(1)  # sums in one order; and such tiny networks gain nothing by more
        for data in KINDS:
            for method in catalog.entries():
                yield _compare(method, data, device, folder)
        for what, ability in ABILITIES.items():
            yield _ability(what, ability, device, folder)


def _compare(method: str, data: str, device: torch.device, folder: Path, precision: str = "fp32") -> Line:
    resolved = _resolved(method, data, precision)
    try:
        here = _outcome(_train(resolved, torch.device("cpu"), folder))
        there = _outcome(_train(resolved, device, folder))
    except Declined as reason:
        return Line(method, data, f"declines: {reason}", None)
    except Exception as error:
        return Line(method, data, f"{type(error).__name__}: {error}".splitlines()[0], False)
    return Line(method, data, *_differences(here, there, TOLERANCES[precision]))


def _resolved(method: str, data: str, precision: str) -> Resolved:
    small = trial.small(catalog.entry(method))
    return replace(resolve(data, "quick", method, KINDS[data], changes=small), precision=precision)


@dataclass
class Outcome:
    """Images (uint8, or None), the student's weights and how far they moved from the first ones, all on the CPU."""

    images: Tensor | None
    weights: Tensor
    moved: float


def _train(resolved: Resolved, device: torch.device, folder: Path, **given: Any) -> PlainRunner:
    """A whole run. `prior` is of random weights too."""
    work = folder / resolved.run.name / device.type
    prior = trial.untrained_prior(folder) if resolved.prior else None
    with OneRandomness():
        teacher = trial.untrained(resolved, folder)
        runner = trial.assemble(resolved, teacher, prior, device, work, **given)
        runner.train()
    return runner


def _outcome(runner: PlainRunner) -> Outcome:
    model, images = runner.model, runner.model.images()
    weights, first = (_flat(network) for network in (model.student, model.ctx.new_student()))
    return Outcome(None if images is None else images[0].cpu(), weights, (weights - first).norm().item())


def _flat(network: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().cpu().double().flatten() for p in network.parameters()])


def _differences(here: Outcome, there: Outcome, tolerance: tuple[float, float]) -> tuple[str, bool]:
    """What the two differ in, in words, and whether that is rounding."""
    student = (here.weights - there.weights).norm().item() / (here.moved or 1.0)
    good, text = student <= tolerance[1], f"student {student:.1e}"
    if here.images is not None:
        if there.images is None or here.images.shape != there.images.shape:
            made = 0 if there.images is None else len(there.images)
            return f"{made} images, {len(here.images)} on the CPU", False
        images = (here.images.double() - there.images.double()).abs().mean().item() / 255
        good, text = good and images <= tolerance[0], f"images {images:.1e}, {text}"
    return text, good


def _ability(what: str, ability: Callable, device: torch.device, folder: Path) -> Line:
    try:
        found, good = ability(device, folder / what.replace(" ", "-"))
    except Exception as error:
        found, good = f"{type(error).__name__}: {error}".splitlines()[0], False
    return Line(what, "", found, good)


def _repeats(device: torch.device, folder: Path) -> tuple[str, bool]:
    first, second = (_outcome(_train(_resolved("fast", "digits", "fp32"), device, folder / n)) for n in ("1", "2"))
    same = _differences(first, second, (0.0, 0.0))[1]
    return "two runs are equal bit by bit" if same else "two equal runs differ", same


def _resumes(device: torch.device, folder: Path) -> tuple[str, bool]:
    """Stopped and resumed at each safe point. With the device's own random numbers, whose state is what is saved."""
    resolved = _resolved("fast", "digits", "fp32")
    teacher = trial.untrained(resolved, folder)

    def run(name: str, **given: Any) -> PlainRunner:
        runner = trial.assemble(resolved, teacher, None, device, folder / name, **given)
        runner.train()
        return runner

    straight, stops = _outcome(run("straight")), 0
    while True:
        try:
            runner = run("stopped", resume=stops > 0, time_limit=1e-9)
            break
        except Stopped:
            stops += 1
    equal = torch.equal(straight.weights, _outcome(runner).weights)
    return f"stopped {stops} times, the student is {'equal' if equal else 'another'}", equal and stops > 0


def _clock(device: torch.device, folder: Path) -> tuple[str, bool]:
    """Images made inside a step are charged to synthesis, by events on CUDA; categories add up to the total."""
    start = time.perf_counter()
    clock = _train(_resolved("dfad", "digits", "fp32"), device, folder).model.clock
    report, took = clock.report(), time.perf_counter() - start
    good = report["synthesis"] > 0 and report["distillation"] > 0 and report["total"] <= took
    return f"synthesis {report['synthesis']:.2f} s, distillation {report['distillation']:.2f} s of {took:.2f} s", good


def _memory(device: torch.device, folder: Path) -> tuple[str, bool]:
    memory = machine.Memory(device)
    _train(_resolved("fast", "digits", "fp32"), device, folder)
    peak = memory.peak()
    return f"peak {peak / 2**20:.1f} MiB", 0 < peak < 2**36


def _precision(name: str) -> Callable[[torch.device, Path], tuple[str, bool]]:
    def compare(device: torch.device, folder: Path) -> tuple[str, bool]:
        here = _outcome(_train(_resolved("fast", "digits", "fp32"), torch.device("cpu"), folder / "fp32"))
        there = _outcome(_train(_resolved("fast", "digits", name), device, folder / name))
        text, good = _differences(here, there, TOLERANCES[name])
        return f"against fp32 on the CPU: {text}", good

    return compare


ABILITIES = {
    "determinism": _repeats,
    "resume": _resumes,
    "clock": _clock,
    "memory": _memory,
    "bf16": _precision("bf16"),
    "tf32": _precision("tf32"),
}
