"""Bicubic resizing (paper section 6): MATLAB's `imresize` to the last bit, and PyTorch's.

Keys' cubic kernel has one free parameter: a = −0.5 in MATLAB, −0.75 in PyTorch. MATLAB widens the
kernel when it makes an image smaller, and mirrors it at its borders with the border row repeated;
PyTorch repeats the border row alone.
"""

from collections.abc import Iterator

import numpy as np

from paperlib.settings import SCALE

KERNELS = {"torch": -0.75, "matlab": -0.5}  # parameter a
BAND = 1 << 21  # values of the result that are computed at a time, in float64


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel at distances x, in pixels."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _resized(x: np.ndarray, axis: int, out: int, kernel: str,
             part: slice = slice(None)) -> np.ndarray:
    """`x` resized along one axis to `out` pixels, of which `part` is wanted, in float64."""
    size = x.shape[axis]
    narrow = min(out / size, 1.0)
    centre = (np.arange(out) + 0.5) * size / out - 0.5
    reach = int(np.ceil(2 / narrow))
    taps = np.floor(centre).astype(int)[:, None] + np.arange(-reach, reach + 2)  # (out, taps)
    weights = cubic((centre[:, None] - taps) * narrow, KERNELS[kernel])
    weights /= weights.sum(1, keepdims=True)
    if kernel == "matlab":
        taps %= 2 * size
        taps = np.where(taps < size, taps, 2 * size - 1 - taps)
    else:
        taps = taps.clip(0, size - 1)
    taps, weights = taps[part], weights[part]
    x = np.moveaxis(x, axis, 0)
    shape = (len(taps), *[1] * (x.ndim - 1))
    total = np.zeros((len(taps), *x.shape[1:]))
    for tap, weight in zip(taps.T, weights.T, strict=True):
        if weight.any():
            total += weight.reshape(shape) * x[tap]
    return np.moveaxis(total, 0, axis)


def _bands(height: int, width: int) -> Iterator[slice]:
    """Rows of a result that are computed together."""
    rows = max(1, BAND // (3 * width))
    return (slice(top, top + rows) for top in range(0, height, rows))


def _to_8_bits(x: np.ndarray) -> np.ndarray:
    """Rounded as MATLAB does, a half upwards; what sums leave of a half (1e-9) counts as one."""
    return np.floor(x + (0.5 + 1e-9)).clip(0, 255)


def bicubic_downscale(hr: np.ndarray, round_each_axis: bool = True) -> np.ndarray:
    """HR → LR by MATLAB's antialiased bicubic filter, uint8 (3h, 3w, 3) → uint8 (h, w, 3).

    MATLAB rounds to 8 bits after rows and again after columns; not `round_each_axis`: once.
    """
    height, width = hr.shape[:2]
    if height % SCALE or width % SCALE:
        raise ValueError(f"{height}×{width} is no multiple of {SCALE}: crop first")
    lr = np.empty((height // SCALE, width // SCALE, 3), np.uint8)
    for part in _bands(len(lr), width):
        x = _resized(hr, 0, len(lr), "matlab", part)
        x = _resized(_to_8_bits(x) if round_each_axis else x, 1, width // SCALE, "matlab")
        lr[part] = _to_8_bits(x)
    return lr


def bicubic_upscale(lr: np.ndarray, kernel: str = "torch") -> np.ndarray:
    """The baseline of Table B: uint8 (h, w, 3) → float32 (3h, 3w, 3) in 0..255, not rounded; by the
    kernel "torch" (what the authors' log scored) or "matlab"."""
    height, width = (SCALE * side for side in lr.shape[:2])
    sr = np.empty((height, width, 3), np.float32)
    for part in _bands(height, width):
        x = _resized(lr, 0, height, kernel, part)
        sr[part] = _resized(x, 1, width, kernel).clip(0, 255)
    return sr
