"""`paperlib bench`: speed as ratios inside one run, ours faster above 1 (paper section 4's costs, made small).

A ratio of medians of interleaved runs holds on a busy machine where a time alone does not. Each benchmark says what was
measured and on what.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from paperlib.benchmarks.epoch import bench_epoch, photograph
from paperlib.benchmarks.light import bench_light
from paperlib.benchmarks.tflite import bench_int8, bench_upscale
from paperlib.benchmarks.timing import branch_by_branch, fraction_of_peak, interleaved, peak_rate
from paperlib.data.dataset import TrainSet
from paperlib.data.pixel_store import open_store
from paperlib.data.resize import bicubic_downscale
from paperlib.environment import provenance
from paperlib.errors import UserError
from paperlib.evaluation.metrics import ssim_rgb
from paperlib.settings import SCALE, DataSettings, LossSettings, StudentSettings
from paperlib.student.graph import macs_per_lr_pixel
from paperlib.student.models import build_model, deployment_graph, fuse_model
from paperlib.student.network import with_form
from paperlib.training.losses import stage_loss


def bench_data(rounds: int = 5, batch: int = 16, patch: int = 42) -> dict[str, Any]:
    """A batch from the pixel store against opening the PNG files and cropping, as the field's data sets do."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hr = photograph(1356, 2040)
        Image.fromarray(hr).save(folder / "0001.png")
        (folder / "lr").mkdir()
        Image.fromarray(bicubic_downscale(hr)).save(folder / "lr" / "0001x3.png")
        settings = DataSettings(source="folders", train=(str(folder),))
        patches = TrainSet(open_store(settings), settings, 0, "bench", patch)

        def decode() -> None:
            for _, top, left, *_ in patches.batch(0, batch).samples:
                with Image.open(folder / "0001.png") as large, Image.open(folder / "lr" / "0001x3.png") as small:
                    np.asarray(large.convert("RGB"))[SCALE * top :][: SCALE * patch, SCALE * left :][:, : SCALE * patch]
                    np.asarray(small.convert("RGB"))[top : top + patch, left : left + patch]

        seconds = interleaved({"cache": lambda: patches.batch(0, batch), "decode": decode}, rounds)
    return {"what": f"a batch of {batch} patches of {patch}² LR pixels from 2040×1356 photographs",
            "ms_cache": 1e3 * seconds["cache"], "ms_decode": 1e3 * seconds["decode"],
            "ratio_cache_vs_decode": seconds["decode"] / seconds["cache"]}


def _step(model: torch.nn.Module, lr: torch.Tensor, hr: torch.Tensor) -> Callable[[], None]:
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=1e-4), LossSettings(l1=1.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        stage_loss(loss, model(lr), hr, None, 0.0)[0].backward()
        optimizer.step()

    return step


def bench_step(rounds: int = 7, batch: int = 16, patch: int = 42) -> dict[str, Any]:
    """A training step: expanded as the kit does it, against branch by branch, and collapsed against expanded."""
    torch.manual_seed(0)
    ours = build_model(StudentSettings()).train().to(memory_format=torch.channels_last)
    plain = branch_by_branch(copy.deepcopy(ours).to(memory_format=torch.contiguous_format))
    collapsed = with_form(ours, "collapsed")
    lr, hr = torch.rand(batch, 3, patch, patch) * 255, torch.rand(batch, 3, SCALE * patch, SCALE * patch) * 255
    last = lr.contiguous(memory_format=torch.channels_last)
    seconds = interleaved({"plain": _step(plain, lr, hr), "expanded": _step(ours, last, hr),
                           "collapsed": _step(collapsed, last, hr)}, rounds)
    macs = macs_per_lr_pixel(deployment_graph(fuse_model(plain))) * batch * patch**2
    return {"what": f"one training step, batch {batch}, {patch}² LR pixels, L1, Adam", "batch": batch, "patch": patch,
            "threads": torch.get_num_threads(), **{f"s_{name}": value for name, value in seconds.items()},
            "ratio_vs_plain": seconds["plain"] / seconds["expanded"],
            "ratio_collapsed_vs_expanded": seconds["expanded"] / seconds["collapsed"],
            # forward, and backward to inputs and weights: three times the forward's multiply-adds
            **fraction_of_peak(6 * macs / seconds["collapsed"], peak_rate(batch, patch, rounds=rounds))}


def bench_metrics(rounds: int = 3) -> dict[str, Any]:
    """SSIM of a 2040×1356 image: in strips on all cores (ours) against one call of scikit-image."""
    hr = photograph(1356, 2040)
    sr = np.clip(hr.astype(np.float32) + 3, 0, 255)
    one = lambda: structural_similarity(
        sr.astype(np.float64), hr.astype(np.float64), channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False)
    seconds = interleaved({"ours": lambda: ssim_rgb(sr, hr), "one_call": one}, rounds)
    return {"what": "SSIM RGB, 2040×1356", "s_ours": seconds["ours"], "s_one_call": seconds["one_call"],
            "ratio_vs_one_call": seconds["one_call"] / seconds["ours"]}


def _int8() -> dict[str, Any]:
    """Every INT8 file at hand: those of runs under results/, and the authors'."""
    from paperlib.environment import root
    from paperlib.evaluation.audit import FILES, authors_folder

    folder = authors_folder()
    files = sorted((root() / "results").glob("**/checkpoints/export/student_*_int8.tflite"))
    files += [folder / FILES[name] for name in ("dynamic_int8", "fixed_int8")] if folder else []
    if not files:
        raise UserError("no INT8 file to time: run `paperlib reproduce` first, or set PAPERLIB_ASSETS.")
    return bench_int8(files)


def _benchmarks() -> dict[str, Callable[[], dict[str, Any]]]:
    from paperlib.benchmarks.teacher import bench_scan, bench_teacher

    return {"data": bench_data, "step": bench_step, "epoch": bench_epoch,
            "metrics": bench_metrics, "scan": bench_scan, "teacher": bench_teacher, "int8": _int8,
            "upscale": bench_upscale, "light": bench_light}


def run_benchmarks(only: str | None = None) -> dict[str, Any]:
    """Run all benchmarks, or one by name; those whose files are missing are named under `skipped`.

    `provenance` says what they were run on: commit, versions, processor, threads, and the load before they began.

    Raises:
        UserError: an unknown name, or the one asked for cannot run.
    """
    known = _benchmarks()
    if only:
        if only not in known:
            raise UserError(f"no benchmark {only!r}. There are {', '.join(known)}.")
        return {"provenance": provenance(), only: known[only]()}
    results: dict[str, Any] = {"provenance": provenance()}
    for name, function in known.items():
        try:
            results[name] = function()
        except UserError as error:
            results.setdefault("skipped", {})[name] = str(error)
    return results
