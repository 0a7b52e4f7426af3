"""Timing jobs fairly, in turn and several times each, and what the machine can do at most."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity


def timed(job: Callable[[], Any]) -> float:
    """Seconds that a job takes."""
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


def in_turn(
    jobs: Mapping[str, Any], rounds: int, warm: int = 1, measure: Callable[[Any], Any] = timed,
) -> dict[str, list[Any]]:
    """What `measure` says of each job in every round, after `warm` rounds that do not count."""
    found: dict[str, list[Any]] = {name: [] for name in jobs}
    for number in range(rounds + warm):
        for name, job in jobs.items():
            value = measure(job)
            if number >= warm:
                found[name].append(value)
    return found


def interleaved(
    jobs: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1,
) -> dict[str, float]:
    """Median seconds of each job, all `in_turn`."""
    return {name: statistics.median(values)
            for name, values in in_turn(jobs, rounds, warm).items()}


def branch_by_branch(student: torch.nn.Module) -> torch.nn.Module:
    """The student, in place, every branch computed by itself: without `student.fast_reparam`."""
    student._run_block = lambda block, x: block(x)
    return student


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes and noise whose PNG is as large as a photograph's; uint8 (h, w, 3)."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin((rows + 40 * seed) / 97) * np.cos(columns / (61 + channel + seed))
             for channel in range(3)]
    image = 128 + 80 * np.stack(waves, axis=2)
    return np.clip(image + random.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def one_call_ssim(sr: np.ndarray, hr: np.ndarray) -> float:
    """SSIM RGB as the field computes it: one call of scikit-image on the whole picture."""
    return structural_similarity(
        sr.astype(np.float64), hr.astype(np.float64), channel_axis=2, data_range=255,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False)


@torch.no_grad()
def peak_rate(batch: int, patch: int, rounds: int) -> dict[str, Any]:
    """The fastest float32 multiply-adds of this machine in any of several ways, as a yardstick.

    A matrix product alone is none: the convolutions' own library may use wider vectors. Returns
    `flops`, operations per second in the fastest run of all, and `of`, what that was.

    Args:
        batch, patch: shape of the convolutions' input, that of the measured network.
    """
    channels = 32
    square, image = torch.rand(2048, 2048), torch.rand(batch, channels, patch, patch)
    jobs: dict[str, Callable[[], Any]] = {"2048² matrix product": lambda: square @ square}
    work = {"2048² matrix product": 2.0 * 2048**3}  # operations
    layouts = {"plain": torch.contiguous_format, "channels-last": torch.channels_last}
    for out in (channels, 4 * channels):
        kernel = torch.rand(out, channels, 3, 3)
        for layout, form in layouts.items():
            name = f"3×3 convolution {channels}→{out}, {layout}"
            x, weight = image.contiguous(memory_format=form), kernel.contiguous(memory_format=form)
            jobs[name] = lambda x=x, weight=weight: F.conv2d(x, weight, padding=1)
            work[name] = 2.0 * kernel.numel() * batch * patch**2
    rates = {name: work[name] / min(values)
             for name, values in in_turn(jobs, rounds, warm=2).items()}
    best = max(rates, key=rates.__getitem__)
    return {"flops": rates[best], "of": best}


def fraction_of_peak(flops: float, peak: Mapping[str, Any]) -> dict[str, Any]:
    """Operations per second as a fraction of `peak_rate`; None above 1: that was disturbed."""
    fraction = flops / peak["flops"]
    return {"peak_gflops": peak["flops"] / 1e9, "peak_of": peak["of"],
            "fraction_of_peak": fraction if fraction <= 1 else None}
