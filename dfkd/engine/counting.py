"""What a run costs in floating-point operations, counted on a few of its steps.

A count does not depend on machine, precision or pair: what goes through teacher and student is told in images, all
else (generator, diffusion model, heads) in operations. Stable Diffusion is counted on a small one, each of whose passes
stands for one of the published networks. `dfkd.tables.costs` keeps the counts and predicts seconds;
`python -m dfkd.engine.counting` counts what is new in the tables.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd.engine import trial
from dfkd.engine.distillation import Declined
from dfkd.engine.method import Stage
from dfkd.engine.operations import Operations
from dfkd.engine.runner import PlainRunner
from dfkd.errors import UserError
from dfkd.networks import initialise
from dfkd.priors import text
from dfkd.priors.recipes import recipes as own_priors
from dfkd.tables import costs
from dfkd.tables.costs import Passes
from dfkd.tables.pipeline import span
from dfkd.tables.resolve import Resolved, resolve
from dfkd.tasks import InputSpec

SMALLEST = {"classification": "resnet8", "segmentation": "deeplabv3plus_thin16"}  # the pair changes no count
BATCHES = ("bank_batch", "head_images")  # arguments of methods that are numbers of images
LOOPS = ("k", "bank_steps", "steps")  # and of inner iterations
FEW = ((1, 2), (5, 10))  # two numbers of these that tell what each costs; a trajectory of DiffDFKD needs five
CALLS = 2  # synthesis steps that are counted in a stage, evenly spread


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
    wanted = {costs.key(r): r for r in resolved}
    runs = {key: known["runs"][key] for key in wanted if key in known["runs"]}
    costs.write(found, runs)
    for key, of in wanted.items():
        if key not in runs:
            with suppress(Declined):
                runs[key] = {"what": f"{of.run.data} {of.run.protocol} {of.run.method}", **count(of)._asdict()}
            say(f"{of.run.name}: counted")
            costs.write(found, runs)


def count(resolved: Resolved) -> Passes:
    """What a run asks of the networks; evaluation is not in it. Raises Declined."""
    with tempfile.TemporaryDirectory() as folder:
        return _first(partial(_extrapolated, resolved, few, more, Path(folder)) for few, more in FEW)


def _first(attempts: Iterable[Callable[[], Passes]]) -> Passes:
    """What the first attempt gives that is not refused. Raises UserError of the last where all are."""
    refused = UserError("nothing was tried")
    for attempt in attempts:
        try:
            return attempt()
        except UserError as error:
            refused = error
    raise refused


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
    divisors = (64, 32, 16, 8, 4, 2, 1)  # the cost of an image does not depend on how many there are
    try:
        return _first(partial(_multiplied, resolved, loops, divisor, folder) for divisor in divisors)
    except UserError as error:
        raise UserError(f"{resolved.run.name} cannot be counted: {error}") from None


def _multiplied(resolved: Resolved, loops: dict[str, int], divisor: int, folder: Path) -> Passes:
    return Passes(*(divisor * part for part in _run(_divided(resolved, loops, divisor), folder)))


def _divided(resolved: Resolved, loops: dict[str, int], divisor: int) -> Resolved:
    """The run with every number of images divided, with the smallest network. Raises UserError where that cannot be."""
    config, known = deepcopy(dict(resolved.config)), resolved.entry.arguments | resolved.config["args"]
    batches = {name: known[name] for name in BATCHES if known.get(name)}
    counts = (config["training"]["batch"], config["synthesis_batch"], *batches.values())
    if any(n % divisor for n in counts) or (divisor > 1 and min(counts) < 2 * divisor):
        raise UserError(f"its images do not divide by {divisor}")
    config["training"]["batch"] //= divisor
    config["synthesis_batch"] //= divisor
    config["args"] = config["args"] | loops | {name: n // divisor for name, n in batches.items()}
    config["args"].pop(text.ARGUMENT, None)  # what is read once costs next to nothing
    arch = SMALLEST[resolved.task.kind]
    run = resolved.run._replace(teacher=arch, student=arch)
    return replace(resolved, run=run, config=config, precision="fp32")


def _run(small: Resolved, folder: Path) -> Passes:
    runner = trial.assemble(small, trial.untrained(small, folder), _prior(small, folder), torch.device("cpu"), folder)
    runner.rebuild_optimizer()
    flops: Any = Counter()
    for stage in runner.model.stages:
        if stage.reset_student:
            runner.model.reset_student()
            runner.rebuild_optimizer()
        if stage.synthesis_steps:
            _add(flops, stage.rounds * stage.synthesis_steps, _synthesis(runner, stage))
        if stage.student_steps:
            _add(flops, stage.rounds * stage.student_steps, _steps(runner, stage, trial.period(small)))
    each = forward(small.run.teacher, small.task.spec)  # the student's, too
    other = flops["other"] + sum(flops[part] * larger for part, larger in _published(runner).items())
    return Passes(flops["teacher"] / each, flops["inversion"] / each, flops["student"] / each, other)


def _prior(small: Resolved, folder: Path) -> tuple[Path, dict] | None:
    if small.prior is None:
        return None
    recipe = own_priors().get(small.prior)
    return trial.untrained_prior(folder, recipe) if recipe else trial.untrained_pipeline(small.prior, folder)


def _parts(runner: PlainRunner) -> dict[str, nn.Module]:
    """Those of a Stable Diffusion, if there is one."""
    if (pipeline := getattr(runner.model.ctx.prior, "pipeline", None)) is None:
        return {}
    return {"unet": pipeline.unet, "encoder": pipeline.vae.encoder, "decoder": pipeline.vae.decoder}


def _published(runner: PlainRunner) -> dict[str, float]:
    """By part of a small Stable Diffusion: how many operations of the published one stand for one of its own."""
    if not (small := _parts(runner)):
        return {}
    from dfkd.priors.untrained import published

    pipeline = runner.model.ctx.prior.pipeline
    words = getattr(getattr(pipeline, "tokenizer", None), "model_max_length", 1)  # one embedding stands for an image
    own = _pipeline_passes(pipeline.unet, pipeline.vae, words, lambda: Operations(**small))
    whole = _pipeline_passes(*published(), 77 if words > 1 else 1, Operations)
    return {part: whole[part].total() / own[part][part] for part in small}


def _pipeline_passes(unet: Any, vae: Any, words: int, counted: Callable[[], Operations]) -> dict[str, Counter[str]]:
    """Operations of one image's pass through each part, conditioned on so many embeddings."""
    found, (side, image) = {}, (unet.config.sample_size, vae.config.sample_size)
    with torch.no_grad(), torch.device(unet.device):
        text = torch.zeros(1, words, unet.config.cross_attention_dim)
        latent = torch.zeros(1, unet.config.in_channels, side, side)
        passes: dict[str, Callable[[], object]] = {
            "unet": lambda: unet(latent, torch.zeros(()), encoder_hidden_states=text),
            "encoder": lambda: vae.encode(torch.zeros(1, 3, image, image)),
            "decoder": lambda: vae.decode(latent),
        }
        for part, run in passes.items():
            with counted() as operations:
                run()
            found[part] = operations.flops
    return found


