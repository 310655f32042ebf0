"""`bench.py doctor`: what is installed, which device, which data are there and intact."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from dfkd.errors import UserError
from dfkd.networks import NETWORKS
from dfkd.priors import cards
from dfkd.priors.recipes import HUB, recipes
from dfkd.priors.sources import find as find_prior
from dfkd.tasks import POOLS, TASKS, task
from dfkd.teachers import file_digest, find, read_card, weights_folders, weights_name
from dfkd.units import score

PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "mmengine-lite": "mmengine",
    "diffusers": "diffusers",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "torchmetrics": "torchmetrics",
    "scikit-learn": "sklearn",
    "h5py": "h5py",
    "pandas": "pandas",
    "dvc": "dvc",
}


def examine(data_root: Path, teachers: Path, priors: Path) -> Iterator[tuple[bool | None, str]]:
    """(ok, line) for each thing looked at; None where a thing is merely absent and can be had by a command."""
    yield sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}"
    for package, module in PACKAGES.items():
        yield _package(package, module)
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    threads = (
        f"{torch.get_num_threads()} threads, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}"
    )
    yield True, f"devices: {', '.join((*names, 'cpu'))} ({threads})"
    free = shutil.disk_usage(Path(__file__).parent).free / 2**30
    yield free > 2, f"{free:.0f} GiB of disk are free"
    yield data_root.is_dir() or None, f"data root {data_root}"
    for data in (TASKS | POOLS).values():
        if data.embedded:
            yield True, f"data {data.name}: comes with the packages"
            continue
        if not (data_root / data.name).is_dir():
            yield None, f"data {data.name}: not there; python bench.py data {data.name}"
            continue
        problems = data.problems(data_root)
        yield not problems, f"data {data.name}: {'; '.join(problems) or 'intact'}"
    for name in TASKS:
        for arch in NETWORKS:
            found = find(name, arch, weights_folders(teachers))
            if found is not None:
                yield True, f"teacher {weights_name(name, arch)}: {_origin(found)}"
    for name in sorted({*recipes(), *HUB, *(path.stem for path in priors.glob("*.json"))}):
        yield _prior(name, priors)


def _package(package: str, module: str) -> tuple[bool, str]:
    try:
        # Found in the metadata is not enough: a torchvision of another torch installs and does not import.
        importlib.import_module(module)
        return True, f"{package} {version(package)}"
    except Exception as error:
        return False, f"{package}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _prior(name: str, priors: Path) -> tuple[bool | None, str]:
    try:
        if (priors / name).is_dir():
            card, weights = cards.read_card(priors / name), cards.weights_path(priors / name)
            if file_digest(weights) != card["digest"]:
                return False, f"prior {name}: {weights} is damaged"
            return True, f"prior {name}: {card['origin']}, {card['trained_on']}"
        found = find_prior(name)
    except UserError as error:
        return False, f"prior {name}: {error}"
    if found is not None:
        return True, f"prior {name}: ready in {found}"
    recipe = recipes().get(name)
    made = (
        f"python bench.py prior --data {recipe['data']} --size {recipe['size']}"
        if recipe
        else "docs/priors.md"
    )
    return None, f"prior {name}: not there; {made}"


def _origin(weights: Path) -> str:
    try:
        card = read_card(weights)
    except UserError:
        return f"ready to adopt from {weights.parent}"
    return f"{card['origin']}, {score(card['accuracy'], task(card['data']).metric)}"
