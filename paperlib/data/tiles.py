"""Any image through a network of fixed input size: overlapping tiles, true borders (paper section 5)."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from paperlib.settings import SCALE


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles that cover `length` pixels; neighbours share at least `overlap`.

    A tile that is too long is laid twice: from the first pixel on, and up to the last one (its start is negative).

    Raises:
        ValueError: the overlap is not smaller than the tile.
    """
    if length == tile:
        return [0]
    if overlap >= tile:
        raise ValueError(f"overlap {overlap} is not smaller than the tile {tile}")
    if length < tile:
        return [0, length - tile]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _kept(places: list[int], index: int, tile: int, length: int) -> tuple[int, int]:
    """The part of a tile that goes into the result: neighbours meet in the middle of what they share."""
    here = places[index]
    first = 0 if index == 0 else (places[index - 1] + tile + here) // 2
    last = length if index == len(places) - 1 else (here + tile + places[index + 1]) // 2
    return first, last


def run_padded(
    run: Callable[[np.ndarray], np.ndarray], lr: np.ndarray, height: int, width: int, overlap: int = 16,
) -> np.ndarray:
    """Upscale as the authors evaluated their fixed file: reflected at the bottom and the right, and cropped back.

    The true border there sees mirrored pixels in place of the zeros that a convolution pads with, so scores differ a
    little from those of a dynamic file. Where an image is larger, tiles overlap by `overlap` LR pixels and meet in the
    middle of what they share (paper section 5; how theirs met is not published).

    Arguments and result as `run_tiled`.
    """
    h, w = lr.shape[:2]
    padded = np.pad(lr, ((0, max(0, height - h)), (0, max(0, width - w)), (0, 0)), mode="reflect")
    return run_tiled(run, padded, height, width, overlap)[: h * SCALE, : w * SCALE]


class Canvas:
    """uint8 or other pixels (H, W, 3), filled piece by piece; many of them lie in an unnamed file, not in memory.

    Args:
        folder: where that file is made; None: the system's temporary folder.

    Raises:
        OSError: no room for it.
    """

    LARGEST = 1 << 28
    """Bytes up to which memory is taken."""

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype, folder: Path | None = None) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        size, self._file, self._pixels = math.prod(shape) * self.dtype.itemsize, None, None
        if size <= self.LARGEST:
            self._pixels = np.empty(shape, dtype)
        else:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as this object)
            os.posix_fallocate(self._file.fileno(), 0, size)

    def _all(self) -> np.ndarray:
        """The pixels, mapped anew, so that those touched before do not count as memory in use."""
        return self._pixels if self._file is None else np.memmap(self._file, self.dtype, "r+", shape=self.shape)

    def put(self, top: int, left: int, pixels: np.ndarray) -> None:
        """Write a piece (h, w, 3) with its first pixel at (top, left)."""
        self._all()[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """The rows from `top` to before `bottom`."""
        return self._all()[top:bottom]

    def parts(self, size: int = 1 << 25) -> Iterator[np.ndarray]:
        """All rows from the top, in arrays of about `size` bytes."""
        step = max(1, size // (self.shape[1] * self.shape[2] * self.dtype.itemsize))
        yield from (self.rows(top, min(top + step, self.shape[0])) for top in range(0, self.shape[0], step))


def tile_bands(
    run: Callable[[np.ndarray], np.ndarray], lr: np.ndarray, height: int, width: int, overlap: int,
    folder: Path | None = None,
) -> Iterator[Canvas]:
    """Upscale an image of any size with a network of fixed input size; the result comes in bands from the top.

    At its border a convolution reads zeros; padding would put pixels there. An image smaller than the tile is therefore
    run twice an axis, padded behind and padded in front (by reflection, repeated where it is small), and each run gives
    the half that touches a true border. So a fixed file gives what a dynamic one gives, from twice its reach on.

    Args:
        run: (height, width, 3) → (3·height, 3·width, 3), same type.
        lr: (h, w, 3).
        folder: for bands too large for memory; see `Canvas`.

    Returns:
        (rows, 3w, 3) each, 3h rows in all.
    """
    h, w = lr.shape[:2]
    rows, columns = starts(h, height, overlap), starts(w, width, overlap)
    before, aside = max(0, height - h), max(0, width - w)
    padded = np.pad(lr, ((before, before), (aside, aside), (0, 0)), mode="reflect") if before or aside else lr
    for i, y in enumerate(rows):
        top, bottom = _kept(rows, i, height, h)
        band: Canvas | None = None
        for j, x in enumerate(columns):
            tile = run(padded[y + before : y + before + height, x + aside : x + aside + width])
            left, right = _kept(columns, j, width, w)
            if band is None:
                band = Canvas((SCALE * (bottom - top), SCALE * w, 3), tile.dtype, folder)
            band.put(0, SCALE * left, tile[SCALE * (top - y) : SCALE * (bottom - y),
                                           SCALE * (left - x) : SCALE * (right - x)])
        yield band


def run_tiled(
    run: Callable[[np.ndarray], np.ndarray], lr: np.ndarray, height: int, width: int, overlap: int,
) -> np.ndarray:
    """`tile_bands` put together: (h, w, 3) → (3h, 3w, 3)."""
    sr: np.ndarray | None = None
    top = 0
    for band in tile_bands(run, lr, height, width, overlap):
        if sr is None:
            sr = np.empty((lr.shape[0] * SCALE, lr.shape[1] * SCALE, 3), band.dtype)
        sr[top : top + band.shape[0]] = band.rows(0, band.shape[0])
        top += band.shape[0]
    return sr
