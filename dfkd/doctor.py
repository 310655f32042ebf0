"""`bench.py doctor`: what is installed, which device, which data are there and intact, what a run would fail on."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from packaging.specifiers import SpecifierSet

from dfkd import paths
from dfkd.artifacts import PRIOR, TEACHER, given_folders
from dfkd.artifacts.cards import Kind
from dfkd.checkout import git
from dfkd.engine import confine
from dfkd.errors import UserError
from dfkd.files import check_digest
from dfkd.metrics import metric
from dfkd.networks import NETWORKS
from dfkd.priors.recipes import HUB, recipes
from dfkd.tasks import POOLS, TASKS, task
from dfkd.tasks.store import below

PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "mmengine-lite": "mmengine",
    "diffusers": "diffusers",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "scikit-learn": "sklearn",
    "h5py": "h5py",
    "pandas": "pandas",
    "dvc": "dvc",
}


SIGNS = "→·±×−≥"  # what the tables are written with
SPACE = 2  # GiB that a run may need


def show(data_root: Path) -> int:
    """Print what is found, as it is found; the exit status is 1 where something is broken."""
    status, marks = 0, {True: "ok     ", None: "note   ", False: "BROKEN "}
    for good, line in examine(data_root, paths.teachers(), paths.priors()):
        print(marks[good] + line, flush=True)
        status = 1 if good is False else status
    return status


def examine(data_root: Path, teachers: Path, priors: Path) -> Iterator[tuple[bool | None, str]]:
    """(ok, line) for each thing looked at; None where it does not matter to a run, or can be had by a command."""
    yield _python()
    for package, module in PACKAGES.items():
        yield _package(package, module)
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    threads = f"{torch.get_num_threads()} threads, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}"
    yield True, f"devices: {', '.join((*names, 'cpu'))} ({threads})"
    yield from _surroundings(teachers)
    yield from _data_root(data_root)
    for data in (TASKS | POOLS).values():
        if data.embedded:
            yield True, f"data {data.name}: comes with the packages"
            continue
        if not (data_root / data.name).is_dir():
            yield None, f"data {data.name}: not there; python bench.py data {data.name}"
            continue
        problems = data.problems(data_root)
        yield not problems, f"data {data.name}: {'; '.join(problems) or 'intact'}"
    given = []
    try:
        given = given_folders()
        yield from ((True, f"weights folder {folder} (DFKD_WEIGHTS)") for folder in given)
    except UserError as error:
        yield False, str(error)
    for path in (teachers / paths.teacher(name, arch).name for name in TASKS for arch in NETWORKS):
        good, line = _artifact(TEACHER, path.stem, path, given, _accuracy)
        if line:
            yield good, f"teacher {path.name}: {line}"
    for name in sorted({*recipes(), *HUB, *(path.stem for path in priors.glob("*.json"))}):
        good, line = _artifact(PRIOR, name, priors / name, given, lambda card: card["trained_on"])
        yield good, f"prior {name}: {line or f'not there; {_made(name)}'}"


def _python() -> tuple[bool, str]:
    with open(paths.ROOT / "pyproject.toml", "rb") as file:
        wanted = tomllib.load(file)["project"]["requires-python"]
    found = sys.version.split()[0]
    good = SpecifierSet(wanted).contains(found, prereleases=True)
    return good, f"Python {found}" + ("" if good else f", {wanted} is needed")


def _surroundings(teachers: Path) -> Iterator[tuple[bool | None, str]]:
    for folder in (paths.WORK, teachers.parent):
        yield _writable(folder)
    home = Path(os.path.expanduser("~"))
    if not _writable(home)[0]:
        yield (
            None,
            f"home folder {home} cannot be written: no cache lasts, and data need a --data-root or DFKD_DATA",
        )
    yield _space(paths.ROOT)
    yield _isolation()
    try:
        yield True, f"git: commit {git('rev-parse', '--short', 'HEAD').strip()}"
    except UserError as error:
        yield None, f"git: records will name no commit ({error})"
    try:
        SIGNS.encode(sys.stdout.encoding)
    except (UnicodeError, LookupError, TypeError):
        yield None, f"locale: {sys.stdout.encoding} has no {SIGNS}; LC_ALL=C.UTF-8 or PYTHONUTF8=1 shows them"


def _data_root(root: Path) -> Iterator[tuple[bool | None, str]]:
    if not root.is_dir():
        good, line = _writable(root)
        yield None if good else False, f"data root {root}: not there yet" if good else f"data root {line}"
        return
    held = below(root)
    yield (
        not held,
        f"data root {root}" + (f" holds {', '.join(held)}: no data-free run could open that" if held else ""),
    )
    yield _space(root)


def _writable(folder: Path) -> tuple[bool, str]:
    """Whether files can be put there, the folder made first where it is missing; tried out, for modes do not tell."""
    try:
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=there):
            return True, f"folder {folder} can be written"
    except OSError as error:
        return False, f"folder {folder} cannot be written: {error.strerror}"


def _isolation() -> tuple[bool | None, str]:
    try:
        if confine.isolation() == "landlock":
            return True, f"isolation of methods: Landlock, version {confine.version()}"
    except UserError as error:
        return False, str(error)
    return None, "isolation of methods: an audit hook only, no Landlock; records and tables say so"


def _space(folder: Path) -> tuple[bool, str]:
    free = shutil.disk_usage(folder).free / 2**30
    return free > SPACE, f"{free:.0f} GiB of disk are free at {folder}"


def _package(package: str, module: str) -> tuple[bool, str]:
    try:
        # Found in the metadata is not enough: a torchvision of another torch installs and does not import.
        importlib.import_module(module)
        return True, f"{package} {version(package)}"
    except Exception as error:
        return False, f"{package}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _artifact(
    kind: Kind, name: str, path: Path, given: Iterable[Path], facts: Callable[[dict], str]
) -> tuple[bool | None, str]:
    """What there is of a teacher or prior: made and intact at `path`, or ready in a weights folder; else nothing."""
    try:
        if kind.there(path):
            card = kind.read(path)
            check_digest(kind.weights(path), card["digest"])
            return True, f"{card['origin']}, {facts(card)}"
        found = kind.find(name, given)
    except UserError as error:  # a folder, a pipe or a broken link may have its name
        return False, str(error)
    return (None, "") if found is None else (True, f"ready to import from {found.parent}")


def _accuracy(card: dict) -> str:
    return metric(task(card["data"]).metric).text(card["accuracy"])


def _made(name: str) -> str:
    recipe = recipes().get(name)
    return f"python bench.py prior --data {recipe['data']} --size {recipe['size']}" if recipe else "docs/priors.md"
