"""Benchmark `epoch`: one published epoch (50 steps, then validation) as the field runs it and as this kit does.

The field's way: for every sample two whole PNG files are decoded and cropped; the branches run one by one in PyTorch's
default layout, with the C library's default allocator; every epoch ends with PSNR and SSIM of the expanded form on 2K
images. Ours: pixels from the store, branches summed (`student.fast_reparam`), channels-last, the kernels' allocator
settings, validation on the fused form. Each side runs in processes of its own, because an allocator is chosen when a
process starts. Both draw the same patches from the same weights, and must arrive at the same losses.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from paperlib.benchmarks.timing import branch_by_branch, one_call_ssim, photograph
from paperlib.data.dataset import Batch, TrainSet, assemble
from paperlib.data.pixel_store import open_store
from paperlib.data.resize import bicubic_downscale
from paperlib.environment import KERNEL_ENVIRONMENT
from paperlib.errors import UserError
from paperlib.evaluation.metrics import psnr_rgb, ssim_rgb
from paperlib.evaluation.torch_upscalers import TorchUpscaler
from paperlib.settings import DataSettings, LossSettings, StudentSettings
from paperlib.student.models import build_model, fuse_model
from paperlib.student.network import with_form
from paperlib.training.losses import stage_loss

STEPS, IMAGES = 50, 100
"""Steps of a published epoch, and validation photographs after each."""
SIDES = ("naive", "ours", "collapsed")


def write_photographs(folder: Path, count: int, height: int, width: int) -> None:
    """`count` PNG pairs: HR in `folder`, LR (÷3) in its folder `lr`."""
    (folder / "lr").mkdir(parents=True)
    for index in range(count):
        hr = photograph(height, width, index)
        Image.fromarray(hr).save(folder / f"{index:04d}.png")
        Image.fromarray(bicubic_downscale(hr)).save(folder / "lr" / f"{index:04d}.png")


def decoded_batch(patches: TrainSet, folder: Path, samples: list[tuple[int, int, int, int]]) -> Batch:
    """The same patches as `TrainSet.batch`, from the PNG files: each sample decodes both of its photographs."""
    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    images = ((read(folder / "lr" / f"{sample[0]:04d}.png"), read(folder / f"{sample[0]:04d}.png"))
              for sample in samples)
    return assemble(images, samples, patches.patch)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


def run_side(side: str, folder: Path, steps: int, batch: int, patch: int) -> dict[str, Any]:
    """Train `steps` steps and validate on one photograph, timing each part; called in a process of its own.

    Returns:
        `load`, `step` (lists, seconds), `validate` (seconds of one image), `losses`, `samples`, `psnr`.
    """
    settings = DataSettings(source="folders", train=(str(folder),))
    patches = TrainSet(open_store(settings), settings, 0, "bench", patch)
    torch.manual_seed(0)
    model: nn.Module = build_model(StudentSettings(init="bilinear")).train()
    if side == "collapsed":
        model = with_form(model, "collapsed")
    elif side == "naive":
        branch_by_branch(model)
    layout = torch.contiguous_format if side == "naive" else torch.channels_last
    model = model.to(memory_format=layout)
    optimizer, loss_settings = torch.optim.Adam(model.parameters(), lr=1e-4), LossSettings(l1=1.0)

    def train(drawn: Batch) -> float:
        optimizer.zero_grad(set_to_none=True)
        sr = model(drawn.lr.float().contiguous(memory_format=layout))
        loss = stage_loss(loss_settings, sr, drawn.hr.float(), None, 0.0)[0]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    result: dict[str, Any] = {"load": [], "step": [], "losses": [], "samples": []}
    for step in range(steps):
        samples = [patches.sample(index) for index in range(step * batch, (step + 1) * batch)]
        load = (lambda step=step: patches.batch(step, batch)) if side != "naive" else (
            lambda samples=samples: decoded_batch(patches, folder, samples))
        drawn, seconds = _timed(load)
        loss, spent = _timed(lambda drawn=drawn: train(drawn))
        result["load"].append(seconds)
        result["step"].append(spent)
        result["losses"].append(loss)
        result["samples"].append(samples)
    lr, hr = np.asarray(patches.store.lr(0)), np.asarray(patches.store.hr(0))

    def validate() -> float:
        upscale = TorchUpscaler(model if side == "naive" else fuse_model(model), side)
        sr = upscale(lr)
        (one_call_ssim if side == "naive" else ssim_rgb)(sr, hr)
        return psnr_rgb(sr, hr)

    result["psnr"], result["validate"] = _timed(validate)
    return result


def _process(side: str, folder: Path, *numbers: int) -> dict[str, Any]:
    """`run_side` in a new process with that side's allocator settings.

    Raises:
        UserError: it failed; its last line is shown.
    """
    environment = {name: value for name, value in os.environ.items() if name not in KERNEL_ENVIRONMENT}
    if side != "naive":
        environment |= {name: KERNEL_ENVIRONMENT[name] for name in KERNEL_ENVIRONMENT if name.startswith("M")}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PAPERLIB_CACHE": str(folder / "cache")}
    target = folder / f"{side}.json"
    command = [sys.executable, "-m", "paperlib.benchmarks.epoch", side, str(folder / "photographs"), str(target)]
    done = subprocess.run([*command, *map(str, numbers)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f"the {side} side of benchmark epoch failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    return json.loads(target.read_text(encoding="utf-8"))


def bench_epoch(
    rounds: int = 2, steps: int = 4, batch: int = 16, patch: int = 128, photographs: int = 8, height: int = 1356,
    width: int = 2040,
) -> dict[str, Any]:
    """A published epoch, ours against the field's way, put together from the medians of measured parts.

    Args:
        rounds: processes of each side, taking turns; the first step of each is not counted.

    Returns:
        `s_<part>_<side>` for load and step (one step) and validate (one image), `s_epoch_<side>`;
        `ratio_vs_naive` (times faster), `share_of_naive` (ours as a part of the field's time),
        `ratio_collapsed_vs_naive`, `max_loss_difference` (relative, naive against ours), `same_samples`.

    Raises:
        UserError: a side failed.
    """
    parts: dict[str, dict[str, list[float]]] = {side: {"load": [], "step": [], "validate": []} for side in SIDES}
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / "photographs", photographs, height, width)
        for _ in range(rounds):
            for side in SIDES:
                results[side] = found = _process(side, folder, steps, batch, patch)
                for part in ("load", "step"):
                    parts[side][part] += found[part][1:]
                parts[side]["validate"].append(found["validate"])
    median = {side: {part: statistics.median(values) for part, values in of.items()} for side, of in parts.items()}
    epoch = {side: STEPS * (of["load"] + of["step"]) + IMAGES * of["validate"] for side, of in median.items()}
    naive, ours = results["naive"]["losses"], results["ours"]["losses"]
    return {
        "what": f"{STEPS} steps of {batch} patches of {patch}² LR pixels and {IMAGES} validation images of {width}×"
                f"{height}, from medians of {rounds * (steps - 1)} steps and {rounds} images; 'collapsed' is another "
                "training, shown for its cost",
        "threads": torch.get_num_threads(),
        **{f"s_{part}_{side}": median[side][part] for side in SIDES for part in median[side]},
        **{f"s_epoch_{side}": epoch[side] for side in SIDES},
        "share_of_naive": epoch["ours"] / epoch["naive"],
        "ratio_vs_naive": epoch["naive"] / epoch["ours"],
        "ratio_collapsed_vs_naive": epoch["naive"] / epoch["collapsed"],
        "max_loss_difference": max(abs(a - b) / a for a, b in zip(naive, ours, strict=True)),
        "same_samples": results["naive"]["samples"] == results["ours"]["samples"]}


if __name__ == "__main__":
    which, source, output, *counts = sys.argv[1:]
    Path(output).write_text(json.dumps(run_side(which, Path(source), *map(int, counts))), encoding="utf-8")
