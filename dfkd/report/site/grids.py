"""The grids of samples in the page: small copies, which together stay within a bound."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dfkd import paths
from dfkd.errors import UserError
from dfkd.identity import Cell
from dfkd.report import plots

BOUND = 2 * 2**20  # bytes of all grids together
BYTES = 0.35  # a pixel, of busy pictures at this quality
QUALITY = 60
WIDTH = 800  # pixels at most
MOST = 200  # grids; of more, each would be too small to see anything


def grids(cells: Iterable[Cell]) -> dict[Cell, str]:
    """The grid of each cell that has one, as a data address; of many the first, as far as the bound allows.

    UserError names a file that is no picture.
    """
    found = [(cell, path) for cell in cells if (path := paths.plots() / plots.grid_of(cell)).is_file()][:MOST]
    share, left, shown = BOUND / max(1, len(found)), BOUND, {}
    with ThreadPoolExecutor() as pool:  # decoding and encoding leave the interpreter
        for (cell, _), content in zip(found, pool.map(lambda each: _small(each[1], share), found), strict=True):
            if len(content) <= left:
                left -= len(content)
                shown[cell] = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    return shown


def _small(path: Path, share: float) -> bytes:
    """The picture as WebP, so wide that it takes about `share` bytes."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    width = round(min(WIDTH, picture.width, math.sqrt(share / BYTES * picture.width / picture.height)))
    if width < picture.width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((max(width, 1), height), Image.Resampling.BOX)
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=QUALITY, method=0)
    return content.getvalue()
