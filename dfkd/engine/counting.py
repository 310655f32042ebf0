"""What a cell costs in floating-point operations, counted on a few steps of it, and how fast a machine works them off.

A count does not depend on machine, precision or pair: what goes through teacher and student is told in images, all
else (generator, diffusion model, heads) in operations. `dfkd.tables.costs` keeps the counts and predicts seconds.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dfkd.engine import trial
from dfkd.engine.distillation import Declined
from dfkd.engine.method import Stage
from dfkd.engine.runner import PlainRunner
from dfkd.errors import UserError
from dfkd.networks import initialise
from dfkd.priors.recipes import recipes as own_priors
from dfkd.tables import costs
from dfkd.tables.costs import OWNERS, Passes
from dfkd.tables.pipeline import span
from dfkd.tables.resolve import Resolved, resolve
from dfkd.tasks import InputSpec

PAIRS = {  # the smallest of each kind: the pair changes no count
    "classification": ("resnet20", "resnet8"),
    "segmentation": ("deeplabv3plus_thin32", "deeplabv3plus_thin16"),
}
BATCHES = ("bank_batch", "head_images")  # arguments of methods that are numbers of images
LOOPS = ("k", "bank_steps", "steps")  # and of inner iterations
FEW = ((1, 2), (5, 10))  # two numbers of these that tell what each costs; a trajectory of DiffDFKD needs five
CALLS = 2  # synthesis steps that are counted in a stage, evenly spread


class Operations(TorchDispatchMode):
    """Counts operations by who owns the weights they use: `FlopCounterMode` asks for modules, which methods bypass."""

    def __init__(self, **owners: nn.Module) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self._owners = {p.untyped_storage().data_ptr(): name for name, o in owners.items() for p in o.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            of = (self._owners.get(a.untyped_storage().data_ptr()) for a in args if isinstance(a, Tensor))
            owner = next(filter(None, of), "other")
            self.flops[owner] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def update(say: Callable[[str], None]) -> None:
    """Count what the tables span and `costs.json` lacks, and drop what they span no more."""
    cells = {run.cell: run for run in span()}
    resolved = [resolve(run.data, run.protocol, run.method, run.pair) for run in cells.values()]
    resolved.sort(key=lambda r: r.task.spec.size)  # what takes longest last
    networks = {costs.place(name, r.task.spec.size): (name, r.task.spec) for r in resolved for name in r.run[1:3]}
    ours = {costs.place(name, recipe["size"]): recipe for name, recipe in own_priors().items()}
    known = costs.counts()
    found = {place: known["networks"].get(place) or forward(*of) for place, of in networks.items()}
    found |= {place: known["networks"].get(place) or denoising(recipe) for place, recipe in ours.items()}
    wanted = {costs.key(r): r for r in resolved if r.prior is None or r.prior in own_priors()}
    runs = {key: known["runs"][key] for key in wanted if key in known["runs"]}
    costs.write(found, runs)
    for key, of in wanted.items():
        if key not in runs:
            with suppress(Declined):
                runs[key] = {"what": f"{of.run.data} {of.run.protocol} {of.run.method}", **count(of)._asdict()}
            say(f"{of.run.name}: counted")
            costs.write(found, runs)


def count(resolved: Resolved) -> Passes:
    """What a run asks of the networks; evaluation is not in it.

    Raises Declined, and UserError where the run's diffusion prior is none that is trained here.
    """
    with tempfile.TemporaryDirectory() as folder:
        for few, more in FEW:
            with suppress(UserError):
                return _extrapolated(resolved, few, more, Path(folder))
    raise UserError(f"{resolved.run.name} cannot be counted")


def _extrapolated(resolved: Resolved, few: int, more: int, folder: Path) -> Passes:
    """The count from runs whose synthesis steps have so few inner iterations, each of which costs the same."""
    known = resolved.entry.arguments | resolved.config["args"]
    loops = {name: min(few, known[name]) for name in LOOPS if name in known}
    total = base = _counted(resolved, loops, folder)
    for name in (name for name in loops if known[name] > few):
        steeper, rest = _counted(resolved, loops | {name: more}, folder), (known[name] - few) / (more - few)
        total = Passes(*(t + (s - b) * rest for t, s, b in zip(total, steeper, base, strict=True)))
    return total


def _counted(resolved: Resolved, loops: dict[str, int], folder: Path) -> Passes:
    """The whole run if its synthesis steps had so few inner iterations, extrapolated from a few of its steps."""
    for divisor in (64, 32, 16, 8, 4, 2, 1):  # the cost of an image does not depend on how many there are
        with suppress(UserError):
            if (small := _divided(resolved, loops, divisor)) is not None:
                return Passes(*(divisor * part for part in _run(small, folder)))
    raise UserError(f"{resolved.run.name} cannot be counted")


def _divided(resolved: Resolved, loops: dict[str, int], divisor: int) -> Resolved | None:
    """The run with every number of images divided, between the smallest networks; None where that cannot be."""
    config, known = deepcopy(dict(resolved.config)), resolved.entry.arguments | resolved.config["args"]
    batches = {name: known[name] for name in BATCHES if known.get(name)}
    counts = (config["training"]["batch"], config["synthesis_batch"], *batches.values())
    if any(n % divisor for n in counts) or (divisor > 1 and min(counts) < 2 * divisor):
        return None
    config["training"]["batch"] //= divisor
    config["synthesis_batch"] //= divisor
    config["args"] = config["args"] | loops | {name: n // divisor for name, n in batches.items()}
    teacher, student = PAIRS[resolved.task.kind]
    run = resolved.run._replace(teacher=teacher, student=student)
    return replace(resolved, run=run, config=config, precision="fp32")


def _run(small: Resolved, folder: Path) -> Passes:
    prior = None if small.prior is None else trial.untrained_prior(folder, own_priors()[small.prior])
    runner = trial.assemble(small, trial.untrained(small, folder), prior, torch.device("cpu"), folder)
    runner.rebuild_optimizer()
    spec = small.task.spec
    flops: Any = Counter()
    for stage in runner.model.stages:
        if stage.reset_student:
            runner.model.reset_student()
            runner.rebuild_optimizer()
        if stage.synthesis_steps:
            _add(flops, stage.rounds * stage.synthesis_steps, _synthesis(runner, stage))
        if stage.student_steps:
            _add(flops, stage.rounds * stage.student_steps, _steps(runner, stage, trial.period(small)))
    teacher, student = (flops[name] / forward(arch, spec) for name, arch in zip(OWNERS, small.run[1:3], strict=True))
    return Passes(teacher, student, flops["other"])


def _synthesis(runner: PlainRunner, stage: Stage) -> dict[str, float]:
    """Operations of a synthesis step of this stage, a mean over some of them, by owner.

    Where there are several the first is not counted: what it alone does (a look at the whole bank) is done once.
    """
    model, before = runner.model, runner.model.progress.synthesis_step
    calls = stage.rounds * stage.synthesis_steps
    counted = [int((i + 0.5) * calls / min(CALLS, calls)) + 1 for i in range(min(CALLS, calls))]
    found: list[Counter[str]] = []
    for call in counted if calls == 1 else (1, *counted):
        model.progress.synthesis_step = before + call
        operations = Operations(teacher=model.ctx.teacher, student=model.student)
        with operations if call > 1 or calls == 1 else nullcontext():
            samples = model.synthesize()
        model.keep(samples)
        found.append(operations.flops)
    model.progress.synthesis_step = before + calls
    return _mean(found[calls > 1 :])


def _steps(runner: PlainRunner, stage: Stage, period: int) -> dict[str, float]:
    """Operations of a student step of this stage, a mean over the first, by owner."""
    model = runner.model
    model.begin_steps()
    found: list[Counter[str]] = []
    for _ in range(period):
        with Operations(teacher=model.ctx.teacher, student=model.student) as operations:
            model.train_step(model.draw(), optim_wrapper=runner.optim_wrapper)
        model.progress.student_steps += stage.scored
        found.append(operations.flops)
    return _mean(found)


def _add(flops: Any, steps: int, each: Mapping[str, float]) -> None:
    for owner, operations in each.items():
        flops[owner] += steps * operations


def _mean(found: list[Counter[str]]) -> dict[str, float]:
    return {owner: sum(each[owner] for each in found) / len(found) for owner in (*OWNERS, "other")}


def denoising(recipe: Mapping[str, Any]) -> float:
    """Operations of one image's pass through a diffusion prior of that recipe."""
    from dfkd.priors.training import network

    size = recipe["size"]
    with torch.no_grad(), Operations() as operations:
        network(recipe, 0)(torch.zeros(1, 3, size, size), 1)
    return operations.flops.total()


def forward(arch: str, spec: InputSpec) -> float:
    """Operations of one image's forward pass: two for a multiplication and addition."""
    network = initialise(arch, spec, 0).eval()
    with torch.no_grad(), Operations() as operations:
        network(torch.zeros(1, spec.channels, spec.size, spec.size))
    return operations.flops.total()


if __name__ == "__main__":
    update(print)
