"""Pictures to look at closely: a divider between two versions, any part by any models (section 6).

The divider is a range input over two stacked images: it works by mouse, finger and keyboard, in
notebooks, their exported pages and the report, without a library and without a network.
"""

import base64
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import ipywidgets
import numpy as np
from IPython.display import HTML, display
from IPython.display import Image as Still
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from PIL import Image

from paperlib.data.photographs import Pair
from paperlib.files import atomic_path
from paperlib.reporting.figures import crops, most_detailed
from paperlib.run import Run
from paperlib.settings import SCALE

STYLESHEET = Path(__file__).with_name("compare.css")
SIZE = 288
"""Side of the part that is compared, HR pixels."""
PICK = """function pick(menu, role) {
  const images = menu.closest("figure").querySelectorAll("img");
  images.forEach((image, index) => image.classList.toggle(role, index == menu.value));
}"""


def interactive() -> bool:
    """Whether a Jupyter server started this kernel; PAPERLIB_WIDGETS=1 or 0 decides instead."""
    served = str(int("JPY_SESSION_NAME" in os.environ))
    return (os.environ.get("PAPERLIB_WIDGETS") or served) == "1"


def explore(
    images: Sequence[Pair], upscalers: Mapping[str, Callable[[np.ndarray], np.ndarray]],
) -> Still | None:
    """Any part of any photograph by any two models; without a front end a still of all models.

    Args:
        images: photographs with different names.
        upscalers: label → LR uint8 (h, w, 3) to SR (3h, 3w, 3) in 0..255, once a photograph.
    """
    pairs, labels = {pair.name: pair for pair in images}, list(upscalers)

    @cache
    def upscaled(photograph: str, label: str) -> np.ndarray:
        return np.clip(upscalers[label](pairs[photograph].lr), 0, 255)

    def draw(photograph: str, chosen: Sequence[str], size: int,
             place: tuple[int, int] | None = None) -> Figure:
        pair, results = pairs[photograph], {label: upscaled(photograph, label) for label in chosen}
        return crops(pair.lr, results, pair.hr, size, place, here=True)

    def show(photograph: str, left: str, right: str, zoom: int, across: float, down: float) -> None:
        height, width = pairs[photograph].hr.shape[:2]
        place = (round(down / 100 * height), round(across / 100 * width))
        figure = draw(photograph, [left, right], 360 // zoom, place)
        figure.set_size_inches(13, 4)
        display(Run.show(figure, photograph))

    first = images[0]
    if not interactive():
        return Run.show(draw(first.name, labels, 120), f"{first.name}, most detailed part")
    top, left = most_detailed(first.hr, 90)
    height, width = first.hr.shape[:2]
    slow = {"continuous_update": False, "readout_format": ".0f"}
    ipywidgets.interact(
        show, photograph=list(pairs), left=ipywidgets.Dropdown(options=labels, value=labels[0]),
        right=ipywidgets.Dropdown(options=labels, value=labels[-1]),
        zoom=ipywidgets.IntSlider(4, 1, 8, continuous_update=False),
        across=ipywidgets.FloatSlider(100 * left / width, description="across, %", **slow),
        down=ipywidgets.FloatSlider(100 * top / height, description="down, %", **slow))
    return None


def save_comparison(run: Run, photograph: str, images: Mapping[str, np.ndarray]) -> HTML:
    """Save the most detailed part of each image for the report, and give the divider for display.

    Args:
        images: label → (3h, 3w, 3) in 0..255, in the order of the menus; the last is the original.
    """
    photograph = re.sub(r"[^A-Za-z0-9]+", "-", photograph)
    original = np.asarray(list(images.values())[-1])
    size = min(SIZE, *original.shape[:2]) // SCALE * SCALE
    top, left = most_detailed(original, size)
    folder = run.folder("figures")
    for old in folder.glob(f"compare__{photograph}__*"):
        old.unlink()
    for index, (label, image) in enumerate(images.items()):
        part = np.clip(np.round(image[top : top + size, left : left + size]), 0, 255)
        name = f"compare__{photograph}__{index}__{label.replace(' ', '-')}.webp"
        with atomic_path(folder / name) as temporary:
            Image.fromarray(part.astype(np.uint8)).save(temporary, "WEBP", quality=95, method=6)
    css = STYLESHEET.read_text(encoding="utf-8")
    shown = divider(photograph, saved_comparisons(run)[photograph])
    return HTML(f"<style>{css}</style><script>{PICK}</script>{shown}")


def saved_comparisons(run: Run) -> dict[str, dict[str, bytes]]:
    """What `save_comparison` left in a run: photograph → label → bytes of WebP, in their order."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted((run.out / "figures").glob("compare__*__*__*.webp")):
        _, photograph, _, label = path.stem.split("__")
        found.setdefault(photograph, {})[label.replace("-", " ")] = path.read_bytes()
    return found


def data_url(picture: bytes) -> str:
    """A PNG or WebP file as a URL that needs no network; as a new WebP where that is smaller."""
    with Image.open(BytesIO(picture), formats=["PNG", "WEBP"]) as opened:
        kind, buffer = str(opened.format).lower(), BytesIO()
        opened.convert("RGB").save(buffer, format="WEBP", quality=75, method=6)
    kind, data = min((kind, picture), ("webp", buffer.getvalue()), key=lambda found: len(found[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def divider(photograph: str, pictures: Mapping[str, bytes]) -> str:
    """HTML of one comparison: the first label left, the last but one (before the original) right;
    the page must hold `STYLESHEET` and `PICK` once."""
    environment = Environment(loader=FileSystemLoader(STYLESHEET.parent), autoescape=True)
    return environment.get_template("divider.html.jinja").render(
        name=photograph, under=max(len(pictures) - 2, 1),
        pictures={label: data_url(picture) for label, picture in pictures.items()})
