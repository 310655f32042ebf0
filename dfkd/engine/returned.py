"""What a method returns, checked where the harness takes it: a wrong kind or shape is one line that names it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dfkd.engine import state
from dfkd.engine.method import Method, Stage
from dfkd.engine.module import Diverged
from dfkd.metrics import IGNORE
from dfkd.synthesis.buffer import Batch, Samples

TOLERANCE = 1 / 255  # by which a pixel may be outside [0, 1]: its rounding, and a level of what is stored
Kind = TypeVar("Kind")


class WrongReturn(Exception):
    """A method returned what its interface does not allow."""


def reason(value: object) -> str | None:
    """Of `supports`: why a task is declined, or None."""
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise WrongReturn(f"supports() is to return None or the reason why not, not {_told(value)}")
    return value


def stages(value: object) -> list[Stage]:
    """Of `schedule`: counts are whole numbers."""
    found = _list(value, Stage, "schedule() is to return a list of Stage")
    for stage in found:
        counts = {name: getattr(stage, name) for name in ("rounds", "synthesis_steps", "student_steps")}
        for name, count in counts.items():
            if not _is_count(count):
                raise WrongReturn(f"{name} of the stage {stage.name!r} is to be a number from 0, not {_told(count)}")
    return found


def capacity(value: object) -> int:
    """Of `buffer_capacity`. Raises ValueError for none, which may follow from a value that the user gave."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongReturn(f"buffer_capacity() is to return a number of images, not {_told(value)}")
    if value < 1:
        raise ValueError(f"a buffer of {value} images holds none")
    return value


def modules(value: object) -> list[nn.Module]:
    """Of `modules`."""
    return _list(value, nn.Module, "modules() is to return a list of modules")


def samples(value: object, shape: Sequence[int], per_pixel: bool) -> Samples:
    """Of `synthesize`: images N×`shape`, int64 labels N (N×H×W `per_pixel`) or none, fields of N rows."""
    if not isinstance(value, Samples):
        raise WrongReturn(f"synthesize() is to return Samples, not {_told(value)}")
    _check_images("synthesize()", value.images, shape)
    count, labels, fields, made = len(value.images), value.labels, value.fields, value.made
    wanted = (count, *shape[1:]) if per_pixel else (count,)
    if labels is not None and not (_has_shape(labels, *wanted) and labels.dtype == torch.int64):
        raise WrongReturn(f"the labels of synthesize() are to be int64 {_shape(wanted)} or None, not {_told(labels)}")
    if not isinstance(fields, dict):
        raise WrongReturn(f"the fields of synthesize() are to be a dict of tensors, not {_told(fields)}")
    for name, rows in fields.items():
        if not isinstance(rows, Tensor) or rows.dim() < 1 or len(rows) != count:
            raise WrongReturn(
                f"the field {name!r} of synthesize() is to be a tensor of {count} rows, not {_told(rows)}"
            )
    if made is not None and not _is_count(made):
        raise WrongReturn(f"`made` of synthesize() is to be a number of images, not {_told(made)}")
    return value


def check_values(step: int, of: Samples, classes: int, per_pixel: bool) -> None:
    """Raise Diverged for a pixel that is not finite, WrongReturn for one outside [0, 1] and a label of no class.

    Waits for the device, as putting the images into the buffer does.
    """
    if not len(of.images):
        return
    low, high = (value.item() for value in of.images.detach().aminmax())  # NaN where a pixel is
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        raise Diverged(f"an image of synthesis step {step} was not finite")
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        told = f"synthesize() returned images from {low:.4g} to {high:.4g} in synthesis step {step}"
        raise WrongReturn(f"{told}; they are to be in [0, 1]")
    if of.labels is not None:
        labels = torch.where(of.labels == IGNORE, 0, of.labels) if per_pixel else of.labels
        low, high = (value.item() for value in labels.aminmax())
        if low < 0 or high >= classes:
            told = f"synthesize() returned labels from {low} to {high} in synthesis step {step}"
            raise WrongReturn(f"{told}; there are {classes} classes")


