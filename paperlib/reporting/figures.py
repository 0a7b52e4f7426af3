"""The figures of notebooks and report: each function returns a matplotlib Figure, axes with units.

Crops and error maps (paper section 6), confidence (3), curves (4), the formulas as curves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from paperlib.data.resize import KERNELS, cubic
from paperlib.evaluation.metrics import psnr_rgb, tensorflow_mean
from paperlib.evaluation.paper_numbers import OURS, entries, score
from paperlib.run import STYLE
from paperlib.settings import SCALE, LossSettings

MARKERS = "osD^vPX"
"""A marker a group, so that colour is never the only difference."""
TERMS = {"l1": "L1", "charbonnier": "Charbonnier", "mse": "MSE", "dct": "DCT", "kd": "distillation"}


def _picture(axes: Axes, image_255: np.ndarray, title: str) -> None:
    """Draw pixels (H, W, 3) without an axis, the title centred above."""
    axes.imshow(np.clip(np.round(image_255), 0, 255).astype(np.uint8))
    axes.set_title(title, loc="center", fontsize=10)
    axes.set_axis_off()


def most_detailed(hr: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left (multiples of 3) of the `size`-pixel square with the most detail."""
    grey = hr.astype(np.float32).mean(2)
    detail = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = (np.arange(0, max(1, side - size + 1), SCALE) for side in detail.shape)
    bottom, right = (np.minimum(first + size, side)
                     for first, side in zip((rows, columns), detail.shape, strict=True))
    sums = (total[np.ix_(bottom, right)] - total[np.ix_(rows, right)]
            - total[np.ix_(bottom, columns)] + total[np.ix_(rows, columns)])
    best = np.unravel_index(np.argmax(sums), sums.shape)
    return int(rows[best[0]]), int(columns[best[1]])


