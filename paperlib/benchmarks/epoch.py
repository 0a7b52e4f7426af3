"""Benchmark `epoch`: one published epoch (50 steps, then validation) as the field runs it and as
this kit does.

The field: every sample decodes two whole PNG files, the branches run one by one in PyTorch's
default layout and allocator, PSNR and SSIM are of the expanded form. Ours: pixels from the store,
summed branches, channels-last, the kernels' allocator settings, the fused form. Each side has
processes of its own, as an allocator is chosen when one starts; both must see the same losses.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from paperlib.benchmarks.timing import branch_by_branch, one_call_ssim, photograph, timed
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


def decoded_batch(
    patches: TrainSet, folder: Path, samples: list[tuple[int, int, int, int]],
) -> Batch:
    """The patches of `TrainSet.batch`; each sample decodes both of its PNG files."""
    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    images = ((read(folder / "lr" / f"{index:04d}.png"), read(folder / f"{index:04d}.png"))
              for index, *_ in samples)
    return assemble(images, samples, patches.patch)


def run_side(side: str, folder: Path, steps: int, batch: int, patch: int) -> dict[str, Any]:
    """Train `steps` steps and validate on one photograph; called in a process of its own.

    Returns:
        `load`, `step` (lists of seconds), `validate` (seconds), `losses`, `samples`.
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
    optimizer, weights = torch.optim.Adam(model.parameters(), lr=1e-4), LossSettings(l1=1.0)
    result: dict[str, Any] = {"load": [], "step": [], "losses": [], "samples": []}
    drawn: Any = None

    def load(step: int, samples: list[Any]) -> None:
        nonlocal drawn
        drawn = (decoded_batch(patches, folder, samples) if side == "naive"
                 else patches.batch(step, batch))

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        sr = model(drawn.lr.float().contiguous(memory_format=layout))
        loss = stage_loss(weights, sr, drawn.hr.float(), None, 0.0)[0]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        result["losses"].append(loss.item())

    for step in range(steps):
        samples = [patches.sample(index) for index in range(step * batch, (step + 1) * batch)]
        result["samples"].append(samples)
        result["load"].append(timed(lambda step=step, samples=samples: load(step, samples)))
        result["step"].append(timed(train))
    lr, hr = np.asarray(patches.store.lr(0)), np.asarray(patches.store.hr(0))

    def validate() -> None:
        sr = TorchUpscaler(model if side == "naive" else fuse_model(model), side)(lr)
        (one_call_ssim if side == "naive" else ssim_rgb)(sr, hr)
        psnr_rgb(sr, hr)

    return result | {"validate": timed(validate)}


def _process(side: str, folder: Path, *numbers: int) -> dict[str, Any]:
    """`run_side` in a new process with that side's allocator settings."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in KERNEL_ENVIRONMENT}
    if side != "naive":
        environment |= {name: value for name, value in KERNEL_ENVIRONMENT.items()
                        if name.startswith("MALLOC")}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PAPERLIB_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "paperlib.benchmarks.epoch", side,
               str(folder / "photographs"), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.splitlines() or ["?"])[-1]
        raise UserError(f"the {side} side of benchmark epoch failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def bench_epoch(
    rounds: int = 2, steps: int = 4, batch: int = 16, patch: int = 128, photographs: int = 8,
    height: int = 1356, width: int = 2040,
) -> dict[str, Any]:
    """A published epoch, ours against the field's way, put together from medians of its parts.

    Args:
        rounds: processes of each side, taking turns; the first step of each is not counted.

    Returns:
        `s_<part>_<side>` for load and step (one step) and validate (one image), `s_epoch_<side>`;
        `ratio_vs_naive` and `ratio_collapsed_vs_naive` (times faster), `max_loss_difference`
        (relative, naive against ours), `same_samples`.
    """
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / "photographs", photographs, height, width)
        for _ in range(rounds):
            for side in SIDES:
                results[side].append(_process(side, folder, steps, batch, patch))
    result: dict[str, Any] = {
        "what": f"{STEPS} steps of {batch} patches of {patch}² LR pixels and {IMAGES} validation "
                f"images of {width}×{height}, from medians of {rounds * (steps - 1)} steps and "
                f"{rounds} images; 'collapsed' is another training, shown for its cost",
        "threads": torch.get_num_threads()}
    epoch = {}
    for side, found in results.items():
        load, step = (statistics.median(value for one in found for value in one[part][1:])
                      for part in ("load", "step"))
        validate = statistics.median(one["validate"] for one in found)
        result |= {f"s_load_{side}": load, f"s_step_{side}": step, f"s_validate_{side}": validate}
        epoch[side] = STEPS * (load + step) + IMAGES * validate
    naive, ours = results["naive"][-1], results["ours"][-1]
    differences = [abs(a - b) / a for a, b in zip(naive["losses"], ours["losses"], strict=True)]
    return result | {f"s_epoch_{side}": seconds for side, seconds in epoch.items()} | {
        "ratio_vs_naive": epoch["naive"] / epoch["ours"],
        "ratio_collapsed_vs_naive": epoch["naive"] / epoch["collapsed"],
        "max_loss_difference": max(differences),
        "same_samples": naive["samples"] == ours["samples"]}


if __name__ == "__main__":
    which, source, *counts = sys.argv[1:]
    print(json.dumps(run_side(which, Path(source), *map(int, counts))))
