"""The worker's process, started while the harness still imports and resolves; it waits for its first message.

Torch-free: that both load torch side by side is the point.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from dfkd import paths


def start() -> subprocess.Popen[bytes]:
    """A worker that imports what every run needs. It ends by itself if the harness does before it has said anything."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, python_path())), "PYTHONSAFEPATH": ""}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": str(shutil.get_terminal_size().columns)}
    environment["PYTHONIOENCODING"] = "utf-8:backslashreplace"  # as the harness reads it, whatever the locale
    # A thread that is there when a process confines itself would not be confined: numpy's start with it otherwise.
    environment["OPENBLAS_NUM_THREADS"] = "1"
    return subprocess.Popen(
        [sys.executable, "-m", "dfkd.engine.worker"],
        cwd=paths.ROOT,  # and not in PYTHONPATH, where a colon in its name would part it
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def python_path() -> list[Path]:
    """Where Python looks for modules beside its own places."""
    return [Path(entry).absolute() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
