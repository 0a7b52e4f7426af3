"""Reading images of any common kind as 8-bit RGB, with errors that say what to do: the only reader of this kit."""

import contextlib
import ctypes
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, _imaging

from paperlib.errors import UserError
from paperlib.files import explain

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
"""What is opened, by content, whatever the name says. Pillow hands others to helper programs (EPS: Ghostscript)."""
MOST_PIXELS = 150_000_000
"""Largest picture that is decoded: 1.05 GB at its 7 bytes a pixel. (Pillow's own limit is a warning at 89 megapixels.)
"""
BAND = 1 << 24
"""Pixels that are converted at a time."""

with contextlib.suppress(OSError, AttributeError, TypeError):  # a Pillow without libtiff, or with it inside
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)  # it prints to stderr what Pillow raises anyway

logging.getLogger("PIL").addHandler(logging.NullHandler())  # so does its log, where nobody listens to it


def find_images(folder: str | Path) -> list[Path]:
    """The images directly inside a folder, sorted by name; files that begin with a dot are none.

    Raises:
        UserError: the folder is missing, cannot be read, or holds no image.
    """
    folder = Path(folder)
    try:
        if not folder.is_dir():
            raise UserError(f"no folder at {folder}. Name an existing folder of images.")
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS
                       and not path.name.startswith(".") and path.is_file())
    except OSError as error:
        raise explain(error, folder, "read") from error
    if not files:
        raise UserError(f"{folder} holds no image ({', '.join(EXTENSIONS)}). Name a folder with images.")
    return files


@dataclass
class Picture:
    """An 8-bit picture.

    Attributes:
        rgb: uint8 (H, W, 3); grey pictures have three equal channels.
        alpha: uint8 (H, W), or None.
        grey: whether it is to be written with one channel.
        icc: embedded colour profile, valid for these pixels.
        notes: what reading it changed, for the user.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc: bytes | None = None
    notes: list[str] = field(default_factory=list)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """An image file, opened by its content and not yet decoded, for the block.

    Raises:
        UserError: missing, not readable, larger than `MOST_PIXELS`, of another format than `FORMATS`, or damaged (also
            where that is found out inside the block).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on sizes and metadata; what matters raises
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                if not image.width * image.height:
                    raise ValueError("it has no pixels")
                yield image
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no picture at {path}. Name an existing file.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has more than {MOST_PIXELS // 10**6} megapixels, the limit here. Cut it into parts."
                        ) from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"cannot read {path} as a picture: it is damaged, or none of {', '.join(FORMATS)}. Replace or "
                        "convert it.") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise explain(error, path, "read") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {path} as a picture ({reason}). Replace or remove the file.") from error


def read_picture(path: str | Path) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF or BMP file, the right way up.

    Grey becomes three equal channels, 16 bits become 8 (divided by 257, rounded), palettes and CMYK become RGB.

    Raises:
        UserError: see `open_image`.
    """
    with open_image(path) as image:
        return _decode(image)


def read_rgb(path: str | Path) -> np.ndarray:
    """An image as `read_picture` gives it, for training and evaluation: uint8 (H, W, 3).

    Raises:
        UserError: see `open_image`; also transparent pixels, whose colour is undefined.
    """
    picture = read_picture(path)
    if picture.alpha is not None and picture.alpha.min() < 255:
        raise UserError(f"{path} has transparent pixels. Flatten it onto a background, or leave it out.")
    return picture.rgb


def _from_cmyk(image: Image.Image, picture_notes: list[str]) -> Image.Image:
    """CMYK → sRGB, through the embedded profile where there is one."""
    profile = image.info.get("icc_profile")
    if not profile:
        picture_notes.append("CMYK without a colour profile: colours are approximate")
        return image.convert("RGB")
    picture_notes.append("CMYK converted to sRGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")


def _from_deep_grey(image: Image.Image, notes: list[str]) -> Image.Image:
    """16-bit grey → 8 bits, rounded, with its transparent grey as alpha; other deep modes are refused."""
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a channel, of which no one knows the range; save it with 8 or 16 bits")
    notes.append("16 bits a channel reduced to 8")
    deep, clear = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray(np.rint(deep.astype(np.float32) / 257).astype(np.uint8))
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    return grey


def _told(image: Image.Image) -> list[str]:
    """What decoding will change or leave out, from the header."""
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"only the first of {frames} frames is used")
    raw = [str(tile[3]) for tile in image.tile]
    if image.mode in ("RGB", "RGBA") and any(";16" in mode for mode in raw):
        notes.append("16 bits a channel reduced to 8")  # by Pillow, while decoding
        if image.mode == "RGB" and image.info.pop("transparency", None) is not None:
            notes.append("its transparent colour is left out")
    if image.format == "BMP" and any("BGRX" in mode for mode in raw):
        notes.append("the fourth byte of its pixels, unused or transparency, is left out")
    return notes


def _decode(image: Image.Image) -> Picture:
    """Pixels of an opened image as a `Picture`."""
    notes = _told(image)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    icc = image.info.get("icc_profile")
    if image.mode == "CMYK":
        image, icc = _from_cmyk(image, notes), None
    elif image.mode.startswith("I") or image.mode == "F":
        image = _from_deep_grey(image, notes)
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = _channels(image, "A") if image.has_transparency_data else None
    return Picture(_channels(image, "RGB"), alpha, grey, icc, notes)


def _channels(image: Image.Image, mode: str) -> np.ndarray:
    """Colour ("RGB": (H, W, 3)) or alpha ("A": (H, W)) of an image, converted in bands to spare memory."""
    shape = (image.height, image.width, 3) if mode == "RGB" else (image.height, image.width)
    pixels, rows = np.empty(shape, np.uint8), max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        part.info = dict(image.info)
        if mode == "A" or image.mode in ("P", "PA"):  # transparent palette entries have a colour only through RGBA
            part = part.convert("RGBA")
        pixels[top : top + rows] = np.asarray(part.getchannel("A") if mode == "A" else part.convert("RGB"))
    return pixels
