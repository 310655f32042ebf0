"""One clock, owned by the harness. Time flows into separate accounts that add up to the total."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dfkd.records import ACCOUNTS, FREE_ACCOUNTS


class Clock:
    """Charges every second since its start to exactly one account.

    `with clock.phase(account)` charges what happens inside, less nested phases; time outside any phase is
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
        self.seconds = dict.fromkeys(ACCOUNTS, 0.0)
        self.resumes = 0
        self._now = now
        self._stack = ["bookkeeping"]
        self._aside: str | None = None
        self._events: list[tuple[str, str, torch.cuda.Event, torch.cuda.Event]] = []
        self._mark = now() if since is None else since

    @contextmanager
    def phase(self, account: str) -> Iterator[None]:
        """Charge what happens inside to `account`. Waits for the device on entry and exit."""
        if account not in self.seconds:
            raise ValueError(f"no account {account!r}; there are: {', '.join(ACCOUNTS)}")
        self._charge()
        self._stack.append(account)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    @contextmanager
    def aside(self, account: str) -> Iterator[None]:
        """Like `phase`, for a piece of work inside every step: never waits for the device.

        On CUDA the work is bracketed by two events, whose distance moves between the accounts at the next phase
        boundary.
        """
        if self.device.type != "cuda":
            with self.phase(account):
                yield
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        outer = self._aside
        self._aside = account
        start.record()
        try:
            yield
        finally:
            end.record()
            self._aside = outer
            self._events.append((outer or self._stack[-1], account, start, end))

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
        running = 0.0 if self._stack[-1] in FREE_ACCOUNTS else self._now() - self._mark
        return running + sum(s for account, s in self.seconds.items() if account not in FREE_ACCOUNTS)

    def add(self, account: str, seconds: float) -> None:
        """Bill work done elsewhere: a prior trained beforehand, a bank shared between records."""
        self.seconds[account] += seconds

    def report(self) -> dict[str, float | int]:
        """The record's `time`: seconds per account, `scored`, `total`, `resumes`."""
        self._charge()
        accounts = {account: round(seconds, 4) for account, seconds in self.seconds.items()}
        total = sum(accounts.values())
        free = sum(accounts[account] for account in FREE_ACCOUNTS)
        return {
            **accounts,
            "scored": round(total - free, 4),
            "total": round(total, 4),
            "resumes": self.resumes,
        }

    def state_dict(self) -> dict:
        self._charge()
        return {"seconds": dict(self.seconds), "resumes": self.resumes}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved state; what this process did before (building, loading) is added to it."""
        for account, seconds in state["seconds"].items():
            self.seconds[account] += seconds
        self.resumes = state["resumes"] + 1
