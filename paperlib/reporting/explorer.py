"""Two upscalers side by side on any photograph, at any place and zoom: what the crops of section 6 cannot show.

Sliders need a front end and a kernel that answers. `interactive` says when there is one; everywhere else (papermill,
nbval, nbconvert, the report) `explore` gives a picture of the same upscaled.
"""

import html
import os
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import Image as Still
from matplotlib import colormaps, style
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from paperlib.data.photographs import Pair
from paperlib.errors import UserError
from paperlib.evaluation.metrics import psnr_rgb
from paperlib.reporting.figures import crops, most_detailed
from paperlib.run import STYLE

VIEW = 360
"""Side of a crop on the screen, pixels; at zoom z it shows 360 // z pixels of the photograph."""
OVERVIEW = 170
"""Longer side of the overview, pixels."""
ZOOMS = (1, 8)
LIMIT = 32
"""End of the error map's colours, grey levels of 255."""


def interactive() -> bool:
    """Whether widgets have a front end: a Jupyter server (JupyterLab, Notebook) started this kernel.

    The server names the session to its kernels in JPY_SESSION_NAME; papermill, nbval and nbconvert start kernels
    without it. PAPERLIB_WIDGETS=1 or 0 decides instead, for other front ends, and for papermill inside JupyterLab.

    Raises:
        UserError: PAPERLIB_WIDGETS is something else.
    """
    choice = os.environ.get("PAPERLIB_WIDGETS", "")
    if choice not in ("", "0", "1"):
        raise UserError(f"PAPERLIB_WIDGETS is {choice!r}. Set it to 1 (widgets) or 0 (pictures), or unset it.")
    return choice == "1" if choice else "JPY_SESSION_NAME" in os.environ


Upscale = Callable[[np.ndarray], np.ndarray]
"""LR uint8 (h, w, 3) → SR (3h, 3w, 3) in 0..255; see `paperlib.evaluation.upscalers.Upscaler`."""


def explore(images: Sequence[Pair], upscalers: Mapping[str, Upscale]) -> "Explorer | Still":
    """The comparison for display: widgets where `interactive`, else the picture of `still`.

    Args:
        images: photographs to choose from, with different names; the first is shown.
        upscalers: label → upscaler, in the order of the menus; the first stands left, the last right.

    Raises:
        UserError: as `Explorer`.
    """
    if interactive():
        return Explorer(images, upscalers)
    figure, buffer = still(images, upscalers), BytesIO()
    with style.context(STYLE):
        figure.savefig(buffer, format="png")
    return Still(buffer.getvalue(), format="png", width=round(figure.get_figwidth() * 80), alt=figure.get_suptitle())


def still(images: Sequence[Pair], upscalers: Mapping[str, Upscale]) -> Figure:
    """The most detailed part of the first photograph by every upscaler, between LR and HR, with PSNR in dB.

    Arguments and errors as `Explorer`.
    """
    upscaled = UpscaledCache(images, upscalers)
    name, pair = next(iter(upscaled.pairs.items()))
    figure = crops(pair.lr, {label: upscaled.result(name, label) for label in upscalers}, pair.hr)
    figure.set_figheight(3.1)
    figure.suptitle(f"{name}, most detailed part", fontsize=10)
    return figure


def _png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W, 3) in 0..255 as a PNG file, rounded."""
    buffer = BytesIO()
    Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _coloured(sr: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """Signed error, mean over the channels, as colours (H, W, 3): red too bright, blue too dark, white none."""
    error = (sr.astype(np.float32) - hr).mean(2)
    return colormaps["RdBu_r"](error / (2 * LIMIT) + 0.5, bytes=True)[..., :3]


def _lines(*lines: str) -> str:
    """A caption's lines, HTML, closer together than widgets set them."""
    return f'<div style="line-height: 1.35">{"<br>".join(lines)}</div>'


