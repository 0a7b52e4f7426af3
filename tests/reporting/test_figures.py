
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from paperlib.evaluation.metrics import psnr_rgb
from paperlib.quantisation.int8 import QParams
from paperlib.reporting import figures
from paperlib.run import measured_row
from paperlib.settings import LossSettings


def photograph(height=90, width=120):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels(figure: Figure) -> list[str]:
    return [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(),
                                                      axes.get_title(loc="left")) if text]


def test_the_most_detailed_part_is_where_the_detail_is():
    flat = np.full((120, 150, 3), 90, np.uint8)
    flat[63:93, 99:129] = photograph(30, 30)
    assert figures.most_detailed(flat, 30) == (63, 99)


def test_crops_show_the_same_part_of_every_version_and_the_score_of_the_whole():
    hr = photograph()
    sr = np.clip(hr.astype(np.float32) + 2, 0, 255)
    figure = figures.crops(hr[::3, ::3], {"bicubic": sr}, hr, size=30, place=(31, 62))
    lr_shown, sr_shown, hr_shown = (axes.images[0].get_array() for axes in figure.axes)
    assert np.array_equal(hr_shown, hr[30:60, 60:90])
    assert np.array_equal(sr_shown, sr[30:60, 60:90].astype(np.uint8))
    assert np.array_equal(lr_shown, hr[::3, ::3][10:20, 20:30])
    assert figure.axes[1].get_title() == f"bicubic\n{psnr_rgb(sr, hr):.2f} dB"


def test_crops_of_photographs_smaller_than_the_part_are_whole():
    hr = photograph(21, 24)
    figure = figures.crops(hr[::3, ::3], {}, hr, size=300)
    assert figure.axes[1].images[0].get_array().shape == (21, 21, 3)


def test_a_term_of_the_loss_says_by_what_it_is_weighted():
    history = [{"step": 1, "loss": 0.1, "charbonnier": 0.02, "dct": 4.0, "kd": 0.5, "psnr_rgb": 26.0}]
    weights = LossSettings(l1=0, charbonnier=1, dct=0.02, kd=0.01, kd_mid=0.005, kd_low=0.01)
    lines = figures.curves(history, "", weights).axes[0].lines
    assert [line.get_label() for line in lines] == ["loss: 0.1", "Charbonnier: 0.02", "DCT, before × 0.02: 4",
                                                    "distillation, before × λ(t): 0.5"]


def test_thousandths_of_a_decibel_are_no_curve():
    history = [{"step": step, "loss": 0.1, "psnr_rgb": 27 + step / 1e5} for step in (10, 20, 30)]
    low, high = figures.curves(history).axes[1].get_ylim()
    assert high - low >= 0.1
    assert low < 27 < high
    wide = [row | {"psnr_rgb": 20 + row["step"]} for row in history]
    low, high = figures.curves(wide).axes[1].get_ylim()
    assert 20 < high - low < 25


def test_curves_show_every_loss_term_and_the_best_score():
    history = [{"step": 10, "lr": 1, "loss": 0.2, "dct": 3.0, "psnr_rgb": 26.0, "seconds": 1},
               {"step": 20, "lr": 1, "loss": 0.1, "dct": 2.0, "psnr_rgb": 25.5, "seconds": 2}]
    figure = figures.curves(history, "Stage 2")
    loss, score = figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[0.2, 0.1], [3.0, 2.0]]
    assert score.lines[0].get_ydata().tolist() == [26.0, 25.5]
    assert "Stage 2: validation, best 26.00 dB" in labels(figure)
    assert {"training step", "PSNR RGB (dB)"} <= set(labels(figure))


def test_a_loss_of_one_term_is_one_line_and_no_legend_lies_on_a_curve():
    history = [{"step": step, "loss": 0.1 / step, "l1": 0.1 / step, "psnr_rgb": 26.0} for step in (1, 2)]
    figure = figures.curves(history)
    assert [line.get_label() for line in figure.axes[0].lines] == ["L1: 0.05"]
    figure.canvas.draw()
    (legend,) = figure.legends
    assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_confidence_shows_the_weights_and_their_histogram_in_percent():
    weights = np.full((90, 120), 0.75)
    weights[:9] = 0.1
    figure = figures.confidence(weights, photograph())
    heights = [bar.get_height() for bar in figure.axes[2].patches]
    assert sum(heights) == pytest.approx(100)
    assert max(heights) == pytest.approx(90)


def test_error_map_is_signed_and_states_its_root_mean_square():
    hr = photograph().astype(np.float32)
    figure = figures.error_map(hr + 2, hr, "INT8 − float")
    assert np.allclose(figure.axes[0].images[0].get_array(), 2)
    assert "root mean square 2.00" in labels(figure)


def test_layers_without_a_finite_number_have_no_bar():
    rows = [{"name": "input", "sqnr_db": float("inf")}, {"name": "stem", "sqnr_db": 40.0}, {"name": "head"}]
    axes = figures.layer_bars(rows, "sqnr_db", "noise", "SQNR (dB)").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["input", "stem", "head"]
    assert [bar.get_height() for bar in axes.patches if np.isfinite(bar.get_height())] == [40.0]
    assert axes.get_ylabel().endswith("(dB)")


