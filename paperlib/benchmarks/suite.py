"""`paperlib bench`: speed as ratios inside one run, ours faster above 1.

A ratio of medians of interleaved runs holds on a busy machine where a time alone does not. Each
benchmark says what was measured and on what.
"""

import copy
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from paperlib.data.dataset import Batch, TrainSet, assemble
from paperlib.data.images import read_rgb
from paperlib.data.pixel_store import open_store
from paperlib.data.resize import bicubic_downscale
from paperlib.data.sources import embedded_path
from paperlib.environment import keep_freed_memory, provenance, root, to_portable
from paperlib.errors import UserError
from paperlib.evaluation.audit import FILES, authors_folder
from paperlib.evaluation.metrics import psnr_rgb, ssim_rgb
from paperlib.evaluation.torch_upscalers import TorchUpscaler
from paperlib.export.tflite import allocate, open_interpreter
from paperlib.settings import SCALE, DataSettings, LossSettings, StudentSettings
from paperlib.student.graph import macs_per_lr_pixel
from paperlib.student.models import build_model, deployment_graph, fuse_model
from paperlib.student.network import with_form
from paperlib.teacher.network import MambaIRv2Light, SelectiveScan
from paperlib.teacher.scan import scan_backend, selective_scan
from paperlib.training.losses import stage_loss

STEPS, IMAGES = 50, 100
"""Steps of a published epoch, and validation photographs after each."""
LANES, STATES = 48, 8
"""Channels and states of the published teacher's scan."""


def timed(job: Callable[[], Any]) -> float:
    """Seconds that a job takes."""
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


