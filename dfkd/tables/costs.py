"""What a run costs and how long it takes on a named device: counted operations over measured throughput. Torch-free.

`benchmarks/costs.json` has the counts, which `python -m dfkd.engine.counting` makes; a run whose method or
configuration has changed since is not in it. `benchmarks/devices.json` has throughputs of named devices, and
`work/devices.json` those of this machine, by `dfkd.engine.throughput`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from dfkd import catalog, documents, paths
from dfkd.errors import unknown
from dfkd.files import replace_file, stamps
from dfkd.identity import Run
from dfkd.optimizers import NOT_NEGATIVE, POSITIVE, mapping
from dfkd.tables.definition import AUTO
from dfkd.tables.resolve import Resolved, resolve
from dfkd.tasks import task

GENERATOR = "generator"  # stands for all that is neither teacher nor student
TRAINING = 3  # forward passes that cost as much as a training step


class Passes(NamedTuple):
    """What a run asks of the networks.

    Images that pass the teacher in student steps and where images are made, and those that pass the student, a backward
    pass counted like the forward passes that cost as much; floating-point operations of all else.
    """

    teacher: float
    inversion: float
    student: float
    other: float


class Speed(NamedTuple):
    """Operations a second that a device reaches with a network: in a forward pass, in a pass forward and back to the
    image with BatchNorm statistics taken, in a training step."""

    forward: float
    inversion: float
    training: float


_NUMBERS = {"type": "object", "additionalProperties": POSITIVE}
_RUN = mapping(
    "what " + " ".join(Passes._fields), what={"type": "string"}, **dict.fromkeys(Passes._fields, NOT_NEGATIVE)
)
COSTS = mapping("networks runs", networks=_NUMBERS, runs={"type": "object", "additionalProperties": _RUN})
_SPEED = mapping(" ".join(Speed._fields), **dict.fromkeys(Speed._fields, POSITIVE))
_SPEEDS = {"type": "object", "additionalProperties": _SPEED}
DEVICES = {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": _SPEEDS}}


# Of a device: precision → network (`place`) → speed.
Speeds = Mapping[str, Mapping[str, Speed]]


def place(network: str, size: int) -> str:
    """What a network at an image size is called in the files."""
    return f"{network} {size}"


def key(resolved: Resolved) -> str:
    """Stands for all that a count depends on: the method's code, its arguments, the budget, the size of images."""
    config, on = resolved.config, resolved.task
    budget = [config["training"]["steps"], config["training"]["batch"], config["rounds"], config["synthesis_batch"]]
    given = [resolved.entry.arguments | config["args"], budget, resolved.prior, on.kind, on.spec.size, on.spec.channels]
    text = json.dumps([_digest(resolved.entry), resolved.entry.name, *given], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _digest(entry: catalog.Entry) -> str:
    return entry.digest


def counts() -> dict[str, Any]:
    """`networks`: operations of an image's forward pass; `runs`: `Passes` by `key`. Raises UserError."""
    return _read(stamps([paths.costs()]), "costs") if paths.costs().is_file() else {"networks": {}, "runs": {}}


def write(networks: Mapping[str, float], runs: Mapping[str, Any]) -> None:
    """Put the counts into their file in order, whole numbers as far as JSON has them."""
    whole = {key: {k: v if k == "what" else _whole(v) for k, v in run.items()} for key, run in runs.items()}
    ordered = dict(sorted(whole.items(), key=lambda item: (item[1]["what"], item[0])))
    parts: dict[str, Mapping[str, Any]] = {
        "networks": {name: round(flops) for name, flops in sorted(networks.items())},
        "runs": ordered,
    }
    texts = (f'"{name}": {{\n{_lines(part)}\n}}' for name, part in parts.items())
    replace_file(paths.costs(), "{" + ",\n".join(texts) + "}\n")


def _whole(count: float) -> float:
    return round(count) if count < 2**53 else float(f"{count:.9g}")


def _lines(part: Mapping[str, Any]) -> str:
    return ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in part.items())


def passes(resolved: Resolved) -> Passes | None:
    """What was counted of the run; None where nothing was."""
    found = counts()["runs"].get(key(resolved))
    return found and Passes(*(found[name] for name in Passes._fields))


def devices() -> dict[str, Speeds]:
    """The throughputs of every named device; what was measured here is first. Raises UserError."""
    here, named = map(_devices, paths.devices())
    return {**here, **{name: speeds for name, speeds in named.items() if name not in here}}


