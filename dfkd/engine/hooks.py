"""mmengine hooks of a run: exact resume, progress, the guard's checks, sample grids, curves."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from dfkd.engine import state
from dfkd.engine.context import Context
from dfkd.engine.guard import DataFreeViolation, guard
from dfkd.files import replacing
from dfkd.synthesis.buffer import to_bytes
from dfkd.units import duration


class StateHook(Hook):
    """Saves the whole state at the first point between two steps that is `interval` seconds after the last, and when
    all is done: until its record is in place a run can be finished by a later process.

    With `resume` a run starts from the state that is there, if any.
    """

    priority = "VERY_HIGH"

    def __init__(self, path: Path, interval: float, resume: bool) -> None:
        self.path, self.interval, self.resume = path, interval, resume
        self._last = time.monotonic()

    def before_train(self, runner: Runner) -> None:
        if self.resume and self.path.is_file():
            loop = runner.train_loop
            with loop.clock.phase("bookkeeping"):
                state.restore(runner, loop, state.load(self.path, loop.ctx.device))

    def _due(self, runner: Runner, **_: object) -> None:
        if time.monotonic() - self._last >= self.interval:
            self.save_state(runner)

    after_synthesis = after_train_iter = after_round = _due

    def save_state(self, runner: Runner) -> None:
        with runner.train_loop.clock.phase("bookkeeping"):
            state.save(self.path, state.collect(runner, runner.train_loop))
        self._last = time.monotonic()

    after_train = save_state


class GuardHook(Hook):
    """Fails the run if real data were asked for, the teacher changed, or a hook was left on it."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher
        self.before = fingerprint(teacher)

    def after_round(self, runner: Runner) -> None:
        guard.check()

    def after_train(self, runner: Runner) -> None:
        if fingerprint(self.teacher) != self.before:
            raise DataFreeViolation("the method changed the teacher's weights or buffers")
        left = next((name for name, m in self.teacher.named_modules() if _hooks(m)), None)
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


class SamplesHook(Hook):
    """A PNG grid of the newest synthetic images, written once, when the run ends.

    In segmentation each image is followed by the teacher's and the student's prediction, and there are half the rows.
    """

    def __init__(self, path: Path, rows: int = 6, columns: int = 12) -> None:
        self.path, self.rows, self.columns = path, rows, columns

    def after_train(self, runner: Runner) -> None:
        loop, count = runner.train_loop, self.rows * self.columns
        if loop.ctx.buffer.size:
            images = loop.ctx.buffer.newest(count)
        elif runner.model.latest is not None and not loop.method.reference:  # it makes its images in `draw`
            images = to_bytes(runner.model.latest[:count])
        else:
            return
        if loop.ctx.per_pixel:
            images = with_predictions(loop.ctx, images[: count // 6])
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
    bits = [
        [(index >> (3 * place + channel) & 1) << (7 - place) for channel in range(3)] for place in range(3)
    ]
    return torch.stack([sum(channel) for channel in zip(*bits, strict=True)], 1).to(torch.uint8)


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write uint8 N×C×H×W as one PNG, at least 64 pixels a tile, nearest neighbour, 2 pixels apart."""
    from PIL import Image

    tiles = images.permute(0, 2, 3, 1).cpu().numpy()
    scale = max(1, -(-64 // tiles.shape[1]))
    tiles = tiles.repeat(scale, 1).repeat(scale, 2)
    height, width, gap = tiles.shape[1], tiles.shape[2], 2
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, tile in enumerate(tiles):
        pixels = tile if tile.shape[2] == 3 else tile.repeat(3, 2)
        sheet.paste(Image.fromarray(pixels), ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    with replacing(path) as file:
        sheet.save(file, "PNG", optimize=True)


class CurveHook(Hook):
    """Hands the curve to TensorBoard, by a `SummaryWriter`."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        loop = runner.train_loop
        scalars = {"value": metrics["value"], **{f"time/{k}": v for k, v in loop.clock.seconds.items()}}
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, loop.ctx.student_steps)


class ProgressHook(Hook):
    """What is done, the last value, and when it will end: a live line on a terminal, plain lines elsewhere."""

    def __init__(self, title: str, every: float = 20.0) -> None:
        self.title, self.live = title, sys.stderr.isatty()
        self.every = 0.2 if self.live else every
        self._last = 0.0

    def before_train(self, runner: Runner) -> None:
        self._start = time.monotonic()
        self._seconds = {"call": 0.0, "step": 0.0}
        self._mark, self._begun = time.monotonic(), self._done(runner)

    def _done(self, runner: Runner) -> tuple[int, int]:
        ctx = runner.train_loop.ctx
        return ctx.calls, ctx.student_steps

    def after_synthesis(self, runner: Runner) -> None:
        self._tick(runner, "call")

    def after_train_iter(self, runner: Runner, **_: object) -> None:
        self._tick(runner, "step")

    def _tick(self, runner: Runner, kind: str) -> None:
        now = time.monotonic()
        self._seconds[kind] += now - self._mark
        self._mark = now
        if now - self._last >= self.every:
            self._last = now
            self._show(self.line(runner))

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        if not self.live:
            self._show(self.line(runner))

    def line(self, runner: Runner) -> str:
        """One line of progress: calls, steps, last value, time left."""
        loop = runner.train_loop
        calls = sum(stage.rounds * stage.calls for stage in loop.stages)
        done = self._done(runner)
        left = 0.0
        for name, total, now, then in zip(
            ("call", "step"), (calls, loop.total_steps), done, self._begun, strict=True
        ):
            if now > then:
                left += (total - now) * self._seconds[name] / (now - then)
        parts = [self.title]
        if calls:
            parts.append(f"synthesis {done[0]}/{calls}")
        parts.append(f"step {done[1]}/{loop.total_steps}")
        if loop.curve:
            parts.append(f"last {loop.curve[-1]['value']:.3g}")
        parts.append(f"about {duration(left)} left")
        return " · ".join(parts)

    def _show(self, line: str) -> None:
        if self.live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def after_train(self, runner: Runner) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