def in_turn(jobs: Mapping[str, Callable[[], Any]], rounds: int,
            warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each job in every round, after `warm` rounds that do not count."""
    times = [{name: timed(job) for name, job in jobs.items()} for _ in range(warm + rounds)]
    return {name: [found[name] for found in times[warm:]] for name in jobs}


def compared(what: str, jobs: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1,
             **ratios: tuple[str, str]) -> dict[str, Any]:
    """A benchmark: median seconds of each job, all `in_turn`, and how many times faster one is.

    Args:
        ratios: name of the ratio → the slower job and the faster one.
    """
    seconds = {name: statistics.median(values)
               for name, values in in_turn(jobs, rounds, warm).items()}
    found = {name: seconds[slow] / seconds[fast] for name, (slow, fast) in ratios.items()}
    return {"what": what, "threads": torch.get_num_threads(), "rounds": rounds,
            "seconds": seconds} | found


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An embedded photograph side by side, uint8 (h, w, 3) at most 1536×2048, shifted by seed."""
    tiled = np.tile(read_rgb(embedded_path("astronaut.png")), (3, 4, 1))
    return np.roll(tiled, 40 * seed, axis=1)[:height, :width]


def write_photographs(folder: Path, count: int, height: int, width: int) -> None:
    """`count` PNG pairs: HR in `folder`, LR (÷3) in its folder `lr`."""
    (folder / "lr").mkdir(parents=True)
    for index in range(count):
        hr = photograph(height, width, index)
        Image.fromarray(hr).save(folder / f"{index:04d}.png")
        Image.fromarray(bicubic_downscale(hr)).save(folder / "lr" / f"{index:04d}.png")


def decoded_batch(
    patches: TrainSet, folder: Path, samples: Sequence[tuple[int, int, int, int]],
) -> Batch:
    """The patches of `TrainSet.batch`; each sample decodes both of its PNG files."""
    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    images = ((read(folder / "lr" / f"{index:04d}.png"), read(folder / f"{index:04d}.png"))
              for index, *_ in samples)
    return assemble(images, samples, patches.patch)


def bench_data(rounds: int = 5, batch: int = 16, patch: int = 42) -> dict[str, Any]:
    """A batch from the pixel store against opening the PNG files and cropping, the field's way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder, 1, 1356, 2040)
        settings = DataSettings(source="folders", train=(name,))
        patches = TrainSet(open_store(settings), settings, 0, "bench", patch)
        samples = [patches.sample(index) for index in range(batch)]
        return compared(
            f"a batch of {batch} patches of {patch}² LR pixels from 2040×1356 photographs",
            {"cache": lambda: patches.batch(0, batch),
             "decode": lambda: decoded_batch(patches, folder, samples)},
            rounds, ratio_cache_vs_decode=("decode", "cache"))


def branch_by_branch(student: nn.Module) -> nn.Module:
    """The student, in place, every branch computed by itself: without `student.fast_reparam`."""
    student._run_block = lambda block, x: block(x)
    return student


def one_call_ssim(sr: np.ndarray, hr: np.ndarray) -> float:
    """SSIM RGB as the field computes it: one call of scikit-image on the whole picture."""
    return structural_similarity(
        sr.astype(np.float64), hr.astype(np.float64), channel_axis=2, data_range=255,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False)


@torch.no_grad()
def fraction_of_peak(flops: float, batch: int, patch: int, rounds: int) -> dict[str, Any]:
    """Operations per second as a fraction of the fastest that this machine gave in several ways.

    A matrix product alone is no yardstick: the convolutions' own library may use wider vectors. The
    fraction is None above 1: that was disturbed.

    Args:
        batch, patch: shape of the convolutions' input, that of the measured network.
    """
    square, image = torch.rand(2048, 2048), torch.rand(batch, 32, patch, patch)
    jobs: dict[str, Callable[[], Any]] = {"2048² matrix product": lambda: square @ square}
    work = {"2048² matrix product": 2.0 * 2048**3}  # operations
    layouts = {"plain": torch.contiguous_format, "channels-last": torch.channels_last}
    for out, layout in itertools.product((32, 128), layouts):
        x, kernel = (value.contiguous(memory_format=layouts[layout])
                     for value in (image, torch.rand(out, 32, 3, 3)))
        name = f"3×3 convolution 32→{out}, {layout}"
        jobs[name] = lambda x=x, kernel=kernel: nn.functional.conv2d(x, kernel, padding=1)
        work[name] = 2.0 * kernel.numel() * batch * patch**2
    rates = {name: work[name] / min(values)
             for name, values in in_turn(jobs, rounds, warm=2).items()}
    best = max(rates, key=rates.__getitem__)
    fraction = flops / rates[best]
    return {"peak_gflops": rates[best] / 1e9, "peak_of": best,
            "fraction_of_peak": fraction if fraction <= 1 else None}


def bench_step(rounds: int = 7, batch: int = 16, patch: int = 42) -> dict[str, Any]:
    """A training step: the kit's expanded one against branch by branch, and against collapsed."""
    torch.manual_seed(0)
    ours = build_model(StudentSettings()).train().to(memory_format=torch.channels_last)
    plain = branch_by_branch(copy.deepcopy(ours).to(memory_format=torch.contiguous_format))
    lr = torch.rand(batch, 3, patch, patch) * 255
    hr = torch.rand(batch, 3, SCALE * patch, SCALE * patch) * 255
    last = lr.contiguous(memory_format=torch.channels_last)

    def job(model: nn.Module, lr: Tensor) -> Callable[[], None]:
        optimizer, loss = torch.optim.Adam(model.parameters(), lr=1e-4), LossSettings(l1=1.0)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            stage_loss(loss, model(lr), hr, None, 0.0)[0].backward()
            optimizer.step()

        return step

    result = compared(
        f"one training step, batch {batch}, {patch}² LR pixels, L1, Adam",
        {"plain": job(plain, lr), "expanded": job(ours, last),
         "collapsed": job(with_form(ours, "collapsed"), last)}, rounds,
        ratio_vs_plain=("plain", "expanded"), ratio_collapsed_vs_expanded=("expanded", "collapsed"))
    # forward, and backward to inputs and weights: three times the forward's multiply-adds
    work = 6 * macs_per_lr_pixel(deployment_graph(fuse_model(plain))) * batch * patch**2
    return result | fraction_of_peak(work / result["seconds"]["collapsed"], batch, patch, rounds)


def run_side(
    side: str, folder: Path, steps: int, batch: int, patch: int,
) -> tuple[dict[str, list[float]], list[float]]:
    """Train `steps` steps and validate on one photograph; called in a process of its own.

    Returns:
        Seconds of each `load`, `step` and `validate`, and the losses.
    """
    os.environ["PAPERLIB_CACHE"], naive = str(folder / "cache"), side == "naive"
    if not naive:
        keep_freed_memory()
    settings = DataSettings(source="folders", train=(str(folder / "photographs"),))
    patches = TrainSet(open_store(settings), settings, 0, "bench", patch)
    torch.manual_seed(0)
    model: nn.Module = build_model(StudentSettings(init="bilinear")).train()
    if naive:
        branch_by_branch(model)
    layout = torch.contiguous_format if naive else torch.channels_last
    model = model.to(memory_format=layout)
    optimizer, weights = torch.optim.Adam(model.parameters(), lr=1e-4), LossSettings(l1=1.0)
    seconds, losses = {"load": [], "step": [], "validate": []}, []
    for step in range(steps):
        samples = [patches.sample(index) for index in range(step * batch, (step + 1) * batch)]
        begin = time.perf_counter()
        drawn = (decoded_batch(patches, folder / "photographs", samples) if naive
                 else patches.batch(step, batch))
        loaded = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        sr = model(drawn.lr.float().contiguous(memory_format=layout))
        loss = stage_loss(weights, sr, drawn.hr.float(), None, 0.0)[0]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds["load"].append(loaded - begin)
        seconds["step"].append(time.perf_counter() - loaded)
    lr, hr = np.asarray(patches.store.lr(0)), np.asarray(patches.store.hr(0))

    def validate() -> None:
        sr = TorchUpscaler(model if naive else fuse_model(model), side)(lr)
        (one_call_ssim if naive else ssim_rgb)(sr, hr)
        psnr_rgb(sr, hr)

    seconds["validate"].append(timed(validate))
    return seconds, losses


def bench_epoch(
    rounds: int = 2, steps: int = 4, batch: int = 16, patch: int = 128, photographs: int = 8,
    height: int = 1356, width: int = 2040,
) -> dict[str, Any]:
    """A published epoch, ours against the field's way, put together from medians of its parts.

    The field: every sample decodes two whole PNG files, the branches run one by one in PyTorch's
    default layout and allocator, PSNR and SSIM are of the expanded form. Ours: pixels from the
    store, summed branches, channels-last, freed memory kept, the fused form. Each side has a new
    process, as an allocator is set for good; both must see the same losses.

    Args:
        rounds: processes of each side, taking turns; the first step of each is not counted.

    Returns:
        Seconds `s_<part>_<side>` of one step's load and step and one image's validation, and of the
        epoch; the ratio; `max_loss_difference` (relative).
    """
    found: dict[str, list[Any]] = {"naive": [], "ours": []}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads disturb the others
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / "photographs", photographs, height, width)
        for _, side in itertools.product(range(rounds), found):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                job = process.submit(run_side, side, folder, steps, batch, patch)
                found[side].append(job.result())
    result: dict[str, Any] = {
        "what": f"{STEPS} steps of {batch} patches of {patch}² LR pixels and {IMAGES} validation "
                f"images of {width}×{height}, from medians of {rounds * (steps - 1)} steps and "
                f"{rounds} images",
        "threads": torch.get_num_threads()}
    for side, runs in found.items():
        times = {part: statistics.median(value for seconds, _ in runs
                                         for value in seconds[part][part != "validate":])
                 for part in ("load", "step", "validate")}
        result |= {f"s_{part}_{side}": value for part, value in times.items()}
        result[f"s_epoch_{side}"] = (STEPS * (times["load"] + times["step"])
                                     + IMAGES * times["validate"])
    losses = zip(found["naive"][-1][1], found["ours"][-1][1], strict=True)
    return result | {
        "ratio_vs_naive": result["s_epoch_naive"] / result["s_epoch_ours"],
        "max_loss_difference": max(abs(naive - ours) / naive for naive, ours in losses)}


