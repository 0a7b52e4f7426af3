"""Benchmark `portability`: the shipped INT8 student in other runtimes: the same pixels? how fast? (paper section 5)

LiteRT with XNNPACK, as on Android, is what all others are compared with. What is absent is named with the reason.
"""

import base64
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.data import coffee

from paperlib.benchmarks.browser import open_page
from paperlib.errors import UserError
from paperlib.export.convert import export_tflite
from paperlib.export.npu import ACCELERATORS, estimate_npu
from paperlib.export.read_back import shipped_graph
from paperlib.export.tflite import open_interpreter
from paperlib.files import sha256_file
from paperlib.reporting.page import build_page
from paperlib.weights import pretrained

Run = Callable[[np.ndarray], np.ndarray]
"""uint8 (h, w, 3) → uint8 (3h, 3w, 3)."""
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
"""Instruction sets that decide how fast, and in one runtime how exact, 8-bit products are."""
WITHOUT_VNNI = "OpenVINO, as without VNNI"
SATURATION = ("without VNNI oneDNN adds pairs of 8-bit products in 16 bits, which saturate (OpenVINO's documentation: "
              "'Saturation (overflow) issue workaround'); here by ONEDNN_MAX_CPU_ISA=AVX512_CORE on the same machine")


def processor() -> dict[str, Any]:
    """CPU model, cores that this process may use, and which of `INSTRUCTIONS` it has (Linux; else what is known)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    name = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    has = set(flags[1].split()) if flags else set()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"model": name[1].strip() if name else platform.processor() or platform.machine(), "cores": cores,
            "instructions": [kind for kind in INSTRUCTIONS if kind in has]}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown version"


def _interpreter(interpreter: Any) -> Run:
    interpreter.allocate_tensors()
    entry, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(lr: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(entry, lr[None])
        interpreter.invoke()
        return interpreter.get_tensor(result)[0]

    return run


def _tensorflow(path: Path, threads: int) -> Run:
    from paperlib.export.tf_graph import tensorflow

    return _interpreter(tensorflow().lite.Interpreter(str(path), num_threads=threads))


def _compiled_model(path: Path, threads: int) -> Run:
    try:
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator
        from ai_edge_litert.options import CpuOptions, Options
    except ImportError as error:
        raise UserError(f"ai-edge-litert {_version('ai-edge-litert')} has no CompiledModel ({error}).") from error
    model = CompiledModel.from_file(str(path), options=Options(
        hardware_accelerators=HardwareAccelerator.CPU, cpu_options=CpuOptions(num_threads=threads)))
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)

    def run(lr: np.ndarray) -> np.ndarray:
        inputs[0].write(np.ascontiguousarray(lr[None]))
        model.run_by_index(0, inputs, outputs)
        height, width = (3 * side for side in lr.shape[:2])
        return outputs[0].read(height * width * 3, np.uint8).reshape(height, width, 3)

    return run


def _openvino(path: Path, threads: int) -> Run:
    if find_spec("openvino") is None:
        raise UserError("openvino is not installed: pip install openvino.")
    import openvino

    core = openvino.Core()
    request = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_NUM_THREADS": threads}
                                 ).create_infer_request()

    def run(lr: np.ndarray) -> np.ndarray:
        request.infer({0: lr[None]})
        return request.get_output_tensor(0).data[0].copy()

    return run


def _openvino_without_vnni(path: Path, threads: int) -> Run:
    """The same with oneDNN held back in a process of its own, which reads the switch once."""
    if find_spec("openvino") is None:
        raise UserError("openvino is not installed: pip install openvino.")
    if "avx512_vnni" not in processor()["instructions"]:
        raise UserError("this CPU has no AVX-512 with VNNI to hold back.")
    code = ("import sys, numpy as np; from pathlib import Path; from paperlib.benchmarks.portability import _openvino\n"
            "np.save(sys.argv[3], _openvino(Path(sys.argv[1]), int(sys.argv[4]))(np.load(sys.argv[2])))")

    def run(lr: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory() as name:
            source, target = Path(name, "lr.npy"), Path(name, "sr.npy")
            np.save(source, lr)
            subprocess.run([sys.executable, "-c", code, str(path), str(source), str(target), str(threads)], check=True,
                           capture_output=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"})
            return np.load(target)

    return run


RUNTIMES: dict[str, tuple[str, Callable[[Path, int], Run]]] = {
    "LiteRT, XNNPACK": ("ai-edge-litert", lambda path, threads: _interpreter(open_interpreter(path, threads))),
    "LiteRT, built-in kernels": (
        "ai-edge-litert", lambda path, threads: _interpreter(open_interpreter(path, threads, xnnpack=False))),
    "LiteRT, CompiledModel": ("ai-edge-litert", _compiled_model),
    "TensorFlow's interpreter": ("tensorflow", _tensorflow),
    "OpenVINO": ("openvino", _openvino),
    WITHOUT_VNNI: ("openvino", _openvino_without_vnni),
}
"""Name → package, and what opens a uint8 file of fixed size; the first is the one to compare with."""


def photograph(height: int, width: int) -> np.ndarray:
    """A real photograph of any size, uint8 (height, width, 3): scikit-image's cup, mirrored where it is too small.

    Synthetic pixels would hide what saturates only in bright areas.
    """
    image = coffee()
    missing = (max(0, height - image.shape[0]), max(0, width - image.shape[1]))
    image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")
    top, left = ((side - wanted) // 2 for side, wanted in zip(image.shape, (height, width), strict=False))
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def compared(sr: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Share of equal values, share further than 5 apart, largest difference."""
    distance = np.abs(sr.astype(np.int16) - reference)
    return {"share_equal": float(np.mean(distance == 0)), "share_above_5": float(np.mean(distance > 5)),
            "max_difference": int(distance.max())}


