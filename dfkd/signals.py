"""SIGTERM and SIGINT as a request to stop at the next point where the state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dfkd.errors import UserError


class Stopped(UserError):
    """A signal, the time limit or a full disk made an end before it was reached; what has been done is kept."""

    status = "partial"


@contextmanager
def stopping(ask: Callable[[str], object]) -> Iterator[None]:
    """Within the block a signal calls `ask` with its line, "stopped by SIGTERM", instead of ending the process.

    Only the main thread of a process may do so; in others signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        ask(f"stopped by {signal.Signals(number).name}")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
