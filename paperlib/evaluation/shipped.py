"""The shipped files of a run and what they score (paper section 5): learnt grids kept, and post-training beside it."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from paperlib.data.dataset import Data, calibration
from paperlib.evaluation.authors import FILES, authors_folder
from paperlib.evaluation.networks import In8Bits, TorchUpscaler
from paperlib.evaluation.scoring import measure
from paperlib.export.convert import export_all, export_ptq, export_tflite, parity, parity_images
from paperlib.export.npu import estimate_if_available, estimate_npu, vela_available
from paperlib.export.tflite import TFLiteUpscaler, inspect_tflite
from paperlib.files import write_json
from paperlib.quantisation.int8 import QuantisedGraph, post_training_graph
from paperlib.quantisation.qat import load_qat, prepare_qat, quantised_graph
from paperlib.run import Run
from paperlib.settings import QuantSettings
from paperlib.student.models import build_model, load_model
from paperlib.weights import pretrained

NAMES = {"dynamic": "student_dynamic_int8.tflite", "fixed": "student_fixed_int8.tflite",
         "float": "student_float.tflite", "ptq": "student_ptq_int8.tflite",
         "ptq_fixed": "student_ptq_fixed_int8.tflite"}
FRAME = 1280 * 720
"""LR pixels of the challenge's frame."""


@dataclass
class Shipped:
    """The exported files of a run, by kind: dynamic, fixed, float; ptq and ptq_fixed by the authors' way."""

    run: Run
    folder: Path
    report: dict[str, Any]
    """What export.json says: grids, operators, sizes, hashes, parity, NPU estimate."""

    @property
    def paths(self) -> dict[str, Path]:
        """The files by kind."""
        return {kind: self.folder / name for kind, name in NAMES.items()}

    @property
    def qgraph(self) -> QuantisedGraph:
        """Graph and grids that the INT8 files were made from."""
        return quantised_graph(load_qat(self.run.stage_folder("stage3") / "qat.safetensors"))

    def upscaler(self, kind: str) -> TFLiteUpscaler:
        """One of the files as an upscaler."""
        export = self.run.settings.export
        return TFLiteUpscaler(self.paths[kind], export.threads, export.overlap)

    def inspect(self, kind: str) -> dict[str, Any]:
        """What is inside a file (see `paperlib.tflite_inspect`)."""
        return inspect_tflite(self.paths[kind], self.run.settings.export.height, self.run.settings.export.width)

    def summary(self) -> pd.DataFrame:
        """One line a file: size, operators, tensors in float."""
        lines = []
        for kind, path in self.paths.items():
            inside = self.inspect(kind)
            lines.append({"file": path.name, "kB": round(path.stat().st_size / 1e3, 1),
                          "operators": sum(inside["counts"].values()), "float tensors": len(inside["float_tensors"])})
        return pd.DataFrame(lines)

    def operators(self) -> pd.DataFrame:
        """How often each operator occurs in each file, the box's and (where at hand) the authors' beside ours."""
        counts = {path.name: self.inspect(kind)["counts"] for kind, path in self.paths.items()}
        counts["in the box"] = inspect_tflite(pretrained())["counts"]
        counts |= {f"authors' {path.name}": inspect_tflite(path)["counts"] for path in self.authors().values()}
        return pd.DataFrame(counts).fillna(0).astype(int)

    def authors(self) -> dict[str, Path]:
        """The authors' INT8 files by kind (PAPERLIB_ASSETS); empty where they are not at hand."""
        folder = authors_folder()
        return {kind: folder / FILES[f"{kind}_int8"] for kind in ("dynamic", "fixed")} if folder else {}

    def npu(self) -> pd.DataFrame:
        """Vela's estimates for the fixed files, ours in both forms of PixelShuffle, and the authors' where at hand.

        Cycles are per LR pixel, so that files of different input sizes compare; milliseconds are for 1280×720 LR. They
        give no score: that is defined by the time on the challenge's own device.

        Returns:
            One line a file and accelerator; no lines where the extra `npu` is not installed.
        """
        export = self.run.settings.export
        files = {f"ours, {form}": export_tflite(self.qgraph, self.folder / f"npu_{form}.tflite", export.height,
                                                export.width, form) for form in ("depth_to_space", "rows")}
        if authors := self.authors():
            files["authors' fixed file"] = authors["fixed"]
        lines = []
        for name, path in files.items():
            height, width = inspect_tflite(path)["input_size"]
            for part in estimate_if_available(path):
                cycles = part["cycles_total"] / (height * width)
                ms = 1e3 * FRAME * cycles / part["clock_hz"]
                lines.append({"file": name, "accelerator": part["accelerator"], "on NPU": part["operators_npu"],
                              "left to the CPU": ", ".join(part["cpu_operators"]) or "nothing",
                              "cycles / LR pixel": round(cycles, 1), "ms / 1280×720": round(ms, 1),
                              "DRAM bytes / LR pixel": round(part["dram_bytes"] / (height * width), 1)})
        return pd.DataFrame(lines)

    def parity(self, data: Data) -> pd.DataFrame:
        """Each INT8 file against the fake-quantised graph on the validation photographs, in output steps."""
        images = [pair.lr for pair in data.valid[:4]]
        return pd.DataFrame([{"file": NAMES[kind]} | parity(self.qgraph, self.upscaler(kind), images)
                             for kind in ("dynamic", "fixed")])

    def measure(self, data: Data) -> list[dict[str, Any]]:
        """Rows of Table B and the abstract, and of `export`: float and fake-quant, same weights.

        The abstract's files were made by post-training quantisation, and the fixed one was run with the authors'
        padding and tiles, so its rows are measured that way; the files with the learnt grids stand beside them, as
        `…_learnt`.
        """
        dynamic, fixed = self.upscaler("dynamic"), self.upscaler("fixed")
        settings = self.run.settings
        steps = settings.stage1.steps + settings.stage2.steps + settings.stage3.steps
        rows = measure(data, dynamic, "B", "student_deploy", "int8", steps=steps)
        rows += [row | {"table": "abstract", "row": "student_dynamic_tflite_learnt"} for row in rows]
        rows += measure(data, fixed, "abstract", "student_fixed_tflite_learnt", "int8", steps=steps)
        theirs = measure(data, self.upscaler("ptq"), "export", "tflite_post_training", "int8")
        rows += [row | {"table": "abstract", "row": "student_dynamic_tflite", "steps": steps} for row in theirs]
        padded = TFLiteUpscaler(self.paths["ptq_fixed"], settings.export.threads, borders="reflected")
        rows += measure(data, padded, "abstract", "student_fixed_tflite", "int8", steps=steps)
        fused = load_model(self.run.stage_folder("stage3") / "fused.safetensors")
        qat = load_qat(self.run.stage_folder("stage3") / "qat.safetensors")
        rows += measure(data, TorchUpscaler(fused, "fused"), "export", "float_before_qat", "fp32")
        rows += measure(data, In8Bits(TorchUpscaler(fused, "fused")), "export", "float_in_8_bits", "fp32")
        rows += measure(data, self.upscaler("float"), "export", "float_after_qat", "fp32")
        rows += measure(data, TorchUpscaler(qat, "QAT"), "export", "fakequant", "fake-quant")
        rows += [row | {"table": "export", "row": "tflite_dynamic"} for row in rows if row["row"] == "student_deploy"]
        return rows + theirs


