"""`paperlib bench`: speed as ratios inside one run, ours faster above 1 (paper section 4's costs, made small).

A ratio of medians of interleaved runs holds on a busy machine where a time alone does not. Each benchmark says what was
measured and on what.
"""

import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
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
from paperlib.evaluation.metrics import ssim_rgb
from paperlib.export.tflite import TFLiteUpscaler, allocate, open_interpreter
from paperlib.settings import SCALE, DataSettings, LossSettings, StudentSettings
from paperlib.student.graph import macs_per_lr_pixel
from paperlib.student.models import build_model, deployment_graph, fuse_model
from paperlib.student.network import with_form
from paperlib.training.losses import stage_loss
from paperlib.upscale import upscale_pixels
from paperlib.weights import pretrained


def bench_data(rounds: int = 5, batch: int = 16, patch: int = 42) -> dict[str, Any]:
    """A batch from the pixel store against opening the PNG files and cropping, as the field's data sets do."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder, 1, 1356, 2040)
        settings = DataSettings(source="folders", train=(str(folder),))
        patches = TrainSet(open_store(settings), settings, 0, "bench", patch)
        samples = [patches.sample(index) for index in range(batch)]
        decode = lambda: decoded_batch(patches, folder, samples)
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
    seconds = interleaved({"ours": lambda: ssim_rgb(sr, hr), "one_call": lambda: one_call_ssim(sr, hr)}, rounds)
    return {"what": "SSIM RGB, 2040×1356", "s_ours": seconds["ours"], "s_one_call": seconds["one_call"],
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
    is_int8 = entry["dtype"] == np.int8
    interpreter.set_tensor(entry["index"], (pixels - 128 if is_int8 else pixels).astype(entry["dtype"]))
    interpreter.invoke()
    return interpreter


def bench_int8(
    files: Sequence[str | Path], *, height: int = 720, width: int = 1280, rounds: int = 9,
) -> dict[str, Any]:
    """Least milliseconds of one inference for each file, with one and two threads.

    Args:
        files: .tflite files; dynamic ones are resized to height × width, fixed ones keep their size.
        rounds: timed passes over all files.

    Returns:
        `files`: per file `ms_1_thread`, `ms_2_threads`, `input_size`; `kernels`, `interpreter`, `rounds`, `what`.

    Raises:
        UserError: a missing or unreadable file.
    """
    paths = [Path(file) for file in files]
    times: dict[tuple[Path, int], list[float]] = {(path, threads): [] for path in paths for threads in (1, 2)}
    sizes: dict[Path, list[int]] = {}
    for threads in (1, 2):
        interpreters = {path: _prepared(path, threads, height, width) for path in paths}
        for _ in range(rounds):
            for path, interpreter in interpreters.items():
                begin = time.perf_counter()
                interpreter.invoke()
                times[path, threads].append(1e3 * (time.perf_counter() - begin))
        sizes = {path: [int(size) for size in interpreter.get_input_details()[0]["shape"][1:3]]
                 for path, interpreter in interpreters.items()}
    return {
        "what": "least ms of one inference (what other processes disturb least), files interleaved in one process",
        "kernels": "XNNPACK", "interpreter": "ai_edge_litert", "rounds": rounds,
        "files": {to_portable(str(path)): {"ms_1_thread": min(times[path, 1]), "ms_2_threads": min(times[path, 2]),
                                        "input_size": sizes[path]} for path in paths}}


def bench_upscale(height: int = 720, width: int = 1280, rounds: int = 5) -> dict[str, Any]:
    """A whole frame through `paperlib upscale`'s path (tiles, rounding, seams) against the interpreter alone.

    Returns:
        Median `s_upscale` (frame to frame, without reading and writing files) and `s_interpreter` (one invocation on
        the whole frame), `overhead` (their ratio); the same of CPU time on all threads, which a busy machine disturbs
        less: `cpu_s_upscale`, `cpu_s_interpreter`, `cpu_overhead` (of the least); `what`.

    Raises:
        UserError: the shipped student is missing or damaged.
    """
    frame, path = photograph(height, width), pretrained()
    model, interpreter = TFLiteUpscaler(path), _prepared(path, 2, height, width)
    seconds: dict[str, list[float]] = {"upscale": [], "interpreter": []}
    processor: dict[str, list[float]] = {"upscale": [], "interpreter": []}
    for number in range(rounds + 1):
        for name, job in (("upscale", lambda: upscale_pixels(model, frame)), ("interpreter", interpreter.invoke)):
            begin, used = time.perf_counter(), time.process_time()
            job()
            if number:
                seconds[name].append(time.perf_counter() - begin)
                processor[name].append(time.process_time() - used)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    least = {name: min(values) for name, values in processor.items()}
    return {"what": f"a {width}×{height} frame made {3 * width}×{3 * height} by the shipped INT8 student, 2 threads",
            "s_upscale": medians["upscale"], "s_interpreter": medians["interpreter"],
            "overhead": medians["upscale"] / medians["interpreter"],
            "cpu_s_upscale": least["upscale"], "cpu_s_interpreter": least["interpreter"],
            "cpu_overhead": least["upscale"] / least["interpreter"]}


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
"""The same work by hand: load the file, run it, save a PNG; no checks, no tiles, no colour profile."""


def _process(command: list[str]) -> tuple[float, float, int]:
    """Wall and processor seconds and peak memory (bytes) of a command that must succeed."""
    code = ("import json, resource, subprocess, sys, time; begin = time.perf_counter();"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
            "print(json.dumps([time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))")
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def bench_light(rounds: int = 5, size: int = 512) -> dict[str, Any]:
    """`paperlib upscale` on one picture of size² pixels against `BARE`; `--help` and `import` against `pass`.

    Returns:
        Medians over `rounds` runs in turn, after one each that is not counted: `upscale` and `bare` (seconds of wall
        and processor, bytes), `ratio_vs_bare` (times faster), `memory_of_bare` (a share: below 1 is better), and
        `help_seconds`, `import_seconds` above an empty program.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "a.png"
        Image.fromarray(read_rgb(embedded_path("astronaut.png"))[:size, :size]).save(picture)
        python = [sys.executable, "-c"]
        commands = {
            "upscale": [sys.executable, "-m", "paperlib", "upscale", str(picture), "--out", f"{folder}/out"],
            "bare": [*python, BARE, str(pretrained()), str(picture), f"{folder}/bare.png"],
            "help": [sys.executable, "-m", "paperlib", "--help"], "import": [*python, "import paperlib"],
            "pass": [*python, "pass"]}
        times: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                figures = _process(command)
                if number:
                    times[name].append(figures)
    median = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    named = {name: dict(zip(("wall_seconds", "processor_seconds", "peak_bytes"), median[name], strict=True))
             for name in ("upscale", "bare")}
    return named | {
        "what": "`paperlib upscale` on one picture against a bare script with LiteRT and Pillow, whole processes",
        "ratio_vs_bare": median["bare"][0] / median["upscale"][0],
        "memory_of_bare": median["upscale"][2] / median["bare"][2],
        "help_seconds": median["help"][0] - median["pass"][0],
        "import_seconds": median["import"][0] - median["pass"][0],
        "measured_on": f"{size}×{size} pixels, {rounds} runs each in turn"}


def _int8() -> dict[str, Any]:
    """Every INT8 file at hand: those of runs under results/, and the authors'."""
    from paperlib.evaluation.audit import FILES, authors_folder

    folder = authors_folder()
    files = sorted((root() / "results").glob("**/checkpoints/export/student_*_int8.tflite"))
    files += [folder / FILES[name] for name in ("dynamic_int8", "fixed_int8")] if folder else []
    if not files:
        raise UserError("no INT8 file to time: run `paperlib reproduce` first, or set PAPERLIB_ASSETS.")
    return bench_int8(files)


def _benchmarks() -> dict[str, Callable[[], dict[str, Any]]]:
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
