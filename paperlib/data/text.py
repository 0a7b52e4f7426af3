"""Rendered text as training patches, which photographs hardly show (ours, not the paper's).

Other versions of Pillow's FreeType or of matplotlib's fonts draw other pixels of the same kind.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paperlib.data.resize import bicubic_downscale
from paperlib.settings import SCALE

MARGIN = 2  # LR pixels beyond a patch that its reduction reads: the kernel reaches 5 HR pixels
LETTERS = tuple("abcdefghijklmnopqrstuvwxyzetaoinshrdlu   ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                "0123456789.,:;-()/&")
"""Frequent ones stand twice, the space three times."""
SIZE, LEADING = (16, 48), (1.2, 1.8)
"""Height of the letters in HR pixels, and of a line in heights of letters."""


@lru_cache(maxsize=128)
def _font(number: int, height: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    faces = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf"))
    faces = [face for face in faces if "Display" not in face.name]  # those have no letters
    return ImageFont.truetype(str(faces[number % len(faces)]), height)


def render_text(side: int, random: np.random.Generator) -> np.ndarray:
    """A square of `side` pixels of a page of random letters, uint8 (side, side, 3), in one font,
    size and pair of colours; half of them near black on white or white on near black."""
    ink, paper = random.integers(0, 256, (2, 3))
    kind = random.integers(4)
    if kind < 2:
        ink, paper = np.full(3, random.integers(80)), np.full(3, 255)
        ink, paper = (ink, paper) if kind == 0 else (paper, ink)
    height = int(random.integers(*SIZE))
    font = _font(int(random.integers(1000)), height)
    image = Image.new("RGB", (side, side), tuple(map(int, paper)))
    draw, top = ImageDraw.Draw(image), -int(random.integers(height))
    while top < side:
        line = "".join(random.choice(LETTERS, side // 4))
        draw.text((-int(random.integers(height)), top), line, fill=tuple(map(int, ink)), font=font)
        top += int(height * random.uniform(*LEADING))
    return np.asarray(image)


def text_patch(patch: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A piece of a page as LR, uint8 (patch, patch, 3), and HR, thrice that; cut from the middle of
    a larger one."""
    hr = render_text(SCALE * (patch + 2 * MARGIN), random)
    border = SCALE * MARGIN
    return bicubic_downscale(hr)[MARGIN:-MARGIN, MARGIN:-MARGIN], hr[border:-border, border:-border]
