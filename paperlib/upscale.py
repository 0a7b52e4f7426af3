"""Enlarging pictures ×3 with any model: folders, any shape, tiled without seams (paper section 5).

A pixel of the result depends on few LR pixels around it (10 for the published student). Tiles that
overlap by twice that give what the whole picture would give, and bound the network's memory.
"""

import glob
import math
import os
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from paperlib.data import images
from paperlib.data.images import Picture
from paperlib.data.metadata import Metadata
from paperlib.data.tiles import run_tiled, to_multiple
from paperlib.errors import UserError
from paperlib.evaluation.upscalers import Upscaler
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import Progress, explained, user_path
from paperlib.settings import SCALE

MARK = "_x3"
"""Added to a file's name, so that a result never replaces its input."""
TILE_INT8, TILE_FLOAT = 640, 384
"""Largest tile, LR pixels a side: a tenth more work than the whole picture."""
MOST_AT_ONCE = 4_000_000
"""Most LR pixels for a model that must see a picture whole."""
RIM = 12
"""Invisible pixels, as far as the published student sees, that get the visible rim's colour."""
ENLARGED = 90
"""Bytes of memory for each LR pixel: 4 of the picture, 36 of the result, 45 while it is written."""


def byte_runner(upscaler: Upscaler) -> Callable[[np.ndarray], np.ndarray]:
    """The upscaler with its output rounded to 8 bits: uint8 (h, w, 3) → uint8 (3h, 3w, 3).

    The 256 values of an INT8 file are rounded once, not each pixel of a 4K picture. Where its grid
    is 0..255, as in every file of this kit, number and pixel differ in the highest bit alone, and
    turning that takes a twentieth of a look-up.
    """
    if isinstance(upscaler, TFLiteUpscaler) and upscaler.output["dtype"] != np.float32:
        codes = np.arange(256, dtype=np.uint8).view(upscaler.output["dtype"])
        table = np.rint(upscaler.dequantise(codes)).astype(np.uint8)
        if np.array_equal(table, np.arange(256) ^ table[0]):
            return lambda lr: np.bitwise_xor(upscaler.raw(lr).view(np.uint8), table[0])
        return lambda lr: table[upscaler.raw(lr).view(np.uint8)]
    return lambda lr: np.rint(upscaler(lr)).astype(np.uint8)


def _even(length: int, side: int, overlap: int, stride: int) -> int:
    """The smallest tile, in whole strides, that covers `length` in as few pieces as `side` does."""
    pieces = max(1, math.ceil((length - overlap) / (side - overlap)))
    return math.ceil((length + (pieces - 1) * overlap) / pieces / stride) * stride


def upscale_pixels(upscaler: Upscaler, lr: np.ndarray, tile: int | None = None) -> np.ndarray:
    """Enlarge pixels of any size, tile by tile, equal to the whole picture at once.

    INT8 files give the same bits; float networks differ by the rounding of their sums. A file with
    fixed input works in its own tiles. A model whose every pixel may depend on all others takes the
    picture whole.

    Args:
        lr: uint8 (h, w, 3); the result is (3h, 3w, 3).
        tile: LR pixels a side; default by precision.
    """
    radius, fixed = upscaler.radius, getattr(upscaler, "fixed", None)
    stride = getattr(upscaler, "stride", 1)
    shape, lr = lr.shape[:2], to_multiple(lr, stride)
    (height, width), overlap = lr.shape[:2], math.ceil(2 * (radius or 0) / stride) * stride
    if radius is not None and fixed is None:
        int8 = isinstance(upscaler, TFLiteUpscaler) and upscaler.input["dtype"] != np.float32
        side = max(tile or (TILE_INT8 if int8 else TILE_FLOAT), overlap + 1)
        side = math.ceil(side / stride) * stride
        height, width = (_even(size, side, overlap, stride) if size > side else size
                         for size in lr.shape[:2])
    elif radius is not None and min(fixed) > overlap:
        height, width = fixed
    elif hasattr(upscaler, "tile"):  # the teacher's own tiles, whose seams it answers for
        height, width = min(height, upscaler.tile), min(width, upscaler.tile)
        overlap = upscaler.overlap
    elif fixed is None and height * width > MOST_AT_ONCE:
        raise UserError(f"{upscaler.name} must see a picture whole, and {width}×{height} is more "
                        f"than {MOST_AT_ONCE // 10**6} megapixels. Cut it into parts, or choose "
                        "another --model.")
    large = run_tiled(byte_runner(upscaler), lr, height, width, overlap)
    return large[: SCALE * shape[0], : SCALE * shape[1]]


