"""What publishers hand out, read alike whether it is an archive or a folder: files, pictures, sizes."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfkd.errors import UserError, reason
from dfkd.tasks import store

if TYPE_CHECKING:
    from PIL import Image

Tree = Path | zipfile.Path


def tree(path: Path) -> Tree:
    """The root of a zip archive or of a folder. Raises UserError where there is neither."""
    if path.is_dir():
        return path
    if not path.exists():
        raise UserError(f"there is no {path}")
    try:
        return zipfile.Path(zipfile.ZipFile(store.regular(path)))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is neither a folder nor a zip archive ({reason(error)})") from None


def below(root: Tree, name: str) -> Tree:
    """The folder `name`: `root` itself, or one at most two levels down. Raises UserError where there is none."""
    candidates = [root, *_folders(root), *(inner for outer in _folders(root) for inner in _folders(outer))]
    found = next((folder for folder in candidates if folder.name == name), None)
    if found is None:
        raise UserError(f"{root}: no folder {name} in it")
    return found


def _folders(root: Tree) -> list[Tree]:
    return sorted((entry for entry in root.iterdir() if entry.is_dir()), key=lambda entry: entry.name)


def lines(path: Tree) -> list[str]:
    """The lines of a text file. Raises UserError where it is missing or no text."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({reason(error)})") from None


def picture(path: Tree, mode: str | None = "RGB") -> Image.Image:
    """A picture file, in this mode of Pillow's or (None) its own. Raises UserError where it is missing or damaged."""
    from PIL import Image

    try:
        if isinstance(path, Path):
            store.regular(path)
        # Of a picture whose pixels would fill the memory it only warns.
        bomb = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
        with bomb, path.open("rb") as file, Image.open(file) as found:
            return found.convert(mode) if mode else found.copy()
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over
        raise UserError(f"{path} cannot be read ({reason(error)})") from None


def square(found: Image.Image, side: int) -> np.ndarray:
    """The central square of a picture whose short side was brought to `side` (bicubic, antialiased): uint8."""
    from PIL import Image

    width, height = found.size
    scale = side / min(width, height)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    resized = found.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))
