"""Settings: the published schedule, and errors that name the nearest field."""

import pytest

from paperlib import profiles
from paperlib.errors import UserError
from paperlib.profiles import EXCEPTIONS, METHODS, PROFILES, differences_from_paper, equals_paper, load_settings, note
from paperlib.settings import flatten, override, settings_hash


@pytest.mark.parametrize(("override", "words"), [
    ({"stage1.stepz": 5}, "Nearest: stage1.steps"), ({"stag1.steps": 5}, "Nearest: stage1.steps"), ({"stage1": 5},
    "Nearest: stage1"), ({"stage1.steps.x": 5}, "Nearest: stage1.steps"), ({"stage1.steps": "many"}, "valid integer"),
    ({"stage1.steps": 0}, "greater than or equal to 1"), ({"student.arch": "mobilone"}, "'mobileone'"),
    ({"method": "papr"}, "There are: paper, ours, released"), ({"method": ["paper"]}, "unknown method"),
    ({"methods": "paper"}, "Nearest: method"), ({"profile": "paper"}, "--profile"), ({"stage1.steps": True},
    "no numbers"), ({"ablation.seeds": [True]}, "no numbers"), ({"ablation.seeds": [1, 1]}, "none twice"),
    ({"ablation.seeds": []}, "at least one seed"), ({"ablation.seeds": [-1]}, "from 0 to"),
    ({"seed": 10**23}, "less than"), ({"stage1.lr": False}, "no numbers"), ({"data.valid_crop": 2}, "0, or at least 3"),
    ({"quant.skip": "exact"}, "method=paper"), ({"method": "ours", "quant.quantiser": "paper"}, "method=paper"),
    (7, "JSON object"), ("[1]", "JSON object"), ("[" * 50_000, "is not JSON")])
def test_wrong_overrides_are_told(override, words):
    with pytest.raises(UserError, match=words):
        load_settings("demo", override)


def test_overrides_change_one_field_and_the_hash():
    plain, changed = load_settings("demo"), load_settings("demo", '{"stage1.loss.l1": 0.5}')
    assert changed.stage1.loss.l1 == 0.5
    assert changed.stage2 == plain.stage2
    assert settings_hash(plain.stage1) != settings_hash(changed.stage1)
    assert settings_hash(plain.stage1) == settings_hash(load_settings("demo").stage1)


def test_profile_comes_from_the_environment_when_not_named(monkeypatch):
    with pytest.raises(UserError, match="Nearest: demo"):
        load_settings("dmeo")
    monkeypatch.setenv("PAPERLIB_PROFILE", "paper")
    assert load_settings().profile == "paper"
    monkeypatch.delenv("PAPERLIB_PROFILE")
    assert load_settings("").profile == "demo"


def test_only_the_paper_profile_goes_without_a_warning_note():
    assert [("not the paper's numbers" in note(load_settings(name))) for name in PROFILES] == [True, True, True, False]
    changed = note(load_settings("paper", {"stage1.steps": 3000}))
    assert "not the paper's numbers" in changed
    assert "stage1.steps" in changed


@pytest.mark.parametrize(("profile", "method"), [
    *((profile, method) for profile in PROFILES for method in ("paper", "ours")), ("paper", "released")])
def test_a_method_is_one_word_in_every_profile_and_single_settings_lie_on_top(profile, method):
    values = flatten("", load_settings(profile, {"method": method}).model_dump())
    assert {name: values[name] for name in METHODS[method]} == METHODS[method] | EXCEPTIONS.get(profile, {})
    assert values["method"] == method
    other = load_settings(profile, {"quant.calibration_images": 7, "stage3.ema": 0.5, "method": method})
    changed = flatten("", other.model_dump())
    assert {name for name in values if values[name] != changed[name]} == {"quant.calibration_images", "stage3.ema"}


