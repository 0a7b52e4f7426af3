"""How far apart one training ends on different machines, measured: `python -m paperlib.benchmarks.spread`.

One short training through all three stages, repeated in processes of their own with other numbers of threads and other
kernels forced: sums are then taken in another order, and training carries the last bit on. What comes out goes into
`results/reference/spread.json`, where `paperlib.reporting.reference` reads how far two machines may differ.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paperlib.data.dataset import calibration, open_data
from paperlib.environment import KERNEL_ENVIRONMENT, provenance, root
from paperlib.evaluation.scoring import measure
from paperlib.evaluation.torch_upscalers import TorchUpscaler
from paperlib.evaluation.upscalers import load_upscaler
from paperlib.export.convert import export_ptq, export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import write_json
from paperlib.quantisation.int8 import post_training_graph
from paperlib.quantisation.qat import prepare_qat, quantised_graph
from paperlib.reporting.reference import kind_of
from paperlib.run import open_run
from paperlib.student.models import fuse_model
from paperlib.teacher.network import TeacherUpscaler
from paperlib.training.stages import open_teacher, recalibrated, stage1, stage2, stage3, teacher_targets

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""The kernels of a machine without AVX-512 and VNNI: oneDNN's convolutions, and PyTorch's own loops."""
MACHINES: dict[str, dict[str, str]] = {
    "2 threads": {"OMP_NUM_THREADS": "2"}, "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads, AVX2": {"OMP_NUM_THREADS": "2"} | AVX2}
"""What stands for another machine: variables of the process."""
SHORT: dict[str, Any] = {
    "teacher.kind": "small", "teacher.small_steps": 30, "stage1.steps": 120, "stage2.steps": 40, "stage3.steps": 60}
"""The demo's method, shorter; `--whole` trains the demo's own steps instead."""
ALLOWANCE = 3
"""Stated is this many times the largest difference that was seen: three machines are few, and the same steps with other
settings (patches drawn by area, TFLite's arithmetic) once spread 2.6 times as far, 0.044 dB against 0.017."""


def trained_rows(out: Path, whole: bool = False) -> list[dict[str, Any]]:
    """Train the three stages in this process and measure what each gives, as the notebooks do."""
    run = open_run("demo", out, {"teacher.kind": "small"} if whole else SHORT)
    data = open_data(run.settings.data)
    rows = measure(data, load_upscaler("bicubic"), "B", "bicubic", "fp32")
    first = stage1(run, data)
    rows += measure(data, TorchUpscaler(fuse_model(first.model), "stage 1"), "stages", "stage1", "fp32")
    source = open_teacher(run, data)
    rows += measure(data, TeacherUpscaler(source.model, source.name, source.sha256), "stages", "teacher", "fp32")
    targets = teacher_targets(run, data, source)
    second = stage2(run, data, targets)
    rows += measure(data, TorchUpscaler(fuse_model(second.model), "stage 2"), "B", "student_stage2", "fp32")
    fused = fuse_model(recalibrated(run, data), clamp=True)
    images = calibration(data, run.settings)
    plain = prepare_qat(fused, run.settings.quant, images).eval()
    rows += measure(data, TorchUpscaler(plain, "rounded"), "stages", "rounded_before_qat", "fake-quant")
    third = stage3(run, data, fused, targets)
    rows += measure(data, TorchUpscaler(third.model, "QAT"), "stages", "fakequant", "fake-quant")
    graph, folder = quantised_graph(third.model), run.stage_folder("export")
    files = {"tflite_dynamic": export_tflite(graph, folder / "learnt.tflite"),
             "tflite_post_training": export_ptq(post_training_graph(graph), images, folder / "ptq.tflite")}
    return rows + [row for name, path in files.items()
                   for row in measure(data, TFLiteUpscaler(path), "export", name, "int8")]


def on_machine(variables: Mapping[str, str], whole: bool = False) -> dict[str, Any]:
    """`trained_rows` in a process with these variables, nothing kept: {"seconds", "rows"}.

    Raises:
        subprocess.CalledProcessError: it failed; its messages are on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="paperlib-spread-") as folder:
        began = time.monotonic()
        environment = os.environ | KERNEL_ENVIRONMENT | variables | {"PAPERLIB_CACHE": f"{folder}/cache"}
        command = [sys.executable, "-m", "paperlib.benchmarks.spread", "--here", folder, *["--whole"] * whole]
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        rows = json.loads(Path(folder, "rows.json").read_text(encoding="utf-8"))
    return {"seconds": round(time.monotonic() - began, 1), "rows": rows}


def spread(machines: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Largest and typical (median) difference of a row between any two machines, by metric.

    Args:
        machines: rows by machine; only rows that all have are compared.

    Returns:
        By `kind_of` {metric: {"largest", "median"}}.
    """
    tables = [{tuple(row[name] for name in ("table", "row", "precision", "metric", "dataset")): row["value"]
               for row in rows} for rows in machines.values()]
    found: dict[str, dict[str, list[float]]] = {}
    for key in set.intersection(*map(set, tables)):
        found.setdefault(kind_of(*key[:3]), {}).setdefault(key[3], []).extend(
            abs(one[key] - other[key]) for one, other in itertools.combinations(tables, 2))
    return {kind: {metric: {"largest": max(values), "median": statistics.median(values)}
                   for metric, values in sorted(metrics.items())} for kind, metrics in sorted(found.items())}


def measure_spread(path: Path, whole: bool = False) -> Path:
    """Run every machine one after the other and write the record of it to `path`; returns it."""
    machines = {}
    for name, variables in MACHINES.items():
        machines[name] = {"variables": variables} | on_machine(variables, whole)
        print(f"{name}: {machines[name]['seconds']:.0f} s", flush=True)
    seen = spread({name: machine["rows"] for name, machine in machines.items()})
    stated = {kind: {metric: ALLOWANCE * value["largest"] for metric, value in metrics.items()}
              for kind, metrics in seen.items()}
    return write_json(path, provenance() | {
        "what": "one training through all stages, profile demo, on each machine",
        "settings": {"teacher.kind": "small"} if whole else SHORT,
        "stated": stated, "allowance": ALLOWANCE, "seen": seen, "machines": machines})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=root() / "results" / "reference" / "spread.json")
    parser.add_argument("--whole", action="store_true", help="the demo's own steps: minutes a machine")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        write_json(arguments.here / "rows.json", trained_rows(arguments.here, arguments.whole))
    else:
        print(measure_spread(arguments.out, arguments.whole))
