"""The formulas of the method as curves, from plain numbers (paper sections 3, 4, 6 and 7)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from paperlib.data.resize import KERNELS, _cubic
from paperlib.evaluation.paper_numbers import OURS, entries, score
from paperlib.run import STYLE


@style.context(STYLE)
def cubic_kernels(scale: int = 3) -> Figure:
    """Both bicubic kernels for enlarging (left), and MATLAB's, widened `scale` times, for making LR (right)."""
    figure = Figure(figsize=(9.2, 3))
    up, down = figure.subplots(1, 2)
    x = np.linspace(-2.5, 2.5, 501)
    for index, (name, a) in enumerate(KERNELS.items()):
        up.plot(x, _cubic(x, a), label=f"{'PyTorch' if name == 'torch' else 'MATLAB'}: a = {a:g}",
                linestyle=("-", "--")[index])
    up.set(xlabel="distance (LR pixels)", ylabel="weight", ylim=(-0.2, 1.5), title="enlarging: 4 × 4 LR pixels count")
    up.legend(loc="upper right")
    wide = np.linspace(-7, 7, 701)
    down.plot(wide, _cubic(wide, KERNELS["torch"]), color="C0", label="as it is: skips pixels")
    down.plot(wide, _cubic(wide / scale, KERNELS["matlab"]) / scale, color="C1", linestyle="--",
              label=f"MATLAB: {scale} times as wide")
    down.set(xlabel="distance (HR pixels)", ylim=(-0.2, 1.5),
             title=f"making LR: {4 * scale} × {4 * scale} HR pixels count")
    down.legend(loc="upper right", fontsize=9)
    return figure


@style.context(STYLE)
def fake_quant(scale: float = 1.0, zero_point: int = 3, levels: int = 8) -> Figure:
    """Rounding to a grid (left) and the gradient that the straight-through estimator puts in its place (right).

    Args:
        scale: step of the grid.
        zero_point: integer that stands for 0, in 0..levels − 1.
        levels: how many values the grid has; 8 bits have 256, which nobody could see.
    """
    figure = Figure(figsize=(9.2, 3))
    stairs, slope = figure.subplots(1, 2)
    low, high = -zero_point * scale, (levels - 1 - zero_point) * scale
    x = np.linspace(low - 2 * scale, high + 2 * scale, 2000)
    stairs.plot(x, x, color="0.6", linewidth=1, label="x")
    stairs.plot(x, scale * (np.clip(np.round(x / scale) + zero_point, 0, levels - 1) - zero_point), label="x̂")
    stairs.set(xlabel="x", ylabel="x̂", title=f"forward: {levels} steps, 0 is step {zero_point}")
    stairs.legend(loc="upper left")
    inside = (x > low - scale / 2) & (x < high + scale / 2)
    slope.plot(x, inside.astype(float), color="C1", label="what training uses")
    slope.plot(x, np.zeros_like(x), color="C0", linestyle="--", label="true slope: 0 almost everywhere")
    slope.set(xlabel="x", ylabel="∂x̂/∂x", ylim=(-0.15, 1.45), title="backward: straight through, 0 where clipped")
    slope.legend(loc="upper right", fontsize=9)
    return figure


@style.context(STYLE)
def int8_grid(row: Mapping[str, Any]) -> Figure:
    """The INT8 grid of one tensor: how many of its 256 steps each channel can use.

    Args:
        row: {"name", "grid_low", "grid_high", "step", "channel_low", "channel_high"} of a layer, in grey levels, as
            `quantisation.layer_ranges` gives it for a quantised graph.
    """
    low, high, step = row["grid_low"], row["grid_high"], row["step"]
    spans = sorted(zip(np.clip(row["channel_low"], low, high), np.clip(row["channel_high"], low, high), strict=True),
                   key=lambda span: span[0] - span[1])
    used = [round((end - start) / step) + 1 for start, end in spans]
    figure = Figure(figsize=(9.2, 3.4))
    grid, counts = figure.subplots(1, 2, width_ratios=(3, 2))
    for at, (start, end) in enumerate(spans):
        grid.plot([start, end], [at, at], color="C0", linewidth=2.2, solid_capstyle="butt")
    for value in np.arange(low, high + step / 2, 8 * step):
        grid.axvline(value, color="0.8", linewidth=0.5, zorder=0)
    grid.axvline(0, color="C1", linewidth=1.4)
    grid.set(xlabel=f"value (grey levels); a thin line every 8 steps of {step:.3g}", ylabel="channel, widest first",
             title=f"{row['name']}: scale {step:.3g}, zero point at step {round(-low / step)}")
    grid.invert_yaxis()
    grid.grid(visible=False)
    counts.bar(np.arange(len(used)), used)
    counts.axhline(256, color="0.4", linewidth=1)
    counts.set(xlabel="channel, widest first", ylabel="steps it can use, of 256", ylim=(0, 275),
               title=f"from {max(used)} down to {min(used)}")
    counts.grid(visible=False, axis="x")
    return figure