def ship(run: Run, data: Data) -> Shipped:
    """Export stage 3's student of a run into `checkpoints/export/`: dynamic, fixed, float, and post-training INT8.

    Raises:
        UserError: stage 3 has not run; the message names the notebooks that are missing.
    """
    run.require("stage3")
    folder = run.stage_folder("export")
    qat = load_qat(run.stage_folder("stage3") / "qat.safetensors")
    export = run.settings.export
    report = export_all(qat, folder, export, [pair.lr for pair in data.valid[:2]], upsample=export.upsample)
    graph, images = post_training_graph(quantised_graph(qat)), calibration(data, run.settings)
    export_ptq(graph, images, folder / NAMES["ptq"])
    export_ptq(graph, images, folder / NAMES["ptq_fixed"], export.height, export.width)
    write_json(folder / "export.json", report)
    return Shipped(run, folder, report)


def graph_forms(run: Run, accelerator: str = "ethos-u65-512") -> dict[str, int]:
    """Vela's cycles of the run's student at the fixed size, by form of the skip; empty without the extra `npu`.

    RepDW and the baselines have no other form than "add".
    """
    student, export = run.settings.student, run.settings.export
    if not vela_available():
        return {}
    torch.manual_seed(0)
    fused = build_model(student, "fused", clamp=True)
    cycles = {}
    for form in ("add", "exact") if student.arch in ("mobileone", "repconv") else ("add",):
        model = prepare_qat(fused, QuantSettings(quantiser="tflite", skip=form), parity_images(1, 32))
        with tempfile.TemporaryDirectory() as folder:
            file = export_tflite(quantised_graph(model), Path(folder) / f"{form}.tflite", export.height, export.width,
                                 "rows")
            estimate = estimate_npu(file, accelerator)
        if not estimate["cpu_operators"]:
            cycles[form] = estimate["cycles_total"]
    return cycles if "add" in cycles else {}