def _milliseconds(run: Run, lr: np.ndarray, rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        run(lr)
        times.append(1e3 * (time.perf_counter() - begin))
    return min(times[1:])


def _in_browser(images: dict[str, np.ndarray], references: dict[str, np.ndarray], rounds: int) -> dict[str, Any]:
    """The page of `paperlib page` in headless Chromium: tiles of 256² on as many workers as it starts."""
    with tempfile.TemporaryDirectory() as name, open_page() as page:
        page.open(build_page(Path(name, "page.html")))
        line: dict[str, Any] = {"runtime": "LiteRT.js in Chromium, WebAssembly", "threads": page.run(
            "ready.then(() => hands.length)"), "version": page.run("navigator.userAgentData?.brands.map("
                                                                    "at => at.brand + ' ' + at.version).join(', ')")}
        shown, values = [], []
        for label, image in images.items():
            Image.fromarray(image).save(Path(name, f"{label}.png"))
            times = []
            for _ in range(rounds):
                page.choose("#file", Path(name, f"{label}.png"))
                page.wait("!busy && (!$('result').hidden || $('status').classList.contains('wrong'))", 600)
                times.append(page.run("spent"))
            data = base64.b64decode(page.run("$('after').toDataURL()").split(",")[1])
            shown.append(np.asarray(Image.open(BytesIO(data)).convert("RGB")).ravel())
            values.append(references[label].ravel())
            line[f"ms_{label}"] = min(times)
        return line | compared(np.concatenate(shown), np.concatenate(values))


def _npu(height: int, width: int, folder: Path) -> list[dict[str, Any]]:
    """Vela's estimate of the shipped student on each accelerator, PixelShuffle in both forms."""
    lines = []
    for form in ("depth_to_space", "rows"):
        path = export_tflite(shipped_graph(), folder / f"{form}.tflite", height, width, form)
        lines += [{"form": form, **estimate_npu(path, accelerator)} for accelerator in ACCELERATORS]
    return lines


def _or_reason(runtime: str, job: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What a job gives, or one line that says why it cannot run here."""
    try:
        return job()
    except UserError as error:
        return [{"runtime": runtime, "skipped": str(error)}]


def bench_portability(
    tile: int = 256, height: int = 720, width: int = 1280, rounds: int = 5, threads: int = 2, browser: bool = True,
) -> dict[str, Any]:
    """The shipped student in every runtime at hand.

    Args:
        tile, height, width: the two input sizes, LR pixels.
        rounds: timed runs; the least counts (what other processes disturb least).

    Returns:
        `runtimes`: per runtime and number of threads `share_equal`, `share_above_5`, `max_difference` against LiteRT
        with XNNPACK on both sizes, `ms_tile`, `ms_frame`; or `skipped` with the reason. `npu`: Vela's estimates.
        `cpu`, `sizes`, `model` (hash), `what`.
    """
    images = {"tile": photograph(tile, tile), "frame": photograph(height, width)}
    lines: list[dict[str, Any]] = []
    references: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        files = {label: export_tflite(shipped_graph(), Path(name, f"{label}.tflite"), *image.shape[:2], pixels="uint8")
                 for label, image in images.items()}
        for runtime, (package, make) in RUNTIMES.items():
            # one thread for speed alone; an experiment on exactness needs no time
            for count in (threads,) if runtime == WITHOUT_VNNI else sorted({1, threads}):
                line: dict[str, Any] = {"runtime": runtime, "threads": count}
                try:
                    runs = {label: make(path, count) for label, path in files.items()}
                    results = {label: run(images[label]) for label, run in runs.items()}
                except UserError as error:
                    lines.append(line | {"skipped": str(error)})
                    break
                references = references or results
                line |= {"version": _version(package), **compared(
                    *(np.concatenate([found[label].ravel() for label in images]) for found in (results, references)))}
                if runtime == WITHOUT_VNNI:
                    line["note"] = SATURATION
                else:
                    line |= {f"ms_{label}": _milliseconds(run, images[label], rounds) for label, run in runs.items()}
                lines.append(line)
        if browser:
            lines += _or_reason("LiteRT.js in Chromium", lambda: [_in_browser(images, references, rounds)])
        npu = _or_reason("Vela", lambda: _npu(height, width, Path(name)))
    return {"what": "the shipped INT8 student, uint8 in and out, on a photograph, against LiteRT with XNNPACK; least ms",
            "cpu": processor(), "sizes": {label: list(image.shape[:2]) for label, image in images.items()},
            "model": sha256_file(pretrained()), "rounds": rounds, "runtimes": lines, "npu": npu}