@style.context(STYLE)
def crops(lr: np.ndarray, results: Mapping[str, np.ndarray], hr: np.ndarray, size: int = 120,
          place: tuple[int, int] | None = None, here: bool = False) -> Figure:
    """One part of an image: LR, each result with its PSNR over the whole image, and HR.

    Args:
        lr: uint8 (h, w, 3).
        results: name → (3h, 3w, 3) in 0..255.
        hr: uint8 (3h, 3w, 3).
        size: side of the part shown, HR pixels.
        place: its top and left in HR pixels; None shows the most detailed part.
        here: give the PSNR of the part, too.
    """
    size = min(size, *hr.shape[:2]) // SCALE * SCALE
    place = place or most_detailed(hr, size)
    top, left = (min(at, side - size) // SCALE * SCALE
                 for at, side in zip(place, hr.shape[:2], strict=True))
    part = (slice(top, top + size), slice(left, left + size))
    small = tuple(slice(side.start // SCALE, side.stop // SCALE) for side in part)
    panels = [(lr[small], f"LR\n{lr.shape[1]} × {lr.shape[0]} px")]
    for name, sr in results.items():
        local = f", here {psnr_rgb(sr[part], hr[part]):.2f}" if here else ""
        panels.append((sr[part], f"{name}\n{psnr_rgb(sr, hr):.2f} dB{local}"))
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


def _term(name: str, loss: LossSettings | None) -> str:
    """A term of the loss for the legend: what is drawn is its value before its weight."""
    if name == "loss" or loss is None or getattr(loss, name) == 1:
        return TERMS.get(name, name)
    weight = "λ(t)" if name == "kd" and loss.kd_mid is not None else f"{getattr(loss, name):g}"
    return f"{TERMS[name]}, before × {weight}"


@style.context(STYLE)
def curves(history: Sequence[Mapping[str, float]], title: str = "",
           loss: LossSettings | None = None) -> Figure:
    """Loss and its terms (left) and validation PSNR (right) over the steps of a training.

    Args:
        history: rows of `Fit.history`: step, psnr_rgb (dB), loss and its terms (images in 0..1).
        loss: the weights of the terms, for the legend; the terms are drawn without them.
    """
    figure, steps = Figure(figsize=(9, 3.3)), [row["step"] for row in history]
    left, right = figure.subplots(1, 2)
    names = [name for name in ("loss", *TERMS) if any(name in row for row in history)]
    if len(names) == 2 and all(row.get(names[0]) == row.get(names[1]) for row in history):
        names = names[1:]  # a loss of one term
    for place, name in enumerate(names):
        marker = MARKERS[place % len(MARKERS)]
        values = [row.get(name, np.nan) for row in history]
        last = next(row[name] for row in reversed(history) if name in row)
        left.plot(steps, values, marker=marker, markersize=4,
                  label=f"{_term(name, loss)}: {last:.3g}")
    left.set(xlabel="training step", ylabel="loss (images in 0…1)", yscale="log",
             title=f"{title}: training loss")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    left.yaxis.set_major_formatter(plain)
    low, high = left.get_ylim()
    left.yaxis.set_minor_formatter(plain if high < 10 * low else "")
    figure.legend(loc="outside lower left", ncols=len(names), fontsize=9)
    values = [row["psnr_rgb"] for row in history]
    best = int(np.argmax(values))
    right.plot(steps, values, marker="o", markersize=4)
    right.plot(steps[best], values[best], marker="*", markersize=12, color="C1")
    right.ticklabel_format(useOffset=False)
    at_least(right, 0.1)
    right.set(xlabel="training step", ylabel="PSNR RGB (dB)",
              title=f"{title}: validation, best {values[best]:.2f} dB")
    return figure


@style.context(STYLE)
def confidence(weights: np.ndarray, hr: np.ndarray) -> Figure:
    """The image, the map w(p) of distillation weights (H, W) in 0..1, and their histogram."""
    figure = Figure(figsize=(10, 3))
    image, where, counts = figure.subplots(1, 3)
    _picture(image, hr, "photograph")
    drawn = where.imshow(weights, cmap="viridis", vmin=0, vmax=1)
    where.set_axis_off()
    where.set_title("distillation weight w(p)", loc="center", fontsize=10)
    figure.colorbar(drawn, ax=where, shrink=0.8)
    share = np.full(weights.size, 100 / weights.size)
    counts.hist(weights.ravel(), bins=40, range=(0, 1), weights=share)
    counts.set(xlabel="weight w(p)", ylabel="pixels (%)", title=f"mean {weights.mean():.2f}")
    return figure


@style.context(STYLE)
def error_map(one: np.ndarray, other: np.ndarray, title: str, limit: float = 4.0) -> Figure:
    """Signed difference of two images (H, W, 3), mean over the channels, and its histogram.

    Args:
        limit: end of the colour scale, grey levels of 255; equal scales can be compared.
    """
    difference = (one.astype(np.float64) - other.astype(np.float64)).mean(2)
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


def _name_layers(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xticks(np.arange(len(rows)), [row["name"] for row in rows], rotation=40, ha="right")
    axes.set_xlabel("layer")


@style.context(STYLE)
def layer_bars(rows: Sequence[Mapping[str, Any]], value: str, title: str, label: str) -> Figure:
    """One bar a layer, in the network's order.

    Args:
        rows: {"name", `value`}; without a finite number a layer has no bar.
        label: of the vertical axis, with its unit.
    """
    heights = [np.nan if row.get(value) is None else row[value] for row in rows]
    heights = [height if np.isfinite(height) else np.nan for height in heights]
    figure = Figure(figsize=(max(6, 0.65 * len(rows)), 3.3))
    axes = figure.subplots()
    drawn = axes.bar(np.arange(len(rows)), heights)
    axes.bar_label(drawn, ["" if np.isnan(height) else f"{height:.3g}" for height in heights],
                   fontsize=8, padding=1)
    axes.grid(visible=False, axis="x")
    _name_layers(axes, rows)
    axes.set(ylabel=label, title=title)
    return figure


@style.context(STYLE)
def layer_ranges(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Each layer's grid as a bar, the extremes of its channels as dots (above), its step (below).

    Args:
        rows: of `quantisation.layer_ranges`, in grey levels; without a grid the bar spans the
            values.
    """
    figure, at = Figure(figsize=(max(6, 0.65 * len(rows)), 4.8)), np.arange(len(rows))
    spans, steps = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    start = np.array([row.get("grid_low", row["low"]) for row in rows])
    end = np.array([row.get("grid_high", row["high"]) for row in rows])
    step = np.array([row.get("step", np.nan) for row in rows])
    spans.bar(at, end - start, bottom=start, width=0.6, color="C5", label="grid")
    dots = [(index, value) for index, row in enumerate(rows)
            for value in [*row["channel_low"], *row["channel_high"]]]
    spans.scatter(*zip(*dots, strict=True), s=5, color="black", alpha=0.5, linewidths=0,
                  label="extremes of a channel")
    spans.axhline(0, color="0.5", linewidth=0.8)
    spans.set(ylabel="activation (grey levels)", title="What each layer's grid has to span")
    spans.legend(loc="best")
    drawn = steps.bar(at, step, width=0.6, color="C1")
    steps.bar_label(drawn, ["" if np.isnan(value) else f"{value:.2f}" for value in step],
                    fontsize=8, padding=1)
    _name_layers(steps, rows)
    steps.set_ylabel("step (grey levels)")
    for axes in (spans, steps):
        axes.grid(visible=False, axis="x")
    steps.margins(y=0.15)
    return figure


@style.context(STYLE)
def drops(rows: Sequence[Mapping[str, Any]], table: str = "C", dataset: str = "validation") -> Figure:
    """PSNR of a table's networks in FP32 and INT8, from measured rows; the axis starts above 0."""
    chosen = [row for row in rows if (row["table"], row["metric"], row["dataset"]) == (
        table, "psnr", dataset) and row["value"] is not None
        and not row["row"].endswith(("_float", "_learnt"))]  # further rows of the same networks
    figure = Figure(figsize=(max(5, 1.8 * len({row["row"] for row in chosen})), 3.4))
    title = "What INT8 costs each network"
    if not chosen:
        figure.set_figheight(0.8)
        figure.suptitle(f"{title}: nothing measured", y=0.5, verticalalignment="center")
        return figure
    axes, names = figure.subplots(), list(dict.fromkeys(row["row"] for row in chosen))
    for index, precision in enumerate(sorted({row["precision"] for row in chosen})):
        found = {row["row"]: row for row in chosen if row["precision"] == precision}
        drawn = axes.bar([names.index(name) + 0.4 * index for name in found],
                         [row["value"] for row in found.values()], 0.38, label=precision.upper(),
                         yerr=[row.get("sd") or np.nan for row in found.values()], capsize=3)
        axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1)
    values = [row["value"] for row in chosen]
    margin = 0.15 * (max(values) - min(values)) or 0.1
    axes.set_ylim(min(values) - margin, max(values) + margin)
    axes.set_xticks(np.arange(len(names)) + 0.2, names)
    axes.grid(visible=False, axis="x")
    axes.set(ylabel="PSNR RGB (dB)\n(axis does not start at 0)", title=title)
    figure.legend(ncols=2, loc="outside lower center")
    return figure


@style.context(STYLE)
def scatter(points: Sequence[Mapping[str, Any]], x: str, y: str, xlabel: str, ylabel: str,
            title: str) -> Figure:
    """Quality against cost, the cost on a logarithmic axis.

    Args:
        points: {"name", "group", `x`, `y`}; a group has one colour and marker.
    """
    figure = Figure(figsize=(8, 4.6))
    axes = figure.subplots()
    groups = list(dict.fromkeys(point["group"] for point in points))
    for place, group in enumerate(groups):
        marker = MARKERS[place % len(MARKERS)]
        chosen = [point for point in points if point["group"] == group]
        axes.scatter([point[x] for point in chosen], [point[y] for point in chosen], label=group,
                     s=36, marker=marker)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log")
    axes.margins(0.15)
    thousands = FuncFormatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_formatter(thousands)
    axes.xaxis.set_minor_formatter(thousands)
    axes.tick_params(axis="x", which="minor", labelsize=8)
    axes.ticklabel_format(axis="y", useOffset=False)
    at_least(axes, 0.2)
    for index, point in enumerate(sorted(points, key=lambda point: point[y])):
        side = (6, "left") if index % 2 else (-6, "right")  # neighbours in height: either side
        axes.annotate(point["name"], (point[x], point[y]), (side[0], 0), ha=side[1], va="center",
                      textcoords="offset points", fontsize=8)
    figure.legend(ncols=2, loc="outside lower center")
    return figure


@style.context(STYLE)
def cubic_kernels() -> Figure:
    """Both bicubic kernels for enlarging (left), and MATLAB's, widened, for making LR (right)."""
    figure = Figure(figsize=(9.2, 3))
    up, down = figure.subplots(1, 2)
    x, wide = np.linspace(-2.5, 2.5, 501), np.linspace(-7, 7, 701)
    for line, (name, a) in zip(("-", "--"), KERNELS.items(), strict=True):
        label = f"{'PyTorch' if name == 'torch' else 'MATLAB'}: a = {a:g}"
        up.plot(x, cubic(x, a), label=label, linestyle=line)
    up.set(xlabel="distance (LR pixels)", ylabel="weight", title="enlarging: 4 × 4 LR pixels count")
    down.plot(wide, cubic(wide, KERNELS["torch"]), label="as it is: skips pixels")
    down.plot(wide, cubic(wide / SCALE, KERNELS["matlab"]) / SCALE, linestyle="--",
              label=f"MATLAB: {SCALE} times as wide")
    down.set(xlabel="distance (HR pixels)",
             title=f"making LR: {4 * SCALE} × {4 * SCALE} HR pixels count")
    for axes in (up, down):
        axes.set_ylim(-0.2, 1.5)
        axes.legend(loc="upper right", fontsize=9)
    return figure


@style.context(STYLE)
def fake_quant(scale: float = 1.0, zero_point: int = 3, levels: int = 8) -> Figure:
    """Rounding to a grid (left) and the gradient of the straight-through estimator (right).

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
    rounded = np.clip(np.round(x / scale) + zero_point, 0, levels - 1) - zero_point
    stairs.plot(x, scale * rounded, label="x̂")
    stairs.set(xlabel="x", ylabel="x̂", title=f"forward: {levels} steps, 0 is step {zero_point}")
    stairs.legend(loc="upper left")
    inside = (x > low - scale / 2) & (x < high + scale / 2)
    slope.plot(x, inside.astype(float), color="C1", label="what training uses")
    slope.plot(x, 0 * x, color="C0", linestyle="--", label="true slope: 0 almost everywhere")
    slope.set(xlabel="x", ylabel="∂x̂/∂x", ylim=(-0.15, 1.45),
              title="backward: straight through, 0 where clipped")
    slope.legend(loc="upper right", fontsize=9)
    return figure


@style.context(STYLE)
def int8_grid(row: Mapping[str, Any]) -> Figure:
    """The INT8 grid of one tensor: how many of its 256 steps each channel can use.

    Args:
        row: of a layer with a grid, from `quantisation.layer_ranges`, in grey levels.
    """
    low, high, step = row["grid_low"], row["grid_high"], row["step"]
    spans = np.clip([row["channel_low"], row["channel_high"]], low, high).T
    spans = spans[np.argsort(spans[:, 0] - spans[:, 1], kind="stable")]
    used = np.round((spans[:, 1] - spans[:, 0]) / step).astype(int) + 1
    figure = Figure(figsize=(9.2, 3.4))
    grid, counts = figure.subplots(1, 2, width_ratios=(3, 2))
    grid.hlines(np.arange(len(spans)), spans[:, 0], spans[:, 1], color="C0", linewidth=2.2)
    grid.axvline(0, color="C1", linewidth=1.4)
    grid.set(xlabel=f"value (grey levels), from the grid's {low:.3g} to its {high:.3g}",
             xlim=(low, high), ylabel="channel, widest first",
             title=f"{row['name']}: scale {step:.3g}, zero point at step {round(-low / step)}")
    grid.invert_yaxis()
    counts.bar(np.arange(len(used)), used)
    counts.axhline(256, color="0.4", linewidth=1)
    counts.set(xlabel="channel, widest first", ylabel="steps it can use, of 256", ylim=(0, 275),
               title=f"from {max(used)} down to {min(used)}")
    counts.grid(visible=False, axis="x")
    return figure


@style.context(STYLE)
def shares(found: pd.DataFrame) -> Figure:
    """What each term of the loss contributes to its value and to its gradient.

    Args:
        found: of `training.gradient_shares`, one line a term.
    """
    figure = Figure(figsize=(9.2, 0.5 * len(found) + 1.5))
    axes, at = figure.subplots(), np.arange(len(found))
    for index, what in enumerate(("value", "gradient")):
        parts = [100 * part for part in found[f"{what} share"]]
        place = at + 0.2 * (2 * index - 1)
        drawn = axes.barh(place, parts, 0.38, label=f"share of the {what}")
        labels = [f"{part:.1f} %" if part >= 0.05 else f"{part:.2g} %" for part in parts]
        axes.bar_label(drawn, labels, padding=3, fontsize=9)
    axes.set_yticks(at, [TERMS.get(name, name) for name in found["term"]])
    axes.invert_yaxis()
    axes.set(xlabel="share of the weighted loss (%)", xlim=(0, 112), title="Who pulls the student?")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.02))
    return figure


@style.context(STYLE)
def equal_scores() -> Figure:
    """The leaderboard in time and PSNR, with lines of equal score: 1 dB is worth two halvings."""
    figure = Figure(figsize=(9.2, 3.8))
    axes = figure.subplots()
    times, levels = np.geomspace(3, 70, 200), np.linspace(29.6, 30.15, 100)
    values = np.array([[score(psnr, ms) for ms in times] for psnr in levels])
    marks = [1, 2, 4, 8, 16]
    lines = axes.contour(times, levels, values, levels=marks, colors="0.55", linewidths=0.8)
    axes.clabel(lines, fmt=lambda value: f"score {value:g}", fontsize=9,
                manual=[(score(29.68, 1) / mark, 29.68) for mark in marks])
    beside = {"AntYSP": (-8, -6), "AntSR": (-8, 6), "IN2GM": (-8, 9)}  # where the names have room
    for name, (psnr, ms) in entries().items():
        mine = name == OURS
        axes.plot(ms, psnr, marker="*" if mine else "o", markersize=13 if mine else 7,
                  color="C1" if mine else "C0", linestyle="none")
        place = beside.get(name, (9, 4))
        axes.annotate(f"{name}, {score(psnr, ms):.1f}", (ms, psnr), place, fontsize=9,
                      textcoords="offset points", ha="right" if place[0] < 0 else "left",
                      va="center", backgroundcolor=(1, 1, 1, 0.7))
    ticks = [3, 5, 10, 20, 40, 70]
    axes.set(xscale="log", xlabel="NPU time (ms, logarithmic)", ylabel="PSNR, INT8 (dB)",
             title="Table A in time and PSNR; along a line the score is the same")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(visible=False)
    return figure


@style.context(STYLE)
def mean_drift(images: pd.DataFrame) -> Figure:
    """How far TensorFlow's float32 mean is off for uniform numbers, by size; and SSIM of real images.

    Args:
        images: of `evaluation.committed_div2k`; empty: the first panel alone.
    """
    figure = Figure(figsize=(9.2, 3.6) if len(images) else (5, 3.6))
    panels = figure.subplots(1, 2 if len(images) else 1, squeeze=False)[0]
    sizes = np.geomspace(2**14, 2160 * 3840, 24).astype(int)
    for low in (0.9, 0.8, 0.5):
        numbers = np.random.default_rng(0).uniform(low, 1, sizes[-1]).astype(np.float32)
        drift = [tensorflow_mean(numbers[:size]) - numbers[:size].mean(dtype=np.float64) for size in sizes]
        panels[0].plot(sizes / 1e6, drift, label=f"uniform in {low}..1")
    panels[0].axvline(2.8, linestyle=":", linewidth=1, color="0.4")
    panels[0].annotate("DIV2K", (2.8, 0.03), (4, 0), textcoords="offset points", fontsize=9)
    panels[0].set(xlabel="numbers added (million)", ylabel="float32 mean − true mean", xscale="log",
                  title="The mean drifts with size")
    panels[0].legend()
    if len(images):
        panels[1].plot(images["ssim"], images["ssim_tensorflow"] - images["ssim"], "o", markersize=5)
        panels[1].set(xlabel="SSIM", ylabel="paper's SSIM − SSIM", title="Real images, authors' INT8 file")
    return figure