def _synthesis(runner: PlainRunner, stage: Stage) -> dict[str, float]:
    """Operations of a synthesis step of this stage, a mean over some of them, by owner.

    Where there are several the first is not counted: what it alone does (a look at the whole bank) is done once.
    """
    model, before = runner.model, runner.model.progress.synthesis_step
    calls = stage.rounds * stage.synthesis_steps
    counted = [int((i + 0.5) * calls / min(CALLS, calls)) + 1 for i in range(min(CALLS, calls))]
    found: list[Counter[str]] = []
    if calls > 1:
        model.progress.synthesis_step = before + 1
        model.keep(model.synthesize())
    for call in counted:
        model.progress.synthesis_step = before + call
        with Operations(inversion=model.ctx.teacher, student=model.student, **_parts(runner)) as operations:
            samples = model.synthesize()
        model.keep(samples)
        found.append(operations.flops)
    model.progress.synthesis_step = before + calls
    return _mean(found)


def _steps(runner: PlainRunner, stage: Stage, period: int) -> dict[str, float]:
    """Operations of a student step of this stage, a mean over the first, by owner."""
    model = runner.model
    model.begin_steps()
    found: list[Counter[str]] = []
    for _ in range(period):
        with Operations(inversion=model.ctx.teacher, student=model.student, **_parts(runner)) as making:
            batch = model.draw()
        with Operations(teacher=model.ctx.teacher, student=model.student) as learning:
            model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        model.progress.student_steps += stage.scored
        found.append(making.flops + learning.flops)
    return _mean(found)


def _add(flops: Any, steps: int, each: Mapping[str, float]) -> None:
    for owner, operations in each.items():
        flops[owner] += steps * operations


def _mean(found: list[Counter[str]]) -> dict[str, float]:
    return {owner: sum(each[owner] for each in found) / len(found) for owner in set().union(*found)}


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
        network(torch.zeros(1, *spec.shape))
    return operations.flops.total()


if __name__ == "__main__":
    update(print)
