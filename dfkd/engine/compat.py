"""Cures for mmengine 0.10.7, one each, every one pinned by a test that fails when a release makes it needless.

What is cured by not using it: its checkpoints (no random state, not readable with `weights_only=True`), its
iteration loop (sleeps two seconds whenever a loader is exhausted), `IterTimerHook`, `LoggerHook` and
`RuntimeInfoHook` (call `.item()` on losses, keep state in `MessageHub`), its data-parallel wrapper (replaces the
model's `train_step` by its own).
"""

from __future__ import annotations

import copy
import itertools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from dfkd.engine import evaluation, hooks, loop  # noqa: F401  a configuration names what is registered there

_count = itertools.count()

# Every default hook that keeps state in MessageHub, writes checkpoints or reads log values is switched off.
NO_DEFAULT_HOOKS = dict.fromkeys(
    ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"), None
)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which networks run: `bf16` autocasts, `fp32` and `tf32` do not.

    Without autocast's cache of weights, which lasts until the context is left: a synthesis step steps a generator many
    times in one context, and every forward pass after the first would still run with the weights of before.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


class QuietRunner(Runner):
    """mmengine's Runner, built from one plain configuration.

    mmengine collects its environment by starting compilers and importing torchvision (and dies with a broken one);
    its Visualizer draws a matplotlib figure that nobody asked for: the first one of an account starts `fc-list` and
    writes a cache of fonts; it moves every model to CUDA wherever there is one; and it writes a log file and an empty
    configuration into a new folder at every start.

    Args:
        config: what mmengine's Runner takes, in plain values.
        folder: mmengine's work folder.
        given: what no plain value stands for, such as clock and arrays; the model gets it beside its configuration.
        tell: what sends a message to the harness, where the configuration has a `SubmissionLoop`.
    """

    def __init__(
        self,
        config: dict[str, Any],
        folder: Path,
        given: dict[str, Any],
        tell: object = None,
    ) -> None:
        self.given = given
        # mmengine keeps loggers and the like for the life of the process under this name.
        name = f"{config['model']['type']}-{next(_count)}"
        fixed = {"default_hooks": NO_DEFAULT_HOOKS, "log_level": "WARNING", "experiment_name": name}
        super().__init__(
            **copy.deepcopy(config), **fixed, work_dir=str(folder), train_dataloader={}, val_dataloader=tell
        )
        self.recipe = {key: config.get(key) for key in ("optim_wrapper", "param_scheduler")}

    def build_model(self, model: dict | nn.Module) -> nn.Module:
        return MODELS.build(model, default_args=self.given) if isinstance(model, dict) else model

    def wrap_model(self, model_wrapper_cfg: object, model: nn.Module) -> nn.Module:
        """The model, on the device where it was made."""
        return model

    def rebuild_optimizer(self) -> None:
        """A new optimizer with its schedules, for a new student."""
        self.optim_wrapper = self.build_optim_wrapper(copy.deepcopy(self.recipe["optim_wrapper"]))
        if self.recipe["param_scheduler"] is not None:
            self.param_schedulers = self.build_param_scheduler(copy.deepcopy(self.recipe["param_scheduler"]))

    def _log_env(self, env_cfg: dict) -> None:
        """Nothing."""

    def build_visualizer(self, visualizer: object = None) -> None:
        """None."""

    def dump_config(self) -> None:
        """Nothing: the configuration is written once, whole, by who made it."""


class ClosedForm(LRScheduler):
    """mmengine's schedules multiply the rate of before, so that rounding adds up; here it is a function of the step.

    Subclasses give it in `rate`; all parameter groups have it.
    """

    def __init__(self, optimizer: OptimWrapper, recipe: dict, end: int = 0, epoch_length: int = 0) -> None:
        self.recipe = recipe
        super().__init__(optimizer.optimizer)

    def rate(self, step: int) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        return [self.rate(self.last_epoch)] * len(self.optimizer.param_groups)


@OPTIM_WRAPPERS.register_module()
class PrecisionOptimWrapper(OptimWrapper):
    """AmpOptimWrapper asserts a GPU; this one autocasts anywhere, in bfloat16, which needs no loss scaling."""

    def __init__(self, *args: Any, precision: str = "fp32", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.precision = precision

    def optim_context(self, model: nn.Module) -> AbstractContextManager:
        return autocast(next(model.parameters()).device, self.precision)