class Explorer(widgets.VBox):
    """Menus for photograph and two upscalers, sliders for place and zoom, two crops; all of it works by keyboard.

    Changing a control redraws at once; a model runs when it is first shown on a photograph, and never again.

    Args:
        images: photographs with different names.
        upscalers: label → callable, lr uint8 (h, w, 3) to sr (3h, 3w, 3) in 0..255; not called "original".

    Raises:
        UserError: no photograph or upscaler, a name twice, or a result of the wrong size.
    """

    def __init__(self, images: Sequence[Pair], upscalers: Mapping[str, Upscale]) -> None:
        self._upscaled = UpscaledCache(images, upscalers)
        labels, wide = list(upscalers), widgets.Layout(width="340px")
        named = {"layout": wide, "style": {"description_width": "92px"}}
        self.photograph = widgets.Dropdown(options=list(self._upscaled.pairs), description="photograph", **named)
        self.left = widgets.Dropdown(options=[*labels, ORIGINAL], value=labels[0], description="left", **named)
        self.right = widgets.Dropdown(options=[*labels, ORIGINAL], value=labels[-1], description="right", **named)
        self.zoom = widgets.IntSlider(value=4, min=ZOOMS[0], max=ZOOMS[1], description="zoom ×", **named)
        self.across = widgets.IntSlider(description="from left, px", **named)
        self.down = widgets.IntSlider(description="from top, px", **named)
        self.error = widgets.Checkbox(
            description=f"error map: red where brighter than the original, blue where darker, up to ±{LIMIT} of 255",
            indent=False, layout=widgets.Layout(width="auto"))
        self.overview = widgets.Image(format="png", layout=widgets.Layout(flex="0 0 auto", margin="0 0 0 24px"))
        self.pictures = tuple(widgets.Image(format="png", layout=widgets.Layout(flex="0 0 auto")) for _ in range(2))
        self.captions = tuple(widgets.HTML(layout=widgets.Layout(width=f"{VIEW}px")) for _ in range(2))
        controls = widgets.VBox([self.photograph, self.left, self.right, self.zoom, self.across, self.down])
        sides = [widgets.VBox(side, layout=widgets.Layout(width=f"{VIEW + 12}px", align_items="flex-start"))
                 for side in zip(self.captions, self.pictures, strict=True)]
        super().__init__([
            widgets.HBox([controls, self.overview], layout=widgets.Layout(flex_flow="row wrap", align_items="center")),
            self.error, widgets.HBox(sides, layout=widgets.Layout(flex_flow="row wrap", align_items="flex-end"))])
        self._moving = False
        self._find()
        self.photograph.observe(self._find, "value")
        self.zoom.observe(self._place, "value")
        for control in (self.across, self.down):
            control.observe(self._moved, "value")
        for control in (self.left, self.right, self.error):
            control.observe(self._draw, "value")

    @property
    def pair(self) -> Pair:
        """The chosen photograph."""
        return self._upscaled.pairs[self.photograph.value]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of the part that is shown, HR pixels."""
        size, (height, width) = VIEW // self.zoom.value, self.pair.hr.shape[:2]
        rows, columns = min(size, height), min(size, width)
        return min(self.down.value, height - rows), min(self.across.value, width - columns), rows, columns

    def _find(self, _change: Any = None) -> None:
        """Centre on the most detailed part of a newly chosen photograph, and draw its thumbnail."""
        hr = self.pair.hr
        size = min(VIEW // self.zoom.value, *hr.shape[:2])
        self._centre = tuple(edge + size / 2 for edge in most_detailed(hr, size))
        self._thumbnail = Image.fromarray(hr)
        self._thumbnail.thumbnail((OVERVIEW, OVERVIEW))
        self._place()

    def _place(self, _change: Any = None) -> None:
        """Set the sliders' ends and values for photograph and zoom, the centre staying where it was."""
        _, _, rows, columns = self.box
        self._moving = True
        for slider, shown, whole, centre in zip((self.down, self.across), (rows, columns), self.pair.hr.shape[:2],
                                                self._centre, strict=True):
            slider.max, slider.disabled = max(1, whole - shown), whole == shown  # a slider needs two different ends
            slider.value = min(max(0, round(centre - shown / 2)), whole - shown)
        self._moving = False
        self._draw()

    def _moved(self, _change: Any) -> None:
        if not self._moving:
            top, left, rows, columns = self.box
            self._centre = (top + rows / 2, left + columns / 2)
            self._draw()

    def _draw(self, _change: Any = None) -> None:
        """Show the chosen part by both models, its place in the overview, and what it scores."""
        name, hr, (top, left, rows, columns) = self.photograph.value, self.pair.hr, self.box
        part, zoom = (slice(top, top + rows), slice(left, left + columns)), self.zoom.value
        overview, scale = self._thumbnail.copy(), self._thumbnail.width / hr.shape[1]
        x0, y0, x1, y1 = (round(edge * scale) for edge in (left, top, left + columns - 1, top + rows - 1))
        ImageDraw.Draw(overview).rectangle((x0, y0, x1, y1), outline="white", width=2)
        ImageDraw.Draw(overview).rectangle((x0, y0, x1, y1), outline="black", width=1)
        self.overview.value = _png(np.asarray(overview))
        for label, picture, caption in zip((self.left.value, self.right.value), self.pictures, self.captions,
                                           strict=True):
            lines = [f"<b>{html.escape(label)}</b>, {columns} × {rows} px"]
            if not self._upscaled.known(name, label):
                caption.value = _lines(*lines, "upscaling …")
            try:
                sr = self._upscaled.result(name, label)
            except UserError as error:
                caption.value, picture.value = _lines(*lines, html.escape(str(error))), b""
                continue
            shown = _coloured(sr[part], hr[part]) if self.error.value else sr[part]
            picture.value = _png(shown.repeat(zoom, 0).repeat(zoom, 1))
            caption.value = _lines(*lines, "the photograph itself" if label == ORIGINAL else (
                f"PSNR {psnr_rgb(sr[part], hr[part]):.2f} dB here, {self._upscaled.psnr(name, label):.2f} dB whole"))


