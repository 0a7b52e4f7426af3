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
    """An image as uint8 (H, W, 3) RGB.

    Raises:
        UserError: missing, damaged or truncated.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read {path} as an image ({error}). Replace or remove the file.") from error
