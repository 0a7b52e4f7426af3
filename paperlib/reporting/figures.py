"""The figures of notebooks and report: each function returns a matplotlib Figure, in one style, axes with units.

What they show follows the paper: crops and error maps (section 6), confidence (section 3), curves (section 4).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.evaluation.metrics import psnr_rgb
from paperlib.run import STYLE
from paperlib.settings import SCALE

MARKERS = "osD^vPX"
"""A marker a group, so that colour is never the only difference."""
LOSS_TERMS = ("loss", "l1", "charbonnier", "mse", "dct", "kd")


def _picture(axes: Axes, image_255: np.ndarray, title: str) -> None:
    """Draw pixels (H, W, 3) without an axis, the title centred above."""
    axes.imshow(np.clip(np.round(image_255), 0, 255).astype(np.uint8))
    axes.set_title(title, loc="center", fontsize=10)
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


@style.context(STYLE)
def crops(lr: np.ndarray, results: Mapping[str, np.ndarray], hr: np.ndarray, size: int = 120,
          box: tuple[int, int] | None = None) -> Figure:
    """One part of a photograph: LR, each result with its PSNR over the whole image, and HR.

    Args:
        lr: uint8 (h, w, 3).
        results: name → (3h, 3w, 3) in 0..255.
        hr: uint8 (3h, 3w, 3).
        size: side of the part shown, HR pixels.
        box: its top and left in HR pixels; None shows the most detailed part.
    """
    size = min(size, *hr.shape[:2]) // SCALE * SCALE
    top, left = (edge // SCALE * SCALE for edge in (box or busiest(hr, size)))
    part = (slice(top, top + size), slice(left, left + size))
    small = (slice(top // SCALE, (top + size) // SCALE), slice(left // SCALE, (left + size) // SCALE))
    panels = [(lr[small], f"LR\n{lr.shape[1]} × {lr.shape[0]} px")]
    panels += [(sr[part], f"{name}\n{psnr_rgb(sr, hr):.2f} dB") for name, sr in results.items()]
    panels.append((hr[part], f"HR\n{hr.shape[1]} × {hr.shape[0]} px"))
    figure = Figure(figsize=(2.3 * len(panels), 2.8))
    for axes, (image, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _picture(axes, image, title)
    return figure


@style.context(STYLE)
def patch_grid(lr: Tensor, hr: Tensor, count: int = 6) -> Figure:
    """The first patches of a batch, LR (B, 3, p, p) above HR (B, 3, 3p, 3p), uint8."""
    count = min(count, len(lr))
    figure = Figure(figsize=(1.5 * count, 3.4))
    grid = figure.subplots(2, count, squeeze=False)
    for row, (name, batch) in enumerate((("LR", lr), ("HR", hr))):
        for index in range(count):
            title = f"{name}, {batch.shape[-1]} × {batch.shape[-2]} px" if index == 0 else ""
            _picture(grid[row, index], batch[index].permute(1, 2, 0).numpy(), title)
    return figure


def at_least(axes: Axes, span: float) -> None:
    """Widen the vertical axis to `span`, so that thousandths do not look like differences."""
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, (low + high - span) / 2), max(high, (low + high + span) / 2))


@style.context(STYLE)
def curves(history: Sequence[Mapping[str, float]], title: str = "", least: float = 0.1) -> Figure:
    """Loss and its terms (left) and validation PSNR (right) over the steps of a training.

    Args:
        history: rows of `paperlib.training.loop.Fit.history`: step, psnr_rgb (dB), loss and its terms (images in 0..1);
            a term may be missing in a row.
        least: smallest span of the PSNR axis.
    """
    figure, steps = Figure(figsize=(9, 3.3)), [row["step"] for row in history]
    loss, score = figure.subplots(1, 2)
    names = [term for term in LOSS_TERMS if any(term in row for row in history)]
    if len(names) == 2 and all(row.get(names[0]) == row.get(names[1]) for row in history):
        names = names[1:]  # a loss of one term
    for index, name in enumerate(names):
        values = [row.get(name, np.nan) for row in history]
        last = next(row[name] for row in reversed(history) if name in row)
        loss.plot(steps, values, marker=MARKERS[index], markersize=4, label=f"{name} {last:.3g}")
    loss.set(xlabel="training step", ylabel="loss (images in 0…1)", yscale="log", title=f"{title}: training loss")
    figure.legend(loc="outside lower left", ncols=len(names))
    best = max(range(len(history)), key=lambda index: history[index]["psnr_rgb"])
    values = [row["psnr_rgb"] for row in history]
    score.plot(steps, values, marker="o", markersize=4)
    score.plot(steps[best], values[best], marker="*", markersize=12, color="C1")
    score.ticklabel_format(useOffset=False)
    at_least(score, least)
    score.set(xlabel="training step", ylabel="PSNR RGB (dB)", title=f"{title}: validation, best {values[best]:.2f} dB")
    return figure


@style.context(STYLE)
def confidence(weights: np.ndarray, hr: np.ndarray) -> Figure:
    """The photograph, the map w(p) of distillation weights (H, W) in 0..1, and their histogram."""
    figure = Figure(figsize=(10, 3))
    photograph, where, counts = figure.subplots(1, 3)
    _picture(photograph, hr, "photograph")
    drawn = where.imshow(weights, cmap="viridis", vmin=0, vmax=1)
    where.set_axis_off()
    where.set_title("distillation weight w(p)", loc="center", fontsize=10)
    figure.colorbar(drawn, ax=where, shrink=0.8)
    counts.hist(weights.ravel(), bins=40, range=(0, 1), weights=np.full(weights.size, 100 / weights.size))
    counts.set(xlabel="weight w(p)", ylabel="pixels (%)", title=f"mean {weights.mean():.2f}")
    return figure


@style.context(STYLE)
def error_map(one: np.ndarray, other: np.ndarray, title: str, limit: float | None = None) -> Figure:
    """Signed difference of two images (H, W, 3) in grey levels of 255, mean over the channels, and its histogram.

    Args:
        limit: end of the colour scale; None takes what 99.5 % of the pixels stay below, at least 1.
    """
    difference = (one.astype(np.float64) - other.astype(np.float64)).mean(2)
    limit = limit or max(1.0, float(np.quantile(np.abs(difference), 0.995)))
    figure = Figure(figsize=(9, 3.4))
    where, counts = figure.subplots(1, 2)
    drawn = where.imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit)
    where.set_axis_off()
    where.set_title(title)
    figure.colorbar(drawn, ax=where, label="grey levels of 255", shrink=0.8, extend="both")
    counts.hist(np.clip(difference, -limit, limit).ravel(), bins=61, range=(-limit, limit),
                weights=np.full(difference.size, 100 / difference.size))
    counts.set(xlabel="difference (grey levels of 255)", ylabel="pixels (%)",
               title=f"root mean square {np.sqrt((difference**2).mean()):.2f}")
    return figure


UNITS = {"sqnr_db": "signal to quantisation noise (dB)", "high": "largest activation (grey levels)",
         "low": "smallest activation (grey levels)", "step": "step of the grid (grey levels)",
         "clipped": "share of values outside the grid"}
"""Axis labels of what `paperlib.diagnose` measures for each layer."""


@style.context(STYLE)
def layer_bars(rows: Sequence[Mapping[str, Any]], value: str, title: str, label: str = "") -> Figure:
    """One bar a layer, in the network's order.

    Args:
        rows: {"name", `value`} as `paperlib.diagnose` gives them; without a finite number a layer has no bar.
        label: of the vertical axis, with its unit; default: `UNITS`.
    """
    heights = [np.nan if row.get(value) is None or not np.isfinite(row[value]) else row[value] for row in rows]
    figure = Figure(figsize=(max(6, 0.65 * len(rows)), 3.3))
    axes = figure.subplots()
    drawn = axes.bar(np.arange(len(rows)), heights)
    axes.bar_label(drawn, ["" if np.isnan(height) else f"{height:.3g}" for height in heights], fontsize=8, padding=1)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(np.arange(len(rows)), [row["name"] for row in rows], rotation=40, ha="right")
    axes.set(xlabel="layer", ylabel=label or UNITS.get(value, value), title=title)
    return figure


@style.context(STYLE)
def layer_ranges(rows: Sequence[Mapping[str, Any]], title: str = "What each layer's grid has to span") -> Figure:
    """Each layer's grid as a bar, the extremes of its channels as dots (above), and the grid's step (below).

    Args:
        rows: {"name", "low", "high", "channel_low", "channel_high"} and with a grid {"grid_low", "grid_high", "step"},
            as `paperlib.diagnose` gives them, in grey levels; without a grid the bar spans the values.
    """
    figure, at = Figure(figsize=(max(6, 0.65 * len(rows)), 4.8)), np.arange(len(rows))
    spans, steps = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    start = np.array([row.get("grid_low", row["low"]) for row in rows])
    end = np.array([row.get("grid_high", row["high"]) for row in rows])
    step = np.array([row.get("step", np.nan) for row in rows])
    spans.bar(at, end - start, bottom=start, width=0.6, color="C5", label="grid")
    dots = [(index, value) for index, row in enumerate(rows) for value in [*row["channel_low"], *row["channel_high"]]]
    spans.scatter(*zip(*dots, strict=True), s=5, color="black", alpha=0.5, linewidths=0, label="extremes of a channel")
    spans.axhline(0, color="0.5", linewidth=0.8)
    spans.set(ylabel="activation (grey levels)", title=title)
    spans.legend(loc="best")
    drawn = steps.bar(at, step, width=0.6, color="C1")
    steps.bar_label(drawn, ["" if np.isnan(value) else f"{value:.2f}" for value in step], fontsize=8, padding=1)
    steps.set_xticks(at, [row["name"] for row in rows], rotation=40, ha="right")
    steps.set(xlabel="layer", ylabel="step (grey levels)")
    for axes in (spans, steps):
        axes.grid(visible=False, axis="x")
    steps.margins(y=0.15)
    return figure


@style.context(STYLE)
def bars(groups: Mapping[str, Mapping[str, float]], label: str, title: str, errors: Mapping | None = None) -> Figure:
    """Grouped bars: {group: {series: value}}; the axis starts just below the smallest value and says so.

    Args:
        label: of the vertical axis, with its unit.
        errors: standard deviations in the same shape, drawn where they are given.
    """
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    if not series:
        figure = Figure(figsize=(5, 0.8))
        figure.suptitle(f"{title}: nothing measured", y=0.5, verticalalignment="center")
        return figure
    figure = Figure(figsize=(max(5, 0.8 * len(groups) * len(series)), 3.4))
    axes, width = figure.subplots(), 0.8 / len(series)
    for index, name in enumerate(series):
        heights = [group.get(name, np.nan) for group in groups.values()]
        spread = [((errors or {}).get(group) or {}).get(name) or np.nan for group in groups]
        drawn = axes.bar(np.arange(len(groups)) + index * width, heights, width * 0.95, label=name, yerr=spread,
                         capsize=3)
        axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1)
    values = [value for group in groups.values() for value in group.values()]
    margin = 0.15 * (max(values) - min(values)) or 0.1
    axes.set_ylim(min(values) - margin, max(values) + margin)
    axes.set_xticks(np.arange(len(groups)) + 0.4 - width / 2, list(groups))
    axes.grid(visible=False, axis="x")
    axes.set(ylabel=f"{label}\n(axis does not start at 0)", title=title)
    figure.legend(ncols=len(series), loc="outside lower center")
    return figure


def drops(rows: Sequence[Mapping[str, Any]], table: str = "C", dataset: str = "validation") -> Figure:
    """PSNR of a table's models in FP32 and INT8 as the paper has them, from measured rows of a record."""
    beside = ("_float", "_learnt")  # further rows of the same models
    chosen = [row for row in rows if row["table"] == table and row["metric"] == "psnr" and row["dataset"] == dataset
              and row["value"] is not None and not row["row"].endswith(beside)]
    groups: dict[str, dict[str, float]] = {}
    spreads: dict[str, dict[str, float]] = {}
    for row in sorted(chosen, key=lambda row: row["precision"]):
        groups.setdefault(row["row"], {})[row["precision"].upper()] = row["value"]
        spreads.setdefault(row["row"], {})[row["precision"].upper()] = row.get("sd")
    return bars(groups, "PSNR RGB (dB)", "What INT8 costs each network", spreads)
