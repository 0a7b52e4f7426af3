"""PSNR and SSIM against closed forms, scikit-image and TensorFlow."""

import math
from functools import partial

import numpy as np
import pytest
from skimage.color import rgb2ycbcr
from skimage.data import astronaut, coffee
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from paperlib.evaluation.metrics import (
    METRICS,
    luma_255,
    mean_scores,
    psnr_full_range_y,
    psnr_rgb,
    psnr_y,
    scores,
    ssim_rgb,
    ssim_tensorflow,
    ssim_y,
    tensorflow_mean,
)


def noisy(hr: np.ndarray, sigma: float = 9.0) -> np.ndarray:
    return (hr + np.random.default_rng(1).normal(0, sigma, hr.shape)).astype(np.float32)


def test_constant_offset_of_one_is_48_13_db():
    hr = astronaut()[:60, :60].clip(0, 254)
    assert psnr_rgb(hr + 1.0, hr) == pytest.approx(48.1308, abs=1e-4)
    luma_step = (65.481 + 128.553 + 24.966) / 255
    assert psnr_y(hr + 1.0, hr) == pytest.approx(48.1308 - 20 * math.log10(luma_step), abs=1e-4)


def test_rgb_clips_but_does_not_round():
    hr = np.full((20, 20, 3), 250, np.uint8)
    assert psnr_rgb(np.full(hr.shape, 400.0), hr) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr_rgb(np.full(hr.shape, 250.25), hr) == pytest.approx(20 * math.log10(255 / 0.25))
    wild, hr = noisy(coffee()[:40, :40], 90), coffee()[:40, :40]
    assert scores(wild, hr) == scores(wild.clip(0, 255), hr)
    assert ssim_tensorflow(wild, hr) == ssim_tensorflow(wild.clip(0, 255), hr)


def test_y_rounds_and_leaves_three_pixels_out():
    hr = np.full((24, 24, 3), 100, np.uint8)
    assert psnr_y(hr + 0.4, hr) == math.inf
    frame = hr + 0.0
    frame[:3] = frame[-3:] = frame[:, :3] = frame[:, -3:] = 0
    assert psnr_y(frame, hr) == math.inf
    frame[3, 12] = 0
    assert psnr_y(frame, hr) < 40


def test_luma_is_bt601_studio_range():
    np.testing.assert_allclose(luma_255(np.eye(3) * 255), [81.481, 144.553, 40.966], atol=1e-9)
    np.testing.assert_allclose(luma_255(coffee()), rgb2ycbcr(coffee())[..., 0], atol=1e-9)


@pytest.mark.parametrize("height", [17, 137, 138, 139, 300])
def test_they_are_scikit_images_of_the_whole_picture(height):
    hr = astronaut()[:height, 50:170]
    sr = noisy(hr).clip(0, 255)
    ssim = partial(structural_similarity, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    whole = ssim(sr.astype(float), hr.astype(float), channel_axis=2)
    assert ssim_rgb(sr, hr) == pytest.approx(whole, abs=1e-12)
    luma = [luma_255(image)[3:-3, 3:-3] for image in (np.rint(sr), hr)]
    assert ssim_y(sr, hr) == pytest.approx(ssim(*luma), abs=1e-12)
    wanted = peak_signal_noise_ratio(hr.astype(float), sr, data_range=255)
    assert psnr_rgb(sr, hr) == pytest.approx(wanted)


def test_equal_images_and_images_below_the_window():
    hr = coffee()[:40, :40]
    assert list(scores(hr, hr).values()) == [math.inf, 1.0, math.inf, 1.0]
    small = scores(hr[:12, :12] * 0.5, hr[:12, :12])  # 6 × 6 inside the border
    assert math.isfinite(small["psnr_y"])
    assert math.isfinite(small["ssim_rgb"])
    assert math.isnan(small["ssim_y"])
    tiny = scores(hr[:6, :6] * 0.5, hr[:6, :6])
    assert math.isfinite(tiny["psnr_rgb"])
    assert all(math.isnan(tiny[name]) for name in ("ssim_rgb", "psnr_y", "ssim_y"))


def test_mean_is_of_images_and_leaves_out_what_has_no_value():
    rows = [dict.fromkeys(METRICS, value) for value in (30.0, 31.0, math.nan)]
    rows[2]["psnr_rgb"] = math.inf
    assert mean_scores(rows) == dict.fromkeys(METRICS, 30.5)
    assert all(math.isnan(value) for value in mean_scores(rows[2:]).values())


def test_wrong_shapes_are_refused():
    grey = np.zeros((20, 20))
    with pytest.raises(ValueError, match="one size"):
        psnr_rgb(grey, grey)
    with pytest.raises(ValueError, match="one size"):
        ssim_y(np.zeros((20, 20, 3)), np.zeros((20, 21, 3)))


@pytest.mark.parametrize(("height", "width"), [(1, 7), (37, 50), (512, 512), (1346, 2030)])
def test_the_mean_is_tensorflows_bit_for_bit(height, width):
    tf = pytest.importorskip("tensorflow")
    for low in (0.9, -0.2):
        values = np.random.default_rng(0).uniform(low, 1, (1, height, width, 3)).astype(np.float32)
        wanted = tf.reduce_mean(values, [-3, -2]).numpy()[0]
        assert [tensorflow_mean(values[0, ..., channel]) for channel in range(3)] == wanted.tolist()


def test_ssim_tensorflow_is_tensorflows_and_on_large_pictures_too_high():
    tf = pytest.importorskip("tensorflow")
    large = np.tile(coffee(), (4, 3, 1))
    for hr, drift in ((coffee()[:90, :70], (-1e-5, 1e-5)), (large, (0.003, 0.03))):
        sr = noisy(hr, 1.5).clip(0, 255)
        wanted = float(tf.image.ssim(sr[None], hr[None].astype(np.float32), 255.0)[0])
        assert ssim_tensorflow(sr, hr) == pytest.approx(wanted, abs=1e-5)
        assert drift[0] < ssim_tensorflow(sr, hr) - ssim_rgb(sr, hr) < drift[1]
    assert math.isnan(ssim_tensorflow(hr[:10], hr[:10]))


def test_the_reports_luma_has_the_full_range():
    hr = np.full((20, 20, 3), 100, np.uint8)
    for colour, weight in zip(np.eye(3), (0.299, 0.587, 0.114), strict=True):
        wanted = 48.1308 - 20 * math.log10(weight)
        assert psnr_full_range_y(hr + colour, hr) == pytest.approx(wanted, abs=1e-4)
    assert psnr_full_range_y(hr + 300.0, hr) == pytest.approx(20 * math.log10(255 / 155))
