"""One pin for each of mmengine's traps that `dfkd/engine/compat.py` cures or that the engine goes around.

These test mmengine, not us: a failure after an update is good news, and each docstring says what may then go.
"""

from __future__ import annotations

import inspect
import math
import pickle
import subprocess
import sys
import time
from importlib.abc import MetaPathFinder
from unittest.mock import MagicMock

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn

from dfkd.engine.compat import NO_DEFAULT_HOOKS, ClosedForm, PrecisionOptimWrapper, QuietRunner, autocast


class Line(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x, mode="tensor"):
        return {"loss": self.layer(x).mean()}


def runner(folder, **changes) -> QuietRunner:
    """mmengine's own iteration loop over a loader of one batch, two iterations, with its own checkpoints."""
    data = dict(dataset=[dict(x=torch.ones(2))], sampler=dict(type="DefaultSampler"), batch_size=1, num_workers=0)
    return QuietRunner(
        model=Line(),
        work_dir=str(folder),
        train_dataloader={**data, "collate_fn": dict(type="default_collate")},
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=2),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1, by_epoch=False), logger=None),
        experiment_name=f"compat-{id(folder)}-{len(changes)}",
        log_level="ERROR",
        **changes,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, seconds slept): a training run by mmengine alone."""
    folder, slept = tmp_path_factory.mktemp("mmengine"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        runner(folder).train()
    return folder, slept


def test_its_checkpoints_cannot_be_resumed(trained):
    """When this fails, mmengine reads its own checkpoints again; ours stay for the next pin's reason."""
    folder, _ = trained
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        runner(folder, resume=True).train()


def test_its_checkpoints_hold_no_random_state(trained):
    """When this fails, `dfkd/engine/state.py` could give way to mmengine's checkpoints, the clock apart."""
    folder, _ = trained
    checkpoint = torch.load(folder / "iter_2.pth", weights_only=False)
    assert checkpoint.keys() <= {"meta", "state_dict", "message_hub", "optimizer", "param_schedulers"}
    assert not any("rng" in key or "random" in key for key in checkpoint["meta"])


def test_its_checkpoints_hold_the_message_hub(trained):
    """When this fails, checkpoints are free of logging objects, and `runtime_info` need not be switched off."""
    folder, _ = trained
    assert torch.load(folder / "iter_2.pth", weights_only=False)["message_hub"]


def test_its_loop_sleeps_when_a_loader_is_exhausted(trained):
    """When this fails, `IterBasedTrainLoop` no longer costs two seconds a pass; our loop has other reasons too."""
    _, slept = trained
    assert 2 in slept


def test_its_amp_wrapper_wants_a_gpu():
    """When this fails, the cure `PrecisionOptimWrapper` is needless: AmpOptimWrapper(dtype="bfloat16") does."""
    if torch.cuda.is_available():
        pytest.skip("it is content where there is one")
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    with pytest.raises(AssertionError, match="only available training on gpu"):
        AmpOptimWrapper(optimizer=optimiser, dtype="bfloat16", loss_scale=1.0)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_ours_does_not(precision, dtype):
    model = nn.Linear(2, 2)
    wrapper = PrecisionOptimWrapper(torch.optim.SGD(model.parameters(), 0.1), precision=precision)
    with wrapper.optim_context(model):
        assert model(torch.ones(1, 2)).dtype == dtype
    assert model(torch.ones(1, 2)).dtype == torch.float32


def after_a_step(context) -> bool:
    """Whether within one context a layer's output changes with its weights."""
    layer, x = nn.Linear(2, 1), torch.ones(1, 2)
    optimiser = torch.optim.SGD(layer.parameters(), 1.0)
    with context:
        before = layer(x)
        before.sum().backward()
        optimiser.step()
        return not torch.equal(layer(x), before)


def test_torch_s_autocast_keeps_the_weights_of_before():
    """Not mmengine's: when this fails, torch itself drops a cached weight that was stepped."""
    assert not after_a_step(torch.autocast("cpu", torch.bfloat16))


def test_ours_does_not_keep_them():
    assert after_a_step(autocast(torch.device("cpu"), "bf16"))
    model = nn.Linear(1, 1)
    wrapper = PrecisionOptimWrapper(torch.optim.SGD(model.parameters(), 0.1), precision="bf16")
    assert after_a_step(wrapper.optim_context(model))


def test_its_visualizer_draws_a_figure():
    """When this fails, mmengine's Visualizer may be built under a sealed guard, and `build_visualizer` may go."""
    assert Visualizer().fig_save is not None


