"""Weights with a card: teachers and diffusion priors, found, imported or trained. Torch-free until one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfkd import names
from dfkd.artifacts.cards import PRIOR, TEACHER, Artifact, given_folders
from dfkd.artifacts.weights import load, load_any, save, spec_of
from dfkd.files import check_writable

if TYPE_CHECKING:
    import torch

    from dfkd.artifacts.wanted import Wanted

__all__ = [
    "PRIOR",
    "TEACHER",
    "Artifact",
    "given_folders",
    "load",
    "load_any",
    "prior",
    "save",
    "spec_of",
    "teacher",
]


def teacher(
    data: str,
    arch: str,
    recipe: Mapping[str, Any],
    data_root: Path,
    device: torch.device,
    *,
    file: Path | None = None,
    **options: Any,
) -> Artifact:
    """The teacher `<data>_<arch>`: a weights file and its card; from a user-provided `file` where there is one.

    The `options` are those of `Wanted`. Raises UserError, and `Stopped` as `resumable.finish` does.
    """
    from dfkd.artifacts import teachers

    if file is not None:
        return teachers.user_provided(data, arch, file, data_root, device)
    return _provide(teachers.WantedTeacher(data, arch, recipe, data_root, device, **options))


def prior(name: str, data_root: Path, device: torch.device, **options: Any) -> Artifact:
    """A diffusion prior: its folder and card. `name` is a name, or the path of a user-provided folder.

    Without `recipe` among the `options` it is trained by that of `benchmarks/priors.yaml`. Raises as `teacher` does.
    """
    from dfkd.artifacts import priors

    if "/" in name:
        return priors.user_provided(names.path(name))
    return _provide(priors.WantedPrior(name, data_root, device, **options))


def _provide(wanted: Wanted) -> Artifact:
    if not wanted.path.exists():
        check_writable(wanted.path.parent)
    return wanted.provide()
