"""`--compile`: in a student step, teacher and student run through torch.compile. Nothing else does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from dfkd.engine import confine
from dfkd.networks.normalised import Normalised


def impossible() -> str | None:
    """Why nothing can be compiled on this machine; None where it can."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    if confine.isolation() != "landlock":
        return "without Landlock a run may start no compiler"
    return None


@contextmanager
def compiled(*networks: Normalised) -> Iterator[None]:
    """Within it these networks run compiled, for each shape anew, the first time in a minute or so."""
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1  # a pool of processes needs locks, which the worker may not have
    for network in networks:
        if network.compiled is None:
            network.compiled = torch.compile(network.network.forward, dynamic=False)
        network.fast = True
    try:
        yield
    finally:
        for network in networks:
            network.fast = False