def _devices(path: Path) -> dict[str, Speeds]:
    found = _read(stamps([path]), "devices") if path.is_file() else {}
    return {
        name: {precision: {n: Speed(**speed) for n, speed in each.items()} for precision, each in speeds.items()}
        for name, speeds in found.items()
    }


def device(name: str | None = None) -> tuple[str, Speeds]:
    """The device of that name, by default the one measured here last. Raises UserError naming the nearest one."""
    known = devices()
    if name is None:
        return next(iter(known.items()), ("a device that was not measured", {}))
    if name not in known:
        raise unknown("device", name, known)
    return name, known[name]


def reference() -> tuple[str, Speeds]:
    """The first of the named devices, the same wherever tables are written; without a speed where there is none."""
    return next(iter(_devices(paths.devices()[1]).items()), ("no device", {}))


def on_reference(run: Run) -> float | None:
    """As `predicted`, on that device."""
    return predicted(resolve(run.data, run.protocol, run.method, run.pair), reference()[1])


@functools.lru_cache(maxsize=8)
def _read(stamped: tuple, kind: str) -> dict[str, Any]:
    ((path, *_),) = stamped
    content = documents.read_json(path)
    documents.check(content, COSTS if kind == "costs" else DEVICES, path)
    return content


def keep_speeds(name: str, precision: str, measured: Mapping[str, Speed]) -> None:
    """Put what was measured of this machine first into its file, beside what is known of it already."""
    known = {p: dict(each) for p, each in devices().get(name, {}).items()}
    known[precision] = known.get(precision, {}) | dict(measured)
    path = paths.devices()[0]
    others = documents.read_json(path) if path.is_file() else {}
    plain = {p: {n: _plain(speed) for n, speed in each.items()} for p, each in known.items()}
    replace_file(path, json.dumps({name: plain} | {n: s for n, s in others.items() if n != name}, indent=1) + "\n")


def _plain(speed: Speed) -> dict[str, float]:
    return {does: float(f"{value:.4g}") for does, value in speed._asdict().items()}


def predicted(resolved: Resolved, speeds: Speeds) -> float | None:
    """Seconds of a run on a device, less its prior's training and its evaluation; None where its cost is not known."""
    found, size = passes(resolved), resolved.task.spec.size
    reached = speeds.get(_precision(resolved, speeds))
    if found is not None and not any(found):
        return 0.0
    if found is None or reached is None:
        return None
    spent = found.other / _speed(reached, GENERATOR, size).training
    names = (resolved.run.teacher, resolved.run.teacher, resolved.run.student)
    for images, name, does in zip(found[:3], names, Speed._fields, strict=True):
        if not images:
            continue
        each = counts()["networks"].get(place(name, size))
        if each is None:
            return None
        spent += images * each / getattr(_speed(reached, name, size), does)
    return spent


def teacher(data: str, arch: str, recipe: Mapping[str, Any], speeds: Speeds) -> float | None:
    """Seconds of a teacher's training; None where it is not known how many images there are."""
    manifest, of = paths.manifest(data), task(data)
    here = documents.read_json(manifest)["splits"]["train"]["images"][0] if manifest.is_file() else None
    images = here or of.training_images
    return _training(recipe.get("epochs", 0) * images, arch, of.spec.size, speeds) if images else None


def prior(name: str, recipe: Mapping[str, Any], speeds: Speeds) -> float | None:
    """Seconds of a diffusion prior's training; None where its cost is not known."""
    return _training(recipe["steps"] * recipe["batch"], name, recipe["size"], speeds)


def _training(images: int, network: str, size: int, speeds: Speeds) -> float | None:
    """Seconds in which a network is trained on so many images, in fp32."""
    each, reached = counts()["networks"].get(place(network, size)), speeds.get("fp32")
    return TRAINING * images * each / _speed(reached, network, size).training if each and reached else None


def _precision(resolved: Resolved, speeds: Speeds) -> str:
    """In which precision the run would run there: `auto` is bf16 where that was found to be the faster one."""
    if resolved.precision != AUTO:
        return resolved.precision
    return "bf16" if "bf16" in speeds else "fp32"


def _speed(reached: Mapping[str, Speed], network: str, size: int) -> Speed:
    """That of the network; of one that was not measured there the middle of those that were."""
    known = reached.get(place(network, size))
    return known or Speed(*(median(each) for each in zip(*reached.values(), strict=True)))
