#!/usr/bin/env python3
"""DFKD suite: data-free knowledge distillation methods side by side.

python bench.py --method ssdkd --data digits   run a cell, update the tables
python bench.py VERB --help                    what a verb takes
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from filelock import FileLock, Timeout
from tabulate import tabulate

from dfkd import catalog, leaderboard, plots, protocols, records
from dfkd.checkout import git
from dfkd.documents import check, parse_json, read_json
from dfkd.errors import UserError, unknown
from dfkd.files import copy_file, replace_file
from dfkd.names import check_name, device, path, whole
from dfkd.networks import fitting
from dfkd.priors.cards import card_path as prior_card
from dfkd.priors.cards import read_card as read_prior_card
from dfkd.priors.recipes import recipe_for
from dfkd.priors.recipes import recipes as prior_recipes
from dfkd.signals import Stopped
from dfkd.tasks import POOLS, TASKS, prepare, task
from dfkd.tasks.store import data_root, digest
from dfkd.teachers import read_card, weights_name
from dfkd.units import duration, memory, score

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
TEACHERS = RESULTS / "teachers"
PRIORS = RESULTS / "priors"
CUSTOM = ROOT / "work" / "custom"
EXIT_PARTIAL = 75  # EX_TEMPFAIL: try again, with --resume
RENDER = "python bench.py leaderboard"
RENDERING = 600  # seconds that a process waits for others to write the tables

VERBS = {
    "run": "run one cell: a method on a data set (the default verb)",
    "data": "fetch a data set and convert it, or say that it is there",
    "teacher": "adopt or train a teacher",
    "prior": "adopt or train a diffusion prior",
    "list": "methods, data, protocols and pairs, with the status of each",
    "plan": "cells of the tables that have no valid record, with an estimated time",
    "leaderboard": "write the tables and plots from the records",
    "doctor": "what is installed, which device, which data are there and intact",
}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and not the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def typed(read: Callable[[str], object]) -> Callable[[str], object]:
    """A type of options, whose refusals are argparse's, which names the option."""

    def convert(text: str) -> object:
        try:
            return read(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


NAME, PATH, WHOLE, DEVICE = map(typed, (check_name, path, whole, device))


def parser() -> argparse.ArgumentParser:
    """The command line; `run` is the verb where none is named."""
    main = Parser(prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = main.add_subparsers(dest="verb", metavar="VERB", required=True)
    add = {name: verbs.add_parser(name, help=text, description=text) for name, text in VERBS.items()}

    run = add["run"]
    run.add_argument("--method", type=NAME, required=True, help="a recipe or method, see `list`")
    run.add_argument("--data", type=NAME, required=True, help=f"one of: {', '.join(TASKS)}")
    run.add_argument(
        "--pair", type=NAME, help="TEACHER-STUDENT, such as wrn40_2-wrn16_1 (default: the table's first)"
    )
    run.add_argument("--seed", type=WHOLE, default=0, help="repetition (default 0)")
    run.add_argument(
        "--protocol", type=NAME, help="default: paper with CUDA, else cpu, or quick for embedded data"
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="change a hyper-parameter (docs/protocol.md); the record is custom and kept out of the tables",
    )
    run.add_argument(
        "--precision", choices=("fp32", "tf32", "bf16"), help="as --set, where the protocol differs"
    )
    run.add_argument("--resume", action="store_true", help="go on from the state an interrupted run left")
    run.add_argument("--again", action="store_true", help="run a cell that is finished once more, afresh")
    run.add_argument(
        "--out", type=PATH, help="folder for the record (default: results/records, custom: work/custom)"
    )
    run.add_argument(
        "--teacher-weights", type=PATH, metavar="FILE", help="your own checkpoint; marked custom"
    )
    run.add_argument(
        "--import", dest="extra", metavar="FILE|MODULE", help="a method from outside the repository"
    )
    run.add_argument(
        "--tensorboard", action="store_true", help="write curves for TensorBoard to the work folder"
    )

    add["data"].add_argument("name", type=NAME, help=f"one of: {', '.join((*TASKS, *POOLS))}")
    add["data"].add_argument(
        "--from",
        dest="source",
        type=PATH,
        metavar="PATH",
        help="convert files you have: for nyuv2 the official .mat with its split and class mappings, or a folder of "
        "images and 13-class PNG labels",
    )
    add["data"].add_argument("--manifest", type=PATH, help="also copy the manifest there")
    teacher = add["teacher"]
    teacher.add_argument("--data", type=NAME, required=True)
    teacher.add_argument("--arch", type=NAME, required=True)
    teacher.add_argument("--protocol", type=NAME, help="whose recipe trains it (default as for run)")
    teacher.add_argument("--seed", type=WHOLE, default=0)
    prior = add["prior"]
    prior.add_argument(
        "--data", type=NAME, required=True, help=f"the pool it learns from: {', '.join(POOLS)}"
    )
    prior.add_argument("--size", type=WHOLE, required=True, help="side of its images in pixels")
    prior.add_argument("--name", type=NAME, help="default: the pool's and the size, such as public32")
    prior.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="change its recipe (benchmarks/priors.yaml); the prior then needs a --name of its own",
    )
    for verb in (teacher, prior):
        verb.add_argument("--resume", action="store_true", help="go on from where a training was stopped")
    for verb in (run, teacher, prior):
        verb.add_argument(
            "--time-limit",
            type=minutes,
            metavar="MINUTES",
            help="save and stop this long after the start, whatever is being trained; resumable",
        )
        verb.add_argument(
            "--device", type=DEVICE, help="cpu, cuda, cuda:1 (default: CUDA where there is one)"
        )
        verb.add_argument(
            "--weights", type=PATH, help="folder of ready teachers and priors (default: DFKD_WEIGHTS)"
        )
    for name in ("run", "data", "teacher", "prior", "doctor"):
        add[name].add_argument(
            "--data-root", type=PATH, help="where data lie (default: DFKD_DATA, else a cache)"
        )
    add["plan"].add_argument("--data", type=NAME, help="only this table")
    add["plan"].add_argument("--protocol", type=NAME, help="only this protocol")
    add["plan"].add_argument(
        "--cells", type=PATH, metavar="DIR", help="write what each cell depends on, for DVC"
    )
    add["plan"].add_argument(
        "--shard",
        metavar="I/N",
        help="every N-th cell from the I-th (1-based), for job arrays; each shard begins with the teachers and priors "
        "that its cells lack, and where several make the same one at once, one does and the others wait",
    )
    add["leaderboard"].add_argument(
        "--committed",
        action="store_true",
        help="show each record that differs from the committed one beside it",
    )
    add["leaderboard"].add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a file differs"
    )
    add["list"].add_argument("--import", dest="extra", metavar="FILE|MODULE")
    return main


