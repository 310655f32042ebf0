"""`bench.py profile`: where the time of a synthesis step and of a student step goes, and how near the machine's limit.

A short run of the method as its table has it, in sizes, with few steps. The first step of each kind is counted (its
floating-point operations), the others are timed by torch's profiler. Time inside the backward pass
is given to the part of the forward pass that it belongs to.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function

from dfkd import paths
from dfkd.artifacts import PRIOR
from dfkd.engine import compat, machine, trial
from dfkd.engine.operations import Operations
from dfkd.engine.precision import settled
from dfkd.engine.runner import PlainRunner
from dfkd.tables.resolve import Resolved, resolve

STEPS = ("synthesis", "student step")
ROUNDS = 3
# What only repeats: so many are enough to see one.
REPEATS = {"warmup": 1, "calls": 2, "bank_calls": 2, "bank_steps": 2, "refresh_every": 2, "refresh_steps": 2}
MOST = {"steps": 10}  # inner iterations of methods that have hundreds
NETWORK = ("forward", "features", "inspect", "encode", "decode")  # where a part is entered
STATISTICS = ("loss", "update")
SHOWN = 0.01  # operators below this share are summed up
KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution": ("convolution", "conv2d", "conv_transpose2d"),
    "matrix product": ("mm", "addmm", "bmm", "baddbmm", "linear"),
}


def changes(resolved: Resolved) -> list[str]:
    """The `--set` changes that leave the sizes as they are and the repetitions few."""
    known = resolved.entry.arguments | resolved.config["args"]
    few = [f"{key}={value}" for key, value in REPEATS.items() if key in known]
    steps = ROUNDS * max(ROUNDS, trial.period(resolved))
    budget = (f"rounds={ROUNDS}", f"training.steps={steps}", "evaluations=1")
    return [*budget, *few, *(f"{key}={min(value, known[key])}" for key, value in MOST.items() if key in known)]


@dataclass
class Step:
    """All that was seen of one kind of step; times in seconds, of all its profiled calls."""

    calls: int = 0
    wall: float = 0.0
    flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # of one call, by kind of operator
    parts: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)


class Watch:
    """Wraps a Runner's two kinds of step and the parts inside them; operations are counted in the first `period`."""

    def __init__(self, runner: PlainRunner, period: int) -> None:
        self.steps, self._period = {name: Step() for name in STEPS}, dict(zip(STEPS, (1, period), strict=True))
        self._left = dict(self._period)
        model = runner.model
        model.synthesize = self._step("synthesis", model.synthesize)
        model.draw = self._step("student step", model.draw, ends=False)
        model.train_step = self._step("student step", model.train_step)
        model.reset_student = self._reset(model, model.reset_student)
        parts = [("teacher", model.ctx.teacher), ("student", model.student)]
        parts += [("diffusion model", part) for part in _parts(model.ctx.prior)]
        parts += [(name, part) for name, value in vars(model.method).items() for part in _parts(value)]
        for name, part in parts:
            _watch(name, part)
        for entry in ("augment", "augment_pair"):
            setattr(model.ctx, entry, _ranged("augmentation", getattr(model.ctx, entry)))

    def _reset(self, model: Any, reset: Callable[[], None]) -> Callable[[], None]:
        """A new student is watched like the one before."""

        def again() -> None:
            reset()
            _watch("student", model.student)

        return again

    def _step(self, name: str, action: Callable, ends: bool = True) -> Callable:
        """A step, or the part of one that comes before what `ends` it."""

        def step(*args: Any, **kwargs: Any) -> Any:
            if self._left[name]:
                self._left[name] -= ends
                with Operations() as counted:
                    made = action(*args, **kwargs)
                for operator, flops in counted.operators.items():
                    self.steps[name].flops[_kind(operator)] += flops / self._period[name]
                return made
            self.steps[name].calls += ends
            with record_function(f"## {name}"):
                return action(*args, **kwargs)

        return step


def _parts(value: object) -> list[Any]:
    """What is watched of a thing that a method holds: itself, or the networks inside."""
    if isinstance(value, nn.Module) or hasattr(value, "capture"):
        return [value]
    return [part for part in getattr(value, "__dict__", {}).values() if isinstance(part, nn.Module)]


def _watch(name: str, part: Any) -> None:
    for entry in NETWORK if isinstance(part, nn.Module) else STATISTICS:
        if hasattr(part, entry):
            setattr(part, entry, _ranged(name, getattr(part, entry)))


def _ranged(name: str, action: Callable) -> Callable:
    @functools.wraps(action)
    def ranged(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"# {name}"):
            return action(*args, **kwargs)

    return ranged


def _kind(operator: str) -> str:
    """What the table calls an operator."""
    name = operator.split("::")[-1].split(".")[1 if operator.startswith("aten.") else 0]
    bare = name.removeprefix("_").removeprefix("mkldnn_").removeprefix("cudnn_").removeprefix("miopen_")
    if bare in ("convolution_overrideable", "slow_conv2d_forward", "convolution_relu", "thnn_conv2d"):
        return "convolution"
    return next((kind for kind, names in KINDS.items() if bare in names), name)


