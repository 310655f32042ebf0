"""mmengine without what it imports for other people's runs; a cure like those of `compat`, which comes too late for it.

Its Runner brings the strategies of distributed training, and with them torch's FSDP and sympy; its optimizers bring
transformers, for Adafactor. That is more than a second of every start, of the harness and of the worker. Nothing here
uses either, and whoever asks for a strategy is told so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType

# Replaced by modules whose every name is an empty class.
STUBS = ("mmengine._strategy", "mmengine.model.wrappers.fully_sharded_distributed")
# Not there for these modules of mmengine, which can do without.
HIDDEN = {
    "transformers": "mmengine.optim.optimizer.builder",
    "torch.distributed.optim": "mmengine.optim.optimizer.zero_optimizer",
}


class _Empty(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: _placeholder(module.__name__, name)  # type: ignore[method-assign]


def _placeholder(module: str, name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__doc__": f"Stands for {module}.{name}, which this suite does not import."})


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in STUBS:
            return ModuleSpec(fullname, _Empty())
        if fullname in HIDDEN and _importer() == HIDDEN[fullname]:
            raise ModuleNotFoundError(f"{fullname} is hidden from {HIDDEN[fullname]}", name=fullname)
        return None


def _importer() -> str | None:
    """The module whose import statement is being executed."""
    frame: FrameType | None = sys._getframe(2)
    while frame and frame.f_globals.get("__name__", "").startswith("importlib"):
        frame = frame.f_back
    return frame.f_globals.get("__name__") if frame else None


def install() -> None:
    """From now on, where mmengine has not been imported yet."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