def minutes(text: str) -> float:
    """The value of --time-limit."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"takes minutes above 0, not {text[:40]}")
    return value


def moment(options: argparse.Namespace) -> float:
    """When the time limit of a command that starts now ends, as `time.monotonic` tells time."""
    return time.monotonic() + 60 * (options.time_limit or math.inf)


def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a locale that lacks a sign of ours shall not end a run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] not in (*VERBS, "-h", "--help"):
        if not arguments[0].startswith("-"):
            return fail(unknown("verb", arguments[0], VERBS))
        arguments.insert(0, "run")
    try:
        options = parser().parse_args(arguments or ["--help"])
        return globals()[f"do_{options.verb}"](options)
    except Stopped as stopped:
        return fail(stopped, EXIT_PARTIAL)
    except UserError as error:
        return fail(error)
    except BrokenPipeError:  # `plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return fail(KeyboardInterrupt("interrupted"), 130)


def fail(error: Exception, status: int = 2) -> int:
    """Say it in one line, whatever was quoted in it."""
    line = re.sub(r"[^\S ]|[\x00-\x1f\x7f-\x9f]", lambda sign: ascii(sign[0])[1:-1], str(error))
    print(f"bench.py: {line[:4000]}", file=sys.stderr)
    return status


def fail_each(errors: list[UserError]) -> int:
    """One line each; the exit status where the rest was done."""
    return max((fail(error, 1) for error in errors), default=0)


def do_run(options: argparse.Namespace) -> int:
    until = moment(options)
    protocol = options.protocol or default_protocol(options.data, options.device)
    cell = protocols.resolve(
        options.data,
        protocol,
        options.method,
        options.pair,
        options.seed,
        options.changes,
        options.extra,
        options.precision,
    )
    if options.teacher_weights:
        cell = replace(cell, custom=True)
    out = (options.out or (CUSTOM / cell.digest[:12] if cell.custom else RESULTS / "records")).resolve()
    if cell.custom and out == (RESULTS / "records").resolve():
        raise UserError("a custom run has no place in results/records; pass another --out, or none")
    check_writable(out)
    from dfkd.engine.guard import DataFreeViolation, guard

    guard.install()  # before anything else that could keep a way to the data
    from dfkd.engine.machine import device_of
    from dfkd.engine.run import WORK, Failed, Options, declined, run, work_name

    root, device = data_root(options.data_root), device_of(options.device)
    seconds = estimate(options.data, protocol, options.method)
    print(f"{cell.name} on {device}" + (f", about {duration(seconds)}" if seconds else ""))
    settings = Options(root, str(device), options.resume, work=WORK, tensorboard=options.tensorboard)
    kept: list[Path | None] = []

    def keep(record: dict) -> None:
        kept.append(records.keep(record, out))

    try:
        record = declined(cell, settings, keep) if to_be_made(cell, options) else None
        if record is None:
            teacher = teacher_for(cell, options, root, device, WORK / "teachers", until)
            prior = prior_for(cell, options, root, device, until)
            manifest = task(options.data).manifest(root)
            work = work_name(cell, teacher[1], manifest, device, prior and prior[1])
            resumable = options.resume and (WORK / work / "state.pt").is_file()
            # DVC has looked at all that itself before it begins a stage.
            asked = options.again or resumable or in_stage()
            path = records.path_of(cell.identity, out)
            if not asked and is_finished(path, work, WORK):
                print(f"finished: {path}; to run it once more: --again")
                return 0
            limit = max(1e-9, until - time.monotonic()) if options.time_limit else None
            record = run(cell, *teacher, replace(settings, time_limit=limit), prior, keep)
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, DataFreeViolation | Failed):
            traceback.print_exc()
        return fail(error, 1)
    path, work = kept[-1], WORK / record["work"]
    report(record, path, work)
    if path is not None and out == (RESULTS / "records").resolve():
        keep_samples(record, work)
        if not in_stage():  # there the tables have a stage of their own
            render_after_run()
    return EXIT_PARTIAL if record["status"] == "partial" else 0


def to_be_made(cell: protocols.ResolvedCell, options: argparse.Namespace) -> bool:
    """Whether the cell has a teacher or a diffusion model that is not there yet; somebody else's prior always is."""
    own = TEACHERS / weights_name(options.data, cell.identity["teacher"])
    prior = cell.prior is not None and "/" not in cell.prior and not (PRIORS / cell.prior).is_dir()
    return prior or not (options.teacher_weights or own).is_file()