def show(method: str, data: str, protocol: str, pair: str | None, precision: str | None, device: str | None) -> str:
    """The report of a run as its table has it, of which only the repetitions are few; a trace lies in the work folder.

    A diffusion prior has random weights and the smallest size where the run's own is not there.
    """
    on = machine.device_of(device)
    whole = resolve(data, protocol, method, pair)
    cell = settled(resolve(data, protocol, method, pair, changes=changes(whole)), on)
    cell = replace(cell, precision=precision or cell.precision)
    trace = paths.WORK / "profiles" / f"{cell.run.name.replace('/', '_')}.json"
    with tempfile.TemporaryDirectory() as name:
        text = profile(cell, _prior(cell, Path(name)), on, Path(name), trace)
    return f"{text}\n\ntrace, for chrome://tracing or ui.perfetto.dev: {trace}"


def _prior(resolved: Resolved, folder: Path) -> tuple[Path | str, dict] | None:
    if resolved.prior is None:
        return None
    own = paths.prior(resolved.prior)
    return (own, PRIOR.read(own)) if PRIOR.there(own) else trial.untrained_prior(folder)


def profile(
    resolved: Resolved, prior: tuple[Path | str, dict] | None, device: torch.device, folder: Path, trace: Path
) -> str:
    """The report, as text; `trace` gets a Chrome trace. Raises Declined and UserError as a run does."""
    teacher = trial.untrained(resolved, folder)
    runner = trial.assemble(resolved, teacher, prior, device, folder)
    watch = Watch(runner, trial.period(resolved))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch.profiler.profile(activities=activities) as profiler:
        runner.train()
    trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(trace))
    _attribute(list(profiler.events()), watch.steps)
    peak = matmul_peak(device, resolved.precision)
    head = f"{resolved.run.name} on {device} in {resolved.precision}: matrix products reach {peak / 1e9:,.0f} GFLOP/s"
    return "\n\n".join([head, *(_text(name, step, peak) for name, step in watch.steps.items() if step.calls)])


def _attribute(events: list[FunctionEvent], steps: dict[str, Step]) -> None:
    """Give each event's own time to its step, its part and its operator."""
    spans = [(e.time_range.start, e.time_range.end, e.name[3:]) for e in events if e.name.startswith("## ")]
    for start, end, name in spans:
        steps[name].wall += (end - start) / 1e6
    own_work = (e for e in events if e.sequence_nr >= 0 and not _is_backward(e))
    forward = {e.sequence_nr: part for e in own_work if (part := _part(e))}
    for event in events:
        own = max(event.self_cpu_time_total, event.self_device_time_total if event.kernels else 0) / 1e6
        step = next((n for start, end, n in spans if start <= event.time_range.start < end), None)
        if step is None or event.name.startswith("## "):
            continue
        steps[step].parts[_whole_part(event, forward)] += own
        if not event.name.startswith(("# ", "autograd::engine")):
            steps[step].operators[_kind(event.name)] += own
            steps[step].counts[_kind(event.name)] += 1


def _ancestors(event: FunctionEvent | None) -> Iterator[FunctionEvent]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _is_backward(event: FunctionEvent) -> bool:
    return any(e.name.startswith("autograd::engine") for e in _ancestors(event))


def _part(event: FunctionEvent) -> str | None:
    """The innermost of the watched parts in which an event lies."""
    return next((e.name[2:] for e in _ancestors(event) if e.name.startswith("# ")), None)


def _whole_part(event: FunctionEvent, forward: dict[int, str]) -> str:
    for e in _ancestors(event):
        if e.name.startswith("Optimizer."):
            return "optimizer"
        if e.name.startswith("autograd::engine"):
            return forward.get(e.sequence_nr, "losses and the rest") if e.sequence_nr >= 0 else "losses and the rest"
    return _part(event) or "losses and the rest"


def matmul_peak(device: torch.device, precision: str, size: int = 1536) -> float:
    """FLOP/s of a large square matrix product: what the machine reaches at best in this precision."""
    a, b = (torch.rand(size, size, device=device) for _ in range(2))
    context: AbstractContextManager = compat.autocast(device, precision)
    best = float("inf")
    with context, torch.no_grad():
        if precision == "bf16":
            a, b = a.bfloat16(), b.bfloat16()
        for _ in range(8):
            machine.wait(device)
            start = time.perf_counter()
            a @ b
            machine.wait(device)
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _text(name: str, step: Step, peak: float) -> str:
    """One kind of step: a line, its parts, its operators."""
    took, flops = step.wall / step.calls, sum(step.flops.values())
    line = f"{name}: {1e3 * took:,.1f} ms, {flops / 1e9:,.1f} GFLOP, {flops / took / 1e9:,.0f} GFLOP/s, "
    line += f"{flops / took / peak:.0%} of the peak ({step.calls} calls)"
    parts = [(part, _percent(own, step), 1e3 * own / step.calls) for part, own in step.parts.most_common()]
    rows, rest = list[tuple](), 0.0
    for operator, own in step.operators.most_common():
        if own < SHOWN * step.wall:
            rest += own
            continue
        rate = step.flops[operator] * step.calls / own
        shares = (rate / 1e9, f"{rate / peak:.0%}") if rate else ("", "")
        rows.append(
            (operator, _percent(own, step), step.counts[operator] // step.calls, 1e3 * own / step.calls, *shares)
        )
    rows.append(("others", _percent(rest, step), "", 1e3 * rest / step.calls, "", ""))
    tables = [
        tabulate(parts, headers=("part", "%", "ms"), floatfmt=".1f", tablefmt="pipe"),
        tabulate(rows, ("operator", "%", "calls", "ms", "GFLOP/s", "of peak"), floatfmt=".1f", tablefmt="pipe"),
    ]
    return "\n\n".join([line, *tables])


def _percent(own: float, step: Step) -> float:
    return 100 * own / step.wall
