"""mmengine hooks: exact resume and progress; digests of networks."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from dfkd.engine import state
from dfkd.files import replace_file
from dfkd.units import duration


@HOOKS.register_module()
class StateHook(Hook):
    """Saves the whole state at the first point between two steps that is `interval` seconds after the last, and when
    all is done: until its record is in place a run can be finished by a later process.

    With `resume` a run starts from the state that is there, if any.
    """

    priority = "VERY_HIGH"

    def __init__(self, path: str, interval: float, resume: bool) -> None:
        self.path, self.interval, self.resume = Path(path), interval, resume
        self._last = time.monotonic()

    def before_train(self, runner: Runner) -> None:
        if self.resume and self.path.is_file():
            clock = runner.model.clock
            with clock.phase("bookkeeping"):
                state.restore(runner, state.load(self.path, clock.device))
                runner.tell("resumed")

    def _due(self, runner: Runner, **_: object) -> None:
        if time.monotonic() - self._last >= self.interval:
            self.save_state(runner)

    after_synthesis = after_train_iter = after_round = _due

    def save_state(self, runner: Runner) -> None:
        """The harness writes down where it stands, under the digest of this state, before the state is there."""
        with runner.model.clock.phase("bookkeeping"):
            content = state.packed(state.collect(runner))
            runner.tell("saving", {"state": hashlib.sha256(content).hexdigest()})
            replace_file(self.path, content)
            runner.tell("saved")
        self._last = time.monotonic()

    after_train = save_state


def fingerprint(network: nn.Module) -> str:
    """sha256 over every parameter and buffer, persistent or not, bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """A sum over the bits of float32 tensors, others apart: int64, on a device for which it does not wait.

    Some thousandth of the time of a student step: products and their first sum stay in int32, modulo 2^32.
    """
    parts = [t.detach() for t in tensors if t.dtype == torch.float32]
    flat = torch.cat([t.as_strided((t.numel(),), (1,)) for t in parts])
    bits = F.pad(flat, (0, -len(flat) % 4096)).view(torch.int32).view(-1, 4096)
    weights = (torch.arange(n, device=flat.device).mul_(2_654_435_761).bitwise_or_(1) for n in bits.shape)
    rows, columns = weights
    return ((bits * columns.to(torch.int32)).sum(1, dtype=torch.int32) * rows).sum()


@HOOKS.register_module()
class ProgressHook(Hook):
    """What is done, the last value, and when it will end: a live line on a terminal, plain lines elsewhere.

    The first line comes early, then one every `every` seconds and one at each evaluation.
    """

    def __init__(self, title: str = "", every: float = 20.0, live: bool | None = None) -> None:
        self.title, self.live = title, sys.stderr.isatty() if live is None else live
        self.every = 0.2 if self.live else every
        self._last = -math.inf
        self._display: Any = None

    def before_train(self, runner: Runner) -> None:
        self._seconds = {"synthesis": 0.0, "training": 0.0}
        self._mark, self._begun = time.monotonic(), self._done(runner)

    def _done(self, runner: Runner) -> tuple[int, int]:
        return runner.model.progress.synthesis_step, runner.model.progress.student_steps

    def after_synthesis(self, runner: Runner) -> None:
        self._tick(runner, "synthesis")

    def after_train_iter(self, runner: Runner, **_: object) -> None:
        self._tick(runner, "training")

    def _tick(self, runner: Runner, kind: str) -> None:
        now = time.monotonic()
        self._seconds[kind] += now - self._mark
        self._mark = now
        if now - self._last >= self.every:
            self._last = now
            self.tell(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        if not self.live:
            self.tell(runner)

    def left(self, runner: Runner) -> str:
        """What the steps still to be taken will need, by what those of this process took."""
        loop, left = runner.train_loop, 0.0
        totals = sum(stage.rounds * stage.synthesis_steps for stage in loop.stages), loop.total_steps
        spent = self._seconds.values()
        for total, now, then, seconds in zip(totals, self._done(runner), self._begun, spent, strict=True):
            if now > then:
                left += (total - now) * seconds / (now - then)
        return duration(left)

    def tell(self, runner: Runner) -> None:
        """One line of progress: steps, time left."""
        self._show(" · ".join([self.title, runner.model.describe(), f"about {self.left(runner)} left"]))

    def _show(self, line: str) -> None:
        if not self.live:
            print(line, file=sys.stderr, flush=True)
            return
        if self._display is None:
            from rich.console import Console
            from rich.live import Live

            self._display = Live(console=Console(stderr=True, force_terminal=True), auto_refresh=False, transient=True)
            self._display.start()
        self._display.update(line, refresh=True)

    def after_train(self, runner: Runner) -> None:
        if self._display is not None:
            self._display.stop()
