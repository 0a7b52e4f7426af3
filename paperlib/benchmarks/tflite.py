"""Benchmarks `int8` and `upscale`: CPU time of .tflite files, interleaved so that a busy machine slows all alike."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.benchmarks.epoch import photograph
from paperlib.environment import portable
from paperlib.export.tflite import TFLiteUpscaler, allocate, interpreter_module, open_interpreter
from paperlib.upscale import upscale_pixels
from paperlib.weights import pretrained


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
        "kernels": "XNNPACK", "interpreter": interpreter_module()[1], "rounds": rounds,
        "files": {portable(str(path)): {"ms_1_thread": min(times[path, 1]), "ms_2_threads": min(times[path, 2]),
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
