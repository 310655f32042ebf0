"""Runs taken apart, in this process and with no test set: what `bench.py profile` and `bench.py check` look at.

Nothing here is measured for a table, so no worker is confined and nothing is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd import artifacts, catalog
from dfkd.engine import distillation, machine  # noqa: F401  a configuration names the first
from dfkd.engine.clock import Clock
from dfkd.engine.configuration import configuration
from dfkd.engine.evaluation import on_device
from dfkd.engine.runner import PlainRunner
from dfkd.files import file_digest
from dfkd.networks import initialise
from dfkd.tables.resolve import Resolved
from dfkd.tasks import Task

# A run of two rounds that any machine finishes in a second or two.
BUDGET = ("training.steps=2", "training.batch=8", "rounds=2", "synthesis_batch=10", "evaluations=1")
# Of a method's arguments those that cost time, by the names that methods share; where one is absent it is left out.
SMALL = {
    "k": 2,
    "warmup": 1,
    "ngf": 8,
    "nz": 16,
    "steps": 5,
    "kd": 2,
    "capacity": 20,
    "memory": 20,
    "negatives": 12,
    "calls": 2,
    "bank_calls": 2,
    "bank_steps": 2,
    "bank_batch": 6,
    "variants": 2,
    "diffusion_steps": 4,
    "strength": 0.5,
    "keep_ratio": 0.5,
    "refresh_every": 1,
    "refresh_steps": 1,
    "adversarial_from": 2,
}
TINY = {"size": 16, "channels": [8], "layers": 1}  # the recipe of a diffusion model, as far as it shapes one


def small(method: catalog.Entry) -> list[str]:
    """The `--set` changes that make a run of this method a matter of seconds."""
    return [*BUDGET, *(f"{key}={value}" for key, value in SMALL.items() if key in method.arguments)]


def period(resolved: Resolved) -> int:
    """After so many student steps a method does the same again; some step a generator only in the first of them."""
    return int((resolved.entry.arguments | resolved.config["args"]).get("kd", 1))


def untrained(resolved: Resolved, folder: Path) -> tuple[Path, dict]:
    """A teacher of random weights and its card: neither time nor agreement of devices depends on what it knows."""
    run, spec = resolved.run, resolved.task.spec
    card = artifacts.TEACHER.new(run.data, run.teacher, origin="trained", spec=spec.to_dict(), accuracy=0.0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.data}_{run.teacher}.safetensors"
    return path, artifacts.save(initialise(run.teacher, spec, 0), path, card)


def untrained_prior(folder: Path, recipe: Mapping[str, Any] = TINY) -> tuple[Path, dict]:
    """A diffusion model of random weights as that recipe has it, by default a small one, and its card."""
    from dfkd.priors.folder import weights_path, write_digests
    from dfkd.priors.pixel import save
    from dfkd.priors.training import network

    name = f"untrained{recipe['size']}"
    if not (place := folder / name).is_dir():
        save(network(recipe, 0), place)
        write_digests(place.with_name(f"{name}.images.npy"), np.empty((0, 1, 1, 3), np.uint8))
    facts = {"size": recipe["size"], "digest": file_digest(weights_path(place)), "seconds": 100.0}
    return place, artifacts.PRIOR.new(name, kind="pixel", origin="trained", trained_on="nothing", **facts)


def untrained_pipeline(name: str, folder: Path) -> tuple[Path, dict]:
    """A small pipeline of random weights in place of that one of the hub, and its card."""
    from dfkd.priors import untrained
    from dfkd.priors.folder import kind_of, side_of, weights_path

    save = untrained.save_image_variations if "variations" in name else untrained.save_text_to_image
    place = folder / name / "pipeline"
    place = place if place.is_dir() else save(folder / name)
    facts = {"kind": kind_of(place), "size": side_of(place), "digest": file_digest(weights_path(place))}
    return place, artifacts.PRIOR.new(name, origin="foreign", trained_on="nothing", **facts)


def _pictures(task: Task, count: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Noise in place of the training split: which pictures they are says nothing of time or of a device."""
    random, shape = np.random.default_rng(0), (count, task.side, task.side)
    labels = random.integers(task.spec.classes, size=shape if task.kind == "segmentation" else count)
    return random.integers(256, size=(*shape, task.spec.channels), dtype=np.uint8), labels


def assemble(
    resolved: Resolved,
    teacher: tuple[Path, dict],
    prior: tuple[Path | str, dict] | None,
    device: torch.device,
    folder: Path,
    **given: Any,
) -> PlainRunner:
    """The Runner of a run, which measures nothing on the way; `given` is `resume` and `time_limit` of `configuration`.

    Raises Declined where the method does not apply to the task.
    """
    machine.allow_tf32(resolved.precision)
    given = {"resume": False, "time_limit": None, **given}
    config = configuration(resolved, teacher, prior, folder, save_every=math.inf, live=False, **given)
    config["custom_hooks"] = [hook for hook in config["custom_hooks"] if hook["type"] == "StateHook"]
    config["train_cfg"]["evaluations"] = 0
    Path(config["model"]["log"]).parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {"clock": Clock(device)}
    if resolved.entry.needs_data:
        parts["real"] = on_device(*_pictures(resolved.task), device)
    return PlainRunner(config, folder / "log", parts)
