"""Tasks: data sets with input specification and metric. Only this package opens data, and without torch."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from dfkd.errors import UserError, named
from dfkd.files import check_writable, replace_file
from dfkd.metrics import IGNORE
from dfkd.tasks.base import InputSpec, Task
from dfkd.tasks.store import digest

__all__ = ["IGNORE", "POOLS", "TASKS", "InputSpec", "Task", "pool", "prepare", "task"]


def _found() -> dict[str, Task]:
    """Every `Task` that a file of this folder names at its top, alone or in a tuple."""
    found: dict[str, Task] = {}
    for file in sorted(Path(__file__).parent.glob("[!_.]*.py")):
        for value in vars(import_module(f"{__name__}.{file.stem}")).values():
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, Task) and found.setdefault(each.name, each) is not each:
                    raise UserError(f"{file}: there is another data set {each.name}")
    return found


TASKS = {name: task for name, task in _found().items() if "test" in task.splits}
# Public images for training priors on: nobody is taught or tested on them.
POOLS = {name: pool for name, pool in _found().items() if name not in TASKS}


def task(name: str) -> Task:
    """The task of that name. Raises UserError naming the nearest one."""
    return named("data", name, TASKS)


def pool(name: str) -> Task:
    """The pool of that name. Raises UserError naming the nearest one."""
    return named("pool", name, POOLS)


def prepare(name: str, root: Path, source: Path | None = None, copy: Path | None = None) -> tuple[dict[str, Any], str]:
    """Have the data of a task or pool in place: its manifest, and a line on what was done (`bench.py data NAME`).

    Arrays that are there and intact are kept; missing or damaged ones are fetched. With `source` (`--from`) they
    are made anew from the files there, and replace what was stored. `copy` is where the manifest is written, too, with
    its digest. Raises UserError, and then nothing has changed.
    """
    wanted = named("data", name, TASKS | POOLS)
    if copy:
        if copy.exists() and not copy.is_file():
            raise UserError(f"--manifest {copy} is no file")
        check_writable(copy.parent)
    manifest, line = _prepare(wanted, root, source)
    if copy:
        replace_file(copy, json.dumps({**manifest, "digest": digest(manifest)}, indent=1) + "\n")
    return manifest, line


def _prepare(wanted: Task, root: Path, source: Path | None) -> tuple[dict[str, Any], str]:
    name = wanted.name
    if source is not None:
        try:
            return wanted.convert(Path(source), root), f"{name}: converted {source}, stored in {root}"
        except OSError as error:  # of a folder; files are named where they are read
            raise UserError(f"{name}: cannot read {error.filename or source}: {error.strerror or error}") from None
    if wanted.embedded:
        return wanted.fetch(root), f"{name}: comes with the packages, nothing to fetch"
    problems = wanted.problems(root)
    if not problems:
        return wanted.manifest(root), f"{name}: already in {root}, intact"
    try:
        return wanted.fetch(root), f"{name}: stored in {root}"
    except UserError as error:
        if not (root / name).is_dir():
            raise
        raise UserError(f"{problems[0]} ({error})") from error
