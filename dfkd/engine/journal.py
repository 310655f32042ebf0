"""The harness's own account of a run: the curve and the seconds, on disk before a worker may save its state.

A run goes on only from a state whose digest the journal has, with the curve and the seconds of that moment, and finds
nothing else that a worker left. So curve and state agree whichever process was killed, and when; and what a worker did
after its last save is lost, with its seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfkd.engine.configuration import LOG, STATE
from dfkd.errors import UserError
from dfkd.files import file_digest, replace_file

JOURNAL = "journal.json"
FREE_STATES = 0.05  # of a run's seconds, and one second: what saving and loading states may take free of charge


class Journal:
    """Points of the curve, the digest of the weights evaluated last, and the harness's clock.

    `free` are the seconds that are charged to nobody: starting workers, evaluations, saving and loading states.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._state, self._log = folder / JOURNAL, folder / STATE, folder / LOG
        self.curve: list[dict] = []
        self.evaluated: str | None = None
        self.free = {"start": 0.0, "evaluation": 0.0, "states": 0.0}
        self.begun = self.opened = self._mark = time.perf_counter()
        self._saves: list[dict] = []
        self._logged, self._sha = 0, hashlib.sha256()  # of the image log

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
        """All that this process did until now was the start of a worker."""
        self.free["start"] += time.perf_counter() - self.opened

    def mark(self) -> None:
        """From now on a state is saved or loaded."""
        self._mark = time.perf_counter()

    def grant(self) -> None:
        """The seconds since `mark` are free, within bounds: whether they went into a state nobody can know."""
        room = 1 + FREE_STATES * self.total - self.free["states"]
        self.free["states"] += max(0.0, min(time.perf_counter() - self._mark, room))
        self.mark()

    def saving(self, digest: str) -> None:
        """Write down where the run stands beside the digest of the state that is about to be saved."""
        self._follow_log()
        here: dict[str, Any] = dict(state=digest, log=[self._logged, self._sha.hexdigest()], curve=list(self.curve))
        here |= dict(evaluated=self.evaluated, free=dict(self.free), total=self.total)
        # The state of before stays the valid one until the new one is in its place.
        self._saves = [*self._saves[-1:], here]
        replace_file(self.path, json.dumps(self._saves) + "\n")

    def resume(self) -> None:
        """Go back to where the run stood when the state that is there was saved, and the image log with it.

        Raises UserError where it is not known, or the image log is not the one of then.
        """
        digest = file_digest(self._state)
        try:
            there = next(save for save in json.loads(self.path.read_text(encoding="utf-8")) if save["state"] == digest)
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            afresh = "delete it to start this run afresh"
            raise UserError(f"{self._state} is no state that {JOURNAL} knows; {afresh}") from None
        self._follow_log(there["log"][0])
        if [self._logged, self._sha.hexdigest()] != there["log"]:
            raise UserError(f"{self._log} does not hold the images of the saved state; pass --again and not --resume")
        if self._logged:
            os.truncate(self._log, self._logged)
        else:
            self._log.unlink(missing_ok=True)
        self._saves, self.free, self.evaluated = [there], there["free"], there["evaluated"]
        self.curve += there["curve"]
        self.begun -= there["total"]

    def _follow_log(self, end: int | None = None) -> None:
        """Digest what was added to the image log since, up to `end`; a link would lead out of the worker's folder."""
        if self._log.is_file() and not self._log.is_symlink():
            with open(self._log, "rb") as file:
                file.seek(self._logged)
                while content := file.read(2**24 if end is None else min(2**24, end - self._logged)):
                    self._sha.update(content)
                    self._logged += len(content)
