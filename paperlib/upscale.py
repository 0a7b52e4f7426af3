"""Enlarging pictures ×3 with any model: whole folders, any size, tiled without seams (paper section 5).

A pixel of the result depends on few LR pixels around it (10 for the published student). Tiles that overlap by twice
that give what the whole picture would give, in the memory of one tile.
"""

import glob
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from paperlib.data.images import Picture, check_writable, find_images, read_picture, write_picture
from paperlib.data.tiles import run_tiled
from paperlib.errors import UserError
from paperlib.evaluation.upscalers import Upscaler
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import Progress
from paperlib.settings import SCALE

MARK = "_x3"
"""Added to a file's name, so that a result never replaces its input."""
TILE_INT8, TILE_FLOAT = 640, 384
"""Largest tile, LR pixels a side: about the speed of the whole picture (a tenth more work) in bounded memory."""


def byte_runner(upscaler: Upscaler) -> Callable[[np.ndarray], np.ndarray]:
    """The upscaler with its output rounded to 8 bits: uint8 (h, w, 3) → uint8 (3h, 3w, 3).

    The 256 values an INT8 file can give are rounded once, not each pixel of a 4K picture. Where the output's grid is
    0..255, as in every file of this kit, number and pixel differ in the highest bit alone: turning that takes a
    twentieth of a look-up, which was an eighth of the interpreter's own time.
    """
    if isinstance(upscaler, TFLiteUpscaler) and upscaler.output["dtype"] != np.float32:
        codes = np.arange(256, dtype=np.uint8).view(upscaler.output["dtype"])
        table = np.rint(upscaler.dequantise(codes)).astype(np.uint8)
        if np.array_equal(table, np.arange(256) ^ table[0]):
            return lambda lr: np.bitwise_xor(upscaler.raw(lr).view(np.uint8), table[0])
        return lambda lr: table[upscaler.raw(lr).view(np.uint8)]
    return lambda lr: np.rint(upscaler(lr)).astype(np.uint8)


def _even(length: int, side: int, overlap: int) -> int:
    """The smallest tile, at most `side` long, with which overlapping tiles cover `length` in as few pieces."""
    pieces = max(1, math.ceil((length - overlap) / (side - overlap)))
    return math.ceil((length + (pieces - 1) * overlap) / pieces)


def upscale_pixels(upscaler: Upscaler, lr: np.ndarray, tile: int | None = None) -> np.ndarray:
    """Enlarge pixels of any size, tile by tile, equal to the whole picture at once.

    INT8 files give the same bits; float networks differ by the rounding of their sums. A file with fixed input works
    in its own tiles. The teacher, whose every pixel depends on all others, takes the picture whole.

    Args:
        lr: uint8 (h, w, 3).
        tile: LR pixels a side; default by precision.

    Returns:
        uint8 (3h, 3w, 3).
    """
    run, radius = byte_runner(upscaler), upscaler.radius
    if radius is None:
        return run(lr)
    fixed = getattr(upscaler, "fixed", None)
    if fixed and min(fixed) > 2 * radius:
        return run_tiled(run, lr, *fixed, overlap=2 * radius)
    if fixed:
        return run(lr)
    int8 = isinstance(upscaler, TFLiteUpscaler) and upscaler.input["dtype"] != np.float32
    side = max(tile or (TILE_INT8 if int8 else TILE_FLOAT), 2 * radius + 1)
    if max(lr.shape[:2]) <= side or min(lr.shape[:2]) <= 2 * radius:  # small, or a strip that needs little memory
        return run(lr)
    height, width = (_even(size, side, 2 * radius) for size in lr.shape[:2])
    return run_tiled(run, lr, height, width, overlap=2 * radius)


def upscale_picture(upscaler: Upscaler, picture: Picture) -> Picture:
    """Enlarge a picture; colour by the model, alpha by bicubic, grey as RGB and back."""
    alpha = picture.alpha
    if alpha is not None:
        size = (alpha.shape[1] * SCALE, alpha.shape[0] * SCALE)
        alpha = np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.BICUBIC))
    return Picture(upscale_pixels(upscaler, picture.rgb), alpha, picture.grey, picture.icc, picture.notes)


def find_inputs(inputs: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Files named directly, by folder (the pictures in it), or by a glob pattern; and a message for each that is none.

    A folder's `a_x3.png` beside `a.png` is a result, not an input.
    """
    files: dict[Path, None] = {}
    problems = []
    for given in map(str, inputs):
        path = Path(given).expanduser()
        try:
            if path.is_dir():
                found = find_images(path)
                results = {file.with_stem(file.stem + MARK) for file in found}
                found = [file for file in found if file not in results]
            elif path.exists():
                found = [path]
            else:
                matches = map(Path, sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207 (takes absolute ones)
                found = [match for match in matches if match.is_file()]
        except UserError as error:
            problems.append(str(error))
            continue
        if not found:
            problems.append(f"no picture at {given}. Name a file, a folder or a pattern such as 'photos/*.jpg'.")
        files.update(dict.fromkeys(found))
    return list(files), problems


def upscale_files(
    inputs: Sequence[str | Path], out: str | Path, upscaler: Upscaler,
    log: Callable[[str], None] | None = None, progress: Progress | None = None,
) -> tuple[list[Path], list[str]]:
    """Enlarge pictures ×3 into a folder, as `<name>_x3` in their own format; goes on after one that fails.

    Args:
        inputs: files, folders, glob patterns.
        out: folder for the results; may be the inputs' own.
        log: called with one line for each finished picture.
        progress: called with (done, total) after each picture.

    Returns:
        The files written, and a message for each input that could not be enlarged.
    """
    files, failed = find_inputs(inputs)
    sources, done = {file.resolve() for file in files}, []
    for index, path in enumerate(files):
        target = Path(out) / f"{path.stem}{MARK}{path.suffix}"
        try:
            clock = time.monotonic()
            if target.resolve() in sources or target in done:
                raise UserError(f"{path}: {target} is another input or its result. Choose another --out.")
            picture = read_picture(path)
            height, width = (side * SCALE for side in picture.rgb.shape[:2])
            check_writable(target, height, width)
            done.append(write_picture(target, upscale_picture(upscaler, picture)))
            if log:
                notes = "".join(f"; {note}" for note in picture.notes)
                log(f"{path} → {target} ({width}×{height}, {time.monotonic() - clock:.1f} s{notes})")
        except UserError as error:
            failed.append(str(error))
        if progress:
            progress(index + 1, len(files))
    return done, failed
