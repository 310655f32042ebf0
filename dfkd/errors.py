"""The one exception a user is meant to read."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

Thing = TypeVar("Thing")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # how the system says that no more can be written


class UserError(Exception):
    """Bad input or a missing resource: `bench.py` prints its one line and exits with status 2."""


class CannotWrite(UserError):
    """The system refuses to write a file: no space left, not permitted."""


def shown(value: object, most: int = 80) -> str:
    """A value as a message quotes it: on one line, and cut where it is long."""
    text = repr(value[: most + 1] if isinstance(value, str) else value)
    return text if len(text) <= most else f"{text[:most]}…"


def one_line(error: object, most: int = 4000) -> str:
    """What it says, whatever was quoted in it, on one line without control signs and halves of signs."""
    return re.sub(r"[^\S ]|[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda sign: ascii(sign[0])[1:-1], str(error))[:most]


def reason(error: BaseException, most: int = 200) -> str:
    """What a library says of a file, on one line, or the name of its error where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None where none is alike."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)), None)


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not known, telling the nearest that is."""
    names = sorted(known)
    close = nearest(name[:100], names)  # its cost is the square of the length
    hint = f"nearest: {close!r}; " if close else ""
    return UserError(f"unknown {kind} {shown(name)} ({hint}there are: {', '.join(names) or 'none'})")


def named(kind: str, name: str, things: Mapping[str, Thing]) -> Thing:
    """The thing of that name, e.g. `named("method", "ssdkd", METHODS)`. Raises the error of `unknown`."""
    if name not in things:
        raise unknown(kind, name, things)
    return things[name]
