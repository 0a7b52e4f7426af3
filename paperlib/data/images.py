"""Reading and writing pictures of any common kind as 8-bit RGB, with errors that say what to do."""

import io
import logging
import math
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features

from paperlib.data.metadata import Metadata, read_metadata, save_options
from paperlib.environment import silence_native_stderr
from paperlib.errors import UserError
from paperlib.files import atomic_path, explained, reading

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic",
              ".heif", ".jxl")
"""Names of pictures in a folder; those of kinds that cannot be read are named too, and refused."""
FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"] + ["AVIF"] * features.check("avif")
"""What is opened, by content, whatever the name says. Pillow hands others to helper programs (EPS:
Ghostscript)."""
FOREIGN = {name: re.compile(beginning, re.DOTALL) for name, beginning in {
    "HEIC": rb"....ftyp(hei|hev|mif1|msf1)", "AVIF": rb"....ftypavi",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    "Photoshop": rb"8BPS", "SVG": rb"\s*(<\?xml[^>]*>\s*)?<svg", "PDF": rb"%PDF"}.items()}
"""Kinds that are refused by their names, and how their files begin."""
DECODED = 18  # bytes of memory a pixel while it is read: Pillow's 4, those converted, the array
SCORED = 110  # the same of a picture that is scored, with its enlargement and metrics
SAVE_OPTIONS = {
    ".png": {"format": "PNG", "compress_level": 1},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "quality": 95, "method": 2},
    ".tif": {"format": "TIFF", "compression": "tiff_lzw"},
    ".bmp": {"format": "BMP"},
}
"""By suffix. PNG is packed lightly: at 4K, its usual packing takes longer than the network."""
LONGEST = {"JPEG": 65_500, "WEBP": 16_383}  # most pixels a side (libjpeg's limit, not JPEG's)
OPAQUE = ("JPEG", "BMP")  # formats without transparency

# What Pillow remarks on sizes and metadata is not the user's: what matters raises.
warnings.filterwarnings("ignore", module=r"PIL\.")
Image.MAX_IMAGE_PIXELS = None  # the free memory decides
Image.init()  # imports the formats here: interrupted later, that would look like a fault of a file
logging.getLogger("PIL").addHandler(logging.NullHandler())
_stderr = threading.Lock()


def find_images(folder: str | Path) -> list[Path]:
    """The images directly inside a folder, sorted by name; files that begin with a dot are none."""
    folder = Path(folder)
    with explained(folder, "read"):
        if not folder.is_dir():
            raise UserError(f"no folder at {folder}. Name an existing folder of images.")
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS
                       and not path.name.startswith(".") and path.is_file())
    if not files:
        raise UserError(f"{folder} holds no image ({', '.join(EXTENSIONS)}). Name one with images.")
    return files


@dataclass
class Picture:
    """An 8-bit picture."""

    rgb: np.ndarray  # uint8 (H, W, 3); grey pictures have three equal channels
    alpha: np.ndarray | None = None  # uint8 (H, W)
    grey: bool = False  # is to be written with one channel
    icc: bytes | None = None  # embedded colour profile, valid for these pixels
    notes: list[str] = field(default_factory=list)  # what reading it changed, for the user
    lossless: bool = False  # was a lossless WebP file, and is to be written as one
    metadata: Metadata = field(default_factory=Metadata)  # what else its file says

    @property
    def is_transparent(self) -> bool:
        """Whether any pixel is."""
        return self.alpha is not None and bool(self.alpha.min() < 255)


