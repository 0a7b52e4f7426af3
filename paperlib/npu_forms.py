"""NPU cycles of the ways to compute the student's skip (paper section 5): what an ADD costs, and what replaces it.

Only files that run on the NPU as a whole are compared, so PixelShuffle is in its form "rows"; weights do not matter.
"""

import tempfile
from pathlib import Path

import torch

from paperlib.baselines import build_model
from paperlib.config import QuantSettings
from paperlib.export import export_tflite, parity_images
from paperlib.npu import estimate_npu, vela_available
from paperlib.quantise import RESIDUALS, prepare_qat, quantised_graph
from paperlib.records import Run


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
    for form in RESIDUALS if student.arch in ("mobileone", "repconv") else ("add",):
        model = prepare_qat(fused, QuantSettings(quantiser="tflite"), parity_images(1, 32), residual=form)
        with tempfile.TemporaryDirectory() as folder:
            file = export_tflite(quantised_graph(model), Path(folder) / f"{form}.tflite", export.height, export.width,
                                 "rows")
            estimate = estimate_npu(file, accelerator)
        if not estimate["cpu_operators"]:
            cycles[form] = estimate["cycles_total"]
    return cycles if "add" in cycles else {}