def test_the_methods_switch_the_same_settings_and_differ():
    assert METHODS["paper"].keys() == METHODS["ours"].keys()
    differ = {name for name, value in METHODS["paper"].items() if value != METHODS["ours"][name]}
    assert {"quant.quantiser", "quant.skip", "quant.equalise", "quant.rounding", "student.init", "stage1.form",
            "stage2.form", "data.sampling", "stage1.permute_colours", "stage3.loss.mse", "stage3.loss.kd_mid",
            "teacher.stage3", "stage3.clip_body", "stage3.ema"} <= differ
    assert [load_settings(profile).method for profile in PROFILES] == ["paper", "paper", "ours", "paper"]
    with pytest.raises(ValueError, match="when settings are loaded"):
        override(load_settings("demo"), {"method": "ours"})


def test_the_released_run_is_named_beside_the_published_command_line():
    released = load_settings("paper", {"method": "released"})
    assert differences_from_paper(released) == []
    assert (released.stage2.lr, released.stage2.patch, released.stage3.batch) == (3e-5, 128, 1)
    assert 800 * 150 // released.stage3.batch == released.stage3.steps
    assert (released.teacher.stage3, released.stage3.patch) == ("student", 144)
    other = load_settings("paper", {"method": "released", "stage2.lr": 1.5e-5})
    assert differences_from_paper(other) == ["stage2.lr"]
    with pytest.raises(UserError, match="--profile paper"):
        load_settings("demo", {"method": "released"})


def test_differences_from_the_paper_are_listed_whatever_the_profile_says():
    assert differences_from_paper(load_settings("paper")) == []
    assert differences_from_paper(load_settings("paper", {"stage2.lr": 3e-5, "seed": 7})) == ["stage2.lr"]
    demo = differences_from_paper(load_settings("demo"))
    assert {"data.source", "stage1.steps"} < set(demo)
    assert {name for name in demo if name in METHODS["paper"]} == {"student.init"}
    assert load_settings("demo", {"student.init": "default"}).student.init == "default"
    ours = set(differences_from_paper(load_settings("paper", {"method": "ours"})))
    assert ours == {name for name, value in METHODS["paper"].items() if value != METHODS["ours"][name]}


@pytest.mark.parametrize(("changes", "wrong"), [
    ({"data.max_train": 100}, {"data", "stage1", "stage2", "stage3", "B", "C", "D", "abstract"}),
    ({"stage1.steps": 29_999}, {"stage1", "stage2", "stage3", "B", "C", "D", "abstract"}), ({"stage2.loss.kd": 0.3},
    {"stage2", "stage3", "B", "C", "D", "abstract"}), ({"quant.quantiser": "tflite"}, {"stage3", "B", "C", "D",
    "abstract"}), ({"ablation.stage2_steps": 100}, {"C", "D"}), ({"ablation.keep": "last"}, {"C", "D"}),
    ({"export.height": 360}, {"abstract"}), ({"seed": 1, "ablation.seeds": [1, 2], "data.tests": ["x"]}, set())])
def test_a_number_equals_the_papers_only_where_all_behind_it_does(changes, wrong):
    parts = ("data", "stage1", "stage2", "stage3", "B", "C", "D", "abstract")
    settings = load_settings("paper", changes)
    assert {part for part in parts if not equals_paper(settings, part)} == wrong


def test_rows_of_one_table_depend_on_different_parts():
    late = load_settings("paper", {"stage3.steps": 10})
    rows = ("bicubic", "student_stage2", "student_deploy")
    assert [equals_paper(late, profiles.part_of("B", row)) for row in rows] == [True, True, False]
    assert profiles.part_of("D", "qat_direct") == "D"


@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "Infinity"])
@pytest.mark.parametrize("field", ["stage1.loss.l1", "stage2.lr", "stage3.loss.kd_mid", "stage3.ema"])
def test_numbers_that_are_none_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        load_settings("smoke", f'{{"{field}": {value}}}')


@pytest.mark.parametrize("arch", ["repdw", "fsrcnn", "abpn"])
def test_a_network_without_the_exact_skip_is_refused_before_anything_is_trained(arch):
    for profile, changes in (("benchmark", {}), ("demo", {"method": "ours"})):
        with pytest.raises(UserError, match=r"quant\.skip=add"):
            load_settings(profile, changes | {"student.arch": arch})
        assert load_settings(profile, changes | {"student.arch": arch, "quant.skip": "add"})
    assert load_settings("demo", {"student.arch": arch})