def test_curves_of_a_history_whose_term_ends_early():
    rows = [{"step": 1, "loss": 0.3, "kd": 0.2, "psnr_rgb": 20.0}, {"step": 2, "loss": 0.1, "psnr_rgb": 21.0}]
    lines = figures.curves(rows).axes[0].lines
    assert [line.get_label() for line in lines] == ["loss: 0.1", "distillation: 0.2"]


def test_layer_ranges_show_grids_and_the_extremes_of_channels():
    rows = [{"name": "stem", "low": -20.0, "high": 300.0, "channel_low": [-20.0, 0.0], "channel_high": [300.0, 4.0],
             "grid_low": -25.0, "grid_high": 310.0, "step": 1.3},
            {"name": "head", "low": -5.0, "high": 260.0, "channel_low": [-5.0], "channel_high": [260.0]}]
    spans, steps = figures.layer_ranges(rows).axes
    assert [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in spans.patches] == [(-25, 310), (-5, 260)]
    assert spans.collections[0].get_offsets().tolist() == [
        [0, -20], [0, 0], [0, 300], [0, 4], [1, -5], [1, 260]]
    assert steps.patches[0].get_height() == 1.3
    assert [text.get_text() for text in steps.get_xticklabels()] == ["stem", "head"]


def test_drops_pair_the_two_precisions_of_a_network():
    rows = [measured_row("C", name, precision, "psnr", value, dataset) for name, precision, value, dataset in (
        ("mobileone", "int8", [26.7, 26.9], "validation"), ("mobileone", "fp32", 27.0, "validation"),
        ("repdw", "fp32", 26.0, "validation"), ("repdw", "int8", 25.0, "validation"), ("repdw", "int8", 1.0, "Set5"))]
    axes = figures.drops(rows).axes[0]
    first, second = (container for container in axes.containers if hasattr(container, "patches"))
    assert (first.get_label(), second.get_label()) == ("FP32", "INT8")
    assert [bar.get_height() for bar in first.patches] == [27.0, 26.0]
    assert [bar.get_height() for bar in second.patches] == pytest.approx([26.8, 25.0])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["mobileone", "repdw"]



def test_a_scatter_of_nearly_equal_scores_does_not_magnify_them():
    points = [{"name": str(index), "group": "a", "x": 1.0 + index, "y": 27.66 + 0.001 * index} for index in range(2)]
    axes = figures.scatter(points, "x", "y", "cost (ms)", "PSNR (dB)", "").axes[0]
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(0.2)
    assert low < 27.66 < 27.661 < high
    assert axes.get_yticklabels()[0].get_text().startswith("27.")


def test_patch_grid_shows_lr_above_hr():
    lr, hr = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.full((2, 3, 24, 24), 255, dtype=torch.uint8)
    figure = figures.patch_grid(lr, hr)
    assert len(figure.axes) == 4
    assert figure.axes[0].images[0].get_array().max() == 0
    assert figure.axes[2].images[0].get_array().min() == 255


def test_figures_leave_matplotlibs_settings_alone():
    from matplotlib import rcParams

    before = rcParams["axes.grid"]
    figures.layer_bars([{"name": "stem", "step": 1.0}], "step", "", "")
    assert rcParams["axes.grid"] == before


def test_bars_of_nothing_say_so():
    figure = figures.drops([])
    assert figure.get_suptitle() == "What INT8 costs each network: nothing measured"
    assert figure.axes == []


def test_the_staircase_is_fake_quantisation():
    stairs, slope = figures.fake_quant(0.5, 3, 8).axes
    x, y = stairs.lines[1].get_data()
    grid = QParams(0.5, 3 - 128)  # the same grid, eight of whose steps are used
    inside = (x > -1.4) & (x < 1.9)
    expected = grid.fake(torch.from_numpy(x[inside].astype(np.float32))).numpy()
    assert np.abs(expected - y[inside]).max() < 1e-6
    assert (y.min(), y.max()) == (-1.5, 2.0)
    gradient = slope.lines[0].get_ydata()
    assert set(gradient) == {0.0, 1.0}
    assert not gradient[x > 2.3].any()


def test_the_grid_counts_the_steps_of_each_channel():
    row = {"name": "stem", "grid_low": -1.0, "grid_high": 1.55, "step": 0.01, "channel_low": [-1.0, 0.0, -0.1],
           "channel_high": [1.55, 0.5, 0.1]}
    grid, counts = figures.int8_grid(row).axes
    assert [bar.get_height() for bar in counts.patches] == [256, 51, 21]
    assert "zero point at step 100" in grid.get_title(loc="left")



def test_shares_have_a_bar_a_term_for_value_and_gradient():
    found = pd.DataFrame({"term": ["charbonnier", "kd"], "value share": [0.14, 0.86], "gradient share": [0.18, 0.82]})
    axes = figures.shares(found).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([14, 86, 18, 82])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Charbonnier", "distillation"]


def test_both_kernels_and_the_leaderboard_are_drawn():
    up, down = figures.cubic_kernels().axes
    assert [round(float(line.get_ydata().min()), 3) for line in up.lines] == [-0.111, -0.074]
    x, weight = down.lines[1].get_data()
    assert weight.sum() * (x[1] - x[0]) == pytest.approx(1, abs=1e-3)
    text = "\n".join(text.get_text() for text in figures.equal_scores().axes[0].texts)
    for entry in ("AntYSP, 21.8", "z6, 16.5", "AIO_MAI, 1.8"):
        assert entry in text
