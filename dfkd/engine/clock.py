"""One clock, owned by the harness. Time flows into separate categories that add up to the total."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from dfkd.records import CATEGORIES, FREE_CATEGORIES


class Clock:
    """Charges every second since its start to exactly one category.

    `with clock.phase(category)` charges what happens inside, less nested phases; time outside any phase is
    bookkeeping. The device is waited for at phase boundaries only, so asynchronous work is charged to the phase
    that started it. Seconds are wall-clock.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        now: Callable[[], float] = time.perf_counter,
        since: float | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.seconds = dict.fromkeys(CATEGORIES, 0.0)
        self.resumes = 0
        self._now = now
        self._stack = ["bookkeeping"]
        self._aside: str | None = None
        self._events: list[tuple[str, str, torch.cuda.Event, torch.cuda.Event]] = []
        self._mark = now() if since is None else since

    @contextmanager
    def phase(self, category: str) -> Iterator[None]:
        """Charge what happens inside to `category`. Waits for the device on entry and exit."""
        if category not in self.seconds:
            raise ValueError(f"no category {category!r}; there are: {', '.join(CATEGORIES)}")
        self._charge()
        self._stack.append(category)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    @contextmanager
    def aside(self, category: str) -> Iterator[None]:
        """Like `phase`, for a piece of work inside every step: never waits for the device.

        On CUDA the work is bracketed by two events, whose distance moves between the categories at the next phase
        boundary.
        """
        if self.device.type != "cuda":
            with self.phase(category):
                yield
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        outer = self._aside
        self._aside = category
        start.record()
        try:
            yield
        finally:
            end.record()
            self._aside = outer
            self._events.append((outer or self._stack[-1], category, start, end))

    def _charge(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        mark = self._now()
        self.seconds[self._stack[-1]] += mark - self._mark
        self._mark = mark
        for source, target, start, end in self._events:
            seconds = start.elapsed_time(end) / 1000
            self.seconds[source] -= seconds
            self.seconds[target] += seconds
        self._events.clear()

    @property
    def total(self) -> float:
        """Seconds since the start, those before a resume included."""
        return sum(self.seconds.values()) + self._now() - self._mark

    @property
    def scored(self) -> float:
        """Seconds that count: all but evaluation and bookkeeping."""
        running = 0.0 if self._stack[-1] in FREE_CATEGORIES else self._now() - self._mark
        return running + sum(s for category, s in self.seconds.items() if category not in FREE_CATEGORIES)

    def report(self) -> dict[str, float | int]:
        """The record's `time`: seconds per category, `scored`, `total`, `resumes`."""
        self._charge()
        return sums(self.seconds) | {"resumes": self.resumes}

    def state_dict(self) -> dict:
        self._charge()
        return {"seconds": dict(self.seconds), "resumes": self.resumes}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved state; what this process did before (building, loading) is added to it."""
        for category, seconds in state["seconds"].items():
            self.seconds[category] += seconds
        self.resumes = state["resumes"] + 1


def sums(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by category, rounded, with `scored` and `total`, which are their sums."""
    rounded = {category: round(spent, 4) for category, spent in seconds.items()}
    total = sum(rounded.values())
    free = sum(rounded[category] for category in FREE_CATEGORIES)
    return rounded | {"scored": round(total - free, 4), "total": round(total, 4)}