def is_finished(path: Path, work: str, root: Path) -> bool:
    """Whether this record is that of a run in this work folder, whose student is there.

    The folder's name stands for configuration, code, data, teacher, prior and kind of device.
    """
    try:
        record = records.read(path)
    except (UserError, FileNotFoundError):
        return False
    there = record["status"] == "ok" and record["work"] == work
    return there and (root / work / "student.safetensors").is_file()


def teacher_for(
    cell: protocols.ResolvedCell,
    options: argparse.Namespace,
    root: Path,
    device: torch.device,
    converted: Path,
    until: float,
) -> tuple[Path, dict]:
    """The weights file and card of the run's teacher; somebody's own checkpoint is converted into `converted`.

    A training of it that was stopped goes on, with --resume or without: it is the same teacher either way.
    """
    from dfkd.teachers.provide import foreign, provide

    arch = cell.identity["teacher"]
    if options.teacher_weights:
        return foreign(options.data, arch, options.teacher_weights, converted, root, device)
    if not (TEACHERS / weights_name(options.data, arch)).is_file():
        check_writable(TEACHERS)
    given = {"source": options.weights, "until": until}
    return provide(options.data, arch, cell.teacher_recipe, TEACHERS, root, device, **given)


def prior_for(
    cell: protocols.ResolvedCell,
    options: argparse.Namespace,
    root: Path,
    device: torch.device,
    until: float,
) -> tuple[Path | str, dict] | None:
    """Where the run's diffusion model lies, and its card; None for a method that uses none.

    A training of it that was stopped goes on, with --resume or without: it is the same prior either way.
    """
    if cell.prior is None:
        return None
    from dfkd.priors import provide

    if "/" not in cell.prior and not (PRIORS / cell.prior).is_dir():
        check_writable(PRIORS)
    return provide(cell.prior, PRIORS, root, device, source=options.weights, until=until)