def bench_metrics(rounds: int = 3) -> dict[str, Any]:
    """SSIM of a 2040×1356 image: in strips on all cores (ours) against one call of scikit-image."""
    hr = photograph(1356, 2040)
    sr = np.clip(hr.astype(np.float32) + 3, 0, 255)
    return compared("SSIM RGB, 2040×1356", {"ours": lambda: ssim_rgb(sr, hr),
                                            "one_call": lambda: one_call_ssim(sr, hr)},
                    rounds, ratio_vs_one_call=("one_call", "ours"))


def bench_scan(tokens: int = 4096, rounds: int = 5) -> dict[str, Any]:
    """The teacher's selective scan on the CPU against the recurrence, a loop over tokens.

    Returns:
        `ratio_vs_loop` (no gradient), `ratio_vs_loop_training` (forward and backward, 1024 tokens).
    """
    keep_freed_memory()

    def job(backend: str, count: int, grad: bool) -> Callable[[], None]:
        random = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(shape, generator=random)
        inputs = [draw(1, count, LANES), draw(1, count, LANES), -draw(LANES, STATES).exp(),
                  draw(1, count, STATES), draw(1, count, STATES), draw(LANES)]  # u, Δ, A, B, C, D

        def scan() -> None:
            found = selective_scan(*(x.detach().requires_grad_(grad) for x in inputs),
                                   backend=backend)
            if grad:
                found.sum().backward()

        return scan

    result = compared(
        f"selective scan, {LANES} channels × {STATES} states, {tokens} tokens, CPU, float32",
        {"ours": job("auto", tokens, False), "loop": job("loop", tokens, False),
         "ours_training": job("auto", 1024, True), "loop_training": job("loop", 1024, True)},
        rounds, ratio_vs_loop=("loop", "ours"),
        ratio_vs_loop_training=("loop_training", "ours_training"))
    return result | {"backend": scan_backend("cpu")}