def batch(value: object, shape: Sequence[int], most: int, device: torch.device) -> Batch:
    """Of `draw`: images N×`shape`, of which a student step takes from 1 to `most`, on the run's device."""
    if not isinstance(value, Batch):
        raise WrongReturn(f"draw() is to return a Batch, not {_told(value)}")
    _check_images("draw()", value.images, shape)
    if value.images.device.type != device.type:
        raise WrongReturn(f"the images of draw() are to be on {device.type}, not on {value.images.device.type}")
    if not 0 < len(value.images) <= most:
        raise WrongReturn(f"a student batch of {len(value.images)} images, {most} are granted")
    return value


# What `flags` are about, in their order.
FLAGS: tuple[tuple[type[Exception], str], ...] = (
    (Diverged, "an image of draw() was not finite"),
    (WrongReturn, "draw() returned images outside [0, 1]"),
)


def flags(images: Tensor) -> Tensor:
    """Of the images of `draw`, as `FLAGS`: on the device, for which no step waits."""
    low, high = images.detach().aminmax()  # NaN where a pixel is
    finite = low.isfinite() & high.isfinite()
    return torch.stack([~finite, (low < -TOLERANCE) | (high > 1 + TOLERANCE)])


def loss(value: object) -> Tensor:
    """The sum of the named losses of `distill`."""
    if not isinstance(value, Mapping) or not value:
        raise WrongReturn(f"distill() is to return a dict of named losses, not {_told(value)}")
    for name, each in value.items():
        if not (_has_shape(each) and each.is_floating_point()):
            raise WrongReturn(f"the loss {name!r} of distill() is to be a tensor of one number, not {_told(each)}")
    total: Any = sum(value.values())
    if not total.requires_grad:
        raise WrongReturn("no loss of distill() has a gradient: it does not depend on the student")
    return total


def report(value: object) -> dict[str, float]:
    """Of `report`: finite numbers by name."""
    numbers = value.values() if isinstance(value, dict) else [None]
    good = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if not isinstance(value, dict) or not (good and all(isinstance(name, str) for name in value)):
        raise WrongReturn(f"report() is to give finite numbers by name, not {value!r:.200}")
    return value


def check_saved(method: Method) -> None:
    """Raises WrongReturn for a state that cannot be saved and read back, before hours go into the run."""
    names = method.saved
    if type(method).state_dict is Method.state_dict:
        if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
            raise WrongReturn(f"`saved` is to be a tuple of names, such as ('generator',), not {_told(names)}")
        for name in names:
            if not hasattr(method, name):
                raise WrongReturn(f"`saved` names {name!r}, which the method does not have after setup()")
    saved = method.state_dict()
    if not isinstance(saved, Mapping):
        raise WrongReturn(f"state_dict() is to return a dict, not {_told(saved)}")
    for name, value in saved.items():
        try:
            state.check(value)
        except Exception as error:
            told = f"{name!r} of the method's state is {_told(value)}, which cannot be saved and read back"
            can = "modules, optimizers, tensors, numbers, and lists and dicts of the last two can"
            raise WrongReturn(f"{told}; {can}") from error


def _check_images(where: str, images: object, shape: Sequence[int]) -> None:
    if not isinstance(images, Tensor) or images.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise WrongReturn(f"the images of {where} are to be floats in [0, 1], not {_told(images)}")
    if images.dim() != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise WrongReturn(f"the images of {where} are to be N×{_shape(shape)}, not {_shape(images.shape)}")


def _list(value: object, kind: type[Kind], wanted: str) -> list[Kind]:
    """The things of an iterable, if they are all of the kind."""
    if not isinstance(value, Iterable) or isinstance(value, str | Tensor | Mapping):
        raise WrongReturn(f"{wanted}, not {_told(value)}")
    found = list(value)
    for each in found:
        if not isinstance(each, kind):
            raise WrongReturn(f"{wanted}, not one with {_told(each)} in it")
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _has_shape(value: object, *shape: int) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) == shape


def _shape(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes))


def _told(value: object) -> str:
    """What it is, in few words."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a tensor of {kind} {_shape(value.shape)}" if value.dim() else f"a tensor of one {kind}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:40]
    if isinstance(value, list | tuple | dict):
        inner = f" of {type(next(iter(value))).__name__}" if value and not isinstance(value, dict) else ""
        return f"{'a' if value else 'an empty'} {type(value).__name__}{inner}"
    return f"a {type(value).__name__}"
