"""Batched augmentation on the device, for the student's images and for inversion alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dfkd.tasks import Task


def _pick(images: Tensor, rows: Tensor, columns: Tensor, padding: int) -> Tensor:
    """out[n, :, i, j] = images[n, :, rows[n, i], columns[n, j]], zero outside by up to `padding` pixels."""
    if padding:
        images = torch.nn.functional.pad(images, (padding,) * 4)
        rows, columns = rows + padding, columns + padding
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class _CropFlip(torch.autograd.Function):
    """A crop of a zero-padded image is a translation, so its gradient is the opposite one.

    Both directions are gathers. Autograd's own backward of indexing is a scatter with atomic additions: slower,
    and not repeatable on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(dy, dx, flip)
        ctx.padding = padding
        i = torch.arange(images.shape[2], device=images.device)[None]
        j = torch.arange(images.shape[3], device=images.device)[None]
        columns = torch.where(flip[:, None], images.shape[3] - 1 - j, j) + dx[:, None]
        return _pick(images, i + dy[:, None], columns, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dy, dx, flip = ctx.saved_tensors
        i = torch.arange(grad.shape[2], device=grad.device)[None]
        j = torch.arange(grad.shape[3], device=grad.device)[None] - dx[:, None]
        columns = torch.where(flip[:, None], grad.shape[3] - 1 - j, j)
        return _pick(grad, i - dy[:, None], columns, ctx.padding), None, None, None, None


class Augment:
    """Per-image random crop after zero padding, then a flip with p = .5: the field's CIFAR augmentation.

    `padding` in pixels, `flip` only where the task allows it (digits have a handedness). Accepts uint8 or float
    N×C×H×W and is differentiable for the latter; draws come from the generator it is given, on its device.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        self.padding, self.flip = padding, flip

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, device = len(images), images.device
        span = 2 * self.padding + 1
        shift = torch.randint(0, span, (2, count), generator=generator, device=device) - self.padding
        flip = torch.rand(count, generator=generator, device=device) < (0.5 if self.flip else 0.0)
        return _CropFlip.apply(images, shift[0], shift[1], flip, self.padding)

    def pair(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Real training images and their labels, as the recipe on real data augments them."""
        return self(images, generator), labels


class CropAugment(Augment):
    """The same where real images are larger. Synthetic ones have the size of a crop and are augmented as any; real ones
    are cropped to `size` without padding, label maps (N×H×W) alike, and then flipped."""

    def __init__(self, size: int, padding: int, flip: bool) -> None:
        super().__init__(padding, flip)
        self.size = size

    def pair(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count, device = len(images), images.device
        along = torch.arange(self.size, device=device)
        top, left = (
            torch.randint(0, side - self.size + 1, (count, 1), generator=generator, device=device)
            for side in images.shape[2:]
        )
        flip = torch.rand(count, 1, generator=generator, device=device) < (0.5 if self.flip else 0.0)
        columns = left + torch.where(flip, self.size - 1 - along, along)
        if labels.dim() > 1:
            labels = _pick(labels[:, None], top + along, columns, 0)[:, 0]
        return _pick(images, top + along, columns, 0), labels


class ResizedCrop:
    """Per-image random resized crop, then a flip with p = .5: CMI's local view (dda.md 1.2).

    `scale` bounds the crop's share of the image's area, `ratio` its width over its height (log-uniform). As in the
    published program a box has whole pixels and the first of `TRIES` draws that fits is taken, so large areas are
    rarer; its corner pixels become those of the result, bilinearly. Square float images N×C×H×H. Differentiable, and
    repeatable on a GPU: two matrix products instead of a sampler whose gradient is a scatter.
    """

    TRIES = 10

    def __init__(
        self,
        scale: tuple[float, float] = (0.25, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
    ) -> None:
        self.scale, self.ratio, self.flip = scale, ratio, flip

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, size, device = len(images), images.shape[-1], images.device
        area, shape = torch.rand(2, count, self.TRIES, generator=generator, device=device)
        down, right, turned = torch.rand(3, count, generator=generator, device=device)
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * area
        low, high = map(math.log, self.ratio)
        ratio = (low + (high - low) * shape).exp()
        width, height = (size * (area * ratio).sqrt()).round(), (size * (area / ratio).sqrt()).round()
        first = ((width <= size) & (height <= size)).int().argmax(1, keepdim=True)
        width, height = (side.gather(1, first)[:, 0].clamp_max(size) for side in (width, height))
        rows, columns = _sampling(size, height, down), _sampling(size, width, right)
        flip = turned < (0.5 if self.flip else 0.0)
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
        crops = rows[:, None] @ images @ columns.transpose(1, 2)[:, None]
        return crops.contiguous(memory_format=torch.channels_last)


def _sampling(size: int, length: Tensor, place: Tensor) -> Tensor:
    """N×size×size: rows of bilinear weights that enlarge `length` whole pixels of an axis to all of it.

    `place` in [0, 1) says which of the whole positions they begin at.
    """
    pixels = torch.arange(size, device=length.device)
    start = (place * (size - length + 1)).floor()
    centres = start[:, None] + pixels * ((length - 1) / (size - 1))[:, None]
    return (1 - (centres[:, :, None] - pixels).abs()).clamp_min(0)


def augment_for(task: Task) -> Augment:
    """The field's augmentation for this task."""
    if task.kind == "segmentation" or task.stored:
        return CropAugment(task.spec.size, task.padding, task.flip)
    return Augment(task.padding, task.flip)