def default_protocol(data: str, device: str | None) -> str:
    """`paper` where a CUDA device is present, else `quick` for embedded data and `cpu` for the rest."""
    if task(data).embedded:
        return "quick"
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return "paper" if device.startswith("cuda") else "cpu"


def in_stage() -> bool:
    """Whether DVC called: it does where something changed, so what lies there already is made anew."""
    return "DVC_STAGE" in os.environ


def check_writable(folder: Path) -> None:
    """Before an hour of work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "permission denied")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


def report(record: dict, path: Path | None, work: Path) -> None:
    """What a run came to, in a few lines."""
    metrics, seconds = record["metrics"], record["time"]
    last, teacher = (score(metrics[key], metrics["name"]) for key in ("last", "teacher"))
    note = f" ({record['error']})" if record["error"] else ""
    print(f"{record['status']}{note}: {metrics['name']} {last}, teacher {teacher}")
    parts = ", ".join(
        f"{account} {duration(seconds[account])}" for account in ("synthesis", "distillation", "total")
    )
    size = record["cost"]["peak_memory_bytes"]
    print(f"time: {parts}" + ("" if size is None else f"; memory {memory(size)}"))
    print(f"record: {path or 'not written: a finished one is there already'}")
    if (work / "student.safetensors").is_file():
        print(f"student: {work / 'student.safetensors'}")
    if record["status"] == "partial":
        print("run the same command with --resume to go on")


def keep_samples(record: dict, work: Path) -> None:
    """The grid of synthetic samples, beside the plots of its table."""
    if (work / "samples.png").is_file() and not record["reference"]:
        copy_file(work / "samples.png", RESULTS / "plots" / plots.grid_of(records.cell_of(record)))


def do_data(options: argparse.Namespace) -> int:
    root, copy = data_root(options.data_root), options.manifest
    if copy:
        if copy.exists() and not copy.is_file():
            raise UserError(f"--manifest {copy} is no file")
        check_writable(copy.parent)
    manifest, line = prepare(options.name, root, options.source)
    print(line)
    if copy:
        replace_file(copy, json.dumps({**manifest, "digest": digest(manifest)}, indent=1) + "\n")
    return 0


def do_teacher(options: argparse.Namespace) -> int:
    until = moment(options)
    from dfkd.engine.machine import device_of
    from dfkd.teachers.provide import provide

    protocol = options.protocol or default_protocol(options.data, options.device)
    available = protocols.protocols(options.data)
    if protocol not in available:
        raise unknown("protocol", protocol, available)
    protocols.check_fits(options.data, options.arch)
    if not (TEACHERS / weights_name(options.data, options.arch)).is_file():
        check_writable(TEACHERS)
    path, card = provide(
        options.data,
        options.arch,
        available[protocol]["teacher"],
        TEACHERS,
        data_root(options.data_root),
        device_of(options.device),
        seed=options.seed,
        source=options.weights,
        anew=in_stage(),
        resume=options.resume,
        until=until,
    )
    metric = task(options.data).metric
    print(f"{path}: {card['origin']}, {metric} {score(card['accuracy'], metric)} on the test set")
    return 0


def do_prior(options: argparse.Namespace) -> int:
    until = moment(options)
    from dfkd.priors import recipes

    name, recipe = recipes.recipe_for(options.data, options.size)
    recipe, name = recipes.changed(recipe, options.changes), options.name or name
    recipes.check_free(name, recipe)
    import torch

    from dfkd.engine.hooks import save_grid
    from dfkd.engine.machine import device_of
    from dfkd.priors import load, provide
    from dfkd.priors.base import sample
    from dfkd.synthesis.buffer import to_bytes

    device, root = device_of(options.device), data_root(options.data_root)
    grid, there = RESULTS / "plots" / "priors" / f"{name}.png", (PRIORS / name).is_dir() and not in_stage()
    if not there:
        check_writable(PRIORS)
    given = {"source": options.weights, "recipe": recipe, "resume": options.resume, "until": until}
    folder, card = provide(name, PRIORS, root, device, anew=in_stage(), **given)
    if not (there and grid.is_file()):
        model = load(folder, card, device, "fp32")
        save_grid(to_bytes(sample(model, 72, torch.Generator(device).manual_seed(0))), grid, columns=12)
    print(f"{folder}: {card['origin']}, {card['trained_on']}; samples in {grid}")
    return 0


def do_list(options: argparse.Namespace) -> int:
    (done, problems), span = current_records(), list(protocols.span())
    methods = catalog.entries(options.extra)
    rows = [(m.name, "bound" if m.reference else m.prior, m.summary) for m in methods.values()]
    print(tabulate(rows, headers=("method", "prior", "what it is"), tablefmt="simple"), end="\n\n")
    rows = []
    for data in protocols.datasets():
        for protocol in protocols.protocols(data):
            cells = [cell for cell in span if cell[:2] == (data, protocol)]
            valid = sum(cell in done for cell in cells)
            pairs = sorted({cell[2] for cell in cells})
            rows.append((data, protocol, "\n".join(pairs), f"{valid} of {len(cells)} cells"))
    print(tabulate(rows, headers=("data", "protocol", "pairs", "status"), tablefmt="simple"), end="\n\n")
    rows = []
    for data in protocols.datasets():
        for name, recipe in protocols.recipes(data).items():
            tables = ", ".join(sorted({c[1] for c in span if c[0] == data and c[3] == name}))
            rows.append((data, name, recipe.get("method", name), tables or "none", recipe.get("note", "")))
    print(tabulate(rows, headers=("data", "recipe", "method", "in tables", "note"), tablefmt="simple"))
    return fail_each(problems)


def do_plan(options: argparse.Namespace) -> int:
    for name, known in (("data", protocols.datasets()), ("protocol", {c[1] for c in protocols.span()})):
        if getattr(options, name) not in (None, *known):
            raise unknown(name, getattr(options, name), known)
    if options.cells:
        if not (options.data and options.protocol):
            raise UserError("plan --cells needs --data and --protocol")
        write_cells(options)
        return 0
    done, problems = current_records()
    missing = [
        cell
        for cell in protocols.span()
        if cell not in done and options.data in (None, cell[0]) and options.protocol in (None, cell[1])
    ]
    index, count = shard(options.shard)
    total = 0.0
    for command in lacking(missing[index::count]):
        print(f"python bench.py {command}")
    for data, protocol, pair, method, seed in missing[index::count]:
        seconds = estimate(data, protocol, method)
        total += seconds
        print(
            f"python bench.py --data {data} --protocol {protocol} --pair {pair} --method {method} --seed {seed}"
            f"  # about {duration(seconds)}"
        )
    print(f"# {len(missing[index::count])} cells, about {duration(total)}", file=sys.stderr)
    return fail_each(problems)


def lacking(cells: list[tuple]) -> list[str]:
    """The commands that make the teachers and priors of these cells, as far as they are not there."""
    found: dict[str, None] = {}  # each once, in order
    methods, books = catalog.entries(), {data: protocols.recipes(data) for data in {cell[0] for cell in cells}}
    for data, protocol, pair, method in dict.fromkeys(cell[:4] for cell in cells):
        arch = protocols.check_pair(data, pair)[0]
        if not (TEACHERS / weights_name(data, arch)).is_file():
            found[f"teacher --data {data} --arch {arch} --protocol {protocol} --resume"] = None
        entry = methods.get(books[data].get(method, {}).get("method", method))
        if entry is None or entry.prior != "diffusion":
            continue
        prior = protocols.resolve(data, protocol, method, pair).prior
        recipe = prior_recipes().get(prior)  # another one comes from the hub when it is first used
        if recipe and not (PRIORS / prior).is_dir():
            name = "" if recipe_for(recipe["data"], recipe["size"])[0] == prior else f" --name {prior}"
            found[f"prior --data {recipe['data']} --size {recipe['size']}{name} --resume"] = None
    return list(found)


@functools.cache
def estimate(data: str, protocol: str, method: str) -> float:
    """Seconds a cell will take: what its method took in that table, on whatever machine, else the protocol's guess."""
    found = records.read_all(RESULTS / "records", f"{data}/*/{method}/{protocol}-seed*.json")
    finished = [record["time"] for record in found.records if record["status"] == "ok"]
    took = [time["total"] - time["prior"] for time in finished]  # a prior is trained beforehand
    guess = 60 * protocols.protocols(data)[protocol].get("minutes", 0)
    return sum(took) / len(took) if took else guess


