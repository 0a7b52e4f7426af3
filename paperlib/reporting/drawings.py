"""Drawings of the method for the notebooks: each function returns a matplotlib Figure (paper sections 1, 2, 4 and 5).

What is drawn from numbers (kernels, rounding, schedules, shares) is in `paperlib.reporting.formulas`.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from paperlib.data.tiles import starts
from paperlib.run import STYLE
from paperlib.settings import SCALE

PLAIN, HERE, TEACHER = "#eef2f5", "#ffd9b3", "#d5efe5"
"""Fills of a box: ordinary, the one that matters here, the teacher's. Text on them is black."""


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size in inches whose axes, without frame, count inches too."""
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    axes.grid(visible=False)
    return figure, axes


def _box(axes: Axes, x: float, y: float, text: str, width: float = 1.1, height: float = 0.55, fill: str = PLAIN,
         size: float = 9) -> None:
    """A rounded box centred on (x, y)."""
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, facecolor=fill, edgecolor="0.35",
                                  boxstyle="round,pad=0,rounding_size=0.08", linewidth=0.9))
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color="black", linespacing=1.25)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], dashed: bool = False,
           colour: str = "0.35", bend: float = 0.0) -> None:
    axes.annotate("", end, start, arrowprops={
        "arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "linestyle": "--" if dashed else "-", "shrinkA": 0,
        "shrinkB": 0, "connectionstyle": f"arc3,rad={bend}"})


STATIONS = (("01", "photographs\nLR / HR pairs"), ("02", "stage 1\nL1"), ("04", "stage 2\nCharb. + DCT\n+ teacher"),
            ("05", "fold blocks,\nstage 3: QAT"), ("06", "INT8 TFLite\ndynamic, fixed"))
"""Notebook → its step, in the order of the method; the teacher (03) stands above them."""
CHANGED = {"Tables B, C": ("02", "another network"), "Table D": ("05", "no teacher,\nor another loss")}
"""Table of the paper → the step that its rows change, and how."""


@style.context(STYLE)
def pipeline(here: Sequence[str] = (), tables: bool = False) -> Figure:
    """The method from photographs to the shipped file.

    Args:
        here: numbers of the notebooks to mark, such as ("01",).
        tables: write below which step the rows of Tables B, C and D change.
    """
    figure, axes = _canvas(9.2, 3.1 if tables else 2.4)
    low = 1.25 if tables else 0.55
    places = {number: 0.85 + 1.87 * index for index, (number, _) in enumerate(STATIONS)}
    for number, text in STATIONS:
        _box(axes, places[number], low, text, 1.4, 0.75, HERE if number in here else PLAIN)
        axes.text(places[number] - 0.68, low + 0.44, number, fontsize=9, color="0.25", va="bottom")
    for one, other in pairwise(places.values()):
        _arrow(axes, (one + 0.7, low), (other - 0.7, low))
    middle = (places["04"] + places["05"]) / 2
    _box(axes, middle, low + 1.4, "teacher: MambaIRv2-light", 2.3, 0.5, HERE if "03" in here else TEACHER)
    axes.text(middle - 1.13, low + 1.67, "03", fontsize=9, color="0.25", va="bottom")
    for number in ("04", "05"):
        side = -0.55 if number == "04" else 0.55
        _arrow(axes, (middle + side, low + 1.15), (places[number] + side / 3, low + 0.375), dashed=True, colour="C2")
    axes.text(middle, low + 0.72, "distils", fontsize=9, color="C2", ha="center", va="center")
    for table, (number, text) in CHANGED.items() if tables else ():
        axes.text(places[number], low - 0.72, f"{table}:\n{text}", fontsize=9, ha="center", va="top", color="C1")
        _arrow(axes, (places[number], low - 0.7), (places[number], low - 0.39), colour="C1")
    return figure


@style.context(STYLE)
def block(branches: int = 5, channels: int = 32) -> Figure:
    """A MobileOne block while training (left) and after folding (right).

    Args:
        branches: parallel 3×3 convolutions.
        channels: width of the block.
    """
    figure, axes = _canvas(9.2, 3.4)
    names = ["3×3 + BN"] * branches + ["1×1 + BN", "BN (identity)"]
    centres = 0.62 + 0.82 * np.arange(len(names)) * min(1.0, 6 / max(1, len(names) - 1))
    step = centres[1] - centres[0] if len(names) > 1 else 0.8
    middle = float(centres.mean())
    axes.text(middle, 3.3, f"while training: {branches} + 2 branches", ha="center", va="top", fontsize=11)
    _box(axes, middle, 2.72, f"f, {channels} channels", 1.5, 0.34)
    for centre, name in zip(centres, names, strict=True):
        _arrow(axes, (middle, 2.55), (centre, 2.02))
        _box(axes, centre, 1.75, name.replace(" ", "\n", 1), step * 0.9, 0.54, size=8)
        _arrow(axes, (centre, 1.48), (middle, 0.93))
    _box(axes, middle, 0.76, "sum", 0.8, 0.34)
    _arrow(axes, (middle, 0.59), (middle, 0.44))
    _box(axes, middle, 0.27, "ReLU", 0.8, 0.34)
    right = 8.1
    axes.text(right, 3.3, "after folding", ha="center", va="top", fontsize=11)
    _box(axes, right, 2.72, f"f, {channels} channels", 1.5, 0.34)
    _arrow(axes, (right, 2.55), (right, 2.02))
    _box(axes, right, 1.75, "one 3×3 with bias", 1.6, 0.54, HERE)
    _arrow(axes, (right, 1.48), (right, 0.44))
    _box(axes, right, 0.27, "ReLU", 0.8, 0.34)
    start = float(centres[-1] + step / 2)
    _arrow(axes, (start + 0.1, 1.75), (right - 0.9, 1.75), colour="C1")
    axes.text((start + right - 0.8) / 2, 1.85, "same\nfunction", ha="center", va="bottom", fontsize=9, color="C1")
    return figure


CLASSES = np.array([[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0], [0, 0, 0, 1, 2, 2], [2, 2, 0, 1, 1, 2]])
"""An example for `scan`: the class of each of 4 × 6 pixels."""


def _cells(axes: Axes, classes: np.ndarray, left: float, bottom: float, size: float, numbers: np.ndarray) -> None:
    """Pixels as numbered squares, coloured by class; row 0 on top."""
    for (row, column), kind in np.ndenumerate(classes):
        corner = (left + column * size, bottom + (len(classes) - 1 - row) * size)
        axes.add_patch(Rectangle(corner, size, size, facecolor=f"C{(0, 4, 2)[kind]}", alpha=0.45, edgecolor="white"))
        axes.text(corner[0] + size / 2, corner[1] + size / 2, str(numbers[row, column]), fontsize=8, ha="center",
                  va="center", color="black")


@style.context(STYLE)
def scan(classes: np.ndarray = CLASSES) -> Figure:
    """What the teacher's scan does: pixels sorted by class, one recurrence through them, results scattered back.

    Args:
        classes: (rows, columns) of 0..2, the class of each pixel.
    """
    figure, axes = _canvas(9.2, 3.6)
    rows, columns = classes.shape
    numbers, size = np.arange(classes.size).reshape(classes.shape), 0.26
    order = np.argsort(classes.ravel(), kind="stable")
    for left, title in ((0.5, "1  every pixel gets a class"), (9.2 - 0.5 - columns * size, "4  and go back")):
        _cells(axes, classes, left, 2.05, size, numbers)
        axes.text(left + columns * size / 2, 2.05 + rows * size + 0.12, title, ha="center", va="bottom", fontsize=10)
    width = 8.2 / classes.size
    _cells(axes, classes.ravel()[order][None], 0.5, 0.85, width, order[None])
    axes.text(4.6, 2.62, "2  sorted by class, each class in raster order:\nlike pixels become neighbours, "
              "however far apart", ha="center", va="center", fontsize=10)
    for x in 0.5 + width * (np.arange(classes.size - 1) + 0.5):
        _arrow(axes, (x, 0.8), (x + width, 0.8), bend=0.7, colour="C1")
    axes.text(4.6, 0.3, "3  one recurrence runs through all of them:  "
              r"$h_t = e^{\Delta_t A}\, h_{t-1} + \Delta_t B_t u_t$,   $y_t = C_t h_t + D u_t$",
              ha="center", va="center", fontsize=10)
    _arrow(axes, (1.3, 1.98), (1.3, 1.25))
    _arrow(axes, (7.9, 1.25), (7.9, 1.98))
    return figure


@style.context(STYLE)
def losses(weights: Sequence[tuple[str, float]]) -> Figure:
    """Where each term of stage 2 gets its two images from.

    Args:
        weights: (term, weight) for the Charbonnier, DCT and distillation terms, in this order.
    """
    figure, axes = _canvas(9.2, 2.9)
    _box(axes, 0.75, 1.45, "LR", 0.7, 0.5)
    _box(axes, 2.55, 2.35, "student\n(learns)", 1.3, 0.6, HERE)
    _box(axes, 2.55, 0.55, "teacher\n(frozen)", 1.3, 0.6, TEACHER)
    _arrow(axes, (1.1, 1.55), (1.9, 2.25))
    _arrow(axes, (1.1, 1.35), (1.9, 0.65))
    for y, text, colour in ((2.35, "ŷ", HERE), (1.45, "y  (HR)", PLAIN), (0.55, "t", TEACHER)):
        _box(axes, 4.3, y, text, 0.8, 0.46, colour)
    _arrow(axes, (3.2, 2.35), (3.9, 2.35))
    _arrow(axes, (3.2, 0.55), (3.9, 0.55))
    texts = ("Charbonnier: ŷ against y", "DCT: spectra of ŷ and y", "distillation: ŷ against t,\nwhere t is close to y")
    for y, text, (_, weight), sources in zip((2.35, 1.45, 0.55), texts, weights, ((2.35, 1.45), (2.35, 1.45),
                                                (2.35, 0.55)), strict=True):
        _box(axes, 6.55, y, text, 2.3, 0.6)
        for index, source in enumerate(sources):
            _arrow(axes, (4.7, source - 0.06 * index), (5.4, y + 0.1 - 0.2 * index), colour="0.6")
        _arrow(axes, (7.7, y), (8.35, 1.45 + (y - 1.45) * 0.15))
        axes.text(7.98, y + (0.1 if y > 1 else -0.1), f"× {weight:g}", ha="center", va="bottom" if y > 1 else "top",
                  fontsize=9, color="C1")
    _box(axes, 8.72, 1.45, "sum", 0.66, 0.5)
    return figure


@style.context(STYLE)
def tiles(height: int, width: int, tile_height: int, tile_width: int, overlap: int) -> Figure:
    """How a file of fixed input size sees a larger image: tiles, what they share, and where they are joined.

    Args:
        height, width: of the image, LR pixels.
        tile_height, tile_width: of the file's input, LR pixels.
        overlap: least number of LR pixels that neighbours share.
    """
    figure = Figure(figsize=(9.2, 3.4))
    axes = figure.subplots()
    rows, columns = (sorted({max(0, at) for at in starts(*size, overlap)})
                     for size in ((height, tile_height), (width, tile_width)))
    across, down = min(tile_width, width), min(tile_height, height)
    for index, (y, x) in enumerate((y, x) for y in rows for x in columns):
        colour = f"C{index % 6}"
        axes.add_patch(Rectangle((x, y), across, down, facecolor=colour, alpha=0.22, edgecolor=colour))
        axes.text(x + across / 2, y + down / 2, f"tile {index + 1}", ha="center", va="center", fontsize=10)
    for places, length, line in ((columns, across, axes.axvline), (rows, down, axes.axhline)):
        for one, other in pairwise(places):
            line((one + length + other) / 2, color="black", linestyle="--", linewidth=1)
    axes.add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor="black", linewidth=1.5))
    axes.set(xlim=(-0.01 * width, 1.01 * width), ylim=(1.02 * height, -0.02 * height), aspect="equal",
             xlabel="LR pixels", title=f"{width} × {height} LR image by a file for {tile_width} × {tile_height}: "
             f"{len(rows) * len(columns)} tiles, joined at the dashed lines,\n"
             f"each result {SCALE} times as large; neighbours share at least {overlap} pixels")
    axes.grid(visible=False)
    return figure
