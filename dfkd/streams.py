"""What a command prints is no reason for it to end.

An hour's work is not lost because `head`, `tee` or the terminal is gone, its disk is full, another program has made
the terminal non-blocking, or the locale lacks a sign.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

from dfkd.errors import UserError


class _Lasting(io.FileIO):
    """A standard stream that, once it cannot be written to, is /dev/null."""

    lost: OSError | None = None

    def write(self, content: Any, /) -> int:
        try:
            while (written := super().write(content)) is None:  # it would block
                select.select((), (self,), ())
            return written
        except OSError as error:
            self.lost = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(content)


def settle() -> None:
    """Have all three streams, and let none of them raise; one that a test has put in its place is left alone."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed one, whose number any file would take
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if old is getattr(sys, f"__{name}__"):
            encoding, at_once = (old.encoding, old.line_buffering or old.write_through) if old else ("utf-8", False)
            buffer = io.BufferedWriter(_Lasting(number, "wb", closefd=False))
            setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=at_once))


def flush() -> None:
    """Raise UserError where what was printed did not arrive; that nobody wanted to read on is no such case."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Lasting) and raw.lost and raw.lost.errno != errno.EPIPE:
        raise UserError(f"standard output: {raw.lost.strerror}")
