"""The student's way from bicubic to the shipped file, as one table of measured scores (paper sections 1–6)."""

import pandas as pd

from paperlib.records import Run

STEPS = {
    ("B", "bicubic"): "bicubic", ("stages", "teacher"): "teacher", ("stages", "stage1"): "stage 1",
    ("B", "student_stage2"): "stage 2", ("stages", "fused_before_qat"): "fused, before QAT",
    ("stages", "rounded_before_qat"): "rounded to INT8 without training",
    ("export", "float_after_qat"): "stage 3, only the weights rounded",
    ("export", "fakequant"): "stage 3, fake-quantised",
    ("export", "tflite_dynamic"): "INT8 TFLite, dynamic", ("abstract", "student_fixed_tflite"): "INT8 TFLite, fixed",
    ("export", "tflite_post_training"): "INT8 TFLite by post-training quantisation (the authors' way)"}
"""(table, row) of a measured row → what it is, in the order of the method."""


def steps(run: Run) -> pd.DataFrame:
    """PSNR (dB) and SSIM in RGB of every step on every image set, one line a step; steps not run are left out."""
    rows = [row for record in run.records().values() for row in record["rows"]]
    table = []
    for key, label in STEPS.items():
        chosen = [row for row in rows if (row["table"], row["row"]) == key and row["metric"] in ("psnr", "ssim")]
        if not chosen:
            continue
        line = {"step": label, "precision": chosen[0]["precision"]}
        for row in chosen:
            places = 3 if row["metric"] == "psnr" else 4
            line[f"{row['dataset']} {row['metric'].upper()}"] = (
                "" if row["value"] is None else f"{row['value']:.{places}f}")
        table.append(line)
    return pd.DataFrame(table).fillna("")


def parity_line(run: Run) -> str:
    """How far the INT8 files are from the fake-quantised network, as 06 measured it, in a sentence."""
    files = run.records().get("06_tflite_eval", {}).get("parity")
    if not files:
        return "not measured (06_tflite_eval has not run)"
    return "; ".join(
        f"{file['file']}: {100 * file['equal']:.2f} % of {file['values']:,} values equal, "
        f"{100 * file['within_1_lsb']:.3f} % within one step, largest difference {file['max_lsb']:.0f}"
        for file in files)
