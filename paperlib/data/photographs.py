"""Photographs as pairs (paper sections 4 and 6): HR, and LR by MATLAB's bicubic filter or the data
set's own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.data.images import DECODED, SCORED, find_images, read_rgb
from paperlib.data.resize import bicubic_downscale
from paperlib.errors import UserError
from paperlib.settings import SCALE


@dataclass(frozen=True, eq=False)
class Pair:
    """One evaluation image: lr uint8 (h, w, 3), hr uint8 (3h, 3w, 3)."""

    name: str
    lr: np.ndarray
    hr: np.ndarray

    def add_to(self, digest: Any) -> None:
        """Update a hashlib digest with name, shapes and pixels."""
        for pixels in (self.lr, self.hr):
            head = f"{self.name} {pixels.shape}".encode(errors="surrogateescape")
            digest.update(head + pixels.tobytes())


@dataclass(frozen=True)
class Source:
    """A photograph's name, HR file (None only in `div2k.validation_at_hand`), and LR file where the
    data set brings its own."""

    name: str
    hr: Path | None
    lr: Path | None = None


def make_pair(name: str, hr: np.ndarray, lr: np.ndarray | None = None, crop: int = 0) -> Pair:
    """A pair from HR pixels, cropped at the bottom and right to multiples of 3, and where `crop` is
    not 0, to the central part of that many HR pixels a side; LR by MATLAB's bicubic unless given.
    """
    height, width = (side // SCALE for side in hr.shape[:2])
    if not height or not width:
        raise UserError(f"{name} is {hr.shape[1]}×{hr.shape[0]} pixels: an HR image needs at least "
                        f"{SCALE}×{SCALE}. Leave it out.")
    if lr is not None and lr.shape[:2] != (height, width):
        raise UserError(f"{name}: LR is {lr.shape[1]}×{lr.shape[0]}, a third of HR is "
                        f"{width}×{height}. Give the LR image that belongs to it, or none.")
    rows, columns = (min(side, crop // SCALE or side) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    hr = hr[SCALE * top : SCALE * (top + rows), SCALE * left : SCALE * (left + columns)]
    if lr is None:
        return Pair(name, bicubic_downscale(hr), hr)
    return Pair(name, lr[top : top + rows, left : left + columns], hr)


def read_source(source: Source, crop: int = 0, bytes_each: int = DECODED) -> Pair:
    """Decode a photograph and its LR version; `crop` as in `make_pair`."""
    lr = read_rgb(source.lr) if source.lr else None
    return make_pair(source.name, read_rgb(source.hr, bytes_each), lr, crop)


class Pairs(Sequence[Pair]):
    """Pairs decoded when they are asked for, so that a large set needs the memory of one image."""

    def __init__(self, sources: Sequence[Source], crop: int = 0) -> None:
        self.sources, self.crop = list(sources), crop

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Pair:
        return read_source(self.sources[index], self.crop, SCORED)


def read_pairs(hr_folder: str | Path, lr_folder: str | Path | None = None,
               complete: bool = True) -> Pairs:
    """Pairs of a folder of HR images and a folder of LR images, or LR by MATLAB's bicubic.

    Names match as the field writes them: `0801.png` with `0801.png`, `0801x3.png`, `0801_LR.png` or
    `0801_LRBI_x3.png`. Two files with one stem keep their suffixes in their and partners' names.

    Args:
        complete: refuse an HR image without an LR image; else reading that one fails, and only a
            folder without any is refused.
    """
    files = find_images(hr_folder)
    stems = Counter(path.stem for path in files)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in files]
    if lr_folder is None:
        return Pairs([Source(name, path) for name, path in zip(names, files, strict=True)])
    small = find_images(lr_folder)
    found = {path.stem: path for path in small} | {path.name: path for path in small}
    sources, lost = [], []
    for name, path in zip(names, files, strict=True):
        base = path.stem.removesuffix("_HR")
        tried = [path.name]
        if name == path.stem:
            tried += [name, f"{name}x{SCALE}", base, f"{base}x{SCALE}", f"{base}_LR",
                      f"{base}_LRBI_x{SCALE}"]
        partners = [found[one] for one in tried if one in found]
        if not partners:
            lost.append(name)
            partners = [Path(lr_folder, path.name)]
        sources.append(Source(name, path, partners[0]))
    if len(lost) > (0 if complete else len(files) - 1):
        raise UserError(f"{lost[0]} of {hr_folder} has no LR image in {lr_folder}, as "
                        f"{lost[0]}x{SCALE}. Add it, or leave out --lr, to make LR by bicubic.")
    return Pairs(sources)
