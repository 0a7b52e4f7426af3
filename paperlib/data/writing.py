"""Writing pictures in the format their name asks for, from top to bottom, in the memory of a part of them."""

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from paperlib.data.images import Picture
from paperlib.errors import UserError
from paperlib.files import atomic_path

SAVE_OPTIONS = {
    ".png": {"format": "PNG", "compress_level": 1}, ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "quality": 95, "method": 2}, ".tif": {"format": "TIFF", "compression": "tiff_lzw"},
    ".bmp": {"format": "BMP"}}
"""By suffix. PNG is packed lightly: at 4K, its usual packing takes longer than the network."""
LONGEST = {"JPEG": 65_500, "WEBP": 16_383}
"""Most pixels a side that a format (JPEG: its library) can hold."""
OPAQUE = ("JPEG", "BMP")
"""Formats without transparency."""
WHOLE = 64_000_000
"""Pixels up to which a picture is handed to Pillow whole (4 bytes each); PNG and JPEG above are written in bands."""
MOST_WHOLE = 250_000_000
"""Most pixels in a format that only Pillow writes: 1 GB."""


def _options(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    suffix = {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)
    if suffix not in SAVE_OPTIONS:
        raise UserError(f"cannot write {path}: unknown kind {suffix!r}. Use {', '.join(SAVE_OPTIONS)}.")
    return SAVE_OPTIONS[suffix]


def can_be_transparent(path: str | Path) -> bool:
    """Whether the format that the name asks for can hold transparency."""
    return _options(Path(path))["format"] not in OPAQUE


def check_writable(path: str | Path, height: int, width: int, transparent: bool = False) -> None:
    """Whether a picture of that size can be written under that name, asked before the work is done.

    Raises:
        UserError: an unknown suffix, or a format that cannot hold so large a picture or transparency.
    """
    kind = _options(Path(path))["format"]
    limit = LONGEST.get(kind)
    if limit and max(height, width) > limit:
        raise UserError(f"cannot write {path}: {width}×{height} is more than the {limit} pixels a side this format can "
                        "hold. Convert the input to PNG first.")
    if kind not in ("PNG", "JPEG") and height * width > MOST_WHOLE:
        raise UserError(f"cannot write {path}: {width}×{height} is more than {MOST_WHOLE // 10**6} megapixels, the "
                        f"limit here for {kind}. Convert the input to PNG first, which is written in parts.")
    if transparent and not can_be_transparent(path):
        raise UserError(f"cannot write {path}: the picture is transparent and {kind} is not. Rename the input to .png, "
                        "or flatten it first.")


def write_picture(path: str | Path, picture: Picture) -> Path:
    """Write a picture, atomically, in the format that the suffix names, with its colour profile.

    Raises:
        UserError: see `check_writable`; or the folder cannot be written.
    """
    rgb, alpha = picture.rgb, picture.alpha
    pixels = rgb if alpha is None else np.concatenate([rgb, alpha[..., None]], axis=2)
    return write_bands(path, iter([pixels]), *rgb.shape[:2], grey=picture.grey, transparent=alpha is not None,
                       icc=picture.icc)


def write_bands(path: str | Path, bands: Iterable[np.ndarray], height: int, width: int, *, grey: bool = False,
                transparent: bool = False, icc: bytes | None = None) -> Path:
    """Write a picture that comes in bands from top to bottom, each uint8 (rows, width, 3, or 4 with alpha).

    Args:
        grey: write one colour channel.
        icc: colour profile.

    Raises:
        UserError: see `write_picture`.
    """
    path = Path(path)
    check_writable(path, height, width, transparent)
    options, mode = _options(path), ("L" if grey else "RGB") + ("A" if transparent else "")
    images = (_image(band, mode) for band in bands)
    with atomic_path(path) as temporary:
        if height * width > WHOLE and options["format"] in ("PNG", "JPEG"):
            with temporary.open("wb") as file:
                if options["format"] == "PNG":
                    _write_png(file, images, height, width, mode, icc)
                else:
                    _write_jpeg(file, images, height, width, mode, {**options, **_profile(icc)})
        else:
            whole, top = Image.new(mode, (width, height)), 0
            for image in images:
                whole.paste(image, (0, top))
                top += image.height
            try:
                whole.save(temporary, **options, **_profile(icc))
            except OSError as error:
                if error.errno is None:  # libtiff does not say why
                    _check_room(temporary)
                raise
    return path


def _check_room(path: Path) -> None:
    """Take another megabyte for a file; raises the disk's own OSError where there is none."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), file.tell(), 1 << 20)


def _profile(icc: bytes | None) -> dict[str, bytes]:
    return {"icc_profile": icc} if icc else {}


def _image(band: np.ndarray, mode: str) -> Image.Image:
    """A band (rows, width, 3 or 4) as an image of the mode."""
    image = Image.fromarray(np.ascontiguousarray(band[..., :3]))
    if mode.startswith("L"):
        image = image.convert("L")
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(np.ascontiguousarray(band[..., 3])))
    return image


def _write_png(file: BinaryIO, images: Iterator[Image.Image], height: int, width: int, mode: str, icc: bytes | None,
               ) -> None:
    """A PNG file, every row filtered by its left neighbours and packed lightly."""
    def chunk(kind: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}[mode], 0, 0, 0))
    if icc:
        chunk(b"iCCP", b"ICC\0\0" + zlib.compress(icc))
    packer = zlib.compressobj(1)
    for image in images:
        pixels = np.asarray(image).reshape(image.height, width, -1)
        rows = np.empty((image.height, 1 + width * pixels.shape[2]), np.uint8)
        rows[:, 0] = 1  # the filter "sub"
        filtered = rows[:, 1:].reshape(pixels.shape)
        filtered[:, 0] = pixels[:, 0]
        np.subtract(pixels[:, 1:], pixels[:, :-1], out=filtered[:, 1:])
        if data := packer.compress(rows):
            chunk(b"IDAT", data)
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def _strips(images: Iterator[Image.Image], mode: str, width: int, rows: int) -> Iterator[Image.Image]:
    """The same picture in strips of exactly `rows` rows, the last one excepted."""
    kept = Image.new(mode, (width, 0))
    for image in images:
        joined = Image.new(mode, (width, kept.height + image.height))
        joined.paste(kept, (0, 0))
        joined.paste(image, (0, kept.height))
        full = joined.height // rows * rows
        yield from (joined.crop((0, top, width, top + rows)) for top in range(0, full, rows))
        kept = joined.crop((0, full, width, joined.height))
    if kept.height:
        yield kept


def _write_jpeg(file: BinaryIO, images: Iterator[Image.Image], height: int, width: int, mode: str,
                options: dict[str, Any]) -> None:
    """A JPEG file joined from strips that are each encoded by themselves, with restart markers between them.

    A restart begins the coding anew, just as a file does (ITU-T T.81, E.1.4), so the pixels are those of the whole.
    """
    across = -(-width // 8)  # blocks of 8×8 pixels, coded one by one as nothing is subsampled
    blocks = max(1, min(64, 65_535 // across))
    for number, strip in enumerate(_strips(images, mode, width, 8 * blocks)):
        buffer = io.BytesIO()
        strip.save(buffer, **options)
        head, size, scan = _parts(buffer.getvalue())
        if number == 0:
            start = head.rindex(b"\xff\xda\0")
            file.write(head[:size] + struct.pack(">H", height) + head[size + 2 : start])
            file.write(struct.pack(">HHH", 0xFFDD, 4, blocks * across) + head[start:])
        else:
            file.write(bytes((0xFF, 0xD0 + (number - 1) % 8)))
        file.write(scan)
    file.write(b"\xff\xd9")


def _parts(data: bytes) -> tuple[bytes, int, bytes]:
    """A baseline JPEG file's headers, where in them its height stands, and the coded pixels without the end marker."""
    place, size = 2, 0
    while True:
        kind, length = struct.unpack(">HH", data[place : place + 4])
        size = place + 5 if kind == 0xFFC0 else size
        place += 2 + length
        if kind == 0xFFDA:
            return data[:place], size, data[place:-2]


def small_picture(png: bytes, lossy: str, error: float = 1.5) -> tuple[str, bytes]:
    """A figure in a smaller file for the eye: (suffix without the dot, content).

    A drawing or a colour map stays PNG, of 256 colours where they are enough; a photograph becomes what is smaller, PNG
    with all its colours or `lossy`.

    Args:
        png: a PNG file.
        lossy: "WEBP", or "JPEG" where the reader may not know that, as viewers of notebooks.
        error: root mean square of the change in steps of 8 bits up to which 256 colours are enough.
    """
    with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        picture = opened.convert("RGB")
    few = picture.quantize(256, dither=Image.Dither.NONE)
    change = np.asarray(few.convert("RGB"), np.float32) - np.asarray(picture, np.float32)
    if np.sqrt(np.mean(change**2)) <= error:
        return "png", _encoded(few, "PNG", optimize=True)
    whole = _encoded(picture, "PNG", optimize=True)
    packed = _encoded(picture, lossy, quality=90, **({"subsampling": 0} if lossy == "JPEG" else {"method": 6}))
    return min(("png", whole), (lossy.lower(), packed), key=lambda found: len(found[1]))


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()
