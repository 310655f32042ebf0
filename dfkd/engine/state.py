"""Exact resume: everything the next step depends on, in one file of tensors and plain containers.

mmengine's checkpoints hold no random state and need an unsafe read; this file is read with `weights_only=True`. It
begins with the sha256 of the rest: a flipped bit of a weight would otherwise give another student under a good name.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import torch
from mmengine.runner import Runner

from dfkd.engine.seeds import global_state, load_global_state
from dfkd.errors import UserError

VERSION = 8
MAGIC = b"dfkd state\n"


def collect(runner: Runner) -> dict:
    """The state of a run between two steps."""
    return {
        "version": VERSION,
        "loop": runner.train_loop.state_dict(),
        "model": runner.model.run_state(),
        "optimizer": runner.optim_wrapper.state_dict(),
        "schedules": [schedule.state_dict() for schedule in runner.param_schedulers or ()],
        "globals": global_state(),
        "clock": runner.model.clock.state_dict(),
    }


def restore(runner: Runner, state: dict) -> None:
    """Put `state` back into a freshly built run."""
    runner.train_loop.load_state_dict(state["loop"])
    runner.model.load_run_state(state["model"])
    runner.optim_wrapper.load_state_dict(state["optimizer"])
    for schedule, saved in zip(runner.param_schedulers or (), state["schedules"], strict=True):
        schedule.load_state_dict(saved)
    load_global_state(state["globals"])
    runner.model.clock.load_state_dict(state["clock"])


def packed(state: dict) -> bytes:
    """The content of the file of a state."""
    content = io.BytesIO()  # not into the file: of a full disk torch tells in a page of C++
    torch.save(state, content)
    return MAGIC + hashlib.sha256(content.getbuffer()).digest() + content.getbuffer()


def check(value: object) -> None:
    """Raise what torch raises where `value` cannot be part of a state: saved, and read back."""
    content = io.BytesIO()
    torch.save(value, content)
    content.seek(0)
    torch.load(content, map_location="cpu", weights_only=True)


def load(path: Path, device: torch.device) -> dict:
    """Read a state. Raises UserError where the file is damaged or of another version."""
    afresh = "delete it to start this run afresh"
    try:
        found = path.read_bytes()
        content = memoryview(found)[len(MAGIC) + 32 :]
        if found[: len(MAGIC) + 32] != MAGIC + hashlib.sha256(content).digest():
            raise ValueError("its content does not have the digest that it was written with")
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except pickle.UnpicklingError:  # of which torch tells in a paragraph with escape sequences
        raise UserError(f"{path} holds more than tensors and plain containers; {afresh}") from None
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason}); {afresh}") from None
    version = state.get("version") if isinstance(state, dict) else None
    if version != VERSION:
        raise UserError(f"{path} has version {version}, not {VERSION}; {afresh}")
    return state
