"""The harness's own account of a run: the curve and the seconds, on disk before a worker may save its state.

A state names the save that it belongs to; going on from it, the journal goes back to the same moment. So curve and
state agree whichever process was killed, and when.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from dfkd.errors import UserError
from dfkd.files import replace_file


class Journal:
    """Points of the curve, and the harness's clock: wall seconds, those of its own work, those of starting workers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.curve: list[dict] = []
        self.saves: dict[str, dict] = {}
        self.free = {"evaluation": 0.0, "start": 0.0, "saves": 0.0}
        self._begun = time.perf_counter()
        self._saving = 0.0

    @property
    def total(self) -> float:
        """Seconds since the start, those before a resume included."""
        return time.perf_counter() - self._begun

    def saving(self, save: int) -> None:
        """Write down where the run stands under the name of the state that is about to be saved."""
        here = {"curve": self.curve, "free": dict(self.free), "total": self.total}
        # The state of before stays the valid one until the new one is in its place.
        self.saves = {**dict([*self.saves.items()][-1:]), str(save): here}
        replace_file(self.path, json.dumps(self.saves) + "\n")

        self._saving = time.perf_counter()

    def saved(self, size: int) -> None:
        """Grant the seconds since `saving`, as far as so many bytes on a slow disk can need them."""
        if self._saving:
            self.free["saves"] += min(time.perf_counter() - self._saving, 3 + size / 2e7)
        self._saving = 0.0

    def resumed(self, save: int) -> None:
        """Go back to where the run stood then; what this process did before is added to it."""
        try:
            self.saves = json.loads(self.path.read_text(encoding="utf-8"))
            there = self.saves[str(save)]
            self.curve = there["curve"]
            self.free = {key: self.free[key] + there["free"][key] for key in self.free}
            self._begun -= there["total"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.path} does not know the saved state; delete both to start this run afresh"
            ) from None
