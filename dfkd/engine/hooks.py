"""mmengine hooks: exact resume, progress, the guard's checks, sample grids, curves."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from dfkd.engine import state
from dfkd.engine.context import Context
from dfkd.engine.guard import DataFreeViolation, guard
from dfkd.files import replacing
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

    def _due(self, runner: Runner, **_: object) -> None:
        if time.monotonic() - self._last >= self.interval:
            self.save_state(runner)

    after_synthesis = after_train_iter = after_round = _due

    def save_state(self, runner: Runner) -> None:
        with runner.model.clock.phase("bookkeeping"):
            state.save(self.path, state.collect(runner))
        self._last = time.monotonic()

    after_train = save_state


@HOOKS.register_module()
class GuardHook(Hook):
    """Fails the run if real data were asked for, the teacher changed, or a hook was left on it."""

    def before_train(self, runner: Runner) -> None:
        self.before = fingerprint(runner.model.ctx.teacher)

    def after_round(self, runner: Runner) -> None:
        guard.check()

    def after_train(self, runner: Runner) -> None:
        teacher = runner.model.ctx.teacher
        if fingerprint(teacher) != self.before:
            raise DataFreeViolation("the method changed the teacher's weights or buffers")
        left = next((name for name, m in teacher.named_modules() if _hooks(m)), None)
        if left is not None:
            raise DataFreeViolation(f"the method left a hook on the teacher's module {left or '(root)'!r}")


def fingerprint(network: nn.Module) -> str:
    """sha256 over every parameter and buffer, persistent or not, bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


@HOOKS.register_module()
class SamplesHook(Hook):
    """A PNG grid of the newest synthetic images, written once, when the run ends.

    In segmentation each image is followed by the teacher's and the student's prediction, and there are half the rows.
    """

    def __init__(self, path: str, rows: int = 6, columns: int = 12) -> None:
        self.path, self.rows, self.columns = Path(path), rows, columns

    def after_train(self, runner: Runner) -> None:
        model, count = runner.model, self.rows * self.columns
        made = model.images()
        buffer = model.ctx.buffer
        if buffer.size:
            images = buffer.newest(count)
        elif made is not None:  # it makes its images in `draw`
            images = made[0][:count]
        else:
            return
        if model.ctx.per_pixel:
            images = with_predictions(model.ctx, images[: count // 6])
        save_grid(images, self.path, self.columns)


@torch.no_grad()
def with_predictions(ctx: Context, images: Tensor) -> Tensor:
    """Image, teacher's and student's label map in turns, uint8 3N×3×H×W; classes have the colours of `palette`."""
    seen, colours = ctx.teacher.images_seen, palette(ctx.spec.classes).to(images.device)
    ctx.student.eval()
    pixels = images.float() / 255
    maps = [colours[network(pixels).argmax(1)].permute(0, 3, 1, 2) for network in (ctx.teacher, ctx.student)]
    ctx.teacher.images_seen = seen  # shown to people, not to the method
    return torch.stack([images.expand(-1, 3, -1, -1), *maps], 1).flatten(0, 1)


def palette(classes: int) -> Tensor:
    """The colour map of Pascal VOC, uint8 classes×3: the bits of the class spread over the high bits of R, G, B."""
    index = torch.arange(classes)
    bits = [[(index >> (3 * place + channel) & 1) << (7 - place) for channel in range(3)] for place in range(3)]
    return torch.stack([sum(channel) for channel in zip(*bits, strict=True)], 1).to(torch.uint8)


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write uint8 N×C×H×W as one PNG, at least 64 pixels a tile, nearest neighbour, 2 pixels apart."""
    from PIL import Image

    scale, gap = max(1, -(-64 // images.shape[2])), 2
    count, height, width = len(images), images.shape[2] * scale, images.shape[3] * scale
    rows = -(-count // columns)
    sheet = torch.full((rows * columns, 3, height + gap, width + gap), 255, dtype=torch.uint8)
    tiles = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3).expand(-1, 3, -1, -1)
    sheet[:count, :, :height, :width] = tiles
    sheet = sheet.view(rows, columns, 3, height + gap, width + gap).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    with replacing(path) as file:
        Image.fromarray(sheet[:-gap, :-gap].numpy()).save(file, "PNG", optimize=True)


@HOOKS.register_module()
class CurveHook(Hook):
    """Hands the curve, and the seconds by category, to the Runner's TensorBoard writer."""

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        seconds = runner.model.clock.seconds
        scalars = {"value": metrics["value"], **{f"time/{k}": v for k, v in seconds.items()}}
        for name, value in scalars.items():
            runner.curves.add_scalar(name, value, runner.model.progress.student_steps)


@HOOKS.register_module()
class ProgressHook(Hook):
    """What is done, the last value, and when it will end: a live line on a terminal, plain lines elsewhere.

    The first line comes early, then one every `every` seconds and one at each evaluation.
    """

    def __init__(self, title: str = "", every: float = 20.0) -> None:
        self.title, self.live = title, sys.stderr.isatty()
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
        """One line of progress: steps, last value, time left."""
        curve = runner.train_loop.curve
        last = [f"last {curve[-1]['value']:.3g}"] if curve else []
        self._show(" · ".join([self.title, runner.model.describe(), *last, f"about {self.left(runner)} left"]))

    def _show(self, line: str) -> None:
        if not self.live:
            print(line, file=sys.stderr, flush=True)
            return
        if self._display is None:
            from rich.console import Console
            from rich.live import Live

            self._display = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._display.start()
        self._display.update(line, refresh=True)

    def after_train(self, runner: Runner) -> None:
        if self._display is not None:
            self._display.stop()