@torch.no_grad()
def bench_teacher(size: int = 170, rounds: int = 3) -> dict[str, Any]:
    """The whole teacher on a size × size LR image, against the same with a loop over tokens.

    Some two minutes on two cores, nearly all of it for the loop. The weights are random.
    """
    keep_freed_memory()
    torch.manual_seed(0)
    model, x = MambaIRv2Light().eval(), torch.rand(1, 3, size, size)
    model(x)  # compiles the scan

    def upscale(backend: str) -> None:
        for module in model.modules():
            if isinstance(module, SelectiveScan):
                module.backend = backend
        model(x)

    result = compared(
        f"MambaIRv2-light ×3, one {size}×{size} LR image, CPU, float32",
        {"ours": lambda: upscale("auto"), "loop": lambda: upscale("loop")}, rounds, warm=0,
        ratio_vs_loop_scan=("loop", "ours"))
    return result | {"backend": scan_backend("cpu")}


def _prepared(path: Path, threads: int, height: int, width: int) -> Any:
    """An interpreter with allocated tensors and one random image in its input."""
    interpreter, graph = open_interpreter(path, threads)
    entry = interpreter.get_input_details()[0]
    if -1 not in entry["shape_signature"]:
        height, width = (int(side) for side in entry["shape_signature"][1:3])
    allocate(interpreter, graph, path, height, width)
    entry = interpreter.get_input_details()[0]
    pixels = np.random.default_rng(0).integers(0, 256, entry["shape"], np.uint8)
    interpreter.set_tensor(entry["index"], pixels.view(entry["dtype"]))
    interpreter.invoke()
    return interpreter


def bench_int8(
    files: Sequence[str | Path] = (), *, height: int = 720, width: int = 1280, rounds: int = 9,
) -> dict[str, Any]:
    """Least milliseconds of one inference for each file, with one and two threads.

    Args:
        files: .tflite files, dynamic ones resized to height × width; none: all INT8 files at hand,
            of runs under results/ and of the authors.
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


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "data": bench_data, "step": bench_step, "epoch": bench_epoch, "metrics": bench_metrics,
    "scan": bench_scan, "teacher": bench_teacher, "int8": bench_int8}


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
