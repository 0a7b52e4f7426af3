"""Photographs as training pixels and evaluation pairs (paper sections 4 and 6).

A pair is an HR photograph and its LR version by MATLAB's bicubic filter, or the data set's own LR
file. Training photographs are decoded once into files of pixels (`PixelStore`), so that a
patch costs a copy, not a PNG.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.data.images import find_images, image_size, read_rgb
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
            digest.update(f"{self.name} {pixels.shape}".encode(errors="surrogateescape") + pixels.tobytes())


@dataclass(frozen=True)
class Source:
    """Where one photograph comes from: its name, HR file, and LR file where the data set brings its
    own.

    `hr` is None only in what `div2k.validation_at_hand` finds: an LR file alone.
    """

    name: str
    hr: Path | None
    lr: Path | None = None


def crop_to_scale(hr: np.ndarray, name: str) -> np.ndarray:
    """HR cropped at the bottom and right to multiples of 3."""
    height, width = hr.shape[:2]
    if min(height, width) < SCALE:
        raise UserError(f"{name} is {width}×{height} pixels: an HR image needs at least {SCALE}×{SCALE}. Leave it out.")
    return hr[: height // SCALE * SCALE, : width // SCALE * SCALE]


def make_pair(name: str, hr: np.ndarray, lr: np.ndarray | None = None) -> Pair:
    """A pair from HR pixels; LR by MATLAB's bicubic unless given.

    Raises:
        UserError: HR too small, or an LR image that is not a third of it.
    """
    hr = crop_to_scale(hr, name)
    if lr is None:
        return Pair(name, bicubic_downscale(hr), hr)
    height, width = hr.shape[0] // SCALE, hr.shape[1] // SCALE
    if lr.shape[:2] != (height, width):
        raise UserError(f"{name}: LR is {lr.shape[1]}×{lr.shape[0]}, a third of HR is {width}×{height}. "
                        "Give the LR image that belongs to it, or none.")
    return Pair(name, lr, hr)


def read_source(source: Source, crop: int = 0) -> Pair:
    """Decode a photograph and its LR version; `crop` > 0 takes the central crop of that many HR
    pixels a side."""
    hr = crop_to_scale(read_rgb(source.hr), source.name)
    lr = read_rgb(source.lr) if source.lr else None
    if not crop:
        return make_pair(source.name, hr, lr)
    size = [min(side, crop) // SCALE * SCALE for side in hr.shape[:2]]
    top, left = ((side - part) // 2 // SCALE * SCALE for side, part in zip(hr.shape[:2], size, strict=True))
    cut = hr[top : top + size[0], left : left + size[1]]
    if lr is not None:
        make_pair(source.name, hr, lr)  # refuses an LR image of another size
        lr = lr[top // SCALE :, left // SCALE :][: size[0] // SCALE, : size[1] // SCALE]
    return make_pair(source.name, cut, lr)


class Pairs(Sequence[Pair]):
    """Pairs decoded when they are asked for, so that a large set needs the memory of one image."""

    def __init__(self, sources: Sequence[Source], crop: int = 0) -> None:
        self.sources, self.crop = list(sources), crop

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Pair:
        return read_source(self.sources[index], self.crop)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the HR photograph that would be decoded, after the crop."""
        height, width = image_size(self.sources[index].hr)
        return (min(height, self.crop), min(width, self.crop)) if self.crop else (height, width)

    def __iter__(self) -> Iterator[Pair]:
        return (read_source(source, self.crop) for source in self.sources)


def match_folders(
    hr_folder: Path, lr_folder: Path | None = None, complete: bool = True,
) -> list[Source]:
    """The photographs of a folder, each with its LR file where a folder of those is given.

    Names match as the field writes them: `0801.png` with `0801.png`, `0801x3.png`, `0801_LR.png` or
    `0801_LRBI_x3.png`. Of two files with one stem each has its suffix in its name and its partner's.

    Args:
        complete: refuse an HR image without an LR image; else reading that one fails.

    Raises:
        UserError: a folder is missing or empty, or an HR image (else: each) has no LR image.
    """
    files = find_images(hr_folder)
    stems = Counter(path.stem for path in files)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in files]
    if lr_folder is None:
        return [Source(name, path) for name, path in zip(names, files, strict=True)]
    small = find_images(lr_folder)
    found = {path.stem: path for path in small} | {path.name: path for path in small}
    sources, lost = [], 0
    for name, path in zip(names, files, strict=True):
        base = path.stem.removesuffix("_HR")
        tried = [path.name]
        if stems[path.stem] == 1:
            tried += [path.stem, f"{path.stem}x{SCALE}", base, f"{base}x{SCALE}", f"{base}_LR",
                      f"{base}_LRBI_x{SCALE}"]
        lr = next((found[name] for name in tried if name in found), lr_folder / path.name)
        lost += not lr.is_file()
        if not lr.is_file() and (complete or lost == len(files)):
            raise UserError(f"{path} has no LR image in {lr_folder} (looked for {', '.join(tried[:2])}). "
                            "Add it, or leave out --lr to make LR images by bicubic.")
        sources.append(Source(name, path, lr))
    return sources


def read_pairs(
    hr_folder: str | Path, lr_folder: str | Path | None = None, complete: bool = True,
) -> Pairs:
    """Pairs of a folder of HR images and, where given, a folder of LR images (else MATLAB bicubic
    ÷3); `complete` as in `match_folders`."""
    return Pairs(match_folders(Path(hr_folder), Path(lr_folder) if lr_folder else None, complete))
