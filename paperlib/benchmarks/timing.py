"""Timing two things fairly: in turn, in one process, several runs each; and what the machine can do at most."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity


def interleaved(
    functions: dict[str, Callable[[], Any]], rounds: int, warm: int = 1,
    pick: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Median (or `pick`) seconds of each function over `rounds` passes through all, after `warm` uncounted ones."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + warm):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if number >= warm:
                times[name].append(time.perf_counter() - begin)
    return {name: pick(values) for name, values in times.items()}


def branch_by_branch(student: torch.nn.Module) -> torch.nn.Module:
    """The student, in place, with every branch of a block computed by itself: what `student.fast_reparam` spares."""
    student._run_block = lambda block, x: block(x)
    return student


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A synthetic photograph whose PNG is about as large as a real one's: smooth shapes and noise; uint8 (h, w, 3)."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin((rows + 40 * seed) / 97) * np.cos(columns / (61 + channel + seed)) for channel in range(3)]
    image = 128 + 80 * np.stack(waves, axis=2)
    return np.clip(image + random.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def one_call_ssim(sr: np.ndarray, hr: np.ndarray) -> float:
    """SSIM RGB as the field computes it: one call of scikit-image on the whole picture."""
    return structural_similarity(
        sr.astype(np.float64), hr.astype(np.float64), channel_axis=2, data_range=255,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False)


@torch.no_grad()
def peak_rate(batch: int, patch: int, channels: int = 32, rounds: int = 5) -> dict[str, Any]:
    """The fastest that this machine does float32 multiply–adds in any of several ways, as a yardstick.

    A large matrix product alone is none: where the matrix library does not use a processor's widest vectors, the
    convolutions' own library exceeds it.

    Args:
        batch, patch, channels: shape of the convolutions, those of the network that is measured by it.

    Returns:
        `flops`, operations per second in the fastest run of all, and `of`, what that was.
    """
    square, image = torch.rand(2048, 2048), torch.rand(batch, channels, patch, patch)
    kernels = {str(out): torch.rand(out, channels, 3, 3) for out in (channels, 4 * channels)}
    jobs: dict[str, tuple[float, Callable[[], Any]]] = {}  # operations, and what does them
    jobs["2048² matrix product"] = 2.0 * 2048**3, lambda: square @ square
    for out, kernel in kernels.items():
        for layout, form in (("plain", torch.contiguous_format), ("channels-last", torch.channels_last)):
            x, weight = image.contiguous(memory_format=form), kernel.contiguous(memory_format=form)
            jobs[f"3×3 convolution {channels}→{out}, {layout}"] = (
                2.0 * kernel.numel() * batch * patch**2, lambda x=x, weight=weight: F.conv2d(x, weight, padding=1))
    seconds = interleaved({name: run for name, (_, run) in jobs.items()}, rounds, warm=2, pick=min)
    rates = {name: work / seconds[name] for name, (work, _) in jobs.items()}
    best = max(rates, key=lambda name: rates[name])
    return {"flops": rates[best], "of": best}


def fraction_of_peak(flops: float, peak: dict[str, Any]) -> dict[str, Any]:
    """`fraction_of_peak` and the peak it is a fraction of, for a benchmark's result.

    A rate above the peak shows that the peak was disturbed by other work; then there is no fraction to report.

    Args:
        flops: operations per second that were reached; peak: see `peak_rate`.
    """
    fraction = flops / peak["flops"]
    return {"peak_gflops": peak["flops"] / 1e9, "peak_of": peak["of"],
            "fraction_of_peak": fraction if fraction <= 1 else None}
