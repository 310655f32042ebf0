"""What git says of the project's folder, which may as well be a download without git."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dfkd import paths
from dfkd.errors import UserError


def git(*arguments: str) -> str:
    """What a git command prints. Raises UserError, saying why, where git cannot answer for this project.

    The checkout of something else around it, in whose folder a download was unpacked, does not count.
    """
    if Path(_git("rev-parse", "--show-toplevel").rstrip("\n")).resolve() != paths.ROOT.resolve():
        raise UserError("this folder is no git checkout")
    return _git(*arguments)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(paths.ROOT), *arguments], capture_output=True, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise UserError(f"git cannot be run: {error.strerror}") from None
    if done.returncode:
        reason = done.stderr.strip().partition("\n")[0].removeprefix("fatal: ")
        raise UserError(f"git says: {reason or f'status {done.returncode}'}")
    return done.stdout
