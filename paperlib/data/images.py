"""Reading images of any common kind as 8-bit RGB, with errors that say what to do."""

import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from paperlib.errors import UserError
from paperlib.files import atomic_path

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


def find_images(folder: str | Path) -> list[Path]:
    """The images directly inside a folder, sorted by name.

    Raises:
        UserError: the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}. Name an existing folder of images.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not files:
        raise UserError(f"{folder} holds no image ({', '.join(EXTENSIONS)}). Name a folder with images.")
    return files


def read_rgb(path: str | Path) -> np.ndarray:
    """An image as 8-bit RGB for training and evaluation, uint8 (H, W, 3); turned as its EXIF orientation says.

    Grey becomes three equal channels, 16 bits become 8 (divided by 257, rounded), palettes and CMYK become RGB.

    Raises:
        UserError: missing, damaged or truncated, or with transparent pixels, whose colour is undefined.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                grey = np.round(np.asarray(image).astype(np.float64) / 257).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[:, :, 3].min() < 255:
                raise UserError(f"{path} has transparent pixels. Flatten it onto a background, or leave it out.")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read {path} as an image ({error}). Replace or remove the file.") from error


SAVE_OPTIONS = {
    ".png": {"format": "PNG", "compress_level": 1}, ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "quality": 95, "method": 2}, ".tif": {"format": "TIFF", "compression": "tiff_lzw"},
    ".bmp": {"format": "BMP"}}
"""By suffix. PNG is packed lightly: at 4K, its usual packing takes longer than the network."""
LONGEST = {"JPEG": 65_535, "WEBP": 16_383}
"""Most pixels a side that a format can hold."""


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


def _from_cmyk(image: Image.Image, picture_notes: list[str]) -> Image.Image:
    """CMYK → sRGB, through the embedded profile where there is one."""
    profile = image.info.get("icc_profile")
    if not profile:
        picture_notes.append("CMYK without a colour profile: colours are approximate")
        return image.convert("RGB")
    picture_notes.append("CMYK converted to sRGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")


def _to_8_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """16-bit grey → 8 bits, rounded; other deep modes are refused."""
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a channel, of which no one knows the range; save it with 8 or 16 bits")
    notes.append("16 bits a channel reduced to 8")
    return Image.fromarray(np.rint(np.asarray(image, np.float32) / 257).astype(np.uint8))


def _decode(image: Image.Image) -> Picture:
    """Pixels of an opened image as a `Picture`."""
    notes: list[str] = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"only the first of {frames} frames is used")
    if image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in image.tile):
        notes.append("16 bits a channel reduced to 8")  # by Pillow, while decoding
    image = ImageOps.exif_transpose(image)
    icc = image.info.get("icc_profile")
    if image.mode == "CMYK":
        image, icc = _from_cmyk(image, notes), None
    elif image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image, notes)
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
    # Transparent palette entries carry their colour only through RGBA.
    rgb = np.asarray((image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB"))
    return Picture(rgb, alpha, grey, icc, notes)


def read_picture(path: str | Path) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF or BMP file, the right way up.

    Raises:
        UserError: missing, damaged, truncated, larger than 89 megapixels, or of an unknown kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _decode(image)
    except FileNotFoundError as error:
        raise UserError(f"no picture at {path}. Name an existing file.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS // 10**6
        raise UserError(f"{path} has more than {limit} megapixels. Cut it into parts.") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UserError(f"cannot read {path} as a picture ({error}). Replace or remove the file.") from error


def _options(path: Path) -> dict:
    suffix = path.suffix.lower()
    suffix = {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)
    if suffix not in SAVE_OPTIONS:
        raise UserError(f"cannot write {path}: unknown kind {suffix!r}. Use {', '.join(SAVE_OPTIONS)}.")
    return SAVE_OPTIONS[suffix]


def check_writable(path: str | Path, height: int, width: int) -> None:
    """Whether a picture of that size can be written under that name, asked before the work is done.

    Raises:
        UserError: an unknown suffix, or a format that cannot hold so large a picture.
    """
    limit = LONGEST.get(_options(Path(path))["format"])
    if limit and max(height, width) > limit:
        raise UserError(f"cannot write {path}: {width}×{height} is more than the {limit} pixels a side this format can "
                        "hold. Convert the input to PNG first.")


def write_picture(path: str | Path, picture: Picture) -> Path:
    """Write a picture, atomically, in the format that the suffix names, with its colour profile.

    Raises:
        UserError: an unknown suffix, a picture too large for the format, or a folder that cannot be written.
    """
    path = Path(path)
    check_writable(path, *picture.rgb.shape[:2])
    image = Image.fromarray(picture.rgb)
    if picture.grey:
        image = image.convert("L")
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
    profile = {"icc_profile": picture.icc} if picture.icc else {}
    with atomic_path(path) as temporary:
        image.save(temporary, **_options(path), **profile)
    return path
