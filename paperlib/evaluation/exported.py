"""A run's TFLite files and what they score (paper section 5): learned qparams kept, post-training
beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib.data.dataset import Data, calibration
from paperlib.evaluation.audit import FILES, authors_folder
from paperlib.evaluation.scoring import measure
from paperlib.evaluation.torch_upscalers import QuantisedUpscaler, RoundedUpscaler, TorchUpscaler
from paperlib.export.convert import export_all, export_ptq, export_tflite, parity
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
FRAME = 1280 * 720
"""LR pixels of the challenge's frame."""


@dataclass
class Exported:
    """The exported files of a run, by kind: dynamic, fixed, float; ptq and ptq_fixed by the
    authors' way."""

    run: Run
    folder: Path
    report: dict[str, Any]
    """What export.json says: qparams, operators, sizes, hashes, parity, NPU estimate."""
    qgraph: QuantisedGraph
    """Stage 3's quantised graph, which the INT8 files were made from."""

    @property
    def paths(self) -> dict[str, Path]:
        """The files by kind."""
        return {kind: self.folder / name for kind, name in NAMES.items()}

    def upscaler(self, kind: str) -> TFLiteUpscaler:
        """One of the files as an upscaler."""
        export = self.run.settings.export
        return TFLiteUpscaler(self.paths[kind], overlap=export.overlap)

    def inspect(self, kind: str) -> dict[str, Any]:
        """What is inside a file, see `inspect_tflite`."""
        export = self.run.settings.export
        return inspect_tflite(self.paths[kind], export.height, export.width)

    def summary(self) -> pd.DataFrame:
        """One line a file: size, operators, tensors in float."""
        lines = []
        for kind, path in self.paths.items():
            inside = self.inspect(kind)
            lines.append({"file": path.name, "kB": round(path.stat().st_size / 1e3, 1),
                          "operators": sum(inside["counts"].values()),
                          "float tensors": len(inside["float_tensors"])})
        return pd.DataFrame(lines)

    def operators(self) -> pd.DataFrame:
        """How often each operator occurs in each file, in the bundled one and, if at hand, the
        authors'."""
        counts = {path.name: self.inspect(kind)["counts"] for kind, path in self.paths.items()}
        counts["shipped"] = inspect_tflite(pretrained())["counts"]
        for path in self.authors().values():
            counts[f"authors' {path.name}"] = inspect_tflite(path)["counts"]
        return pd.DataFrame(counts).fillna(0).astype(int)

    def authors(self) -> dict[str, Path]:
        """The authors' INT8 files by kind (PAPERLIB_ASSETS); empty where they are not at hand."""
        folder = authors_folder()
        kinds = ("dynamic", "fixed") if folder else ()
        return {kind: folder / FILES[f"{kind}_int8"] for kind in kinds}

    def npu(self) -> pd.DataFrame:
        """Vela's estimates for the fixed files: ours in both forms of PixelShuffle, the authors' if
        at hand.

        Cycles are per LR pixel, so that files of different input sizes compare; milliseconds are
        for 1280×720 LR. They give no score: that is defined by the time on the challenge's own
        device.

        Returns:
            One line a file and accelerator; no lines where the extra `npu` is not installed.
        """
        export, files = self.run.settings.export, {}
        for form in ("depth_to_space", "rows"):
            path = self.folder / f"npu_{form}.tflite"
            files[f"ours, {form}"] = export_tflite(self.qgraph, path, export.height, export.width, form)
        if authors := self.authors():
            files["authors' fixed file"] = authors["fixed"]
        lines = []
        for name, path in files.items():
            height, width = inspect_tflite(path)["input_size"]
            for part in estimate_npu(path):
                cycles = part["cycles_total"] / (height * width)
                ms = 1e3 * FRAME * cycles / part["clock_hz"]
                dram = part["dram_bytes"] / (height * width)
                lines.append({"file": name, "accelerator": part["accelerator"],
                              "on NPU": part["operators_npu"],
                              "left to the CPU": ", ".join(part["cpu_operators"]) or "nothing",
                              "cycles / LR pixel": round(cycles, 1), "ms / 1280×720": round(ms, 1),
                              "DRAM bytes / LR pixel": round(dram, 1)})
        return pd.DataFrame(lines)

    def parity(self, data: Data) -> pd.DataFrame:
        """Each INT8 file against the fake-quantised graph on validation images, in output steps."""
        images = [pair.lr for pair in data.valid[:4]]
        return pd.DataFrame([{"file": NAMES[kind]} | parity(self.qgraph, self.upscaler(kind), images)
                             for kind in ("dynamic", "fixed")])

    def measure(self, data: Data) -> list[dict[str, Any]]:
        """Rows of Table B and the abstract, and of `export`: float and fake-quant, same weights.

        The abstract's files were made by post-training quantisation, and the fixed one was run with
        the authors' padding and tiles, so its rows are measured that way. The files with the
        learned qparams stand beside them, as `…_learnt`.
        """
        stages = self.run.settings
        steps = stages.stage1.steps + stages.stage2.steps + stages.stage3.steps
        dynamic = measure(data, self.upscaler("dynamic"), "B", "student_deploy", "int8", steps=steps)
        fixed = measure(data, self.upscaler("fixed"), "abstract", "student_fixed_tflite_learnt", "int8",
                        steps=steps)
        ptq = measure(data, self.upscaler("ptq"), "export", "tflite_post_training", "int8")
        padded = TFLiteUpscaler(self.paths["ptq_fixed"], borders="reflected")
        ptq_fixed = measure(data, padded, "abstract", "student_fixed_tflite", "int8", steps=steps)
        rows = [*dynamic, *_named(dynamic, "abstract", "student_dynamic_tflite_learnt"), *fixed,
                *_named(ptq, "abstract", "student_dynamic_tflite", steps=steps), *ptq_fixed]
        fused = TorchUpscaler(load_model(self.run.stage_folder("stage3") / "fused.safetensors"), "fused")
        for upscaler, row, precision in (
                (fused, "float_before_qat", "fp32"), (RoundedUpscaler(fused), "float_in_8_bits", "fp32"),
                (self.upscaler("float"), "float_after_qat", "fp32"),
                (QuantisedUpscaler(self.qgraph, "QAT"), "fakequant", "fake-quant")):
            rows += measure(data, upscaler, "export", row, precision)
        return rows + _named(dynamic, "export", "tflite_dynamic") + ptq


def _named(rows: list[dict[str, Any]], table: str, row: str, **more: Any) -> list[dict[str, Any]]:
    """The same measurement as rows of another table."""
    return [line | {"table": table, "row": row} | more for line in rows]


def export_run(run: Run, data: Data) -> Exported:
    """Export stage 3's student of a run into `checkpoints/export/`: dynamic, fixed, float,
    post-training INT8.

    Raises:
        UserError: stage 3 has not run; the message names the notebooks that are missing.
    """
    run.require("stage3")
    folder, export = run.stage_folder("export"), run.settings.export
    qgraph = read_quantised(run.stage_folder("stage3") / "qat.safetensors")
    images = [pair.lr for pair in data.valid[:2]]
    report = export_all(qgraph, folder, export, images)
    graph, images = post_training_graph(qgraph), calibration(data, run.settings)
    export_ptq(graph, images, folder / NAMES["ptq"])
    export_ptq(graph, images, folder / NAMES["ptq_fixed"], export.height, export.width)
    return Exported(run, folder, report, qgraph)
