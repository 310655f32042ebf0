"""The harness's own account of a run: the curve and the seconds, on disk before a worker may save its state.

A state names the save that it belongs to; going on from it, the journal goes back to the same moment. So curve and
state agree whichever process was killed, and when.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfkd.errors import UserError
from dfkd.files import replace_file

SLOW_DISK = 2e7  # bytes a second: what saving and loading a state may take free of charge


class Journal:
    """Points of the curve, the digest of the weights evaluated last, and the harness's clock.

    `free` are the seconds that are charged to nobody: starting workers, evaluations, saving and loading states.
    A worker saves every `save_every` seconds, and no oftener free of charge.
    """

    def __init__(self, path: Path, save_every: float) -> None:
        self.path, self._save_every = path, max(save_every, 1e-9)
        self.curve: list[dict] = []
        self.evaluated: str | None = None
        self.free = {"start": 0.0, "evaluation": 0.0, "states": 0.0}
        self.begun = time.perf_counter()
        self._saves: dict[str, dict] = {}
        self._grants, self._mark = 0, self.begun

    @property
    def total(self) -> float:
        """Seconds since the start, those before a resume included."""
        return time.perf_counter() - self.begun

    @property
    def scored(self) -> float:
        """Seconds that count."""
        return self.total - sum(self.free.values())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """What happens inside is an evaluation."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.free["evaluation"] += time.perf_counter() - begun

    def started(self) -> None:
        """All until now was the start of a worker."""
        self.free["start"] += self.total

    def mark(self) -> None:
        """From now on a state is saved or loaded."""
        self._mark = time.perf_counter()

    def grant(self, size: int) -> None:
        """The seconds since `mark` are free, as far as so many bytes on a slow disk can need them."""
        self._grants += 1
        if self._grants < 4 + self.total / self._save_every:
            self.free["states"] += min(time.perf_counter() - self._mark, 0.5 + size / SLOW_DISK)

    def saving(self, save: int) -> None:
        """Write down where the run stands under the name of the state that is about to be saved."""
        here = {"curve": self.curve, "evaluated": self.evaluated, "free": dict(self.free), "total": self.total}
        # The state of before stays the valid one until the new one is in its place.
        self._saves = dict([*self._saves.items()][-1:]) | {str(save): here}
        replace_file(self.path, json.dumps(self._saves) + "\n")

    def resumed(self, save: int) -> None:
        """Go back to where the run stood then; what this process did before is added to it."""
        try:
            there = json.loads(self.path.read_text(encoding="utf-8"))[str(save)]
            self._saves = {str(save): there}
            self.curve, self.evaluated = list(there["curve"]), there["evaluated"]
            self.free = {key: seconds + there["free"][key] for key, seconds in self.free.items()}
            self.begun -= there["total"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.path} does not know the saved state; delete both to start this run afresh"
            ) from None
