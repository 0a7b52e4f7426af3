"""`paperlib bench`: speed as ratios inside one run, ours faster above 1.

A ratio of medians of interleaved runs holds on a busy machine where a time alone does not. Each
benchmark says what was measured and on what.
"""

import copy
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from paperlib.benchmarks.epoch import bench_epoch, decoded_batch, write_photographs
from paperlib.benchmarks.teacher import bench_scan, bench_teacher
from paperlib.benchmarks.timing import (
    branch_by_branch,
    fraction_of_peak,
    in_turn,
    interleaved,
    one_call_ssim,
    peak_rate,
    photograph,
)
from paperlib.data.dataset import TrainSet
from paperlib.data.images import read_rgb
from paperlib.data.pixel_store import open_store
from paperlib.data.sources import embedded_path
from paperlib.environment import provenance, root, to_portable
from paperlib.errors import UserError
from paperlib.evaluation.audit import FILES, authors_folder
from paperlib.evaluation.metrics import ssim_rgb
from paperlib.export.tflite import allocate, open_interpreter
from paperlib.settings import SCALE, DataSettings, LossSettings, StudentSettings
from paperlib.student.graph import macs_per_lr_pixel
from paperlib.student.models import build_model, deployment_graph, fuse_model
from paperlib.student.network import with_form
from paperlib.training.losses import stage_loss
from paperlib.weights import pretrained


def bench_data(rounds: int = 5, batch: int = 16, patch: int = 42) -> dict[str, Any]:
    """A batch from the pixel store against opening the PNG files and cropping, the field's way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder, 1, 1356, 2040)
        settings = DataSettings(source="folders", train=(str(folder),))
        patches = TrainSet(open_store(settings), settings, 0, "bench", patch)
        samples = [patches.sample(index) for index in range(batch)]
        seconds = interleaved({"cache": lambda: patches.batch(0, batch),
                               "decode": lambda: decoded_batch(patches, folder, samples)}, rounds)
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
    """A training step: the kit's expanded one against branch by branch, and against collapsed."""
    torch.manual_seed(0)
    ours = build_model(StudentSettings()).train().to(memory_format=torch.channels_last)
    plain = branch_by_branch(copy.deepcopy(ours).to(memory_format=torch.contiguous_format))
    collapsed = with_form(ours, "collapsed")
    lr = torch.rand(batch, 3, patch, patch) * 255
    hr = torch.rand(batch, 3, SCALE * patch, SCALE * patch) * 255
    last = lr.contiguous(memory_format=torch.channels_last)
    seconds = interleaved({"plain": _step(plain, lr, hr), "expanded": _step(ours, last, hr),
                           "collapsed": _step(collapsed, last, hr)}, rounds)
    # forward, and backward to inputs and weights: three times the forward's multiply-adds
    work = 6 * macs_per_lr_pixel(deployment_graph(fuse_model(plain))) * batch * patch**2
    return {"what": f"one training step, batch {batch}, {patch}² LR pixels, L1, Adam",
            "batch": batch, "patch": patch, "threads": torch.get_num_threads(),
            **{f"s_{name}": value for name, value in seconds.items()},
            "ratio_vs_plain": seconds["plain"] / seconds["expanded"],
            "ratio_collapsed_vs_expanded": seconds["expanded"] / seconds["collapsed"],
            **fraction_of_peak(work / seconds["collapsed"], peak_rate(batch, patch, rounds=rounds))}


def bench_metrics(rounds: int = 3) -> dict[str, Any]:
    """SSIM of a 2040×1356 image: in strips on all cores (ours) against one call of scikit-image."""
    hr = photograph(1356, 2040)
    sr = np.clip(hr.astype(np.float32) + 3, 0, 255)
    seconds = interleaved({"ours": lambda: ssim_rgb(sr, hr),
                           "one_call": lambda: one_call_ssim(sr, hr)}, rounds)
    return {"what": "SSIM RGB, 2040×1356", "s_ours": seconds["ours"],
            "s_one_call": seconds["one_call"],
            "ratio_vs_one_call": seconds["one_call"] / seconds["ours"]}


def _prepared(path: Path, threads: int, height: int, width: int) -> Any:
    """An interpreter with allocated tensors and one random image in its input."""
    interpreter, graph = open_interpreter(path, threads)
    entry = interpreter.get_input_details()[0]
    if -1 not in entry["shape_signature"]:
        height, width = (int(side) for side in entry["shape_signature"][1:3])
    allocate(interpreter, graph, path, height, width)
    entry = interpreter.get_input_details()[0]
    pixels = np.random.default_rng(0).integers(0, 256, entry["shape"])
    pixels -= 128 if entry["dtype"] == np.int8 else 0
    interpreter.set_tensor(entry["index"], pixels.astype(entry["dtype"]))
    interpreter.invoke()
    return interpreter


