"""Letters and numerals of the fonts that ship with matplotlib, drawn to look like the scans of `digits`.

A pool, no task: public images on which a diffusion prior for `digits` may be trained. None of the scans is among them.
"""

from __future__ import annotations

import math
import string
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfkd.tasks.base import InputSpec, Made
from dfkd.tasks.digits import enlarge

if TYPE_CHECKING:
    from PIL import Image, ImageFont

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
COPIES = 4  # of each character in each font, each with an affine map of its own


class Glyphs(Made):
    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        import matplotlib
        from PIL import ImageFont

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        random = np.random.RandomState(0)  # numpy's frozen generator
        bitmaps, labels = [], []
        for name in FONTS:
            font = ImageFont.truetype(str(folder / f"{name}.ttf"), 48, layout_engine=ImageFont.Layout.BASIC)
            strokes = range(0, 2) if "Bol" in name else range(1, 4)
            for label, character in enumerate(CHARACTERS):
                glyph = _draw(font, character, stroke=random.choice(strokes))
                bitmaps += [_place(glyph, random) for _ in range(COPIES)]
                labels += [label] * COPIES
        # As the scans were made: 32 x 32 black and white, counted in blocks of 4 x 4, which gives 17 grey levels.
        counts = np.stack(bitmaps).reshape(-1, 8, 4, 8, 4).sum((2, 4))
        return enlarge(counts), np.array(labels, np.int64)


def _draw(font: ImageFont.FreeTypeFont, character: str, stroke: int) -> Image.Image:
    """A glyph, light on dark, with no margin; `stroke` pixels are added all around it."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = map(int, font.getbbox(character, stroke_width=stroke))
    page = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(page).text((-left, -top), character, 255, font, stroke_width=stroke)
    return page


def _place(glyph: Image.Image, random: np.random.RandomState) -> np.ndarray:
    """A glyph as high as the frame, squeezed, slanted and rotated at random: 32 x 32 booleans."""
    from PIL import Image

    height = random.uniform(28, 34)
    width = min(random.uniform(18, 24), 1.3 * height * glyph.width / glyph.height)
    angle, slant = math.radians(random.uniform(-12, 12)), random.uniform(-0.25, 0.25)
    cos, sin = math.cos(angle), math.sin(angle)
    # From the frame back to the glyph, about the centres of both.
    across, down = glyph.width / width, glyph.height / height
    a, b = across * (cos + slant * sin), across * (sin - slant * cos)
    d, e = -down * sin, down * cos
    c, f = glyph.width / 2 - 16 * (a + b), glyph.height / 2 - 16 * (d + e)
    frame = glyph.transform((32, 32), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    return np.asarray(frame) > 127


GLYPHS = Glyphs(
    name="glyphs",
    spec=InputSpec(size=16, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, classes=len(CHARACTERS)),
    class_names=tuple(CHARACTERS),
    flip=False,
    splits=("train",),
    changed="letters and numerals of fonts, randomly slanted, rotated and squeezed",
)
