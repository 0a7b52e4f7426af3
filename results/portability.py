"""The runtimes in paperlib/weights/README.md: the shipped INT8 student in each, same pixels? how fast?

    python results/portability.py [JSON]

LiteRT with XNNPACK, as on Android, is what the others are compared with; what is absent is named with the reason.
JSON: the file whose entry `portability` is replaced, results/reference/benchmark/bench.json by default.
"""

import base64
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.data import coffee

from paperlib.environment import package_version, processor, provenance
from paperlib.errors import UserError
from paperlib.export.convert import export_tflite, shipped_graph
from paperlib.export.npu import estimate_npu
from paperlib.export.page import build_page
from paperlib.export.tf_graph import tensorflow
from paperlib.export.tflite import open_interpreter
from paperlib.files import read_json, sha256_file, write_json
from paperlib.weights import pretrained

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))
from browser import open_page  # noqa: E402

Run = Callable[[np.ndarray], np.ndarray]
"""uint8 (h, w, 3) → uint8 (3h, 3w, 3)."""
WITHOUT_VNNI = "OpenVINO, as without VNNI"
SATURATION = ("without VNNI oneDNN adds pairs of 8-bit products in 16 bits, which saturate (OpenVINO's "
              "documentation: 'Saturation (overflow) issue workaround'); here by "
              "ONEDNN_MAX_CPU_ISA=AVX512_CORE on the same machine")


def _interpreter(interpreter: Any) -> Run:
    interpreter.allocate_tensors()
    ends = (interpreter.get_input_details(), interpreter.get_output_details())
    source, target = (end[0]["index"] for end in ends)

    def run(lr: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source, lr[None])
        interpreter.invoke()
        return interpreter.get_tensor(target)[0]

    return run


def _compiled_model(path: Path, threads: int) -> Run:
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator
    from ai_edge_litert.options import CpuOptions, Options

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
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_NUM_THREADS": threads})
    request = model.create_infer_request()

    def run(lr: np.ndarray) -> np.ndarray:
        request.infer({0: lr[None]})
        return request.get_output_tensor(0).data[0].copy()

    return run


