"""What quality costs: other models, other runtimes, and choosing the best epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Image, Markdown
from matplotlib.figure import Figure

from paperlib.evaluation.audit import stage3_epochs
from paperlib.evaluation.paper_numbers import reported
from paperlib.reporting.results import Results
from paperlib.run import Run
from paperlib.student.graph import macs_per_lr_pixel
from paperlib.student.models import build_model, deployment_graph, fuse_model

PEERS = Path(__file__).with_name("peers.csv")
"""Published models of similar size, scored on the same images: parameters, multiply-accumulates
per LR pixel, PSNR in dB, the LR pixels they were trained on, protocol, where the weights are."""
STUDENTS = {("B", "student_stage2", "fp32"): "ours, float",
            ("B", "student_deploy", "int8"): "ours, INT8"}


def cost_points(results: Results) -> pd.DataFrame:
    """The peers and the run's students on Set5; empty where the run has not measured that set.

    Columns for `figures.quality_against_cost`: name, group, macs (thousands per LR pixel; of ours,
    of the float network), psnr.
    """
    rows = results.rows
    rows = rows[(rows["metric"] == "psnr") & (rows["dataset"] == "Set5") & rows["value"].notna()]
    ours = {(row.table, row.row, row.precision): row.value for row in rows.itertuples()}
    if not ours.keys() & STUDENTS:
        return pd.DataFrame()
    points = [(line.model, f"{line.group}, {line.precision.upper()}", line.macs_per_lr_pixel / 1e3,
               line.psnr_rgb) for line in pd.read_csv(PEERS).query("set == 'Set5'").itertuples()]
    student = fuse_model(build_model(results.run.settings.student))
    macs = macs_per_lr_pixel(deployment_graph(student)) / 1e3
    points += [(words, f"this run, {row[2].upper()}", macs, ours[row])
               for row, words in STUDENTS.items() if row in ours]
    return pd.DataFrame(points, columns=["name", "group", "macs", "psnr"])


def portability_table(bench: Mapping[str, Any]) -> pd.DataFrame:
    """The shipped file in other runtimes, one a line; empty where that was not measured."""
    found = bench.get("portability", {})
    lines = []
    for line in found.get("runtimes", []):
        shown = {"runtime": f"{line['runtime']} ({line.get('version', 'absent')})", "threads": "",
                 "equal": line.get("skipped"), "largest difference": ""}
        if "skipped" not in line:
            shown |= {"threads": str(line["threads"]),
                      "equal": f"{100 * line['share_equal']:.4g} %",
                      "largest difference": str(line["max_difference"])}
        shown |= {f"ms, {width} × {height}": f"{line[f'ms_{label}']:.4g}"
                  for label, (height, width) in found["sizes"].items() if f"ms_{label}" in line}
        lines.append(shown)
    return pd.DataFrame(lines).fillna("")


SETTLED, LAST = 30, 60
"""Epoch from which stage 3's qparams are frozen, and how many last epochs say where it ended."""


def selection_figure(psnr: pd.Series) -> Figure:
    """The authors' stage 3 by epoch (dB), the mean of its last ones, and what was reported."""
    settled, scatter = psnr.iloc[-LAST:].mean(), psnr.loc[SETTLED:].std()
    teacher, direct = (
        reported()["D", row, "int8", "psnr"] for row in ("qat_teacher", "qat_direct"))
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(psnr.index, psnr, marker=".", markersize=3, linewidth=0.8)
    axes.axvline(SETTLED, linestyle=":", linewidth=1)
    axes.annotate("grids frozen", (SETTLED, psnr.min()), xytext=(4, 4), fontsize=8,
                  textcoords="offset points")
    axes.axhspan(settled - scatter, settled + scatter, alpha=0.15)
    axes.axhline(settled, linewidth=1, linestyle="--", label=(
        f"mean of the last {LAST} epochs {settled:.3f} dB, ± {scatter:.3f} between epochs"))
    axes.plot(psnr.idxmax(), psnr.max(), "o", markersize=7, fillstyle="none",
              label=f"reported: the best epoch, {psnr.max():.3f} dB")
    axes.set(xlabel="epoch of stage 3 (the authors' log)",
             ylabel="PSNR RGB on the reported images (dB)", title=(
                 f"Best of {len(psnr)} epochs: {psnr.max() - settled:.3f} dB above their mean. "
                 f"Table D's difference: {teacher - direct:.3f} dB"))
    axes.legend(fontsize=8, loc="lower right")
    return figure


def selection_section(run: Run) -> Image | Markdown:
    """What choosing the best epoch is worth: `selection_figure`, shown and saved."""
    psnr = stage3_epochs()
    if len(psnr):
        return run.figure("07_selection", selection_figure(psnr))
    return Markdown("*The authors' log is not at hand: `paperlib verify` downloads it (3 MB), or "
                    "set `PAPERLIB_ASSETS` to a folder that holds their release as `aio_mai/`.*")
