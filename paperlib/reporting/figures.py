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
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from paperlib.data.resize import KERNELS, cubic
from paperlib.evaluation.metrics import psnr_rgb, tensorflow_mean
from paperlib.evaluation.paper_numbers import OURS, entries, score
from paperlib.reporting import tables
from paperlib.run import STYLE
from paperlib.settings import SCALE, LossSettings

MARKERS = "osD^vPX"
"""A marker a group, so that colour is never the only difference."""
TERMS = {"l1": "L1", "charbonnier": "Charbonnier", "mse": "MSE", "dct": "DCT", "kd": "distillation"}


def _panels(width: float, height: float, *grid: int, **options: Any) -> tuple[Figure, Any]:
    """A figure of that size (inches), and its axes, `grid` rows and columns."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(*grid, **options)


def _picture(axes: Axes, image_255: np.ndarray, title: str) -> None:
    """Draw pixels (H, W, 3) without an axis, the title centred above."""
    axes.imshow(np.clip(np.round(image_255), 0, 255).astype(np.uint8))
    axes.set_title(title, loc="center", fontsize=10)
    axes.set_axis_off()


def most_detailed(hr: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left (multiples of 3) of the `size`-pixel square with the most detail."""
    grey = hr.astype(np.float32).mean(2)
    detail = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    size = min(size, *detail.shape)
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    top, left = np.unravel_index(sums[::SCALE, ::SCALE].argmax(), sums[::SCALE, ::SCALE].shape)
    return int(top) * SCALE, int(left) * SCALE


