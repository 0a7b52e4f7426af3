"""Settings: the published schedule, and errors that name the nearest field."""

import pytest

from paperlib.errors import UserError
from paperlib.profiles import PROFILES, load_settings
from paperlib.settings import settings_hash


def test_paper_profile_is_the_published_schedule():
    paper = load_settings("paper")
    stages = (paper.stage1, paper.stage2, paper.stage3)
    assert [stage.steps // 50 for stage in stages] == [600, 200, 150]
    assert [stage.patch for stage in stages] == [128, 160, 144]
    assert [stage.lr for stage in stages] == [1e-3, 1.5e-5, 2e-6]
    assert [stage.halve_every // 50 for stage in stages[1:]] == [40, 40]
    assert all((s.batch, s.clip_grad, s.clip_body, s.clip_ends, s.ema) == (16, 1.0, 3.0, 2.0, 0.999) for s in stages)
    assert all(stage.form == "expanded" and not stage.ema_warmup for stage in stages)
    assert (paper.stage1.loss.l1, paper.stage1.loss.kd, paper.stage1.warmup) == (1.0, 0.0, 0.10)
    assert (paper.stage2.loss.charbonnier, paper.stage2.loss.dct, paper.stage2.loss.kd) == (1.0, 0.02, 0.03)
    assert (paper.stage3.loss.dct, paper.stage3.loss.kd, paper.stage3.loss.kd_mid) == (0.015, 0.010, 0.005)
    assert paper.quant.quantiser == "paper"
    assert round(paper.quant.observe_until * 150) == 30
    assert (paper.student.init, paper.seed, paper.data.source) == ("default", 1234, "div2k")


@pytest.mark.parametrize(("override", "words"), [
    ({"stage1.stepz": 5}, "Nearest: steps"), ({"stag1.steps": 5}, "Nearest: stage1"),
    ({"stage1": 5}, "is a section"), ({"stage1.steps.x": 5}, "has no fields"),
    ({"stage1.steps": "many"}, "valid integer"), ({"stage1.steps": 0}, "greater than or equal to 1"),
    ({"student.arch": "mobilone"}, "'mobileone'")])
def test_wrong_overrides_are_told(override, words):
    with pytest.raises(UserError, match=words):
        load_settings("demo", override)


def test_wrong_profile_and_wrong_json_are_told():
    with pytest.raises(UserError, match="demo"):
        load_settings("dmeo")
    for text in ("{stage1", "[1]"):
        with pytest.raises(UserError, match="JSON"):
            load_settings("demo", text)


def test_overrides_change_one_field_and_the_hash():
    plain, changed = load_settings("demo"), load_settings("demo", '{"stage1.loss.l1": 0.5}')
    assert changed.stage1.loss.l1 == 0.5
    assert changed.stage2 == plain.stage2
    assert settings_hash(plain.stage1) != settings_hash(changed.stage1)
    assert settings_hash(plain.stage1) == settings_hash(load_settings("demo").stage1)


def test_profile_comes_from_the_environment_when_not_named(monkeypatch):
    monkeypatch.setenv("PAPERLIB_PROFILE", "paper")
    assert load_settings().profile == "paper"
    monkeypatch.delenv("PAPERLIB_PROFILE")
    assert load_settings("").profile == "smoke"


def test_only_the_paper_profile_goes_without_a_warning_note():
    assert [("not the paper's numbers" in load_settings(name).note) for name in PROFILES] == [True, True, True, False]