def _fill(rgb: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Spread the colour of the known pixels (h, w) by `RIM` pixels over the others."""
    rgb = rgb.copy()
    behind, before = slice(1, None), slice(-1)
    ways = [(behind, before), (before, behind)]
    ways += [((slice(None), to), (slice(None), of)) for to, of in ways]
    for _ in range(RIM):
        for to, of in ways:
            new = known[of] & ~known[to]
            rgb[to][new] = rgb[of][new]
            known[to] |= new
    return rgb


def upscale_picture(upscaler: Upscaler, picture: Picture) -> Picture:
    """Enlarge a picture, its colour by the model, its alpha by bicubic; all else is kept.

    Where it is invisible it takes the colour of near visible pixels first: what lies there,
    mostly black, would darken the visible rim.
    """
    rgb, alpha = picture.rgb, picture.alpha
    if alpha is not None:
        if 0 == alpha.min() < alpha.max():
            rgb = _fill(rgb, alpha > 0)
        large = [side * SCALE for side in reversed(alpha.shape)]
        alpha = np.asarray(Image.fromarray(alpha).resize(large, Image.Resampling.BICUBIC))
    seams = getattr(upscaler, "seams", None)
    notes = [*picture.notes, seams] if seams and rgb.shape[:2] != upscaler.fixed else picture.notes
    return replace(picture, rgb=upscale_pixels(upscaler, rgb), alpha=alpha, notes=notes)


def upscale_file(upscaler: Upscaler, source: Path, target: Path, strip: bool = False) -> Picture:
    """Enlarge one picture into a file; returns the result."""
    picture = images.read_picture(source, ENLARGED)
    if strip:  # what its colours mean stays
        picture.metadata = Metadata(chunks=picture.metadata.chunks)
    height, width = (side * SCALE for side in picture.rgb.shape[:2])
    images.check_writable(target, height, width, picture.is_transparent)
    try:
        large = upscale_picture(upscaler, picture)
        images.write_picture(target, large)
    except MemoryError as error:
        size = f"{width // SCALE}×{height // SCALE}"
        raise UserError(f"not enough memory for {source} ({size} pixels). Close other programs, or "
                        "cut it into parts.") from error
    return large


def _pictures(folder: Path) -> list[Path]:
    with suppress(UserError):  # there are none
        return images.find_images(folder)
    return []


def _is_result(file: Path, files: Container[Path]) -> bool:
    """Whether it is called as the result of one of the files is; GIF and AVIF become PNG."""
    stem = file.stem.removesuffix(MARK)
    suffixes = (file.suffix, ".gif", ".avif") if file.suffix == ".png" else (file.suffix,)
    return stem not in ("", file.stem) and any(
        file.with_name(stem + suffix) in files for suffix in suffixes)


def _in_folder(folder: Path, out: Path, recursive: bool, notes: list[str]) -> dict[Path, Path]:
    """A folder's pictures, each with the subfolder it lies in; results beside them are none."""
    found: dict[Path, Path] = {}
    unreadable: list[OSError] = []
    for place, below, _ in os.walk(folder, onerror=unreadable.append):
        here = Path(place)
        below[:] = sorted(name for name in below if not name.startswith(".")
                          and (here / name).resolve() != out.resolve())
        found |= dict.fromkeys(_pictures(here), here.relative_to(folder))
        if not recursive:
            if others := [name for name in below if _pictures(here / name)]:
                notes.append(f"{folder} has pictures in {', '.join(others)}, left out: "
                             "--recursive takes them")
            break
    if not found:
        images.find_images(folder)  # says so
    notes += [f"{error.filename} is left out: {error.strerror}" for error in unreadable]
    return {file: place for file, place in found.items() if not _is_result(file, found)}


def find_inputs(
    inputs: Sequence[str | Path], out: str | Path = os.devnull, recursive: bool = False,
) -> tuple[dict[Path, Path], list[str], list[str]]:
    """Files named directly, by folder (the pictures in it, but for `out`), or by a glob pattern.

    Returns:
        The files, each with its subfolder; a message for each input that is none; what else the
        user should know.
    """
    files, problems, notes = {}, [], []
    for given in map(str, inputs):
        try:
            with explained(given, "read"):
                path = user_path(given)
                if path.is_dir():
                    found = _in_folder(path, Path(out), recursive, notes)
                elif path.exists():
                    found = {path: Path()}
                else:
                    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
                    found = {Path(match): Path() for match in matches if Path(match).is_file()}
            if not found:
                raise UserError(f"no picture at {given}. Name a file, a folder or a pattern such "
                                "as 'photos/*.jpg'.")
            files |= {file: place for file, place in found.items() if file not in files}
        except UserError as error:
            problems.append(str(error))
    return files, problems, notes


def upscale_files(
    inputs: Sequence[str | Path], out: str | Path, upscaler: Upscaler,
    log: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda done, total: None, *,
    recursive: bool = False, skip_existing: bool = False, strip: bool = False,
) -> tuple[list[Path], list[str]]:
    """Enlarge pictures ×3 into a folder, as `<name>_x3` in their format; goes on after failures.

    Args:
        inputs: files, folders, glob patterns.
        out: folder for the results; may be the inputs' own.
        log: called with one line for each finished picture.
        recursive: take a folder's subfolders too, and make the same ones in `out`.
        strip: write no metadata but those of colour.

    Returns:
        The files written, and a message for each input that could not be enlarged.
    """
    named, failed, notes = find_inputs(inputs, out, recursive)
    # named one by one, as the shell does with *: in a second run the results are among them
    files = {file: place for file, place in named.items() if not _is_result(file, named)}
    sources, left = ({Path(os.path.realpath(file)) for file in group}
                     for group in (files, named.keys() - files))
    targets, done, kept = set(), [], 0
    free = images.free_memory()
    log(f"{free / 1e9:.1f} GB of memory are free: enough for pictures of "
        f"{free / ENLARGED / 1e6:.0f} megapixels")
    for index, (path, place) in enumerate(files.items()):
        suffix = ".png" if path.suffix.lower() in (".gif", ".avif") else path.suffix
        target = Path(out) / place / f"{path.stem}{MARK}{suffix}"
        try:
            clock = time.monotonic()
            if target.is_symlink() and not target.exists():
                raise UserError(f"cannot write {target}: a link that leads nowhere lies there. "
                                "Remove it.")
            if target.resolve() in sources or target in targets:
                raise UserError(f"{path}: {target} is another input or its result. Choose another "
                                "--out.")
            targets.add(target)
            if target.resolve() in left or (skip_existing and target.exists()):
                kept += 1
            else:
                picture = upscale_file(upscaler, path, target, strip)
                done.append(target)
                height, width = picture.rgb.shape[:2]
                said = [f"{width}×{height}, {time.monotonic() - clock:.1f} s", *picture.notes]
                log(f"{path} → {target} ({'; '.join(said)})")
        except UserError as error:
            failed.append(str(error))
        except (OSError, RuntimeError) as error:  # resolve() of a link that leads to itself
            failed.append(f"cannot enlarge {path}: {error}. Rename or remove it.")
        progress(index + 1, len(files))
    if kept:
        notes.append(f"{kept} results that were there are left as they are")
    for note in notes:
        log(note)
    return done, failed
