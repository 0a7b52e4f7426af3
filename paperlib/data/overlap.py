"""Whether a training photograph shows what a test image shows: a copy, or a part at another scale.

Public sets share pictures: Set5's "woman" is a crop of a BSDS500 photograph at 0.72 of its size.
The centre of each test image is looked for in each training photograph by normalised correlation of
its luminance's detail: small and at many scales first, then finely where that was promising. A
photograph that is a part of a test image without its centre is not found.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

from paperlib.data.photographs import Pairs
from paperlib.data.pixel_store import PixelStore
from paperlib.environment import cache_dir
from paperlib.errors import UserError
from paperlib.files import read_json, sha256_file, write_json

CENTRE = 0.6  # side of the square that is looked for, as a part of an image's shorter side
SIDE, FINE = 12, 32  # pixels a side of that square, in the search and in the closer look
ZOOM, STEP = 4.0, 1.06  # how much smaller than a photograph it may be; factor between scales
PROMISING, SAME = 0.6, 0.75
"""Correlation from which a place is looked at closely, and from which it shows the same. Planted
crops have 0.92 and more; T91 with Set5, Set14, B100 and CLIC's validation set at most 0.56."""


@dataclass(frozen=True)
class Overlap:
    """A training photograph and a test image that share a picture."""

    photograph: str
    image: str
    correlation: float  # of the details of the shared part; 1 is the same

    def __str__(self) -> str:
        return (f"{self.photograph} shows what {self.image} shows "
                f"(correlation {self.correlation:.3f})")


def _luminance(lr: np.ndarray) -> Image.Image:
    """Grey float picture of uint8 (h, w, 3)."""
    return Image.fromarray(lr.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))


def _detail(picture: Image.Image, short: float) -> np.ndarray:
    """The picture at a shorter side of `short` pixels, less its mean over 5 × 5; float32 (h, w)."""
    factor = short / min(picture.size)
    size = tuple(round(length * factor) for length in picture.size)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    return pixels - uniform_filter(pixels, 5, mode="nearest")


def _normal(rows: np.ndarray) -> np.ndarray:
    """Rows (…, n) of mean 0 and length 1; of hardly any detail (deviation below 1) become 0."""
    rows = rows - rows.mean(-1, keepdims=True)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    normal = np.where(length > rows.shape[-1] ** 0.5, rows / np.maximum(length, 1e-6), 0.0)
    return normal.astype(np.float32)


def _centre(picture: Image.Image, side: int) -> np.ndarray:
    """The central square at `side` pixels, (side²,), normal."""
    detail = _detail(picture, side / CENTRE)
    top, left = ((length - side) // 2 for length in detail.shape)
    return _normal(detail[top : top + side, left : left + side].reshape(-1))


def _windows(detail: np.ndarray, side: int) -> np.ndarray:
    """All squares of `side` pixels, (rows, columns, side²), normal."""
    windows = np.lib.stride_tricks.sliding_window_view(detail, (side, side))
    return _normal(windows.reshape(*windows.shape[:2], -1))


def _close_look(picture: Image.Image, centre: np.ndarray, short: float, row: int,
                column: int) -> float:
    """Largest correlation of a centre of `FINE` pixels near a place found at `SIDE` pixels."""
    best = 0.0
    for zoom in np.linspace(1 / STEP, STEP, 9):
        ratio = FINE / SIDE * zoom
        detail = _detail(picture, max(FINE, short * ratio))
        top, left = (max(0, round(index * ratio) - 4) for index in (row, column))
        near = detail[top : top + FINE + 8, left : left + FINE + 8]
        if min(near.shape) >= FINE:
            best = max(best, float((_windows(near, FINE) @ centre).max()))
    return best


def overlaps(photographs: Iterable[tuple[str, np.ndarray]],
             images: Mapping[str, np.ndarray]) -> list[Overlap]:
    """Which training photographs and test images, LR uint8 (h, w, 3) by name, share a picture."""
    if not images:
        return []
    others = [_luminance(lr) for lr in images.values()]
    centres = np.stack([_centre(other, SIDE) for other in others], axis=1)  # (SIDE², images)
    shorts = SIDE * STEP ** np.arange(int(np.log(ZOOM) / np.log(STEP)) + 1)
    found = []
    for name, lr in photographs:
        picture = _luminance(lr)
        best = np.zeros(len(others))
        places: dict[int, tuple[float, int, int]] = {}
        for short in shorts:
            windows = _windows(_detail(picture, short), SIDE)
            scores = (windows @ centres).reshape(-1, len(others))
            where, most = scores.argmax(0), scores.max(0)
            for other in np.flatnonzero((most >= PROMISING) & (most > best)):
                best[other] = most[other]
                places[int(other)] = (float(short), *divmod(int(where[other]), windows.shape[1]))
        for other, place in places.items():
            value = _close_look(picture, _centre(others[other], FINE), *place)
            if value >= SAME:
                found.append(Overlap(name, list(images)[other], value))
    return found


def _key(sets: Mapping[str, Pairs]) -> str:
    """Changes with the files of the sets, and with how is searched."""
    files = [[name, pairs.crop, source.name, sha256_file(source.hr), source.lr and sha256_file(source.lr)]
             for name, pairs in sets.items() for source in pairs.sources]
    how = [CENTRE, SIDE, FINE, ZOOM, STEP, PROMISING, SAME, files]
    return sha256(json.dumps(how).encode()).hexdigest()[:16]


def check_overlaps(store: PixelStore, sets: Mapping[str, Pairs],
                   tests: Sequence[str]) -> list[Overlap]:
    """Training photographs that share a picture with an image of any set; remembered in the cache.

    One or two minutes on one core for 750 photographs and 130 images, once. A photograph that is an
    image of a set in `tests`, pixel for pixel, is a `UserError`.
    """
    path = cache_dir() / "overlaps" / f"{store.key}-{_key(sets)}.json"
    if path.is_file():
        return [Overlap(**entry) for entry in read_json(path)]
    pairs = {f"{name}/{pair.name}": pair for name, images in sets.items() for pair in images}
    photographs = ((str(index), store.lr(index)) for index in range(len(store)))  # names may recur
    found = overlaps(photographs, {name: pair.lr for name, pair in pairs.items()})
    for place, overlap in enumerate(found):
        index = int(overlap.photograph)
        found[place] = overlap = replace(overlap, photograph=store.names[index])
        same = np.array_equal(store.hr(index), pairs[overlap.image].hr)
        if overlap.image.split("/")[0] in tests and same:
            raise UserError(f"the training photograph {overlap.photograph} is the test image "
                            f"{overlap.image}. Leave it out of the folders that data.train names, "
                            "or the set out of data.tests.")
    write_json(path, [asdict(overlap) for overlap in found], place="PAPERLIB_CACHE")
    return found
