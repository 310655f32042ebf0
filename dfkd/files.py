"""Files written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dfkd.errors import CannotWrite


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends well, and leaves no trace otherwise.

    Raises CannotWrite where the system refuses: no space left, not writable.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error
        raise


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a whole file atomically, making its folder; `CannotWrite` where that is impossible."""
    with replacing(Path(path)) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def copy_file(source: Path, target: Path) -> None:
    """A copy of a file, atomically; `CannotWrite` as `replacing` raises it."""
    with replacing(target) as file, open(source, "rb") as original:
        shutil.copyfileobj(original, file)