ORIGINAL = "original"
"""Label of the HR photograph itself."""


class UpscaledCache:
    """Results by photograph and model, float32: 12 bytes a pixel for each that was asked for.

    Args:
        images: photographs with different names.
        upscalers: label → upscaler; no label may be "original".

    Raises:
        UserError: no photograph or no upscaler, a name twice, or something that cannot be called.
    """

    def __init__(self, images: Sequence[Pair], upscalers: Mapping[str, Upscale]) -> None:
        self.pairs, self.upscalers = {pair.name: pair for pair in images}, dict(upscalers)
        if not self.pairs or not self.upscalers:
            raise UserError(f"nothing to compare: {len(self.pairs)} photographs, {len(self.upscalers)} upscalers. "
                            "Give at least one of each.")
        names = [pair.name for pair in images]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"two photographs are called {', '.join(twice)}. Give each its own name.")
        for label, upscaler in self.upscalers.items():
            if not callable(upscaler):
                raise UserError(f"{label!r} is {type(upscaler).__name__}, not an upscaler. Give a callable from LR to "
                                "SR pixels, such as `load_upscaler` returns.")
        if ORIGINAL in self.upscalers:
            raise UserError(f"no upscaler can be called {ORIGINAL!r}: that is the HR photograph. Give another label.")
        self._results: dict[tuple[str, str], np.ndarray] = {}
        self._psnr: dict[tuple[str, str], float] = {}

    def known(self, name: str, label: str) -> bool:
        """Whether a result is there already."""
        return label == ORIGINAL or (name, label) in self._results

    def result(self, name: str, label: str) -> np.ndarray:
        """One photograph by one upscaler, clipped and not rounded, (3h, 3w, 3) in 0..255; HR itself for "original".

        Raises:
            UserError: the upscaler made another size.
        """
        pair, key = self.pairs[name], (name, label)
        if label == ORIGINAL:
            return pair.hr
        if key not in self._results:
            sr = np.asarray(self.upscalers[label](pair.lr))
            if sr.shape != pair.hr.shape:
                raise UserError(f"{label} made {sr.shape} of {name}, expected {pair.hr.shape}. Give an upscaler ×3.")
            self._results[key] = np.clip(sr, 0, 255).astype(np.float32)
        return self._results[key]

    def psnr(self, name: str, label: str) -> float:
        """PSNR RGB of a whole photograph in dB (`paperlib.metrics.psnr_rgb`); errors as `result`."""
        key = (name, label)
        if key not in self._psnr:
            self._psnr[key] = psnr_rgb(self.result(name, label), self.pairs[name].hr)
        return self._psnr[key]
