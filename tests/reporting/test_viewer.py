from io import BytesIO

import ipywidgets
import numpy as np
import pytest
from IPython.display import Image as Still
from PIL import Image

from paperlib.data.photographs import make_pair
from paperlib.evaluation.metrics import psnr_rgb
from paperlib.reporting import figures, viewer
from paperlib.run import open_run
from paperlib.running import notebooks
from tests.reporting.test_figures import photograph


class Repeat:
    """Nearest neighbour, brightened; counts its calls."""

    def __init__(self, brighter=0.0):
        self.brighter, self.calls = brighter, 0

    def __call__(self, lr):
        self.calls += 1
        return (lr.astype(np.float32) + self.brighter).repeat(3, 0).repeat(3, 1)


@pytest.fixture
def drawn(monkeypatch):
    """The titles of every figure that the explorer draws, and where its part lies."""
    found, draw = [], figures.crops

    def crops(lr, results, hr, size, place, **kinds):
        figure = draw(lr, results, hr, size, place, **kinds)
        found.append((list(results), size, place, [axes.get_title() for axes in figure.axes]))
        return figure

    monkeypatch.setattr(viewer, "crops", crops)
    monkeypatch.setattr(viewer, "display", lambda *_: None)
    return found


def controls(monkeypatch, pairs, models):
    """The widgets of the explorer by name, and the call that a front end makes when one moves."""
    made, interact = [], ipywidgets.interactive
    monkeypatch.setattr(ipywidgets, "interact", lambda show, **named: made.append(interact(show, **named)))
    monkeypatch.setenv("PAPERLIB_WIDGETS", "1")
    assert viewer.explore(pairs, models) is None
    return {widget._kwarg: widget for widget in made[0].kwargs_widgets}, made[0].update


def test_any_part_of_any_photograph_by_any_two_models_each_run_once(monkeypatch, drawn):
    pairs = [make_pair("one", photograph(150, 210)), make_pair("two", photograph(399, 450, 1))]
    models = {"plain": Repeat(), "unused": Repeat(), "bright": Repeat(20.0)}
    widgets, draw = controls(monkeypatch, pairs, models)
    draw()
    names, size, place, titles = drawn[-1]
    assert (names, size) == (["plain", "bright"], 90)
    assert place == pytest.approx(figures.most_detailed(pairs[0].hr, 90), abs=1)
    sr = np.clip(models["plain"](pairs[0].lr), 0, 255)
    assert titles[1].startswith(f"plain\n{psnr_rgb(sr, pairs[0].hr):.2f} dB, here ")
    widgets["zoom"].value, widgets["across"].value, widgets["down"].value = 6, 50, 0
    draw()
    assert drawn[-1][1:3] == (60, (0, 105))
    assert [model.calls for model in models.values()] == [2, 0, 1]  # one is this test's own
    widgets["photograph"].value = "two"
    draw()
    assert "LR\n150 × 133 px" in drawn[-1][3]


def test_without_a_front_end_a_still_shows_every_model_with_the_psnr_of_part_and_whole(drawn):
    pair = make_pair("one", photograph(150, 210))
    picture = viewer.explore([pair], {"plain": Repeat(), "bright": Repeat(20.0)})
    assert isinstance(picture, Still)
    assert picture.data.startswith(b"\x89PNG")
    assert [title.split("\n")[0] for title in drawn[0][3]] == ["LR", "plain", "bright", "HR"]


def test_widgets_only_where_a_server_started_the_kernel(monkeypatch):
    monkeypatch.delenv("PAPERLIB_WIDGETS", raising=False)
    for session, asked, shown in ((None, None, False), ("/a.ipynb", None, True), (None, "1", True)):
        for name, value in (("JPY_SESSION_NAME", session), ("PAPERLIB_WIDGETS", asked)):
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        assert viewer.interactive() == shown
        if session:
            with notebooks.kernel_environment():
                assert not viewer.interactive()


def test_comparisons_are_saved_and_read_back_in_order(tmp_path):
    run, hr = open_run("smoke", tmp_path), photograph()
    viewer.save_comparison(run, "noise", {"old": hr, "more": hr, "original": hr})
    shown = viewer.save_comparison(run, "noise", {
        "bicubic": hr.astype(np.float32) + 0.4, "INT8 student": hr * 0.0, "original": hr})
    found = viewer.saved_comparisons(run)
    assert list(found) == ["noise"]
    assert list(found["noise"]) == ["bicubic", "INT8 student", "original"]
    paths = sorted((tmp_path / "figures").glob("compare__noise__*.webp"))
    bicubic, student, original = (np.asarray(Image.open(path)) for path in paths)
    assert np.array_equal(bicubic, original)
    assert (student.shape, student.max()) == ((90, 90, 3), 0)
    assert viewer.data_url(found["noise"]["original"]) in shown.data


def test_the_divider_starts_with_the_baseline_left_and_the_last_model_right():
    buffer = BytesIO()
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(buffer, format="PNG")
    html = viewer.divider("a<b", dict.fromkeys(("bicubic", "stage 1", "INT8", "original"), buffer.getvalue()))
    roles = [part.split('"')[0] for part in html.split('<img class="')[1:]]
    assert roles == ["over", "", "under", ""]
    assert html.count(" selected") == 2
    assert "a<b" not in html