@style.context(STYLE)
def kd_schedule(progress: Sequence[float], weights: Sequence[float]) -> Figure:
    """λ(t), the weight of distillation over a stage.

    Args:
        progress: fractions of the stage, 0..1.
        weights: λ at each, as the training computes it.
    """
    figure = Figure(figsize=(9.2, 2.6))
    axes = figure.subplots()
    axes.plot(progress, weights, color="C2")
    axes.set(xlabel="part of the stage that is done", ylabel="λ(t)", xlim=(0, 1), ylim=(0, 1.25 * max(*weights, 1e-6)),
             title="weight of the distillation term")
    return figure


TERMS = {"l1": "L1", "charbonnier": "Charbonnier", "mse": "MSE", "dct": "DCT", "kd": "distillation"}


@style.context(STYLE)
def shares(found: pd.DataFrame) -> Figure:
    """What each term of the loss contributes to its value and to its gradient.

    Args:
        found: one line a term with `term`, `value share` and `gradient share`, as `training.loss_shares` gives them.
    """
    figure = Figure(figsize=(9.2, 0.5 * len(found) + 1.5))
    axes, at = figure.subplots(), np.arange(len(found))
    for index, what in enumerate(("value", "gradient")):
        parts = [100 * part for part in found[f"{what} share"]]
        drawn = axes.barh(at + 0.2 * (2 * index - 1), parts, 0.38, label=f"share of the {what}")
        axes.bar_label(drawn, [f"{part:.1f} %" if part >= 0.05 else f"{part:.2g} %" for part in parts], padding=3,
                       fontsize=9)
    axes.set_yticks(at, [TERMS.get(name, name) for name in found["term"]])
    axes.invert_yaxis()
    axes.set(xlabel="share of the weighted loss (%)", xlim=(0, 112), title="Who pulls the student?")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.02))
    return figure


@style.context(STYLE)
def equal_scores() -> Figure:
    """The leaderboard's entries in time and PSNR, with lines of equal score: one decibel is worth two halvings."""
    figure = Figure(figsize=(9.2, 3.8))
    axes = figure.subplots()
    times, levels = np.geomspace(3, 70, 200), np.linspace(29.6, 30.15, 100)
    values = np.array([[score(psnr, ms) for ms in times] for psnr in levels])
    marks = [1, 2, 4, 8, 16]
    lines = axes.contour(times, levels, values, levels=marks, colors="0.55", linewidths=0.8)
    axes.clabel(lines, fmt=lambda value: f"score {value:g}", fontsize=9,
                manual=[(score(29.68, 1) / mark, 29.68) for mark in marks])
    places = {"AntYSP": (-8, -6, "right", "top"), "AntSR": (-8, 6, "right", "bottom"),
              "IN2GM": (0, 9, "center", "bottom")}
    for name, (psnr, ms) in entries().items():
        mine = name == OURS
        axes.plot(ms, psnr, marker="*" if mine else "o", markersize=13 if mine else 7, color="C1" if mine else "C0",
                  linestyle="none")
        dx, dy, across, up = places.get(name, (9, 4, "left", "bottom"))
        axes.annotate(f"{name}, {score(psnr, ms):.1f}", (ms, psnr), (dx, dy), textcoords="offset points", fontsize=9,
                      ha=across, va=up, backgroundcolor=(1, 1, 1, 0.7))
    axes.set_xscale("log")
    ticks = [3, 5, 10, 20, 40, 70]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="NPU time (ms, logarithmic)", ylabel="PSNR, INT8 (dB)",
             title="Table A in time and PSNR; along a line the score is the same")
    axes.grid(visible=False)
    return figure