def _openvino_without_vnni(path: Path, threads: int) -> Run:
    """The same with oneDNN held back, in a process of its own: the switch is read once."""
    version("openvino")
    if "avx512_vnni" not in processor()["instructions"]:
        raise UserError("this CPU has no AVX-512 with VNNI to hold back.")
    code = ("import sys, numpy as np; from pathlib import Path; from portability import _openvino\n"
            "np.save(sys.argv[3], _openvino(Path(sys.argv[1]), int(sys.argv[4]))(np.load(sys.argv[2])))")

    def run(lr: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory() as name:
            source, target = Path(name, "lr.npy"), Path(name, "sr.npy")
            np.save(source, lr)
            subprocess.run([sys.executable, "-c", code, path, source, target, str(threads)], check=True,
                           cwd=HERE, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"})
            return np.load(target)

    return run


RUNTIMES: dict[str, tuple[str, Callable[[Path, int], Run]]] = {
    "LiteRT, XNNPACK": (
        "ai-edge-litert", lambda path, threads: _interpreter(open_interpreter(path, threads)[0])),
    "LiteRT, built-in kernels": (
        "ai-edge-litert",
        lambda path, threads: _interpreter(open_interpreter(path, threads, xnnpack=False)[0])),
    "LiteRT, CompiledModel": ("ai-edge-litert", _compiled_model),
    "TensorFlow's interpreter": ("tensorflow", lambda path, threads: _interpreter(
        tensorflow().lite.Interpreter(str(path), num_threads=threads))),
    "OpenVINO": ("openvino", _openvino),
    WITHOUT_VNNI: ("openvino", _openvino_without_vnni),
}
"""Name → package, and what opens a uint8 file of fixed size; the first is the one to compare with."""


def photograph(height: int, width: int) -> np.ndarray:
    """A real photograph, uint8 (height, width, 3), mirrored where it is too small.

    Synthetic pixels would hide what saturates only in bright areas.
    """
    image = coffee()
    missing = (max(0, height - image.shape[0]), max(0, width - image.shape[1]))
    image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def compared(sr: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Share of equal values, share further than 5 apart, largest difference."""
    distance = np.abs(sr.astype(np.int16) - reference)
    return {"share_equal": float(np.mean(distance == 0)), "share_above_5": float(np.mean(distance > 5)),
            "max_difference": int(distance.max())}


def least_ms(run: Run, lr: np.ndarray, rounds: int) -> float:
    """The least milliseconds of `rounds` runs, after one that is not counted."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        run(lr)
        times.append(1e3 * (time.perf_counter() - begin))
    return min(times[1:])


def in_browser(images: dict[str, np.ndarray], references: dict[str, np.ndarray], rounds: int) -> dict[str, Any]:
    """The page of `paperlib page` in headless Chromium: tiles of 256² on as many workers as it starts."""
    brands = "navigator.userAgentData?.brands.map(at => at.brand + ' ' + at.version).join(', ')"
    with tempfile.TemporaryDirectory() as name, open_page() as page:
        page.open(build_page(Path(name, "page.html")))
        line: dict[str, Any] = {"runtime": "LiteRT.js in Chromium, WebAssembly",
                                "threads": page.run("ready.then(() => hands.length)"),
                                "version": page.run(brands)}
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


def in_runtimes(
    files: dict[str, Path], images: dict[str, np.ndarray], rounds: int = 5, threads: int = 2,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """A line a runtime and number of threads, and what the first gives for each image.

    Args:
        files, images: by the name of the size; each image as large as its file's input.
    """
    lines: list[dict[str, Any]] = []
    references: dict[str, np.ndarray] = {}
    for runtime, (package, make) in RUNTIMES.items():
        # one thread for speed alone; an experiment on exactness needs no time
        for count in (threads,) if runtime == WITHOUT_VNNI else sorted({1, threads}):
            line: dict[str, Any] = {"runtime": runtime, "threads": count}
            try:
                runs = {label: make(path, count) for label, path in files.items()}
                results = {label: run(images[label]) for label, run in runs.items()}
            except (UserError, ImportError) as error:
                lines.append(line | {"skipped": str(error)})
                break
            references = references or results
            both = (np.concatenate([found[label].ravel() for label in images])
                    for found in (results, references))
            line |= {"version": package_version(package), **compared(*both)}
            if runtime == WITHOUT_VNNI:
                line["note"] = SATURATION
            else:
                line |= {f"ms_{label}": least_ms(run, images[label], rounds) for label, run in runs.items()}
            lines.append(line)
    return lines, references


def measure(tile: int = 256, height: int = 720, width: int = 1280, rounds: int = 5) -> dict[str, Any]:
    """The bundled student in every runtime, in the browser, and through Vela for NPUs, at two input sizes."""
    images = {"tile": photograph(tile, tile), "frame": photograph(height, width)}
    graph = shipped_graph()
    with tempfile.TemporaryDirectory() as name:
        files = {label: export_tflite(graph, Path(name, f"{label}.tflite"), *image.shape[:2], pixels="uint8")
                 for label, image in images.items()}
        lines, references = in_runtimes(files, images, rounds)
        lines.append(in_browser(images, references, rounds))
        npu = []
        for form in ("depth_to_space", "rows"):
            path = export_tflite(graph, Path(name, f"{form}.tflite"), height, width, form)
            npu += [{"form": form, **estimate} for estimate in estimate_npu(path)]
    return {"what": "the bundled INT8 student, uint8 in and out, on a photograph, beside LiteRT with XNNPACK; "
                    "least ms",
            "cpu": processor(), "sizes": {label: list(image.shape[:2]) for label, image in images.items()},
            "model": sha256_file(pretrained()), "rounds": rounds, "runtimes": lines, "npu": npu,
            "provenance": provenance()}


if __name__ == "__main__":
    record = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "reference" / "benchmark" / "bench.json"
    write_json(record, read_json(record) | {"portability": measure()})
