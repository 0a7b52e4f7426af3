"""PSNR and SSIM as the paper and the literature measure them (paper section 6).

`*_rgb` is the paper's protocol: three channels, no border crop, the clipped output, not rounded.
`*_y` is the literature's on Set5, Set14 and B100: output rounded to 8 bits, BT.601 luma, a border
of 3 pixels left out. `ssim_tensorflow` and `psnr_full_range_y` repeat columns of the authors'
report. All take (H, W, 3) RGB arrays in 0..255; a ValueError where two shapes differ.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

METRICS = ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y")
CROP = 3  # pixels left out at each border by the `*_y` metrics
WINDOW, SIGMA = 11, 1.5  # SSIM's Gaussian window: side and standard deviation in pixels


def luma_255(rgb_255: np.ndarray) -> np.ndarray:
    """BT.601 studio-range Y (16..235), (H, W), not rounded, as MATLAB's rgb2ycbcr."""
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return np.asarray(rgb_255, np.float64) @ weights + 16.0


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of two equally shaped arrays in 0..255: inf when equal, nan when empty."""
    if one.size == 0:
        return math.nan
    difference = np.subtract(one, other, dtype=np.float64).ravel()
    error = float(np.dot(difference, difference)) / difference.size
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _in_strips(of_strip: Callable[[int, slice], Any], shape: tuple[int, ...],
               rows: int) -> list[Any]:
    """`of_strip(channel, rows of the image)` for every channel, `rows` of the SSIM map at a time,
    on up to four cores: each takes 4 bytes more a pixel of the picture (`data.images.SCORED`)."""
    height, _, channels = shape
    places = [(channel, slice(top, min(top + rows, height - WINDOW + 1) + WINDOW - 1))
              for channel in range(channels) for top in range(0, height - WINDOW + 1, rows)]
    with ThreadPoolExecutor(min(len(places), os.cpu_count() or 1, 4)) as pool:
        return list(pool.map(lambda place: of_strip(*place), places))


def _ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Mean SSIM of two (H, W, C) arrays where the window lies wholly inside; nan if nowhere.
    scikit-image's result, which is the reference MATLAB code's."""
    if min(one.shape[:2]) < WINDOW:
        return math.nan

    def strip(channel: int, rows: slice) -> float:
        mean = structural_similarity(
            one[rows, :, channel].astype(np.float64), other[rows, :, channel].astype(np.float64),
            data_range=255, gaussian_weights=True, sigma=SIGMA, use_sample_covariance=False)
        return (rows.stop - rows.start - WINDOW + 1) * float(mean)

    rows = (one.shape[0] - WINDOW + 1) * one.shape[2]
    return math.fsum(_in_strips(strip, one.shape, 128)) / rows


def _clipped(sr_255: np.ndarray, hr_255: np.ndarray) -> np.ndarray:
    if sr_255.shape != hr_255.shape or sr_255.ndim != 3 or sr_255.shape[2] != 3:
        raise ValueError(
            f"expected two (H, W, 3) arrays of one size, got {sr_255.shape} and {hr_255.shape}")
    return np.clip(sr_255, 0, 255)


