"""The figures of notebooks and report; every function returns a matplotlib Figure in one style, axes labelled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.metrics import psnr_rgb
from paperlib.resize import SCALE

STYLE = Path(__file__).with_name("paper.mplstyle")


def _figure(width: float, height: float) -> Figure:
    with style.context(STYLE):
        return Figure(figsize=(width, height))


def _axes(figure: Figure, rows: int, columns: int, **options: Any) -> np.ndarray:
    with style.context(STYLE):
        return figure.subplots(rows, columns, squeeze=False, **options)


def _show(axes: Any, image: np.ndarray, title: str) -> None:
    axes.imshow(np.clip(np.round(image), 0, 255).astype(np.uint8))
    axes.set_title(title, loc="center")
    axes.set_axis_off()


def busiest(hr: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left (multiples of 3) of the `size`-pixel square with the most detail, the one worth looking at."""
    grey = hr.astype(np.float32).mean(2)
    detail = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows = np.arange(0, max(1, detail.shape[0] - size + 1), SCALE)
    columns = np.arange(0, max(1, detail.shape[1] - size + 1), SCALE)
    bottom, right = np.minimum(rows + size, detail.shape[0]), np.minimum(columns + size, detail.shape[1])
    sums = (total[np.ix_(bottom, right)] - total[np.ix_(rows, right)] - total[np.ix_(bottom, columns)]
            + total[np.ix_(rows, columns)])
    best = np.unravel_index(np.argmax(sums), sums.shape)
    return int(rows[best[0]]), int(columns[best[1]])


