"""Trainings, of teachers and of priors, that can be stopped and gone on with, to the same result bit for bit."""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd import catalog
from dfkd.errors import UserError
from dfkd.files import replace_file
from dfkd.signals import Stopped, stopping
from dfkd.units import duration

WORK = catalog.ROOT / "work"
SAVE_EVERY, SPEAK_EVERY = 60.0, 20.0  # seconds


class Training:
    """Everything the next step depends on, and the step. Subclasses set `steps` and the rest, and call this first."""

    steps: int

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.step, self.seconds = 0, 0.0
        self.loss = torch.zeros((), device=device)  # running mean over some 100 steps, read when it is told

    def advance(self) -> None:
        """One step; nothing waits for the device. It ends with `done`."""
        raise NotImplementedError

    def done(self, loss: Tensor) -> None:
        self.step += 1
        self.loss = self.loss.lerp(loss.detach(), 1 / min(self.step, 100))

    def progress(self) -> str:
        """How far it is, such as `step 4/6`."""
        return f"step {self.step}/{self.steps}"

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds, "loss": self.loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]


def state_path(folder: Path, *facts: Any) -> Path:
    """Where the state of a training lies that depends on these facts, and on the code: no other goes on from it."""
    key = json.dumps([*facts, catalog.harness_digest()], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"


def finish(training: Training, state: Path | None, until: float, say: Callable[[str], None]) -> None:
    """Step to the end, saving to `state` (unless None) and telling on the way.

    Raises `Stopped`, with the state saved, at SIGINT, at SIGTERM and at the moment `until` (seconds of
    `time.monotonic`); UserError where the loss diverges.
    """
    asked: list[str] = []
    with stopping(asked.append):
        _finish(training, asked, state, until, say)


def _finish(
    training: Training, asked: list[str], state: Path | None, until: float, say: Callable[[str], None]
) -> None:
    begun, before = training.step, training.seconds
    start = saved = time.monotonic()
    spoke = start - SPEAK_EVERY  # the first estimate comes early
    while training.step < training.steps:
        training.advance()
        last, now = training.step == training.steps, time.monotonic()
        if now >= until:
            asked.append("the time limit was reached")
        if asked or last or (now - spoke > SPEAK_EVERY and training.step - begun >= 10):
            loss = training.loss.item()  # waits for the device
            if not math.isfinite(loss):
                raise UserError(f"training diverged before {training.progress()}: the loss is not finite; lower lr")
            spoke = now = time.monotonic()
            left = duration((now - start) / (training.step - begun) * (training.steps - training.step))
            say(f"{training.progress()}, loss {loss:.4f}, about {left} left")
        training.seconds = before + now - start
        if state and not last and (asked or now - saved > SAVE_EVERY):
            try:
                save(state, training.state_dict())
            except UserError as error:  # the disk is full; the state before this one is still there
                raise Stopped(f"{error}; the same with --resume goes on") from None
            saved = time.monotonic()
        if asked and not last:
            raise Stopped(f"{asked[0]} at {training.progress()}; the same with --resume goes on")


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state atomically, behind the sha256 of its bytes."""
    packed = io.BytesIO()
    torch.save(dict(state), packed)
    content = packed.getvalue()
    replace_file(path, hashlib.sha256(content).digest() + content)


def load(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Read a state. Raises UserError where the file is not as it was written."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError("damaged")
        return torch.load(io.BytesIO(content[32:]), map_location=device, weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason}); delete it to start afresh") from None