def write_cells(options: argparse.Namespace) -> None:
    """One small file a cell with the digests of all that its runs depend on, so that DVC runs what changed alone."""
    check_writable(options.cells)
    for data, protocol, pair, method in {cell[:4] for cell in protocols.span()}:
        if (data, protocol) != (options.data, options.protocol):
            continue
        cell = protocols.resolve(data, protocol, method, pair)
        weights = TEACHERS / weights_name(data, cell.identity["teacher"])
        manifest = ROOT / "benchmarks" / data / "manifest.json"
        try:
            found = read_json(manifest)
        except FileNotFoundError:
            how = f"python bench.py data {data} --manifest {manifest}"
            raise UserError(f"{manifest} is missing; run: {how}") from None
        check(found, {"type": "object", "required": ["digest"]}, manifest)
        facts = {
            "method": cell.entry.digest,
            "config": cell.digest,
            "teacher": read_card(weights)["digest"],
            "data": found["digest"],
        }
        if cell.prior is not None:
            # The stage that makes a prior of ours comes before; somebody else's is known by its name.
            own = PRIORS / cell.prior
            facts["prior"] = read_prior_card(own)["digest"] if prior_card(own).is_file() else cell.prior
        replace_file(options.cells / f"{pair}-{method}.json", json.dumps(facts, indent=1) + "\n")