@style.context(STYLE)
def crops(lr: np.ndarray, results: Mapping[str, np.ndarray], hr: np.ndarray, size: int = 120,
          place: tuple[int, int] | None = None, here: bool = False) -> Figure:
    """One part of an image: LR, each result with its PSNR over the whole image, and HR.

    Args:
        lr, hr: uint8 (h, w, 3) and (3h, 3w, 3).
        results: name → (3h, 3w, 3) in 0..255.
        size, place: side of the part and its top and left, HR pixels; None: the most detailed one.
        here: give the PSNR of the part, too.
    """
    height, width = hr.shape[:2]
    size = min(size, height, width) // SCALE * SCALE
    top, left = place or most_detailed(hr, size)
    top, left = min(top, height - size) // SCALE * SCALE, min(left, width - size) // SCALE * SCALE
    part = np.s_[top : top + size, left : left + size]
    small = lr[top // SCALE :, left // SCALE :][: size // SCALE, : size // SCALE]
    panels = [(small, f"LR\n{lr.shape[1]} × {lr.shape[0]} px")]
    for name, sr in results.items():
        local = f", here {psnr_rgb(sr[part], hr[part]):.2f}" if here else ""
        panels.append((sr[part], f"{name}\n{psnr_rgb(sr, hr):.2f} dB{local}"))
    panels.append((hr[part], f"HR\n{width} × {height} px"))
    figure, grid = _panels(2.3 * len(panels), 2.8, 1, len(panels))
    for axes, (image, title) in zip(grid, panels, strict=True):
        _picture(axes, image, title)
    return figure


@style.context(STYLE)
def patch_grid(lr: Tensor, hr: Tensor) -> Figure:
    """The first six patches of a batch, LR (B, 3, p, p) above HR (B, 3, 3p, 3p), uint8."""
    count = min(6, len(lr))
    figure, grid = _panels(1.5 * count, 3.4, 2, count, squeeze=False)
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
    """Loss and its terms (left) and validation PSNR (right) over the rows of `Fit.history`.

    The terms are drawn before the weights of `loss`, which the legend names.
    """
    rows = pd.DataFrame(history).set_index("step")
    figure, (left, right) = _panels(9, 3.3, 1, 2)
    names = [name for name in ("loss", *TERMS) if name in rows]
    if len(names) == 2 and rows[names[0]].equals(rows[names[1]]):
        names = names[1:]  # a loss of one term
    for name, marker in zip(names, MARKERS[:len(names)], strict=True):
        left.plot(rows.index, rows[name], marker=marker, markersize=4,
                  label=f"{_term(name, loss)}: {rows[name].dropna().iloc[-1]:.3g}")
    left.set(xlabel="training step", ylabel="loss (images in 0…1)", yscale="log",
             title=f"{title}: training loss")
    left.yaxis.set_major_formatter("{x:g}")
    low, high = left.get_ylim()
    left.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")
    figure.legend(loc="outside lower left", ncols=len(names), fontsize=9)
    psnr = rows["psnr_rgb"]
    right.plot(rows.index, psnr, marker="o", markersize=4)
    right.plot(psnr.idxmax(), psnr.max(), marker="*", markersize=12, color="C1")
    right.ticklabel_format(useOffset=False)
    at_least(right, 0.1)
    right.set(xlabel="training step", ylabel="PSNR RGB (dB)",
              title=f"{title}: validation, best {psnr.max():.2f} dB")
    return figure


def _map(where: Axes, counts: Axes, values: np.ndarray, limits: tuple[float, float],
         colours: str, label: str) -> None:
    """Values (H, W) as colours, and their histogram; beyond the limits they count as at them."""
    drawn = where.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    where.set_axis_off()
    where.figure.colorbar(drawn, ax=where, shrink=0.8)
    counts.hist(np.clip(values, *limits).ravel(), bins=41, range=limits,
                weights=np.full(values.size, 100 / values.size))
    counts.set(xlabel=label, ylabel="pixels (%)")


@style.context(STYLE)
def confidence(weights: np.ndarray, hr: np.ndarray) -> Figure:
    """The image, the map w(p) of distillation weights (H, W) in 0..1, and their histogram."""
    figure, (image, where, counts) = _panels(10, 3, 1, 3)
    _picture(image, hr, "photograph")
    _map(where, counts, weights, (0, 1), "viridis", "weight w(p)")
    where.set_title("distillation weight w(p)", loc="center", fontsize=10)
    counts.set_title(f"mean {weights.mean():.2f}")
    return figure


@style.context(STYLE)
def error_map(one: np.ndarray, other: np.ndarray, title: str) -> Figure:
    """Signed difference of two images (H, W, 3), mean over the channels, and its histogram.

    The scale ends at ±4 grey levels of 255 in every figure, so that they can be compared.
    """
    difference = (one.astype(np.float64) - other.astype(np.float64)).mean(2)
    figure, (where, counts) = _panels(9, 3.4, 1, 2)
    _map(where, counts, difference, (-4, 4), "RdBu_r", "difference (grey levels of 255)")
    where.set_title(title)
    counts.set_title(f"root mean square {np.sqrt((difference**2).mean()):.2f}")
    return figure


def _name_layers(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xticks(np.arange(len(rows)), [row["name"] for row in rows], rotation=40, ha="right")
    axes.set_xlabel("layer")


@style.context(STYLE)
def layer_sqnr(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Rows of `quantisation.layer_sqnr`, one bar a layer; none where the number is infinite."""
    figure, axes = _panels(max(6, 0.65 * len(rows)), 3.3)
    heights = np.array([row.get("sqnr_db") for row in rows], np.float64)
    drawn = axes.bar(np.arange(len(rows)), np.where(np.isfinite(heights), heights, np.nan))
    axes.bar_label(drawn, fmt="%.3g", fontsize=8, padding=1)
    axes.grid(visible=False, axis="x")
    _name_layers(axes, rows)
    axes.set(ylabel="SQNR (dB)", title="Signal to quantisation noise after each layer")
    return figure


@style.context(STYLE)
def layer_ranges(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Each layer's grid as a bar, the extremes of its channels as dots (above), its step (below).

    Rows of `quantisation.layer_ranges`, in grey levels; without a grid the bar spans the values.
    """
    figure, (spans, steps) = _panels(max(6, 0.65 * len(rows)), 4.8, 2, 1, sharex=True,
                                     height_ratios=(3, 2))
    at = np.arange(len(rows))
    start = np.array([row.get("grid_low", row["low"]) for row in rows])
    end = np.array([row.get("grid_high", row["high"]) for row in rows])
    spans.bar(at, end - start, bottom=start, width=0.6, color="C5", label="grid")
    dots = [(index, value) for index, row in enumerate(rows)
            for value in [*row["channel_low"], *row["channel_high"]]]
    spans.scatter(*zip(*dots, strict=True), s=5, color="black", alpha=0.5, linewidths=0,
                  label="extremes of a channel")
    spans.axhline(0, color="0.5", linewidth=0.8)
    spans.set(ylabel="activation (grey levels)", title="What each layer's grid has to span")
    spans.legend(loc="best")
    drawn = steps.bar(at, [row.get("step", np.nan) for row in rows], width=0.6, color="C1")
    steps.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1)
    _name_layers(steps, rows)
    steps.set_ylabel("step (grey levels)")
    for axes in (spans, steps):
        axes.grid(visible=False, axis="x")
    steps.margins(y=0.15)
    return figure


@style.context(STYLE)
def drops(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """PSNR of Table C's networks on the validation images in FP32 and INT8, from measured rows."""
    found = pd.DataFrame([{"sd": None} | row for row in rows if row["value"] is not None and (
        row["table"], row["metric"], row["dataset"]) == ("C", "psnr", "validation")
        and not row["row"].endswith(("_float", "_learnt", "_fixed"))])  # of the same networks
    title = "What INT8 costs each network"
    if found.empty:
        figure = Figure(figsize=(5, 0.8))
        figure.suptitle(f"{title}: nothing measured", y=0.5, verticalalignment="center")
        return figure
    names = list(found["row"].unique())
    figure, axes = _panels(max(5, 1.8 * len(names)), 3.4)
    for index, (precision, part) in enumerate(found.groupby("precision")):
        drawn = axes.bar([names.index(name) + 0.4 * index for name in part["row"]], part["value"],
                         0.38, yerr=part["sd"].astype(float), capsize=3, label={
                             "fp32": "FP32 (fake-quantised)", "int8": "INT8 file"}[precision])
        axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1)
    low, high = found["value"].min(), found["value"].max()
    margin = 0.15 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    axes.set_xticks(np.arange(len(names)) + 0.2, list(map(tables.name, names)))
    axes.grid(visible=False, axis="x")
    axes.set(ylabel="PSNR RGB (dB)\n(axis does not start at 0)", title=title)
    figure.legend(ncols=2, loc="outside lower center")
    return figure


@style.context(STYLE)
def quality_against_cost(points: pd.DataFrame) -> Figure:
    """Points of `costs.cost_points` by PSNR and multiply-accumulates, the cost logarithmic."""
    figure, axes = _panels(8, 4.6)
    groups = points.groupby("group", sort=False)
    for (group, part), marker in zip(groups, MARKERS[:groups.ngroups], strict=True):
        axes.scatter(part["macs"], part["psnr"], label=group, s=36, marker=marker)
    axes.set(xlabel="multiply-accumulates per LR pixel (thousands)", xscale="log",
             ylabel="PSNR RGB on Set5 (dB)",
             title="Quality against cost, public models on the same images")
    axes.margins(0.15)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("{x:,.0f}")
    axes.tick_params(axis="x", which="minor", labelsize=8)
    axes.ticklabel_format(axis="y", useOffset=False)
    at_least(axes, 0.2)
    for index, point in enumerate(points.sort_values("psnr", kind="stable").itertuples()):
        side = (6, "left") if index % 2 else (-6, "right")  # neighbours in height: either side
        axes.annotate(point.name, (point.macs, point.psnr), (side[0], 0), ha=side[1], va="center",
                      textcoords="offset points", fontsize=8)
    figure.legend(ncols=2, loc="outside lower center")
    return figure


@style.context(STYLE)
def cubic_kernels() -> Figure:
    """Both bicubic kernels for enlarging (left), and MATLAB's, widened, for making LR (right)."""
    figure, (up, down) = _panels(9.2, 3, 1, 2)
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
def fake_quant() -> Figure:
    """Rounding to a grid (left) and the gradient of the straight-through estimator (right).

    The grid has 8 steps of width 1, of which the fourth stands for 0; 256 nobody could see.
    """
    figure, (stairs, slope) = _panels(9.2, 3, 1, 2)
    x = np.linspace(-5, 6, 2000)
    stairs.plot(x, x, color="0.6", linewidth=1, label="x")
    stairs.plot(x, np.clip(np.round(x), -3, 4), label="x̂")
    stairs.set(xlabel="x", ylabel="x̂", title="forward: 8 steps, 0 is step 3")
    stairs.legend(loc="upper left")
    slope.plot(x, ((x > -3.5) & (x < 4.5)).astype(float), color="C1", label="what training uses")
    slope.plot(x, 0 * x, color="C0", linestyle="--", label="true slope: 0 almost everywhere")
    slope.set(xlabel="x", ylabel="∂x̂/∂x", ylim=(-0.15, 1.45),
              title="backward: straight through, 0 where clipped")
    slope.legend(loc="upper right", fontsize=9)
    return figure


@style.context(STYLE)
def int8_grid(row: Mapping[str, Any]) -> Figure:
    """A row of `quantisation.layer_ranges`: how many of the grid's 256 steps a channel can use."""
    low, high, step = row["grid_low"], row["grid_high"], row["step"]
    spans = np.clip([row["channel_low"], row["channel_high"]], low, high).T
    spans = spans[np.argsort(spans[:, 0] - spans[:, 1], kind="stable")]
    used = np.round((spans[:, 1] - spans[:, 0]) / step).astype(int) + 1
    figure, (grid, counts) = _panels(9.2, 3.4, 1, 2, width_ratios=(3, 2))
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
    """Lines of `training.gradient_shares`: each term's part of the loss and of its gradient."""
    figure, axes = _panels(9.2, 0.5 * len(found) + 1.5)
    parts = 100 * found[["value share", "gradient share"]].set_axis(
        ["share of the value", "share of the gradient"], axis=1)
    parts.set_index(found["term"].replace(TERMS)).plot.barh(ax=axes, width=0.78)
    for bars in axes.containers:
        axes.bar_label(bars, fmt=lambda part: f"{part:.1f} %" if part >= 0.05 else f"{part:.2g} %",
                       padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="share of the weighted loss (%)", ylabel="", xlim=(0, 112),
             title="Who pulls the student?")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.02))
    return figure


