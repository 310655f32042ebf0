"""How an artifact is had: found in its own folder, else imported from a weights folder, else trained here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dfkd import paths
from dfkd.artifacts.cards import Artifact, Kind, given_folders
from dfkd.errors import UserError
from dfkd.files import check_digest, file_there
from dfkd.locks import alone

if TYPE_CHECKING:
    import torch


@dataclass
class Wanted:
    """One artifact by name.

    Attributes:
        path: where it lies, or will.
        recipe: by which it was, or will be, trained; None: whichever it was, {}: none is known.
        source: the weights folder, instead of `DFKD_WEIGHTS`.
        anew: make it although it is there.
        resume: go on with a training that was stopped.
        until: the moment (of `time.monotonic`) at which waiting and training end.
    """

    kind: ClassVar[Kind]
    name: str
    path: Path
    recipe: Mapping[str, Any] | None
    data_root: Path
    device: torch.device
    _: KW_ONLY
    seed: int = 0
    source: Path | None = None
    anew: bool = False
    resume: bool = True
    until: float = math.inf
    say: Callable[[str], None] = print
    folders: list[Path] = field(init=False)  # that are searched, our own first

    def __post_init__(self) -> None:
        self.folders = [self.path.parent, *given_folders(self.source)]

    def provide(self) -> Artifact:
        """The artifact; one process makes it while others wait. Raises UserError and `Stopped`."""
        if (artifact := self._found()) is None:
            lock = self._work().with_name(f"{self.name}.lock")
            with alone(lock, f"{self.kind.what} {self.name}", self.until, self.say):
                artifact = self._found() or self._make()
        return artifact

    def check(self, card: Mapping[str, Any], path: Path) -> None:
        """Raise UserError where what lies at `path` was not made as it is wanted."""
        raise NotImplementedError

    def bring(self, given: Path) -> Artifact:
        """Take what lies in a weights folder."""
        raise NotImplementedError

    def train(self) -> Artifact:
        """Make it, at `path`."""
        raise NotImplementedError

    def training(self, *facts: Any) -> dict[str, Any]:
        """The options of a training, whose state depends on these facts, the seed and the kind of device."""
        from dfkd import resumable

        key = (*facts, self.seed, self.device.type)
        state = resumable.state_path(self._work(), *key)
        told = {"seed": self.seed, "device": self.device, "resume": self.resume, "until": self.until}
        return {"state": state, "say": self.tell} | told

    def tell(self, line: str) -> None:
        self.say(f"{self.kind.what} {self.name}: {line}")

    def _work(self) -> Path:
        return paths.WORK / f"{self.kind.what}s" / self.name

    def _found(self) -> Artifact | None:
        if self.anew or not self.kind.there(self.path):
            return None
        if not self.kind.card_path(self.path).is_file():
            raise UserError(f"{self.path} has no card; remove it, or move it to a folder that DFKD_WEIGHTS names")
        card = self.kind.read_of(self.path, self.name)
        check_digest(self.kind.weights(self.path), card["digest"])
        self.check(card, self.path)
        return Artifact(self.path, card)

    def _make(self) -> Artifact:
        file_there(self.kind.card_path(self.path))  # what is no file cannot be replaced either
        given = self.kind.find(self.name, self.folders[1:])
        return self.train() if given is None else self.bring(given)
