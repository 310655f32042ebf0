"""Cures for mmengine 0.10.7, one each, every one pinned by a test that fails when a release makes it needless.

What is cured by not using it: its checkpoints (no random state, not readable with `weights_only=True`), its
iteration loop (sleeps two seconds whenever a loader is exhausted), `IterTimerHook`, `LoggerHook` and
`RuntimeInfoHook` (call `.item()` on losses, keep state in `MessageHub`), its data-parallel wrapper (replaces the
model's `train_step` by its own).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import optimizer as optimizing
from torch.optim.lr_scheduler import LRScheduler

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


def is_hooked(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody has something run before or after the steps of this optimizer, or of all."""
    kinds = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    everywhere = (optimizing._global_optimizer_pre_hooks, optimizing._global_optimizer_post_hooks)
    return any(everywhere) or any(getattr(optimizer, kind) for kind in kinds)


class QuietRunner(Runner):
    """mmengine's Runner without what it does unasked.

    It collects its environment by starting compilers and importing torchvision (and dies with a broken one); its
    Visualizer draws a matplotlib figure: the first one of an account starts `fc-list` and writes a cache of fonts; it
    moves every model to CUDA wherever there is one; and it dumps a configuration at each start.
    """

    def _log_env(self, env_cfg: dict) -> None:
        """Nothing: the record has what we need of the environment, and a confined worker asks for no compilers."""

    def build_visualizer(self, visualizer: object = None) -> None:
        """None: TensorBoard's curves are the harness's, which has the scores."""

    def wrap_model(self, model_wrapper_cfg: object, model: nn.Module) -> nn.Module:
        """The model, on the device where it was made."""
        return model

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

    def get_lr(self) -> list[float | Tensor]:
        return [self.rate(self.last_epoch)] * len(self.optimizer.param_groups)

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # by the process before this one; torch would warn that it was not


@OPTIM_WRAPPERS.register_module()
class PrecisionOptimWrapper(OptimWrapper):
    """AmpOptimWrapper asserts a GPU; this one autocasts anywhere, in bfloat16, which needs no loss scaling."""

    def __init__(self, *args: Any, precision: str = "fp32", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.precision = precision

    def optim_context(self, model: nn.Module) -> AbstractContextManager:
        return autocast(next(model.parameters()).device, self.precision)
