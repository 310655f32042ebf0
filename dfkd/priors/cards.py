"""What `dfkd.priors.training` writes beside its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfkd.artifacts.cards import PRIOR
from dfkd.priors.folder import weights_path, write_digests

__all__ = ["new_card", "weights_path", "write_card", "write_digests"]


def new_card(name: str, kind: str, trained_on: str, origin: str, **facts: Any) -> dict[str, Any]:
    return PRIOR.new(name, kind=kind, trained_on=trained_on, origin=origin, **facts)


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    PRIOR.write(path.with_suffix(""), card)
