from io import BytesIO

import numpy as np
import pytest
from IPython.display import Image as Still
from PIL import Image

from paperlib.data.photographs import make_pair
from paperlib.errors import UserError
from paperlib.evaluation.metrics import psnr_rgb
from paperlib.reporting import explorer
from paperlib.running import notebooks


def photograph(name, height=150, width=210, seed=0):
    return make_pair(name, np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


class Repeat:
    """Nearest neighbour, brightened; counts its calls."""

    def __init__(self, brighter=0.0, factor=3):
        self.brighter, self.factor, self.calls = brighter, factor, 0

    def __call__(self, lr):
        self.calls += 1
        return (lr.astype(np.float32) + self.brighter).repeat(self.factor, 0).repeat(self.factor, 1)


@pytest.fixture
def models():
    return {"plain": Repeat(), "bright": Repeat(20.0), "unused": Repeat(), "last": Repeat(-7.3)}


@pytest.fixture
def pairs():
    return [photograph("one"), photograph("two", 399, 450, seed=1)]


def pixels(widget):
    return np.asarray(Image.open(BytesIO(widget.value)))


def expected(sr, box, zoom):
    top, left, rows, columns = box
    part = np.clip(np.round(sr), 0, 255).astype(np.uint8)[top : top + rows, left : left + columns]
    return part.repeat(zoom, 0).repeat(zoom, 1)


def test_crops_are_exactly_the_chosen_part_of_the_chosen_photograph_by_the_chosen_models(pairs, models):
    shown = explorer.Explorer(pairs, models)
    assert (shown.left.value, shown.right.value, shown.zoom.value) == ("plain", "last", 4)
    shown.across.value, shown.down.value = 31, 17
    assert shown.box == (17, 31, 90, 90)
    assert np.array_equal(pixels(shown.pictures[0]), expected(models["plain"](pairs[0].lr), (17, 31, 90, 90), 4))
    assert np.array_equal(pixels(shown.pictures[1]), expected(models["last"](pairs[0].lr), (17, 31, 90, 90), 4))
    shown.photograph.value, shown.right.value, shown.zoom.value = "two", "original", 7
    shown.across.value, shown.down.value = 399, 0
    assert np.array_equal(pixels(shown.pictures[0]), expected(models["plain"](pairs[1].lr), (0, 399, 51, 51), 7))
    assert np.array_equal(pixels(shown.pictures[1]), expected(pairs[1].hr, (0, 399, 51, 51), 7))


def test_scores_are_those_of_the_metrics_for_the_crop_and_the_whole(pairs, models):
    shown = explorer.Explorer(pairs, models)
    shown.right.value = "original"
    top, left, rows, columns = shown.box
    part, sr = (slice(top, top + rows), slice(left, left + columns)), np.clip(models["plain"](pairs[0].lr), 0, 255)
    here, whole = psnr_rgb(sr[part], pairs[0].hr[part]), psnr_rgb(sr, pairs[0].hr)
    assert f"PSNR {here:.2f} dB here, {whole:.2f} dB whole" in shown.captions[0].value
    assert "<b>plain</b>" in shown.captions[0].value
    assert "dB" not in shown.captions[1].value


def test_a_model_runs_when_first_shown_and_once_a_photograph(pairs, models):
    shown = explorer.Explorer(pairs, models)
    assert [model.calls for model in models.values()] == [1, 0, 0, 1]
    shown.zoom.value, shown.error.value = 2, True
    shown.left.value = "bright"
    shown.left.value = "plain"
    assert [model.calls for model in models.values()] == [1, 1, 0, 1]
    shown.photograph.value = "two"
    shown.photograph.value = "one"
    assert [model.calls for model in models.values()] == [2, 1, 0, 2]


def test_zooming_keeps_the_middle_in_its_place(pairs, models):
    shown = explorer.Explorer(pairs, models)
    shown.photograph.value = "two"
    shown.zoom.value = 8
    shown.across.value, shown.down.value = 30, 300
    shown.zoom.value = 1
    assert shown.box == (39, 0, 360, 360)
    shown.zoom.value = 8
    assert shown.box == (300, 30, 45, 45)


def test_a_photograph_smaller_than_the_view_is_shown_whole(models):
    shown = explorer.Explorer([photograph("small", 30, 420)], models)
    assert shown.down.disabled
    assert not shown.across.disabled
    assert shown.down.min < shown.down.max
    shown.zoom.value = 1
    assert shown.box[2:] == (30, 360)
    assert pixels(shown.pictures[0]).shape == (30, 360, 3)


def test_the_first_part_is_the_most_detailed_one(models):
    flat = np.full((300, 300, 3), 90, np.uint8)
    flat[150:240, 30:120] = photograph("noise", 90, 90).hr
    assert explorer.Explorer([make_pair("flat", flat)], models).box == (150, 30, 90, 90)


def test_the_overview_marks_the_part(models):
    shown = explorer.Explorer([make_pair("grey", np.full((300, 600, 3), 90, np.uint8))], models)
    shown.across.value, shown.down.value = 300, 0
    overview = pixels(shown.overview)
    assert overview.shape == (85, 170, 3)
    rows, columns = np.nonzero((overview != 90).any(2))
    assert (rows.min(), columns.min()) == (0, 85)
    assert abs(rows.max() - 25) <= 1
    assert abs(columns.max() - 110) <= 1


def test_error_maps_are_white_where_nothing_is_wrong_and_red_where_too_bright(models):
    grey = make_pair("grey", np.full((60, 60, 3), 90, np.uint8))
    shown = explorer.Explorer([grey], models)
    assert (pixels(shown.pictures[0]) == 90).all()
    shown.left.value, shown.error.value = "bright", True
    red, _, blue = pixels(shown.pictures[0])[0, 0].astype(int)
    assert red > blue + 50
    assert "±32" in shown.error.description
    shown.right.value = "original"
    assert pixels(shown.pictures[1]).min() > 240


def test_labels_are_text_not_markup(pairs):
    shown = explorer.Explorer(pairs, {"<i>a</i>": Repeat()})
    assert "<b>&lt;i&gt;a&lt;/i&gt;</b>" in shown.captions[0].value


def test_a_model_of_another_scale_is_named_and_the_other_still_shown(pairs, models):
    shown = explorer.Explorer(pairs, models | {"twice": Repeat(factor=2)})
    assert "twice made (100, 140, 3) of one, expected (150, 210, 3)" in shown.captions[1].value
    assert shown.pictures[1].value == b""
    assert "dB" in shown.captions[0].value


@pytest.mark.parametrize(("images", "upscalers", "message"), [
    ([], {"plain": Repeat()}, "0 photographs, 1 upscalers"),
    ([photograph("one")], {}, "1 photographs, 0 upscalers"),
    ([photograph("one"), photograph("one")], {"plain": Repeat()}, "called one"),
    ([photograph("one")], {"plain": photograph("one").hr}, "'plain' is ndarray, not an upscaler"),
    ([photograph("one")], {"original": Repeat()}, "called 'original'")])
def test_what_cannot_be_compared_is_refused(images, upscalers, message):
    for start in (explorer.Explorer, explorer.still):
        with pytest.raises(UserError, match=message):
            start(images, upscalers)


def test_the_still_shows_every_model_between_lr_and_hr(pairs, models):
    figure = explorer.still(pairs, models)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "LR\n70 × 50 px"
    assert titles[2] == f"bright\n{psnr_rgb(models['bright'](pairs[0].lr), pairs[0].hr):.2f} dB"
    assert [title.split("\n")[0] for title in titles] == ["LR", *models, "HR"]
    assert "one" in figure.get_suptitle()


def test_widgets_only_where_a_server_started_the_kernel(pairs, models, monkeypatch):
    monkeypatch.delenv("PAPERLIB_WIDGETS", raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    picture = explorer.explore(pairs, models)
    assert isinstance(picture, Still)
    assert picture.data.startswith(b"\x89PNG")
    monkeypatch.setenv("JPY_SESSION_NAME", "/somewhere/06_tflite_eval.ipynb")
    assert isinstance(explorer.explore(pairs, models), explorer.Explorer)
    with notebooks.kernel_environment():
        assert not explorer.interactive()
    monkeypatch.delenv("JPY_SESSION_NAME")
    monkeypatch.setenv("PAPERLIB_WIDGETS", "1")
    assert explorer.interactive()
    monkeypatch.setenv("PAPERLIB_WIDGETS", "yes")
    with pytest.raises(UserError, match="PAPERLIB_WIDGETS is 'yes'"):
        explorer.interactive()
