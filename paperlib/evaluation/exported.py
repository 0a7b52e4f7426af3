"""A run's TFLite files and what they score (section 5): learned qparams kept, or post-training."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib.data.dataset import Data, calibration
from paperlib.evaluation.audit import FILES, authors_folder
from paperlib.evaluation.scoring import measure
from paperlib.evaluation.torch_upscalers import QuantisedUpscaler, TorchUpscaler
from paperlib.export.convert import export_all, export_tflite, parity
from paperlib.export.inspection import inspect_tflite
from paperlib.export.npu import estimate_npu
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.quantisation.int8 import QuantisedGraph, post_training_graph
from paperlib.quantisation.qat import read_quantised
from paperlib.run import Run
from paperlib.student.models import load_model
from paperlib.weights import pretrained

NAMES = {"dynamic": "student_dynamic_int8.tflite", "fixed": "student_fixed_int8.tflite",
         "float": "student_float.tflite", "ptq": "student_ptq_int8.tflite",
         "ptq_fixed": "student_ptq_fixed_int8.tflite"}


@dataclass
class Exported:
    """A run's exported files by kind: dynamic, fixed, float; ptq, ptq_fixed as the authors'."""

    run: Run
    paths: dict[str, Path]
    report: dict[str, Any]  # what export.json says
    qgraph: QuantisedGraph  # stage 3's, of which the INT8 files were made

    def upscaler(self, kind: str) -> TFLiteUpscaler:
        """One of the files as an upscaler."""
        return TFLiteUpscaler(self.paths[kind], overlap=self.run.settings.export.overlap)

    def inspect(self, kind: str) -> dict[str, Any]:
        """What is inside a file, see `inspect_tflite`."""
        export = self.run.settings.export
        return inspect_tflite(self.paths[kind], export.height, export.width)

    def summary(self) -> pd.DataFrame:
        """One line a file: size, operators, tensors in float."""
        inside = {path: self.inspect(kind) for kind, path in self.paths.items()}
        return pd.DataFrame([{"file": path.name, "kB": round(path.stat().st_size / 1e3, 1),
                              "operators": sum(about["counts"].values()),
                              "float tensors": len(about["float_tensors"])}
                             for path, about in inside.items()])

    def operators(self) -> pd.DataFrame:
        """How often each operator occurs in each file, the bundled and the authors' if at hand."""
        files = {path.name: path for path in self.paths.values()} | {"shipped": pretrained()}
        if folder := authors_folder():
            names = (FILES["dynamic_int8"], FILES["fixed_int8"])
            files |= {f"authors' {name}": folder / name for name in names}
        counts = {name: inspect_tflite(path)["counts"] for name, path in files.items()}
        return pd.DataFrame(counts).fillna(0).astype(int)

    def npu(self) -> pd.DataFrame:
        """Vela's estimates for fixed files: ours by form of PixelShuffle, the authors' if at hand.

        One line a file and accelerator, cycles per LR pixel, so that files of different input sizes
        compare; no lines where the extra `npu` is not installed.
        """
        export, lines = self.run.settings.export, []
        files = {f"ours, {form}": export_tflite(
            self.qgraph, self.paths["fixed"].with_name(f"npu_{form}.tflite"), export.height,
            export.width, form) for form in ("depth_to_space", "rows")}
        if folder := authors_folder():
            files["authors' fixed file"] = folder / FILES["fixed_int8"]
        for name, path in files.items():
            pixels = math.prod(inspect_tflite(path)["input_size"])
            for part in estimate_npu(path):
                cycles = part["cycles_total"] / pixels
                lines.append({
                    "file": name, "accelerator": part["accelerator"],
                    "on NPU": part["operators_npu"],
                    "left to the CPU": ", ".join(part["cpu_operators"]) or "nothing",
                    "cycles / LR pixel": round(cycles, 1),
                    "ms / 1280×720": round(1e3 * 1280 * 720 * cycles / part["clock_hz"], 1),
                    "DRAM bytes / LR pixel": round(part["dram_bytes"] / pixels, 1)})
        return pd.DataFrame(lines)

    def parity(self, data: Data) -> pd.DataFrame:
        """Each INT8 file against the fake-quantised graph on validation images, in output steps."""
        images = [pair.lr for pair in data.valid[:4]]
        return pd.DataFrame([
            {"file": NAMES[kind]} | parity(self.qgraph, self.upscaler(kind), images)
            for kind in ("dynamic", "fixed")])

    def measure(self, data: Data) -> list[dict[str, Any]]:
        """Rows of Table B and the abstract, and of `export`: float and fake-quant, same weights.

        The abstract's files are post-training ones; those with the learned qparams are `…_learnt`.
        """
        stages = self.run.settings
        steps = stages.stage1.steps + stages.stage2.steps + stages.stage3.steps
        fused = load_model(self.run.stage_folder("stage3") / "fused.safetensors")
        padded = TFLiteUpscaler(self.paths["ptq_fixed"], borders="reflected")
        learnt = self.upscaler("dynamic")
        dynamic = measure(data, learnt, "B", "student_deploy", "int8", steps=steps)
        ptq = measure(data, self.upscaler("ptq"), "export", "tflite_post_training", "int8")
        rows = [*dynamic, *_named(dynamic, "abstract", "student_dynamic_tflite_learnt"),
                *_named(ptq, "abstract", "student_dynamic_tflite", steps=steps),
                *_named(dynamic, "export", "tflite_dynamic"), *ptq]
        for upscaler, row in ((self.upscaler("fixed"), "student_fixed_tflite_learnt"),
                              (padded, "student_fixed_tflite")):
            rows += measure(data, upscaler, "abstract", row, "int8", steps=steps)
        for upscaler, row, precision in (
                (TorchUpscaler(fused, "fused"), "float_before_qat", "fp32"),
                (TorchUpscaler(fused, "fused", rounded=True), "float_in_8_bits", "fp32"),
                (self.upscaler("float"), "float_after_qat", "fp32"),
                (QuantisedUpscaler(self.qgraph, "QAT"), "fakequant", "fake-quant")):
            rows += measure(data, upscaler, "export", row, precision)
        return rows


def _named(rows: list[dict[str, Any]], table: str, row: str, **more: Any) -> list[dict[str, Any]]:
    """The same measurement as rows of another table."""
    return [line | {"table": table, "row": row} | more for line in rows]


def export_run(run: Run, data: Data) -> Exported:
    """Export stage 3's student of a run into `checkpoints/export/`, as `NAMES`."""
    run.require("stage3")
    folder, export = run.stage_folder("export"), run.settings.export
    paths = {kind: folder / name for kind, name in NAMES.items()}
    qgraph = read_quantised(run.stage_folder("stage3") / "qat.safetensors")
    images = [pair.lr for pair in data.valid[:2]]
    report = export_all(qgraph, folder, export, images)
    graph, images = post_training_graph(qgraph), calibration(data, run.settings)
    for kind, size in (("ptq", ()), ("ptq_fixed", (export.height, export.width))):
        export_tflite(graph, paths[kind], *size, images=images)
    return Exported(run, paths, report, qgraph)
