"""The newest synthetic images as one picture, for people."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd.files import replacing

ROWS, COLUMNS = 6, 12
COUNT = ROWS * COLUMNS
SENT = ("images", "newest", "labels")  # by a worker, as tensors


@torch.no_grad()
def with_predictions(images: Tensor, classes: int, teacher: nn.Module, student: nn.Module) -> Tensor:
    """Image, teacher's and student's label map in turns, uint8 3N×3×H×W; classes have the colours of `palette`.

    There are half as many rows as of images alone.
    """
    images = images[: COUNT // 6]
    pixels, colours = images.float() / 255, palette(classes).to(images.device)
    maps = [colours[network.eval()(pixels).argmax(1)].permute(0, 3, 1, 2) for network in (teacher, student)]
    return torch.stack([images.expand(-1, 3, -1, -1), *maps], 1).flatten(0, 1)


def palette(classes: int) -> Tensor:
    """The colour map of Pascal VOC, uint8 classes×3: the bits of the class spread over the high bits of R, G, B."""
    index = torch.arange(classes)
    bits = [[(index >> (3 * place + channel) & 1) << (7 - place) for channel in range(3)] for place in range(3)]
    return torch.stack([sum(channel) for channel in zip(*bits, strict=True)], 1).to(torch.uint8)


def save_grid(images: Tensor, path: Path, columns: int = COLUMNS) -> None:
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
