"""The page of settings: complete, explained, and what the settings and profiles say."""

from pathlib import Path

import pytest

from paperlib.profiles import METHODS, load_settings
from paperlib.reporting.settings_page import kind, meanings, settings_text
from paperlib.settings import LossSettings, Settings, StageSettings, flatten

PAGE = Path(__file__).parents[2] / "results" / "settings.md"


def lines_of(title: str) -> dict[str, list[str]]:
    """A section's lines: setting → cells after it."""
    part = settings_text().split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_committed_page_is_what_the_function_writes():
    assert PAGE.read_text(encoding="utf-8") == settings_text(), "run python -m paperlib.reporting.answers"


def test_every_setting_is_on_the_page_with_a_meaning():
    stages = lines_of("`stage1.`, `stage2.`, `stage3.`")
    losses = lines_of("`stage1.loss.`, `stage2.loss.`, `stage3.loss.`")
    for name in flatten("", load_settings("smoke").model_dump(mode="json")):
        section, _, field = name.partition(".")
        if field == "expect":
            continue
        if field.startswith("loss."):
            found = losses[field.removeprefix("loss.")]
        elif section.startswith("stage"):
            found = stages[field]
        else:
            found = lines_of(f"`{section}.`" if field else "General")[name]
        assert len(found) == 5, name
        assert len(found[-1]) > 8, f"{name} has no meaning"


def test_values_are_the_profiles_and_three_stand_where_the_stages_differ():
    stages = lines_of("`stage1.`, `stage2.`, `stage3.`")
    assert stages["steps"][:2] == ["30000 / 10000 / 7500", "12000 / 24000 / 500"]
    assert stages["clip_grad"][:3] == ["1", "1", "1"]
    assert lines_of("`quant.`")["quant.skip"][:3] == ["add", "exact", "add"]


def test_the_methods_table_has_what_they_differ_in_and_nothing_else():
    found = lines_of("What `method` switches")
    assert set(found) == {name for name, value in METHODS["paper"].items() if METHODS["ours"][name] != value}
    assert found["quant.rounding"] == ["nearest", "data"]


@pytest.mark.parametrize(("section", "name", "words"), [
    (LossSettings, "w_min", "number, ≥ 0, ≤ 1"), (LossSettings, "kd_mid", "number or `null`, ≥ 0"),
    (LossSettings, "dct_norm", "`none` or `ortho`"), (StageSettings, "hold", "number, ≥ 0, < 1")])
def test_what_a_setting_takes(section, name, words):
    assert kind(section.model_fields[name]) == words


def test_a_field_without_a_string_has_no_meaning():
    assert meanings(StageSettings)["loss"] == ""
    assert meanings(Settings)["seed"].startswith("Start of the weights")