def shard(text: str | None) -> tuple[int, int]:
    """`I/N` as (offset, stride)."""
    try:
        index, count = (int(part) for part in ("1/1" if text is None else text).split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise UserError(f"--shard takes I/N with 1 <= I <= N, not {text!r}")
    return index - 1, count


def current_records() -> tuple[set[tuple], list[UserError]]:
    """(data, protocol, pair, recipe, seed) of every finished record that today's code and configuration stand for.

    And which records are broken.
    """
    current = set()
    found = records.read_all(RESULTS / "records")
    digests = current_digests(found.records)
    for record in found.records:
        cell = records.cell_of(record)
        if record["status"] in records.FINISHED and digests[cell] == made_with(record):
            pair = f"{cell.teacher}-{cell.student}"
            current.add((cell.data, cell.protocol, pair, cell.method, record["identity"]["seed"]))
    return current, found.problems


def made_with(record: dict) -> dict:
    """The digests of the method and the configuration that a record stands for."""
    provenance = record["provenance"]
    return {"method": provenance["code"]["method"], "config": provenance["config"]}


def current_digests(everything: list[dict]) -> dict[records.Cell, dict]:
    """The digests of method and configuration as they are now, for each cell that has a record.

    Raises UserError where code or configuration is broken: of that nothing can be said, least of all that it is stale.
    """
    digests = {}
    for cell, runs in records.cells(everything).items():
        external = [run for run in runs if run["provenance"]["code"].get("external")]
        if external:  # what came in by --import cannot be looked at from here; it is taken as it is
            digests[cell] = made_with(external[-1])
        elif is_gone(cell):
            digests[cell] = {"method": None, "config": None}
        else:
            now = protocols.resolve(cell.data, cell.protocol, cell.method, f"{cell.teacher}-{cell.student}")
            digests[cell] = {"method": now.entry.digest, "config": now.digest}
    return digests


def is_gone(cell: records.Cell) -> bool:
    """Whether the table, its protocol, the method or a network of a record is no more."""
    if cell.data not in protocols.datasets() or cell.protocol not in protocols.protocols(cell.data):
        return True
    method = protocols.recipes(cell.data).get(cell.method, {}).get("method", cell.method)
    networks = {cell.teacher, cell.student} - {*fitting(task(cell.data).kind)}
    return bool(networks) or method not in catalog.entries()


def do_leaderboard(options: argparse.Namespace) -> int:
    if options.committed:
        return compare_with_commit()
    if not options.check:
        written, problems = render()
        for path in written:
            print(f"wrote {path.relative_to(RESULTS.parent)}")
        return fail_each(problems)
    inputs, problems = tables()
    differing = leaderboard.check(RESULTS, *inputs)
    for name in differing:
        print(f"results/{name} is not what the records give; run: {RENDER}")
    return fail_each(problems) or (1 if differing else 0)


def compare_with_commit() -> int:
    """The accuracy of each quick record beside the one in the last commit."""
    try:
        git("rev-parse", "HEAD")
    except UserError as error:
        print(f"committed values are left out, for they come from git ({error})")
    rows = []
    found = records.read_all(RESULTS / "records")
    for record in found.records:
        if record["identity"]["protocol"] != "quick":
            continue
        path = records.path_of(record["identity"], RESULTS / "records").relative_to(ROOT)
        before = committed_score(path)
        identity = record["identity"]
        metrics = record["metrics"]
        both = (score(value, metrics["name"]) for value in (metrics["last"], before))
        cell = (identity["data"], identity["method"], identity["seed"])
        took = record["time"]["total"] - record["time"]["prior"]
        rows.append((*cell, metrics["name"], *both, duration(took)))
    headers = ("data", "method", "seed", "metric", "measured", "committed", "took")
    print(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True))
    return fail_each(found.problems)