def free_memory() -> int:
    """Bytes of memory that are there for the asking, within the limit of a container."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        free = 1024 * int(available.split()[1])
    except OSError:  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no limit
        return free


@contextmanager
def _quiet(kind: str | None) -> Iterator[None]:
    """Keep back what libtiff writes to stderr, as Pillow raises it; one thread at a time."""
    if kind != "TIFF":
        yield
    else:
        with _stderr, silence_native_stderr(False):
            yield


def _open(path: Path) -> Image.Image:
    """An image; a PNG file that cannot be opened is tried again without its metadata."""
    try:
        return Image.open(path, formats=FORMATS)
    except (UnidentifiedImageError, ValueError) as error:  # a text of a PNG may be too long
        data = path.read_bytes()
        for name, beginning in FOREIGN.items():
            if beginning.match(data):
                raise UserError(f"{path} is a {name} picture, a kind that is not read here. "
                                "Convert it to PNG or JPEG first.") from error
        if not data.startswith(b"\x89PNG"):
            raise
    kept, place = [data[:8]], 8
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        if data[place + 4 : place + 5].isupper() or data[place + 4 : place + 8] == b"tRNS":
            kept.append(data[place:end])
        place = end
    image = Image.open(io.BytesIO(b"".join(kept)), formats=["PNG"])
    image.info["damaged"] = True
    return image


@contextmanager
def _opened(path: str | Path, bytes_each: int = DECODED) -> Iterator[Image.Image]:
    """An image opened by its content; what it raises, now or when it is decoded, names the file."""
    with reading(path, f"a picture ({', '.join(FORMATS)})"), _open(Path(path)) as image:
        pixels, most = image.width * image.height, free_memory() // bytes_each
        if not pixels:
            raise ValueError("it has no pixels")
        if pixels > most:
            raise UserError(f"{path} has {image.width}×{image.height} pixels, and there is memory "
                            f"for {most / 1e6:.1f} megapixels. Cut it into parts.")
        with _quiet(image.format):
            yield image


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width from an image's header, as stored; a `UserError` says what is missing, of
    another kind, damaged or too large for the memory."""
    with _opened(path) as image:
        return image.height, image.width


def read_picture(path: str | Path, bytes_each: int = DECODED) -> Picture:
    """Read a picture of any of `FORMATS`, the right way up; errors as `image_size`.

    Grey becomes three equal channels, 16 bits become 8 (divided by 257, rounded), palettes and CMYK
    become RGB. `bytes_each` of memory must be free for a pixel, with what comes after reading.
    """
    with _opened(path, bytes_each) as image:
        picture = _decode(image, Path(path))
        if image.format == "WEBP":  # the first chunk of pixels says it
            picture.lossless = re.search(b"VP8[ L]", Path(path).read_bytes())[0] == b"VP8L"
    return picture


def read_rgb(path: str | Path, bytes_each: int = DECODED) -> np.ndarray:
    """An image for training and evaluation, uint8 (H, W, 3), as `read_picture`; transparent pixels,
    whose colour is undefined, are refused too."""
    picture = read_picture(path, bytes_each)
    if picture.is_transparent:
        raise UserError(f"{path} has transparent pixels. Flatten it, or leave it out.")
    return picture.rgb


def _from_cmyk(image: Image.Image, notes: list[str]) -> Image.Image:
    """CMYK → sRGB, through the embedded profile where there is one that can be used."""
    try:
        profile = io.BytesIO(image.info.get("icc_profile", b""))
        srgb = ImageCms.createProfile("sRGB")
        result = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    except ImageCms.PyCMSError:
        notes.append("CMYK without a valid colour profile: colours are approximate")
        return image.convert("RGB")
    notes.append("CMYK converted to sRGB")
    return result


def _from_deep_grey(image: Image.Image, notes: list[str]) -> Image.Image:
    """16-bit grey → 8 bits, rounded, with its transparent grey as alpha; 32 bits are refused."""
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a channel, whose range is unknown; save it with 8 or 16 bits")
    notes.append("16 bits a channel reduced to 8")
    deep, clear = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray(np.rint(deep.astype(np.float32) / 257).astype(np.uint8))
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    return grey


def _told(image: Image.Image) -> list[str]:
    """What decoding will change or leave out, from the header."""
    notes = []
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception:  # a damaged later page can make its reader raise anything
        image.seek(0)
        notes.append("only the first page can be read")
        frames = 1
    if image.info.get("damaged"):
        notes.append("its damaged metadata are left out")
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


