"""The worker: a fresh interpreter that confines itself, then imports the method and runs the training loop.

It has teacher, prior, work folder and budget; no data set, no evaluator, no record. What it knows of the run arrives in
the first message, and what it comes to leaves in messages (docs/architecture.md has the picture).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dfkd.engine.channel import Closed, of_worker
from dfkd.engine.confine import confine

_DEATH_OF_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def main() -> None:
    """Serve one harness, at the other end of stdin and stdout."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as SIGTERM: until the loop runs there is nothing to keep
    channel = of_worker()
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL, 0, 0, 0)
    # Imported while the harness gets ready: torch, and of it what the first optimizer imports, which takes a second.
    # A sixth of the time goes into looking for garbage, of which there is none.
    gc.disable()
    import torch._dynamo  # noqa: F401

    from dfkd.engine.work import work

    gc.enable()

    try:
        _, begin, _ = channel.receive()
    except Closed:
        return  # the harness found that there is nothing to run
    os.environ.update(begin["environment"])
    tempfile.tempdir = None  # found anew
    os.chdir(begin["write"][0])
    if begin["isolation"] == "landlock":
        if len(os.listdir("/proc/self/task")) > 1:
            raise OSError("a thread is there already that would not be confined")
        folders = {key: [Path(path) for path in begin[key]] for key in ("read", "write", "deny", "names", "private")}
        if not confine(**folders):
            raise OSError("this process cannot be confined, as was promised")

    def tell(kind: str, values: dict | None = None, tensors: dict | None = None) -> dict[str, Any]:
        """Send a message and wait until the harness has done what it asks for."""
        channel.send(kind, values, tensors)
        return channel.receive()[2]

    with ExitStack() as stack:
        work(begin, tell, stack)


if __name__ == "__main__":
    main()
