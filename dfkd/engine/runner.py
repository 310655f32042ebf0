"""The one Runner, built from one configuration of plain values."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from dfkd.engine import hooks, loop
from dfkd.engine.compat import NO_DEFAULT_HOOKS, QuietRunner

REGISTERED = (hooks, loop)  # what a configuration may name is registered when these are imported
_count = itertools.count()


class PlainRunner(QuietRunner):
    """Trains the module that a configuration describes.

    Args:
        config: what mmengine's Runner takes, in plain values.
        folder: mmengine's work folder.
        given: what no plain value stands for, such as clock and arrays; the model gets it beside its configuration.
        tell: what sends a message to the harness: `tell(kind, values, tensors)`. A training has none.
        say: where a `TellingHook` tells its progress.
    """

    def __init__(
        self,
        config: dict[str, Any],
        folder: Path,
        given: dict[str, Any],
        *,
        tell: Callable[..., object] = lambda *message: None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.given, self.tell, self.say = given, tell, say
        # mmengine keeps loggers and the like for the life of the process under this name.
        name = f"{config['model']['type']}-{next(_count)}"
        fixed = {"default_hooks": NO_DEFAULT_HOOKS, "log_level": "WARNING", "experiment_name": name}
        super().__init__(**copy.deepcopy(config), **fixed, work_dir=str(folder), train_dataloader={})
        self._optimizer, self._schedule = config["optim_wrapper"], config["param_scheduler"]

    def build_model(self, model: dict) -> nn.Module:
        return MODELS.build(model, default_args=self.given)

    def rebuild_optimizer(self) -> None:
        """A new optimizer with its schedules, for a new student."""
        self.optim_wrapper = self.build_optim_wrapper(copy.deepcopy(self._optimizer))
        self.param_schedulers = self.build_param_scheduler(self._schedule)
