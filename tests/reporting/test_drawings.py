"""Drawings and drawn formulas: what they show is what they were given."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from paperlib.data.tiles import run_tiled
from paperlib.quantisation.int8 import QParams
from paperlib.reporting import drawings, formulas
from paperlib.settings import LossSettings
from paperlib.training.losses import kd_weight


def words(figure: Figure) -> str:
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize("figure", [
    drawings.pipeline(), drawings.pipeline(("07",), tables=True), drawings.block(), drawings.scan(),
    drawings.losses([("a", 1.0), ("b", 0.02), ("c", 0.03)])], ids=["pipeline", "tables", "block", "scan", "losses"])
def test_no_words_overlap_or_leave_the_drawing(figure):
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    for index, box in enumerate(boxes):
        assert box.x0 >= figure.bbox.x0 - 1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.count_overlaps([other for place, other in enumerate(boxes) if place != index]) == 0


@pytest.mark.parametrize("branches", [1, 4, 5])
def test_the_block_has_the_branches_it_is_told(branches):
    text = words(drawings.block(branches, 16))
    assert text.count("3×3\n+ BN") == branches
    assert f"{branches} + 2 branches" in text
    assert "16 channels" in text


def test_the_pipeline_marks_the_step_and_names_what_the_tables_change():
    fills = {patch.get_facecolor() for patch in drawings.pipeline(()).axes[0].patches}
    assert len({patch.get_facecolor() for patch in drawings.pipeline(("02",)).axes[0].patches} - fills) == 1
    assert "Table D" in words(drawings.pipeline((), tables=True))
    assert "Table D" not in words(drawings.pipeline(()))


def test_the_scan_sorts_by_class_and_keeps_raster_order():
    classes = np.array([[1, 0, 1], [2, 0, 1]])
    numbers = [int(text.get_text()) for text in drawings.scan(classes).axes[0].texts if text.get_text().isdigit()]
    assert numbers == [*range(6), *range(6), 1, 4, 0, 2, 5, 3]


def test_the_losses_carry_their_weights():
    text = words(drawings.losses([("a", 1.0), ("b", 0.25), ("c", 0.5)]))
    assert [f"× {weight}" in text for weight in ("1", "0.25", "0.5")] == [True] * 3


def test_the_tiles_drawn_are_the_tiles_run():
    seen = []

    def run(tile):
        seen.append(tile)
        return np.zeros((60, 90, 3), np.float32)

    run_tiled(run, np.zeros((35, 70, 3), np.uint8), 20, 30, 4)
    axes = drawings.tiles(35, 70, 20, 30, 4).axes[0]
    drawn = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_width() == 30]
    assert len(drawn) == len(seen)
    assert f"{len(seen)} tiles" in axes.get_title(loc="left")


def test_the_staircase_is_fake_quantisation():
    stairs, slope = formulas.fake_quant(0.5, 3, 8).axes
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
    grid, counts = formulas.int8_grid(row).axes
    assert [bar.get_height() for bar in counts.patches] == [256, 51, 21]
    assert "zero point at step 100" in grid.get_title(loc="left")


def test_the_schedule_shows_what_training_computes():
    settings = LossSettings(kd=0.01, kd_mid=0.005, kd_low=0.02)
    progress = np.linspace(0, 1, 101)
    weights = [kd_weight(settings, at) for at in progress]
    (line,) = formulas.kd_schedule(progress, weights).axes[0].lines
    assert list(line.get_ydata()) == weights
    assert formulas.kd_schedule([0, 1], [0.0, 0.0]).axes[0].get_ylim()[1] > 0


def test_shares_have_a_bar_a_term_for_value_and_gradient():
    found = pd.DataFrame({"term": ["charbonnier", "kd"], "value share": [0.14, 0.86], "gradient share": [0.18, 0.82]})
    axes = formulas.shares(found).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([14, 86, 18, 82])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Charbonnier", "distillation"]


def test_both_kernels_and_the_leaderboard_are_drawn():
    up, down = formulas.cubic_kernels().axes
    assert [round(float(line.get_ydata().min()), 3) for line in up.lines] == [-0.111, -0.074]
    x, weight = down.lines[1].get_data()
    assert weight.sum() * (x[1] - x[0]) == pytest.approx(1, abs=1e-3)
    text = words(formulas.equal_scores())
    for entry in ("AntYSP, 21.8", "z6, 16.5", "AIO_MAI, 1.8"):
        assert entry in text
