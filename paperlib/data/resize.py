"""Bicubic resizing as the field's data sets use it (paper section 6): MATLAB's `imresize`, exact to the last bit."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.settings import SCALE


def _tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) in 0..255 → float32 (1, 3, H, W)."""
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]


def _mirror(x: Tensor, axis: int, width: int) -> Tensor:
    """Pad both ends of an axis by mirroring with the border row repeated, also where the image is narrower."""
    size = x.shape[axis]
    index = torch.arange(-width, size + width) % (2 * size)
    return x.index_select(axis, torch.where(index < size, index, 2 * size - 1 - index))


def bicubic_downscale(hr: np.ndarray, scale: int = SCALE, round_each_axis: bool = True) -> np.ndarray:
    """HR → LR by MATLAB's antialiased bicubic filter.

    Args:
        hr: uint8 (H, W, 3), H and W multiples of `scale`.
        round_each_axis: MATLAB rounds to 8 bits after rows and again after columns; False rounds once (for comparison).

    Returns:
        uint8 (H/scale, W/scale, 3).

    Raises:
        ValueError: a side that is no multiple of `scale`.
    """
    height, width = hr.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"{height}×{width} is no multiple of {scale}: crop first")
    x, margin = _tensor(hr), 4
    for axis in (2, 3):
        size = list(x.shape[2:])
        size[axis - 2] = size[axis - 2] // scale + 2 * margin
        x = F.interpolate(_mirror(x, axis, margin * scale), size=size, mode="bicubic", antialias=True)
        x = x.narrow(axis, margin, x.shape[axis] - 2 * margin)
        x = x.round().clamp(0, 255) if round_each_axis else x
    return x.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()


def bicubic_upscale(lr: np.ndarray, scale: int = SCALE, kernel: str = "torch") -> np.ndarray:
    """LR → bicubic enlargement, the baseline of Table B.

    Args:
        lr: uint8 (h, w, 3).
        kernel: "torch" (a = −0.75, what the authors' log scored) or "matlab" (a = −0.5, as in `bicubic_downscale`).

    Returns:
        float32 (scale·h, scale·w, 3), clipped to 0..255, not rounded.
    """
    x = _tensor(lr)
    if kernel == "torch":
        x = F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)
    elif kernel == "matlab":  # antialias changes the kernel's parameter to −0.5; enlarging, it blurs nothing
        margin = 4
        for axis in (2, 3):
            x = _mirror(x, axis, margin)
            size = list(x.shape[2:])
            size[axis - 2] *= scale
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
            x = x.narrow(axis, margin * scale, x.shape[axis] - 2 * margin * scale)
    else:
        raise ValueError(f"kernel {kernel!r} is neither 'torch' nor 'matlab'")
    return x.clamp(0, 255)[0].permute(1, 2, 0).numpy()