def test_ours_has_none(tmp_path):
    assert runner(tmp_path).visualizer is None


def test_it_moves_a_model_to_where_it_thinks_best(tmp_path, monkeypatch):
    """When this fails, `wrap_model` of `QuietRunner` may go."""
    from mmengine.runner import runner as module

    monkeypatch.setattr(module, "get_device", lambda: "meta")
    monkeypatch.setattr(module, "is_distributed", lambda: False)
    theirs, ours = MagicMock(distributed=False), runner(tmp_path)
    assert next(Runner.wrap_model(theirs, None, Line()).parameters()).is_meta
    assert not next(ours.wrap_model(None, Line()).parameters()).is_meta


def test_its_schedules_are_recursions():
    """When this fails, mmengine's schedules are closed forms, and `ClosedForm` may go: a teacher's rates are exact."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    schedule = PARAM_SCHEDULERS.build(
        dict(type="CosineAnnealingLR", T_max=200, end=200, optimizer=OptimWrapper(optimizer))
    )
    exact = [0.1 * (1 + math.cos(math.pi * epoch / 200)) / 2 for epoch in range(200)]
    found = []
    for _ in exact:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(exact) and found != exact


def test_ours_is_a_closed_form():
    class Square(ClosedForm):
        def rate(self, step):
            return self.recipe["lr"] * step**2

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    schedule, found = Square(OptimWrapper(optimizer), {"lr": 0.1}), []
    for _ in range(4):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == [0.1 * step**2 for step in range(4)]


def test_its_data_parallel_wrapper_ignores_our_train_step():
    """When this fails, `MMDistributedDataParallel` calls the model's own `train_step`, and may wrap `Distillation`."""
    wrapper = MagicMock()
    wrapper.module.parse_losses.return_value = (torch.zeros(()), {})
    wrapper._run_forward.return_value, wrapper.detect_anomalous_params = {}, False
    MMDistributedDataParallel.train_step(wrapper, MagicMock(), MagicMock())
    assert wrapper._run_forward.called
    assert not wrapper.module.train_step.called


@pytest.fixture
def collect(monkeypatch):
    """Calls mmengine's collect_env with a torchvision that does what `executed` says; returns processes begun."""
    begun = []

    def refuse(command, *args, **kwargs):
        begun.append(command)
        raise subprocess.CalledProcessError(1, command)

    def call(torchvision) -> list:
        from mmengine.utils.dl_utils import collect_env

        monkeypatch.setattr(subprocess, "check_output", refuse)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [torchvision, *sys.meta_path])
        collect_env()
        return begun

    return call


class Missing(MetaPathFinder):
    error = ModuleNotFoundError

    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            raise self.error(name)
        return None


class Broken(Missing):
    error = RuntimeError  # what a torchvision raises that was built for another torch


def test_its_environment_report_starts_processes(collect):
    """When this and the next fail, the cure `QuietRunner` is needless."""
    assert collect(Missing())


def test_its_environment_report_dies_with_a_broken_torchvision(collect):
    """When this and the one before fail, the cure `QuietRunner` is needless."""
    with pytest.raises(RuntimeError, match="torchvision"):
        collect(Broken())


def test_ours_collects_none(tmp_path, monkeypatch):
    from mmengine.runner import runner as module

    monkeypatch.setattr(module, "collect_env", lambda: pytest.fail("it collected its environment"))
    runner(tmp_path)


def test_its_default_hooks_read_every_loss(monkeypatch):
    """When this fails, `NO_DEFAULT_HOOKS` may spare `runtime_info`: log values no longer make the device wait."""
    read, item = [], torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: read.append(self) or item(self))
    hub = MessageHub.get_instance("compat-item")
    hub.update_scalar("train/loss", torch.tensor(1.5))
    assert len(read) == 1
    assert hub.log_scalars  # and it is kept there


def test_every_default_hook_is_switched_off():
    """When this fails, mmengine has a default hook that nobody has looked at."""
    by_default, with_ours = MagicMock(), MagicMock()
    Runner.register_default_hooks(by_default, None)
    Runner.register_default_hooks(with_ours, dict(NO_DEFAULT_HOOKS))
    assert by_default.register_hook.call_count == len(NO_DEFAULT_HOOKS)
    assert not with_ours.register_hook.called


def test_its_package_search_needs_what_setuptools_has_dropped():
    """When this fails, `is_installed`, `pkg::` bases and mmengine.hub work beside today's setuptools."""
    from mmengine.utils import package_utils

    assert "import pkg_resources" in inspect.getsource(package_utils)
