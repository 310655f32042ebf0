"""What a method returns, checked where the harness takes it: a wrong kind or shape is one line that names it.

Nothing here waits for the device. What only values can tell comes as flags, which are read with those of the losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.engine import state
from dfkd.engine.method import Method, Stage
from dfkd.metrics import IGNORE
from dfkd.synthesis.buffer import Batch, Samples

_TOLERANCE = 1 / 255  # of [0, 1]: a resampled image may be off by its rounding


class WrongReturn(Exception):
    """A method returned what its interface does not allow."""


def reason(value: object) -> str | None:
    """Of `supports`: why a task is declined, or None."""
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise WrongReturn(f"supports() is to return None or the reason why not, not {_told(value)}")
    return value


def stages(value: object) -> Sequence[Stage]:
    """Of `schedule`."""
    if not isinstance(value, list | tuple) or not all(isinstance(stage, Stage) for stage in value):
        raise WrongReturn(f"schedule() is to return a list of Stage, not {_told(value)}")
    return value


def capacity(value: object) -> int:
    """Of `buffer_capacity`: at least one entry."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WrongReturn(f"buffer_capacity() is to return a number of images of at least 1, not {_told(value)}")
    return value


def modules(value: object) -> Sequence[nn.Module]:
    """Of `modules`."""
    if not isinstance(value, list | tuple) or not all(isinstance(module, nn.Module) for module in value):
        raise WrongReturn(f"modules() is to return a list of modules, not {_told(value)}")
    return value


def samples(value: object, shape: Sequence[int], per_pixel: bool) -> Samples:
    """Of `synthesize`: images N×`shape`, int64 labels N (N×H×W `per_pixel`) or none, fields of N rows."""
    if not isinstance(value, Samples):
        raise WrongReturn(f"synthesize() is to return Samples, not {_told(value)}")
    _check_images("synthesize()", value.images, shape)
    count, labels = len(value.images), value.labels
    wanted = (count, *shape[1:]) if per_pixel else (count,)
    if labels is not None and not (_is(labels, *wanted) and labels.dtype == torch.int64):
        raise WrongReturn(f"the labels of synthesize() are to be int64 {_shape(wanted)} or None, not {_told(labels)}")
    for name, rows in value.fields.items():
        if not isinstance(rows, Tensor) or rows.dim() < 1 or len(rows) != count:
            raise WrongReturn(
                f"the field {name!r} of synthesize() is to be a tensor of {count} rows, not {_told(rows)}"
            )
    return value


def batch(value: object, shape: Sequence[int], most: int) -> Batch:
    """Of `draw`: images N×`shape`, of which a student step takes `most`."""
    if not isinstance(value, Batch):
        raise WrongReturn(f"draw() is to return a Batch, not {_told(value)}")
    _check_images("draw()", value.images, shape)
    if len(value.images) > most:
        raise WrongReturn(f"a student batch of {len(value.images)} images, {most} are granted")
    return value


def loss(value: object) -> Tensor:
    """The sum of the named losses of `distill`."""
    if not isinstance(value, Mapping) or not value:
        raise WrongReturn(f"distill() is to return a dict of named losses, not {_told(value)}")
    for name, each in value.items():
        if not (_is(each) and each.is_floating_point()):
            raise WrongReturn(f"the loss {name!r} of distill() is to be a tensor of one number, not {_told(each)}")
    total: Any = sum(value.values())
    if not total.requires_grad:
        raise WrongReturn("no loss of distill() has a gradient: it does not depend on the student")
    return total


def faults(images: Tensor, labels: Tensor | None = None, classes: int = 0) -> Tensor:
    """Flags on the images' device: a pixel that is not finite, one outside [0, 1], a label of no class."""
    flags = torch.zeros(3, dtype=torch.bool, device=images.device)
    if len(images):
        low, high = images.detach().aminmax()  # NaN where a pixel is
        flags[0] = ~(low.isfinite() & high.isfinite())
        flags[1] = (low < -_TOLERANCE) | (high > 1 + _TOLERANCE)
        if labels is not None:
            low, high = torch.where(labels == IGNORE, 0, labels).aminmax()
            flags[2] = (low < 0) | (high >= classes)
    return flags


def check_saved(method: Method) -> None:
    """Raises WrongReturn for a state that cannot be saved and read back, before hours go into the run."""
    for name in method.saved:
        if not hasattr(method, name):
            raise WrongReturn(f"`saved` names {name!r}, which the method does not have after setup()")
    for name, value in method.state_dict().items():
        try:
            state.check(value)
        except Exception as error:
            kinds = "modules, optimizers, tensors, numbers, and lists and dicts of the last two"
            raise WrongReturn(
                f"{name!r} of its state is {_told(value)}, which cannot be saved and read back; {kinds} can"
            ) from error


def _check_images(where: str, images: object, shape: Sequence[int]) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise WrongReturn(f"the images of {where} are to be floats in [0, 1], not {_told(images)}")
    if images.dim() != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise WrongReturn(f"the images of {where} are to be N×{_shape(shape)}, not {_shape(images.shape)}")


def _is(value: object, *shape: int) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) == shape


def _shape(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes))


def _told(value: object) -> str:
    """What it is, in few words."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a tensor of {kind} {_shape(value.shape)}" if value.dim() else f"a tensor of one {kind}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, list | tuple | dict) and not value:
        return f"an empty {type(value).__name__}"
    inner = f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) else ""
    return f"a {type(value).__name__}{inner}"
