"""SIGTERM, SIGINT and SIGHUP as a request to stop at the next point where the state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dfkd.errors import UserError

EXIT_PARTIAL = 75  # EX_TEMPFAIL: try again, with --resume
ASKING = ("SIGTERM", "SIGINT", "SIGHUP")  # the last, when a terminal closes; Windows has none


class Stopped(UserError):
    """A signal, the time limit or a full disk made an end before it was reached; what has been done is kept."""

    status = "partial"


def signal_of(reason: str) -> signal.Signals:
    """The signal that a line of `stopping` names."""
    return signal.Signals[reason.split()[-1]]


@contextmanager
def stopping(ask: Callable[[str], object]) -> Iterator[None]:
    """Within the block a signal calls `ask` with its line, "stopped by SIGTERM", instead of ending the process.

    Only the main thread of a process may do so; in others signals stay as they are. A signal that is off stays off, as
    SIGHUP under `nohup`; but not SIGINT, which shells turn off for what runs in the background.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        ask(f"stopped by {signal.Signals(number).name}")

    present = [getattr(signal, name) for name in ASKING if hasattr(signal, name)]
    off = {number for number in present if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN}
    previous = {number: signal.signal(number, handle) for number in present if number not in off}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
