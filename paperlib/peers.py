"""Public models of this size measured on the same images as ours (paper section 7, beyond its own tables).

`peers.csv` holds what public weights and files score on Set5, Set14 and B100 under this kit's protocol; all of them
were trained on DIV2K, some with Flickr2K.
"""

import csv
from pathlib import Path
from typing import Any

from paperlib.baselines import build_model, fuse_model
from paperlib.graph import deployment_graph, macs_per_lr_pixel
from paperlib.records import Run

OURS = (("B", "student_stage2", "fp32"), ("B", "student_deploy", "int8"))


def peer_points(dataset: str = "Set5") -> list[dict[str, Any]]:
    """Points for `paperlib.figures.scatter`: name, group, macs (thousands per LR pixel), psnr (dB, RGB, no crop)."""
    with Path(__file__).with_name("peers.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["set"] == dataset]
    return [{"name": line["model"], "group": f"{line['group']}, {line['precision'].upper()}",
             "macs": float(line["macs_per_lr_pixel"]) / 1e3, "psnr": float(line["psnr_rgb"])} for line in lines]


def our_points(run: Run, dataset: str = "Set5") -> list[dict[str, Any]]:
    """The run's students on the same set, as further points; empty where the profile does not measure it."""
    rows = [row for record in run.records().values() for row in record["rows"]
            if (row["table"], row["row"], row["precision"]) in OURS and row["metric"] == "psnr"
            and row["dataset"] == dataset and row["value"] is not None]
    macs = macs_per_lr_pixel(deployment_graph(fuse_model(build_model(run.settings.student)))) / 1e3 if rows else 0
    return [{"name": f"ours, {row['row'].replace('student_', '')}", "group": f"this run, {row['precision'].upper()}",
             "macs": macs, "psnr": row["value"]} for row in rows]
