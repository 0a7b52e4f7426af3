"""Before and after under one draggable divider: crops saved by a notebook, shown there and in the report (section 6).

The divider is a range input over two stacked images, so it works with mouse, finger and keyboard, and needs no library
and no network.
"""

import base64
import html
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from IPython.display import HTML
from PIL import Image

from paperlib.files import atomic_path
from paperlib.reporting.figures import most_detailed
from paperlib.run import Run
from paperlib.settings import SCALE

STYLESHEET = Path(__file__).with_name("compare.css")
PICK = """function pick(menu, role) {
  const images = menu.closest("figure").querySelectorAll("img");
  images.forEach((image, index) => image.classList.toggle(role, index == menu.value));
}"""


def save_comparison(run: Run, photograph: str, images: Mapping[str, np.ndarray], size: int = 288) -> HTML:
    """Save the most detailed part of each image for the report, and give the divider for display.

    Args:
        photograph: its name.
        images: label → (3h, 3w, 3) in 0..255, in the order of the menus; the last is the original.
        size: side of the part, HR pixels.
    """
    photograph = re.sub(r"[^A-Za-z0-9]+", "-", photograph)
    original = np.asarray(list(images.values())[-1])
    size = min(size, *original.shape[:2]) // SCALE * SCALE
    top, left = most_detailed(original, size)
    folder = run.folder("figures")
    for old in _saved(folder, photograph):
        old.unlink()
    pictures = {}
    for index, (label, image) in enumerate(images.items()):
        part = np.clip(np.round(image[top : top + size, left : left + size]), 0, 255).astype(np.uint8)
        buffer = BytesIO()
        Image.fromarray(part).save(buffer, format="WEBP", lossless=True, method=6)
        with atomic_path(folder / f"compare__{photograph}__{index}__{label.replace(' ', '-')}.webp") as temporary:
            temporary.write_bytes(buffer.getvalue())
        pictures[label] = buffer.getvalue()
    style = f"<style>{STYLESHEET.read_text(encoding='utf-8')}</style><script>{PICK}</script>"
    return HTML(style + divider(photograph, pictures))


def _saved(folder: Path, photograph: str = "*") -> list[Path]:
    """Saved comparisons in their order; older versions of the kit wrote PNG."""
    return sorted(path for path in folder.glob(f"compare__{photograph}__*__*") if path.suffix in (".webp", ".png"))


def saved_comparisons(run: Run) -> dict[str, dict[str, bytes]]:
    """What `save_comparison` left in a run: photograph → label → bytes of WebP (lossless), labels in their order."""
    found: dict[str, dict[str, bytes]] = {}
    for path in _saved(run.out / "figures"):
        _, photograph, _, label = path.stem.split("__")
        found.setdefault(photograph, {})[label.replace("-", " ")] = path.read_bytes()
    return found


def data_url(picture: bytes) -> str:
    """The picture of a PNG or WebP file as a URL that needs no network: packed anew as WebP, for the eye, where that is
    smaller.
    """
    buffer = BytesIO()
    with Image.open(BytesIO(picture), formats=["PNG", "WEBP"]) as opened:
        kind = opened.format.lower()
        opened.convert("RGB").save(buffer, format="WEBP", quality=75, method=6)
    kind, data = min((kind, picture), ("webp", buffer.getvalue()), key=lambda found: len(found[1]))
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def divider(photograph: str, pictures: Mapping[str, bytes]) -> str:
    """HTML of one comparison: the first label left of the divider, the last but one (the last is the original) right.

    The page must hold `STYLESHEET` and `PICK` once.
    """
    labels = list(pictures)
    left, right = 0, max(len(labels) - 2, min(1, len(labels) - 1))
    roles = lambda index: " ".join([*["over"] * (index == left), *["under"] * (index == right)])
    images = "".join(f'<img class="{roles(index)}" alt="{html.escape(f"{photograph}, {label}")}" src="{data_url(png)}">'
                     for index, (label, png) in enumerate(pictures.items()))

    def menu(role: str, side: str, chosen: int) -> str:
        options = "".join(f'<option value="{index}"{" selected" * (index == chosen)}>{html.escape(label)}</option>'
                          for index, label in enumerate(labels))
        return f'<label>{side} <select onchange="pick(this, \'{role}\')">{options}</select></label>'

    return (f'<figure class="compare"><div class="stack">{images}<span class="bar"></span>'
            f'<input type="range" min="0" max="100" value="50" step="0.5" '
            f'aria-label="divider between the two versions of {html.escape(photograph)}" '
            f'oninput="this.parentNode.style.setProperty(\'--at\', this.value + \'%\')"></div>'
            f'<figcaption>{menu("over", "left", left)} {menu("under", "right", right)} '
            f'<span>{html.escape(photograph)}</span></figcaption></figure>')
