"""Figures by what their axes hold: the values, the places, the words that carry a number."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import rcParams

from paperlib.evaluation.metrics import psnr_rgb
from paperlib.quantisation.int8 import QParams
from paperlib.reporting import figures
from paperlib.run import measured_row
from paperlib.settings import LossSettings


def photograph(height=90, width=120, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def heights(bars):
    return [bar.get_height() for bar in bars if np.isfinite(bar.get_height())]


def ticks(texts):
    return [text.get_text() for text in texts]


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
    small = photograph(21, 24)  # smaller than the part: whole
    whole = figures.crops(small[::3, ::3], {}, small, size=300)
    assert whole.axes[1].images[0].get_array().shape == (21, 21, 3)


def test_curves_show_every_term_with_its_weight_and_the_best_score():
    history = [
        {"step": 1, "loss": 0.3, "charbonnier": 0.2, "dct": 5.0, "kd": 0.5, "psnr_rgb": 26.0},
        {"step": 2, "loss": 0.1, "charbonnier": 0.02, "dct": 4.0, "psnr_rgb": 25.5}]  # kd ends early
    weights = LossSettings(l1=0, charbonnier=1, dct=0.02, kd=0.01, kd_mid=0.005, kd_low=0.01)
    loss, score = figures.curves(history, "Stage 2", weights).axes
    assert [line.get_label() for line in loss.lines] == [
        "loss: 0.1", "Charbonnier: 0.02", "DCT, before × 0.02: 4", "distillation, before × λ(t): 0.5"]
    assert [line.get_ydata().tolist() for line in loss.lines[:3]] == [[0.3, 0.1], [0.2, 0.02], [5.0, 4.0]]
    assert score.lines[0].get_ydata().tolist() == [26.0, 25.5]
    assert score.get_title(loc="left") == "Stage 2: validation, best 26.00 dB"
    assert (score.get_xlabel(), score.get_ylabel()) == ("training step", "PSNR RGB (dB)")


@pytest.mark.parametrize(("slope", "least", "most"), [(1e-5, 0.1, 0.11), (1.0, 20, 25)])
def test_thousandths_of_a_decibel_are_no_curve(slope, least, most):
    low, high = figures.curves([{"step": step, "loss": 0.1, "psnr_rgb": 27 + step * slope}
                                for step in (10, 20, 30)]).axes[1].get_ylim()
    assert least <= high - low + 1e-9 < most
    assert low < 27 + 10 * slope < high


def test_confidence_shows_the_weights_and_their_histogram_in_percent():
    weights = np.full((90, 120), 0.75)
    weights[:9] = 0.1
    counts = heights(figures.confidence(weights, photograph()).axes[2].patches)
    assert (sum(counts), max(counts)) == (pytest.approx(100), pytest.approx(90))


def test_error_map_is_signed_and_states_its_root_mean_square():
    hr = photograph().astype(np.float32)
    where, counts, *_ = figures.error_map(hr + 2, hr, "INT8 − float").axes
    assert np.allclose(where.images[0].get_array(), 2)
    assert counts.get_title(loc="left") == "root mean square 2.00"
    assert counts.get_xlabel() == "difference (grey levels of 255)"


def test_layers_without_a_finite_number_have_no_bar():
    rows = [{"name": "input", "sqnr_db": float("inf")}, {"name": "stem", "sqnr_db": 40.0}, {"name": "head"}]
    before = rcParams["axes.grid"]
    axes = figures.layer_sqnr(rows).axes[0]
    assert ticks(axes.get_xticklabels()) == ["input", "stem", "head"]
    assert heights(axes.patches) == [40.0]
    assert axes.get_ylabel().endswith("(dB)")
    assert rcParams["axes.grid"] == before  # figures leave matplotlib's settings alone


def test_layer_ranges_show_grids_and_the_extremes_of_channels():
    rows = [{"name": "stem", "low": -20.0, "high": 300.0, "channel_low": [-20.0, 0.0],
             "channel_high": [300.0, 4.0], "grid_low": -25.0, "grid_high": 310.0, "step": 1.3},
            {"name": "head", "low": -5.0, "high": 260.0, "channel_low": [-5.0], "channel_high": [260.0]}]
    spans, steps = figures.layer_ranges(rows).axes
    assert [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in spans.patches] == [(-25, 310), (-5, 260)]
    assert spans.collections[0].get_offsets().tolist() == [[0, -20], [0, 0], [0, 300], [0, 4], [1, -5], [1, 260]]
    assert heights(steps.patches) == [1.3]
    assert ticks(steps.get_xticklabels()) == ["stem", "head"]


def test_drops_pair_the_two_precisions_of_a_network():
    values = {("mobileone", "int8"): [26.7, 26.9], ("mobileone", "fp32"): 27.0, ("repdw", "fp32"): 26.0,
              ("repdw", "int8"): 25.0, ("repdw_learnt", "int8"): 1.0, ("abpn", "fp32"): None}
    rows = [measured_row("C", *key, "psnr", value, "validation") for key, value in values.items()]
    rows.append(measured_row("C", "repdw", "int8", "psnr", 1.0, "Set5"))
    axes = figures.drops(rows).axes[0]
    first, second = (bars for bars in axes.containers if hasattr(bars, "patches"))
    assert (first.get_label(), second.get_label()) == ("FP32 (fake-quantised)", "INT8 file")
    assert heights(first.patches) == [27.0, 26.0]
    assert heights(second.patches) == pytest.approx([26.8, 25.0])
    assert ticks(axes.get_xticklabels()) == ["MobileOne", "RepDW"]
    nothing = figures.drops([])
    assert "nothing measured" in nothing.get_suptitle()
    assert nothing.axes == []


def test_patch_grid_shows_lr_above_hr():
    lr, hr = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.full((2, 3, 24, 24), 255, dtype=torch.uint8)
    shown = [axes.images[0].get_array() for axes in figures.patch_grid(lr, hr).axes]
    assert [(image.shape[0], image.max(), image.min()) for image in shown] == [
        (8, 0, 0), (8, 0, 0), (24, 255, 255), (24, 255, 255)]


def test_the_staircase_is_fake_quantisation():
    stairs, slope = figures.fake_quant().axes
    x, y = stairs.lines[1].get_data()
    grid = QParams(1.0, 3 - 128)  # the same grid, eight of whose steps are used
    inside = (x > -2.9) & (x < 3.9)
    expected = grid.fake(torch.from_numpy(x[inside].astype(np.float32))).numpy()
    assert np.abs(expected - y[inside]).max() < 1e-6
    assert (y.min(), y.max()) == (-3, 4)
    gradient = slope.lines[0].get_ydata()
    assert set(gradient) == {0.0, 1.0}
    assert not gradient[(x > 4.5) | (x < -3.5)].any()


def test_the_grid_counts_the_steps_of_each_channel():
    row = {"name": "stem", "grid_low": -1.0, "grid_high": 1.55, "step": 0.01,
           "channel_low": [-1.0, 0.0, -0.1], "channel_high": [1.55, 0.5, 0.1]}
    grid, counts = figures.int8_grid(row).axes
    assert heights(counts.patches) == [256, 51, 21]
    assert "zero point at step 100" in grid.get_title(loc="left")


def test_shares_have_a_bar_a_term_for_value_and_gradient():
    found = pd.DataFrame({"term": ["charbonnier", "kd"], "value share": [0.14, 0.86], "gradient share": [0.18, 0.82]})
    axes = figures.shares(found).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([14, 86, 18, 82])
    assert ticks(axes.get_yticklabels()) == ["Charbonnier", "distillation"]


def test_kernels_leaderboard_and_costs_are_drawn():
    points = pd.DataFrame({"name": ["a", "b"], "group": "ours", "macs": [1, 2], "psnr": [27.66, 27.661]})
    axes = figures.quality_against_cost(points).axes[0]
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(0.2)
    assert low < 27.66 < 27.661 < high
    assert axes.get_yticklabels()[0].get_text().startswith("27.")  # no offset
    up, down = figures.cubic_kernels().axes
    assert [round(float(line.get_ydata().min()), 3) for line in up.lines] == [-0.111, -0.074]
    x, weight = down.lines[1].get_data()
    assert weight.sum() * (x[1] - x[0]) == pytest.approx(1, abs=1e-3)
    text = "\n".join(ticks(figures.equal_scores().axes[0].texts))
    for entry in ("AntYSP, 21.8", "z6, 16.5", "AIO_MAI, 1.8"):
        assert entry in text