def crops(lr: np.ndarray, results: Mapping[str, np.ndarray], hr: np.ndarray, size: int = 120) -> Figure:
    """The most detailed part of a photograph: LR, each result with its PSNR over the whole image, and HR.

    Args:
        lr: uint8 (h, w, 3). results: name → (3h, 3w, 3) in 0..255. hr: uint8 (3h, 3w, 3).
        size: side of the part shown, HR pixels.
    """
    size = min(size, *hr.shape[:2]) // SCALE * SCALE
    top, left = busiest(hr, size)
    part = (slice(top, top + size), slice(left, left + size))
    small = (slice(top // SCALE, (top + size) // SCALE), slice(left // SCALE, (left + size) // SCALE))
    panels = [(lr[small], "LR")]
    panels += [(sr[part], f"{name}\n{psnr_rgb(sr, hr):.2f} dB") for name, sr in results.items()]
    panels.append((hr[part], "HR"))
    figure = _figure(2.4 * len(panels), 2.8)
    for axes, (image, title) in zip(_axes(figure, 1, len(panels))[0], panels, strict=True):
        _show(axes, image, title)
    return figure


def patch_grid(lr: Tensor, hr: Tensor, count: int = 6) -> Figure:
    """The first patches of a batch, LR (B, 3, p, p) above HR (B, 3, 3p, 3p), uint8."""
    count = min(count, len(lr))
    figure = _figure(1.5 * count, 3.1)
    grid = _axes(figure, 2, count)
    for index in range(count):
        _show(grid[0, index], lr[index].permute(1, 2, 0).numpy(), "LR" if index == 0 else "")
        _show(grid[1, index], hr[index].permute(1, 2, 0).numpy(), "HR" if index == 0 else "")
    return figure


def curves(history: Sequence[Mapping[str, float]], title: str = "") -> Figure:
    """Loss (left) and validation PSNR (right) over the steps of a training."""
    figure = _figure(8, 2.8)
    (loss, score), steps = _axes(figure, 1, 2)[0], [row["step"] for row in history]
    skip = {"step", "lr", "seconds", "psnr_rgb"}
    for name in [key for key in history[0] if key not in skip]:
        loss.plot(steps, [row[name] for row in history], marker=".", label=name)
    loss.set(xlabel="step", ylabel="mean since the last point", yscale="log", title=f"{title}: training loss")
    loss.legend()
    score.plot(steps, [row["psnr_rgb"] for row in history], marker=".")
    score.set(xlabel="step", ylabel="PSNR RGB (dB)", title=f"{title}: validation, EMA weights")
    return figure


def confidence(weights: np.ndarray, hr: np.ndarray) -> Figure:
    """The photograph, the map w(p) of distillation weights (H, W), and their histogram."""
    figure = _figure(10, 3)
    photograph, where, counts = _axes(figure, 1, 3)[0]
    _show(photograph, hr, "photograph")
    drawn = where.imshow(weights, cmap="viridis", vmin=0, vmax=1)
    where.set_axis_off()
    where.set_title("weight w(p)", loc="center")
    figure.colorbar(drawn, ax=where, shrink=0.8)
    counts.hist(weights.ravel(), bins=40, range=(0, 1), weights=np.full(weights.size, 100 / weights.size))
    counts.set(xlabel="weight w(p)", ylabel="pixels (%)", title="histogram")
    return figure


def error_map(one: np.ndarray, other: np.ndarray, title: str, limit: float = 6.0) -> Figure:
    """Signed difference of two images (H, W, 3) in grey levels, mean over the channels, and its histogram."""
    difference = (one.astype(np.float64) - other.astype(np.float64)).mean(2)
    figure = _figure(9, 3.4)
    where, counts = _axes(figure, 1, 2)[0]
    drawn = where.imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit)
    where.set_axis_off()
    where.set_title(title)
    figure.colorbar(drawn, ax=where, label="grey levels", shrink=0.8)
    counts.hist(difference.ravel(), bins=60, range=(-limit, limit),
                weights=np.full(difference.size, 100 / difference.size))
    rms = np.sqrt((difference**2).mean())
    counts.set(xlabel="difference (grey levels)", ylabel="pixels (%)", title=f"rms {rms:.2f} grey levels")
    return figure


def layer_bars(rows: Sequence[Mapping[str, Any]], value: str, title: str, label: str = "") -> Figure:
    """One bar a layer; rows are {"name", `value`}; undefined and infinite values are left out."""
    rows = [row for row in rows if row.get(value) is not None and np.isfinite(row[value])]
    figure = _figure(8, 2.8)
    axes = _axes(figure, 1, 1)[0, 0]
    axes.bar([row["name"] for row in rows], [row[value] for row in rows])
    axes.tick_params(axis="x", rotation=60)
    axes.set(ylabel=label or value, title=title)
    return figure


def layer_ranges(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Activations of each layer: every channel's range (dots), the INT8 grid (bar); below, largest |weight| per channel.

    rows: from `paperlib.diagnose.layer_ranges` with a quantised graph.
    """
    figure = _figure(9, 5)
    (activations,), (weights,) = _axes(figure, 2, 1, sharex=True)
    for place, row in enumerate(rows):
        activations.bar(place, row["grid_high"] - row["grid_low"], 0.7, row["grid_low"], color="C5", alpha=0.5)
        for ends, colour in (("channel_low", "C0"), ("channel_high", "C1")):
            activations.plot([place] * len(row[ends]), row[ends], ".", color=colour, markersize=3)
        if row["weight_peak"]:
            weights.plot([place] * len(row["weight_peak"]), row["weight_peak"], ".", color="C2", markersize=4)
    weights.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=60)
    activations.set(ylabel="activation", title=title or "Range of every channel, and the INT8 grid (bar) they share")
    weights.set(ylabel="largest |weight|", yscale="log", title="Largest weight of every output channel")
    return figure


def drops(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """PSNR of each network of Tables B and C, float and INT8, from measured rows on the validation photographs."""
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["table"] in ("B", "C") and row["metric"] == "psnr" and row["dataset"] == "validation":
            groups.setdefault(row["row"], {})[row["precision"]] = row["value"]
    return bars(groups, "PSNR RGB (dB)", "Short, equal schedules: float and INT8 TFLite")


def bars(groups: Mapping[str, Mapping[str, float]], label: str, title: str) -> Figure:
    """Grouped bars: {group: {series: value}}; the axis starts just below the smallest value."""
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = _figure(max(5, 1.4 * len(groups)), 3)
    axes = _axes(figure, 1, 1)[0, 0]
    width = 0.8 / len(series)
    for index, name in enumerate(series):
        heights = [group.get(name, np.nan) for group in groups.values()]
        drawn = axes.bar(np.arange(len(groups)) + index * width, heights, width, label=name)
        axes.bar_label(drawn, fmt="%.2f", fontsize=8)
    values = [value for group in groups.values() for value in group.values()]
    margin = 0.15 * (max(values) - min(values)) or 0.1
    axes.set_ylim(min(values) - margin, max(values) + margin)
    axes.set_xticks(np.arange(len(groups)) + 0.4 - width / 2, list(groups))
    axes.set(ylabel=label, title=title)
    axes.legend(ncols=len(series), loc="upper left", bbox_to_anchor=(0, -0.12))
    return figure


def scatter(points: Sequence[Mapping[str, Any]], x: str, y: str, xlabel: str, ylabel: str, title: str) -> Figure:
    """Quality against cost; points are {"name", "group", x, y}. The x axis is logarithmic."""
    figure = _figure(7, 4.2)
    axes = _axes(figure, 1, 1)[0, 0]
    for group in dict.fromkeys(point["group"] for point in points):
        chosen = [point for point in points if point["group"] == group]
        axes.scatter([point[x] for point in chosen], [point[y] for point in chosen], label=group)
        for point in chosen:
            axes.annotate(point["name"], (point[x], point[y]), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log")
    axes.legend()
    return figure
