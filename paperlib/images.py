"""Reading images of any common kind as 8-bit RGB, with errors that say what to do."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from paperlib.errors import UserError

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
