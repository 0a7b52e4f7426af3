"""Runtimes that can run the uint8 file of fixed size: how each is opened, and on what processor (paper section 5)."""

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.errors import UserError
from paperlib.export.tflite import open_interpreter

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


def package_version(package: str) -> str:
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
        raise UserError(f"this ai-edge-litert has no CompiledModel ({error}). Install 2.1 or newer.") from error
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
    code = ("import sys, numpy as np; from pathlib import Path; from paperlib.benchmarks.runtimes import _openvino\n"
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