def _decode(image: Image.Image, path: Path) -> Picture:
    """Pixels of an opened image as a `Picture`."""
    notes, alpha = _told(image), None
    image.load()
    metadata = read_metadata(image, path, notes)
    with suppress(Exception):  # malformed EXIF, of which a note says that it is left out
        ImageOps.exif_transpose(image, in_place=True)
    icc = image.info.get("icc_profile")
    if image.mode == "CMYK":
        image, icc = _from_cmyk(image, notes), None
    elif image.mode.startswith("I") or image.mode == "F":
        image = _from_deep_grey(image, notes)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.array(image.getchannel("A"))
    if icc and icc[16:20] != (b"GRAY" if grey else b"RGB "):
        notes.append("its colour profile does not fit the result's kind of colours and is left out")
        icc = None
    return Picture(np.array(image.convert("RGB")), alpha, grey, icc, notes, metadata=metadata)


def check_writable(path: str | Path, height: int, width: int,
                   transparent: bool = False) -> dict[str, Any]:
    """Pillow's options for a picture of that size under that name, asked before the work is done;
    a `UserError` says why it cannot be written."""
    suffix = Path(path).suffix.lower()
    suffix = {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)
    if suffix not in SAVE_OPTIONS:
        raise UserError(f"cannot write {path}: unknown kind {suffix!r}. "
                        f"Use {', '.join(SAVE_OPTIONS)}.")
    options = SAVE_OPTIONS[suffix]
    kind = options["format"]
    too_many = kind in ("TIFF", "BMP") and 4 * height * width >= 1 << 32  # bytes of such a file
    if too_many or max(height, width) > LONGEST.get(kind, math.inf):
        raise UserError(f"cannot write {path}: {kind} cannot hold {width}×{height} pixels. "
                        "Convert the input to PNG first.")
    if transparent and kind in OPAQUE:
        raise UserError(f"cannot write {path}: the picture is transparent and {kind} is not. "
                        "Rename the input to .png, or flatten it first.")
    return options


def write_picture(path: str | Path, picture: Picture) -> Path:
    """Write a picture with its colour profile and metadata, atomically, in the format that the
    suffix names."""
    path = Path(path)
    options = dict(check_writable(path, *picture.rgb.shape[:2], picture.is_transparent))
    kind = options["format"]
    image = Image.fromarray(picture.rgb)
    if picture.grey:
        image = image.convert("L")
    if picture.alpha is not None and kind not in OPAQUE:
        image.putalpha(Image.fromarray(picture.alpha))
    if picture.icc:
        options["icc_profile"] = picture.icc
    if picture.lossless and kind == "WEBP":
        options["lossless"] = True
    about = save_options(picture.metadata, kind, image.size, picture.notes)
    with atomic_path(path) as temporary:
        try:
            with _quiet(kind):
                image.save(temporary, **options | about)
        except (ValueError, TypeError, struct.error):  # a field that its format cannot hold
            picture.notes.append("its metadata cannot be written and are left out")
            image.save(temporary, **options)
        except OSError as error:
            if error.errno is None:  # libtiff does not say that the disk is full: ask for more room
                with temporary.open("ab") as file:
                    os.posix_fallocate(file.fileno(), file.tell(), 1 << 20)
            raise
    return path


def compress_figure(png: bytes, lossy: str) -> tuple[str, bytes]:
    """A PNG figure in a smaller file for the eye: (suffix without the dot, content).

    Where 256 colours are enough (root mean square change up to 1.5 steps of 8 bits), as for a
    drawing, PNG with these; else what is smaller, PNG with all or `lossy`, "WEBP" or "JPEG".
    """
    def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, format=kind, **options)
        return buffer.getvalue()

    with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        picture = opened.convert("RGB")
    few = picture.quantize(256, dither=Image.Dither.NONE)
    change = np.asarray(few.convert("RGB"), np.float32) - np.asarray(picture, np.float32)
    if np.sqrt(np.mean(change**2)) <= 1.5:
        return "png", encoded(few, "PNG", optimize=True)
    whole = encoded(picture, "PNG", optimize=True)
    packed = encoded(picture, lossy, quality=90, subsampling=0, method=6)  # each takes one of these
    return ("png", whole) if len(whole) <= len(packed) else (lossy.lower(), packed)
