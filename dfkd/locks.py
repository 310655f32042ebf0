"""One process at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dfkd.errors import UserError
from dfkd.signals import Stopped, stopping


@contextmanager
def alone(path: Path, what: str, until: float = math.inf, say: Callable[[str], None] = print) -> Iterator[None]:
    """While one process makes `what`, others that want it wait, and say so; `path` is the lock file.

    The lock is the system's, so that a killed holder leaves none. Raises `Stopped` where a signal or the moment `until`
    (seconds of `time.monotonic`) ends the waiting, UserError where the lock file cannot be written.
    """
    lock, asked = FileLock(path), list[str]()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            left = max(0.0, until - time.monotonic())
            with stopping(asked.append):
                say(f"{what}: waiting for another process that makes it")
                lock.acquire(left if left < math.inf else -1, cancel_check=lambda: bool(asked))
    except Timeout:
        reason = asked[0] if asked else "the time limit was reached"
        raise Stopped(f"{what}: {reason} while another process makes it; the same command again") from None
    except (OSError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write to {path.parent}: {why}") from error
    try:
        yield
    finally:
        lock.release()
