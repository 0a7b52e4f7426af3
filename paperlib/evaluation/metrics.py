"""PSNR and SSIM as the paper and the literature measure them (paper section 6).

Two protocols, each metric defined once: `*_rgb` is the paper's (all three channels, no border crop, the clipped output
as it is, not rounded); `*_y` is the literature's on Set5, Set14 and B100 (output rounded to 8 bits, BT.601 luma, a
border of 3 pixels left out). All functions are pure and take (H, W, 3) RGB arrays in 0..255.
"""

import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from skimage.metrics import structural_similarity

METRICS = ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y")
CROP = 3
"""Pixels left out at each border by the `*_y` metrics."""
WINDOW = 11
"""Side of SSIM's Gaussian window (σ 1.5)."""
STRIP = 128
"""Rows of the SSIM map computed at a time: strips that fit the cache are faster, and use both cores."""


def luma_255(rgb_255: np.ndarray) -> np.ndarray:
    """BT.601 studio-range Y (16..235) of RGB in 0..255, not rounded, as MATLAB's rgb2ycbcr; (H, W, 3) → (H, W)."""
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return np.asarray(rgb_255, np.float64) @ weights + 16.0


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of two equally shaped arrays in 0..255: inf when equal, nan when empty."""
    if one.size == 0:
        return math.nan
    difference = np.subtract(one, other, dtype=np.float64).ravel()
    error = float(np.dot(difference, difference)) / difference.size
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Mean SSIM of two (H, W, C) arrays in 0..255 where the window lies wholly inside; nan when it never does.

    scikit-image's result, which is the reference MATLAB code's, computed strip by strip.
    """
    height, width, channels = one.shape
    rows = height - WINDOW + 1  # of the SSIM map
    if rows < 1 or width < WINDOW:
        return math.nan

    def strip(place: tuple[int, int]) -> float:
        channel, top = place
        count = min(STRIP, rows - top)
        part = (slice(top, top + count + WINDOW - 1), slice(None), channel)
        mean = structural_similarity(
            one[part].astype(np.float64), other[part].astype(np.float64), data_range=255, gaussian_weights=True,
            sigma=1.5, use_sample_covariance=False)
        return count * float(mean)

    places = [(channel, top) for channel in range(channels) for top in range(0, rows, STRIP)]
    with ThreadPoolExecutor(min(len(places), os.cpu_count() or 1)) as pool:
        return math.fsum(pool.map(strip, places)) / (rows * channels)


def _check(sr_255: np.ndarray, hr_255: np.ndarray) -> None:
    if sr_255.shape != hr_255.shape or sr_255.ndim != 3 or sr_255.shape[2] != 3:
        raise ValueError(f"expected two (H, W, 3) arrays of one size, got {sr_255.shape} and {hr_255.shape}")


def _clipped(sr_255: np.ndarray, hr_255: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _check(sr_255, hr_255)
    return np.clip(sr_255, 0, 255), hr_255


def _cropped_luma(sr_255: np.ndarray, hr_255: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _check(sr_255, hr_255)
    inner = (slice(CROP, -CROP), slice(CROP, -CROP))
    return luma_255(np.rint(np.clip(sr_255, 0, 255))[inner]), luma_255(hr_255[inner])


def psnr_rgb(sr_255: np.ndarray, hr_255: np.ndarray) -> float:
    """PSNR in dB over all channels and pixels of the clipped, unrounded output; inf for equal images.

    Args:
        sr_255: (H, W, 3), 0..255, float or uint8; values outside are clipped.
        hr_255: (H, W, 3), 0..255.

    Raises:
        ValueError: the shapes differ or are not (H, W, 3).
    """
    return _psnr(*_clipped(sr_255, hr_255))


def ssim_rgb(sr_255: np.ndarray, hr_255: np.ndarray) -> float:
    """Mean over the channels of SSIM (Wang et al. 2004: Gaussian window 11, σ 1.5) of the clipped, unrounded output.

    Arguments and errors as `psnr_rgb`; nan where a side is shorter than the window (11 pixels).
    """
    return _ssim(*_clipped(sr_255, hr_255))


def psnr_y(sr_255: np.ndarray, hr_255: np.ndarray) -> float:
    """PSNR in dB of Y: output rounded to 8 bits, BT.601, 3 border pixels left out; inf for equal images.

    Arguments and errors as `psnr_rgb`; nan where nothing is left inside the border.
    """
    return _psnr(*_cropped_luma(sr_255, hr_255))


def ssim_y(sr_255: np.ndarray, hr_255: np.ndarray) -> float:
    """SSIM of Y: output rounded to 8 bits, BT.601, 3 border pixels left out.

    Arguments and errors as `psnr_rgb`; nan where what is left is smaller than the window (11 pixels).
    """
    sr_y, hr_y = _cropped_luma(sr_255, hr_255)
    return _ssim(sr_y[..., None], hr_y[..., None])


def scores(sr_255: np.ndarray, hr_255: np.ndarray) -> dict[str, float]:
    """All four metrics of one image, by name (`METRICS`); arguments and errors as `psnr_rgb`."""
    sr_y, hr_y = _cropped_luma(sr_255, hr_255)
    return {"psnr_rgb": psnr_rgb(sr_255, hr_255), "ssim_rgb": ssim_rgb(sr_255, hr_255), "psnr_y": _psnr(sr_y, hr_y),
            "ssim_y": _ssim(sr_y[..., None], hr_y[..., None])}


def mean_scores(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of per-image values (not of pooled errors), metric by metric; nan for a metric without any value.

    Images without a finite value (equal to the original: PSNR inf; smaller than the window: SSIM nan) do not count.
    """
    rows = list(rows)
    means = {}
    for metric in METRICS:
        values = [row[metric] for row in rows if math.isfinite(row[metric])]
        means[metric] = math.fsum(values) / len(values) if values else math.nan
    return means