def committed_score(path: Path) -> float | None:
    """The score in the last commit's record; None where there is none, or none that can be read."""
    try:
        return parse_json(git("show", f"HEAD:{path.as_posix()}"))["metrics"]["last"]
    except (UserError, ValueError, KeyError, TypeError):
        return None


def tables() -> tuple[tuple, list[UserError]]:
    """What the tables are made from, and which records are broken."""
    found = records.read_all(RESULTS / "records")
    published = leaderboard.read_published(RESULTS / "published.csv")
    return (found.records, published, current_digests(found.records)), found.problems


def render() -> tuple[list[Path], list[UserError]]:
    """Bring `results/LEADERBOARD.md`, the tables and the plots up to date: what was written, which records are broken.

    One process after the other, each with the records that there are when its turn comes.
    """
    lock = FileLock(RESULTS / ".lock", timeout=RENDERING)
    try:
        RESULTS.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"{RESULTS}: another process has been writing the tables for {RENDERING} s") from None
    except (OSError, NotImplementedError) as error:
        raise UserError(f"cannot write to {RESULTS}: {getattr(error, 'strerror', None) or error}") from None
    with lock:
        inputs, problems = tables()
        return leaderboard.write(RESULTS, *inputs), problems


def render_after_run() -> None:
    """As `render`. The run has its record, whatever comes now: other cells' faults are told and are not its own."""
    try:
        _, problems = render()
    except UserError as error:
        problems = [error]
    for problem in problems:
        fail(UserError(f"this run's record is written, but for the tables mend: {problem}; then: {RENDER}"))


def do_doctor(options: argparse.Namespace) -> int:
    from dfkd.doctor import examine

    status, marks = 0, {True: "ok     ", None: "note   ", False: "BROKEN "}
    for good, line in examine(data_root(options.data_root), TEACHERS, PRIORS):
        print(marks[good] + line, flush=True)
        status = 1 if good is False else status
    return status


if __name__ == "__main__":
    sys.exit(main())
