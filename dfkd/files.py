"""Files written whole or not at all."""

from __future__ import annotations

import fnmatch
import functools
import glob
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from dfkd.errors import CannotWrite, UserError

P = ParamSpec("P")
T = TypeVar("T")

ABANDONED = 3600  # seconds without a byte after which the writer of a file must be dead


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends well, and leaves no trace otherwise.

    Any number of processes may do so at once; the last one's file stays. Raises CannotWrite where the system
    refuses: no space left, not writable.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path)
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error
        raise


def _clean(path: Path) -> None:
    """Remove what killed processes left of the same file."""
    for partial in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        with suppress(OSError):  # somebody else may do the same
            if time.time() - partial.stat().st_mtime > ABANDONED:
                partial.unlink()


def _sync(folder: Path) -> None:
    """The file's new name, too, shall outlive a power cut."""
    with suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find(root: Path, pattern: str, problems: list[UserError] | None = None) -> Iterator[Path]:
    """What `sorted(root.glob(pattern))` gives, but broken links too, and no folder that cannot be read is passed over.

    Such a one is added to `problems`, or raises UserError where there are none.
    """
    first, _, rest = pattern.partition("/")
    try:
        names = sorted(fnmatch.filter(os.listdir(root), first))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        problem = UserError(f"{root} cannot be read: {error.strerror}")
        if problems is None:
            raise problem from None
        problems.append(problem)
        return
    for name in names:
        yield from find(root / name, rest, problems) if rest else [root / name]


def stamps(files: Iterable[Path]) -> tuple[tuple[Path, int, int], ...]:
    """What changes when one of these files does: a key under which to keep what was read from them."""
    return tuple(_stamp(path) for path in files)


def _stamp(path: Path) -> tuple[Path, int, int]:
    try:
        status = path.stat()
    except OSError:  # whoever reads it will say so
        return path, 0, 0
    return path, status.st_mtime_ns, status.st_size


_OPEN: list[dict[tuple, Any]] = []  # for each `unchanged` that is open, what was asked in it


@contextmanager
def unchanged() -> Iterator[None]:
    """A block, or as `@unchanged()` a function, during which nobody edits the files that tables are made of."""
    _OPEN.append({})
    try:
        yield
    finally:
        _OPEN.pop()


def asked_once(function: Callable[P, T]) -> Callable[P, T]:
    """A function of what lies in files: where these are `unchanged`, it looks once for the same arguments."""

    @functools.wraps(function)
    def ask(*arguments: P.args, **named: P.kwargs) -> T:
        if not _OPEN:
            return function(*arguments, **named)
        key = function, *arguments, *named.items()
        if key not in _OPEN[0]:
            _OPEN[0][key] = function(*arguments, **named)
        return _OPEN[0][key]

    return ask


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a whole file atomically, making its folder; `CannotWrite` where that is impossible."""
    with replacing(Path(path)) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def copy_file(source: Path, target: Path) -> None:
    """A copy of a file, atomically; `CannotWrite` as `replacing` raises it."""
    with replacing(target) as file, open(source, "rb") as original:
        shutil.copyfileobj(original, file)


def check_writable(folder: Path) -> None:
    """Raises UserError: before an hour of work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "permission denied")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


def file_there(path: Path) -> bool:
    """Whether there is a file. Raises UserError for whatever else has its name: nothing is opened to find out."""
    try:
        if path.is_file():
            return True
        if not os.path.lexists(path):
            return False
        what = "a broken link" if not path.exists() else "a folder" if path.is_dir() else "no regular file"
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    raise UserError(f"{path} is {what}, where a file is expected")


def file_digest(path: Path) -> str:
    """The sha256 of a file. Raises UserError where it is missing or cannot be read."""
    if not file_there(Path(path)):
        raise UserError(f"{path} is missing")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def check_digest(path: Path, expected: str) -> None:
    """Raise UserError where weights are not those of their card."""
    if (found := file_digest(path)) != expected:
        raise UserError(
            f"{path} is damaged, or its card is another's: sha256 {expected} expected, {found} found; "
            "remove it to have it made anew"
        )