def _cropped_luma(sr_255: np.ndarray, hr_255: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sr, inner = np.rint(_clipped(sr_255, hr_255)), (slice(CROP, -CROP), slice(CROP, -CROP))
    return luma_255(sr[inner]), luma_255(hr_255[inner])


def psnr_rgb(sr_255: np.ndarray, hr_255: np.ndarray) -> float:
    """PSNR in dB over all channels and pixels of the clipped, unrounded output; inf if equal."""
    return _psnr(_clipped(sr_255, hr_255), hr_255)


def ssim_rgb(sr_255: np.ndarray, hr_255: np.ndarray) -> float:
    """SSIM (Wang et al. 2004) of the clipped, unrounded output, mean of RGB; nan below 11 px."""
    return _ssim(_clipped(sr_255, hr_255), hr_255)


def psnr_y(sr_255: np.ndarray, hr_255: np.ndarray) -> float:
    """PSNR in dB of Y: output rounded to 8 bits, BT.601, no border pixels; nan if none is left."""
    return _psnr(*_cropped_luma(sr_255, hr_255))


def ssim_y(sr_255: np.ndarray, hr_255: np.ndarray) -> float:
    """SSIM of Y: output rounded to 8 bits, BT.601, no border pixels; nan as in `ssim_rgb`."""
    sr_y, hr_y = _cropped_luma(sr_255, hr_255)
    return _ssim(sr_y[..., None], hr_y[..., None])


def scores(sr_255: np.ndarray, hr_255: np.ndarray) -> dict[str, float]:
    """All four metrics of one image, by name (`METRICS`)."""
    return {"psnr_rgb": psnr_rgb(sr_255, hr_255), "ssim_rgb": ssim_rgb(sr_255, hr_255),
            "psnr_y": psnr_y(sr_255, hr_255), "ssim_y": ssim_y(sr_255, hr_255)}


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of the finite per-image values (not of pooled errors) by metric; nan without any."""
    means = {}
    for metric in METRICS:
        values = [row[metric] for row in rows if math.isfinite(row[metric])]
        means[metric] = math.fsum(values) / len(values) if values else math.nan
    return means


def psnr_full_range_y(sr_255: np.ndarray, hr_255: np.ndarray) -> float:
    """PSNR in dB of 0.299 R + 0.587 G + 0.114 B: no crop, not rounded (Y in the authors' report);
    about 1.3 dB below `psnr_y`, whose range is 16..235."""
    weights = np.array([0.299, 0.587, 0.114])
    return _psnr(_clipped(sr_255, hr_255).astype(np.float64) @ weights, hr_255 @ weights)


def tensorflow_mean(values: np.ndarray) -> np.float32:
    """The mean as TensorFlow's CPU kernel takes it, float32, one number after another: bit for bit
    `tf.reduce_mean(x, [1, 2])` for a channel of an (1, H, W, 3) tensor. Once a sum of numbers near
    1 passes 2²¹, float32 values are 0.25 apart, and every addition is rounded to that."""
    values = np.asarray(values, np.float32).ravel()
    return np.add.accumulate(values)[-1] / np.float32(values.size)


def _tensorflow_window() -> np.ndarray:
    """SSIM's window (11, 11) in float32, within one rounding of TensorFlow's softmax."""
    ramp = np.arange(-(WINDOW // 2), WINDOW // 2 + 1, dtype=np.float32) ** 2
    ramp *= np.float32(-0.5) / np.float32(SIGMA**2)
    bell = np.exp(np.add.outer(ramp, ramp).astype(np.float64)).astype(np.float32)
    return bell * (1 / np.float32(bell.sum(dtype=np.float64)))


def _tensorflow_map(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The SSIM map of one channel in float32, with the order of TensorFlow's operations."""
    window, shape = _tensorflow_window(), (one.shape[0] - WINDOW + 1, one.shape[1] - WINDOW + 1)

    def blurred(x: np.ndarray) -> np.ndarray:
        total, product = np.zeros(shape, np.float32), np.empty(shape, np.float32)
        for (i, j), weight in np.ndenumerate(window):
            total += np.multiply(x[i : i + shape[0], j : j + shape[1]], weight, out=product)
        return total

    c1, c2 = ((np.float32(k) * np.float32(255)) ** 2 for k in (0.01, 0.03))
    mean_one, mean_other = blurred(one), blurred(other)
    cross, power = mean_one * mean_other * 2, mean_one * mean_one + mean_other * mean_other
    both, squares = blurred(one * other) * 2, blurred(one * one + other * other)
    return (cross + c1) / (power + c1) * ((both - cross + c2) / (squares - power + c2))


def ssim_tensorflow(sr_255: np.ndarray, hr_255: np.ndarray) -> float:
    """The paper's SSIM: `tf.image.ssim` of a whole picture on a CPU, whose mean (`tensorflow_mean`)
    drifts upwards: up to 0.02 for pictures of DIV2K's size. nan as in `ssim_rgb`.

    Equal to TensorFlow 2.21 to 4e-6 without oneDNN, which itself moves the result by up to 1.4e-5.
    """
    one, other = (np.asarray(x, np.float32) for x in (_clipped(sr_255, hr_255), hr_255))
    if min(one.shape[:2]) < WINDOW:
        return math.nan
    strips = _in_strips(lambda channel, rows: _tensorflow_map(
        np.ascontiguousarray(one[rows, :, channel]), np.ascontiguousarray(other[rows, :, channel])),
        one.shape, 32)
    count = len(strips) // 3
    red, green, blue = (tensorflow_mean(np.concatenate(strips[start : start + count]))
                        for start in range(0, 3 * count, count))
    return float((red + green + blue) / np.float32(3))