@style.context(STYLE)
def equal_scores() -> Figure:
    """The leaderboard in time and PSNR, with lines of equal score: 1 dB is worth two halvings."""
    figure, axes = _panels(9.2, 3.8)
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
    """How far TensorFlow's float32 mean is off for uniform numbers, by size; SSIM of real images
    (of `evaluation.committed_div2k`)."""
    both = len(images) > 0
    figure, ((first, *second),) = _panels(9.2 if both else 5, 3.6, 1, 1 + both, squeeze=False)
    sizes = np.geomspace(2**14, 2160 * 3840, 24).astype(int)
    for low in (0.9, 0.8, 0.5):
        numbers = np.random.default_rng(0).uniform(low, 1, sizes[-1]).astype(np.float32)
        drift = [tensorflow_mean(numbers[:size]) - numbers[:size].mean(dtype=np.float64)
                 for size in sizes]
        first.plot(sizes / 1e6, drift, label=f"uniform in {low}..1")
    first.axvline(2.8, linestyle=":", linewidth=1, color="0.4")
    first.annotate("DIV2K", (2.8, 0.045), (-4, 0), textcoords="offset points", fontsize=9,
                   horizontalalignment="right")
    first.set(xlabel="numbers added (million)", ylabel="float32 mean − true mean", xscale="log",
              xlim=(0.015, 12), title="The mean drifts with size")
    first.legend()
    for axes in second:
        axes.plot(images["ssim"], images["ssim_tensorflow"] - images["ssim"], "o", markersize=5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set(xlabel="SSIM", ylabel="paper's SSIM − SSIM",
                 title="Real images, authors' INT8 file")
    return figure
