"""What git says of the project's folder, which may as well be a download without git."""

from __future__ import annotations

import os
import subprocess

from dfkd import paths
from dfkd.errors import UserError


def git(*arguments: str) -> str:
    """What a git command prints. Raises UserError, saying why, where git cannot answer for this project.

    Only the repository in the project's own folder is asked: neither that of something around it, in which a download
    was unpacked, nor the one that a git hook, which sets GIT_DIR, belongs to. No lock is taken that would fail a
    command of the user's.
    """
    command = ["git", "-C", str(paths.ROOT), "--git-dir=.git", "--work-tree=.", "--no-optional-locks", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"git cannot be run: {error.strerror}") from None
    if done.returncode:
        reason = done.stderr.strip().partition("\n")[0].removeprefix("fatal: ")
        raise UserError(f"git says: {reason or f'status {done.returncode}'}")
    return done.stdout