def bench_int8(
    files: Sequence[str | Path] = (), *, height: int = 720, width: int = 1280, rounds: int = 9,
) -> dict[str, Any]:
    """Least milliseconds of one inference for each file, with one and two threads.

    Args:
        files: .tflite files, dynamic ones resized to height × width; none: all INT8 files at hand,
            of runs under results/ and of the authors.
        rounds: timed passes over all files.

    Returns:
        `files`: per file `ms_1_thread`, `ms_2_threads`, `input_size`.
    """
    paths = [Path(file) for file in files]
    if not paths:
        paths = sorted((root() / "results").glob("**/checkpoints/export/student_*_int8.tflite"))
        if folder := authors_folder():
            paths += [folder / FILES[name] for name in ("dynamic_int8", "fixed_int8")]
    if not paths:
        raise UserError("no INT8 file to time: run `paperlib reproduce` first, or set "
                        "PAPERLIB_ASSETS.")
    found: dict[str, dict[str, Any]] = {to_portable(str(path)): {} for path in paths}
    for threads, key in ((1, "ms_1_thread"), (2, "ms_2_threads")):
        interpreters = {name: _prepared(path, threads, height, width)
                        for name, path in zip(found, paths, strict=True)}
        times = in_turn({name: one.invoke for name, one in interpreters.items()}, rounds, warm=0)
        for name, one in interpreters.items():
            shape = one.get_input_details()[0]["shape"]
            found[name] |= {key: 1e3 * min(times[name]), "input_size": shape[1:3].tolist()}
    return {"what": "least ms of one inference (what other processes disturb least), files "
                    "interleaved in one process",
            "kernels": "XNNPACK", "interpreter": "ai_edge_litert", "rounds": rounds,
            "files": found}


BARE = """
import sys
import numpy as np
from PIL import Image
from ai_edge_litert.interpreter import Interpreter
lr = np.asarray(Image.open(sys.argv[2]).convert("RGB"))
interpreter = Interpreter(sys.argv[1], num_threads=2)
entry = interpreter.get_input_details()[0]["index"]
interpreter.resize_tensor_input(entry, [1, *lr.shape])
interpreter.allocate_tensors()
interpreter.set_tensor(entry, (lr.astype(np.int16) - 128).astype(np.int8)[None])
interpreter.invoke()
sr = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]
Image.fromarray((sr.astype(np.int16) + 128).astype(np.uint8)).save(sys.argv[3])
"""
"""The work of `upscale` by hand: load the file, run it, save a PNG; no checks, no tiles."""
USED = """
import json, resource, subprocess, sys, time
begin = time.perf_counter()
silent = subprocess.DEVNULL
subprocess.run(sys.argv[1:], check=True, stdout=silent, stderr=silent)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"wall_seconds": time.perf_counter() - begin,
                  "processor_seconds": used.ru_utime + used.ru_stime,
                  "peak_bytes": used.ru_maxrss * 1024}))
"""
"""What a command that must succeed takes."""


def _process(arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, "-c", USED, sys.executable, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def bench_light(rounds: int = 5, size: int = 512) -> dict[str, Any]:
    """`paperlib upscale` on one picture of size² pixels against `BARE`, as whole processes.

    Returns:
        Medians: `upscale` and `bare` (seconds of wall and processor, peak bytes), `ratio_vs_bare`
        (times faster), `memory_of_bare` (a share: below 1 is better).
    """
    with tempfile.TemporaryDirectory() as folder:
        picture = f"{folder}/a.png"
        Image.fromarray(read_rgb(embedded_path("astronaut.png"))[:size, :size]).save(picture)
        times = in_turn({
            "upscale": ["-m", "paperlib", "upscale", picture, "--out", f"{folder}/out"],
            "bare": ["-c", BARE, str(pretrained()), picture, f"{folder}/bare.png"],
        }, rounds, measure=_process)
    median = {name: {key: statistics.median(one[key] for one in found) for key in found[0]}
              for name, found in times.items()}
    upscale, bare = median["upscale"], median["bare"]
    return {"upscale": upscale, "bare": bare,
            "what": "`paperlib upscale` on one picture against a bare script with LiteRT and "
                    "Pillow, whole processes",
            "ratio_vs_bare": bare["wall_seconds"] / upscale["wall_seconds"],
            "memory_of_bare": upscale["peak_bytes"] / bare["peak_bytes"],
            "measured_on": f"{size}×{size} pixels, {rounds} runs each in turn"}


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "data": bench_data, "step": bench_step, "epoch": bench_epoch, "metrics": bench_metrics,
    "scan": bench_scan, "teacher": bench_teacher, "int8": bench_int8, "light": bench_light}


def run_benchmarks(only: str | None = None) -> dict[str, Any]:
    """All benchmarks, or one by name; those whose files are missing are named under `skipped`.

    `provenance` says what they were run on: commit, versions, processor, threads, load before.
    """
    if only and only not in BENCHMARKS:
        raise UserError(f"no benchmark {only!r}. There are {', '.join(BENCHMARKS)}.")
    results: dict[str, Any] = {"provenance": provenance()}
    for name in [only] if only else BENCHMARKS:
        try:
            results[name] = BENCHMARKS[name]()
        except UserError as error:
            if only:
                raise
            results.setdefault("skipped", {})[name] = str(error)
    return results
