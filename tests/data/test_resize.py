"""Bicubic resizing is MATLAB's, to the last bit, and the two baselines are what they say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from paperlib.data.photographs import read_pairs
from paperlib.data.resize import bicubic_downscale, bicubic_upscale


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel with parameter a."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resize_axis(x: np.ndarray, ratio: float, a: float) -> np.ndarray:
    """One axis (the first) by the definition: weighted sums over mirrored pixels, kernel widened when shrinking."""
    size, out = len(x), round(len(x) * ratio)
    widen = min(ratio, 1.0)
    rows = []
    for i in range(out):
        centre = (i + 0.5) / ratio - 0.5
        reach = int(np.ceil(2 / widen)) + 1
        taps = np.arange(int(np.floor(centre)) - reach, int(np.floor(centre)) + reach + 1)
        weights = cubic((centre - taps) * widen, a)
        mirrored = np.where(taps % (2 * size) < size, taps % (2 * size), 2 * size - 1 - taps % (2 * size))
        rows.append(np.tensordot(weights / weights.sum(), x[mirrored], 1))
    return np.stack(rows)


@pytest.mark.parametrize("shape", [(30, 42), (3, 3), (6, 30)])
def test_downscale_is_the_definition_with_rounding_after_each_axis(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    rows = np.clip(np.round(resize_axis(image.astype(float), 1 / 3, -0.5)), 0, 255)
    both = np.clip(np.round(resize_axis(rows.swapaxes(0, 1), 1 / 3, -0.5).swapaxes(0, 1)), 0, 255)
    difference = np.abs(bicubic_downscale(image).astype(int) - both)
    assert difference.max() <= 1  # float32 against float64 at an exact half
    assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("name", ["Set5", "Set14", "B100"])
def test_no_pixel_differs_from_published_lr_images(data_root, name):
    folder = data_root / "benchmark" / name
    pairs = read_pairs(folder / "HR", folder / "LR_bicubic" / "X3")
    for index in range(0, len(pairs), 1 + len(pairs) // 10):
        pair = pairs[index]
        assert np.array_equal(bicubic_downscale(pair.hr), pair.lr), pair.name


def test_upscale_matches_its_two_definitions():
    image = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    matlab = resize_axis(resize_axis(image.astype(float), 3, -0.5).swapaxes(0, 1), 3, -0.5).swapaxes(0, 1)
    np.testing.assert_allclose(bicubic_upscale(image, kernel="matlab"), matlab.clip(0, 255), atol=2e-3)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    wanted = F.interpolate(x, scale_factor=3, mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0)
    np.testing.assert_allclose(bicubic_upscale(image), wanted, atol=2e-3)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        bicubic_downscale(np.zeros((10, 9, 3), np.uint8))
