"""Tasks: data sets with input specification and metric. Only this package opens data, and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dfkd.errors import UserError, unknown
from dfkd.files import check_writable, replace_file
from dfkd.tasks.base import IGNORE, InputSpec, Task
from dfkd.tasks.cifar import CIFAR10, CIFAR100
from dfkd.tasks.digit_scenes import DIGIT_SCENES
from dfkd.tasks.digits import DIGITS
from dfkd.tasks.domainnet import DOMAINNET
from dfkd.tasks.glyphs import GLYPHS
from dfkd.tasks.nyuv2 import NYUV2
from dfkd.tasks.pacs import PACS
from dfkd.tasks.store import digest
from dfkd.tasks.tiny_imagenet import PUBLIC_IMAGES, TINY_IMAGENET, TINY_IMAGENET50

__all__ = ["IGNORE", "POOLS", "TASKS", "InputSpec", "Task", "pool", "prepare", "task"]

_BUILT_IN = (DIGITS, DIGIT_SCENES, CIFAR10, CIFAR100, TINY_IMAGENET, TINY_IMAGENET50, *PACS, *DOMAINNET, NYUV2)
TASKS: dict[str, Task] = {task.name: task for task in _BUILT_IN}
# Public images for training priors on: nobody is taught or tested on them.
POOLS: dict[str, Task] = {pool.name: pool for pool in (PUBLIC_IMAGES, GLYPHS)}


def task(name: str) -> Task:
    """The task of that name. Raises UserError naming the nearest one."""
    if name not in TASKS:
        raise unknown("data", name, TASKS)
    return TASKS[name]


def pool(name: str) -> Task:
    """The pool of that name. Raises UserError naming the nearest one."""
    if name not in POOLS:
        raise unknown("pool", name, POOLS)
    return POOLS[name]


def prepare(name: str, root: Path, source: Path | None = None, copy: Path | None = None) -> tuple[dict[str, Any], str]:
    """Have the data of a task or pool in place: its manifest, and a line on what was done (`bench.py data NAME`).

    Arrays that are there and intact are kept; missing or damaged ones are fetched. With `source` (`--from`) they
    are made anew from the files there, and replace what was stored. `copy` is where the manifest is written, too, with
    its digest. Raises UserError, and then nothing has changed.
    """
    known = TASKS | POOLS
    if name not in known:
        raise unknown("data", name, known)
    if copy:
        if copy.exists() and not copy.is_file():
            raise UserError(f"--manifest {copy} is no file")
        check_writable(copy.parent)
    manifest, line = _prepare(known[name], root, source)
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
