"""Stage 3's variants as effects, with exact numbers."""

import pytest

from paperlib.reporting.differences import Change, changes, differences
from paperlib.reporting.effects import Effect
from paperlib.reporting.report import write_summary
from paperlib.run import measured_row, open_run


def row(table, name, values):
    return measured_row(table, name, "int8", "psnr", values, "validation")


def test_every_variant_is_compared_with_its_own_base(tmp_path):
    run = open_run("demo", tmp_path)
    assert differences(run) == []
    run.record("07_ablations", [
        row("D", "qat_teacher", [27.0, 27.2]), row("D", "qat_direct", [26.9, 27.1]), row("switches", "ema_off", 27.0),
        row("switches", "quantiser_paper", [26.0, 26.0]), row("switches", "branches_qat", [25.5, 25.5]),
        row("switches", "post_training", 25.1)])
    found = {line.row: line for line in differences(run)}
    assert list(found) == ["qat_direct", "ema_off", "quantiser_paper", "branches_qat", "post_training"]
    assert found["qat_direct"].effect.mean == pytest.approx(-0.1)
    assert found["qat_direct"].words() == "worse"  # the same in both seeds
    assert found["ema_off"].words() == "undecided (one seed)"
    assert found["branches_qat"].against == "quantiser_paper"
    assert found["branches_qat"].effect == Effect(-0.5, -0.5, -0.5, 2, 0)
    assert found["post_training"].effect.seeds == 2  # nothing is drawn at random in it: one value for both seeds
    assert found["post_training"].words() == "worse"
    assert changes(run).iloc[0].tolist() == [
        "qat_direct", "27.000", "qat_teacher", "-0.100 [-0.100, -0.100] (2 seeds, means of the set)", "worse"]
    text = write_summary(run).read_text()
    assert "| qat_direct | 27.000 | qat_teacher | -0.100 [-0.100, -0.100] (2 seeds, means of the set) | worse |" in text
    assert "## What it would take to win" in text


def test_a_larger_weight_of_the_teacher_is_held_against_none(tmp_path):
    run = open_run("demo", tmp_path)
    values = {"qat_teacher": 27.0, "qat_direct": 26.9, "kd_10": 26.95, "kd_100": 27.3, "qat_teacher_learnt": 28.0,
              "qat_direct_learnt": 27.8, "kd_100_learnt": 28.1, "ortho_kd_1": 27.5, "ortho_kd_0": 27.4}
    run.record("07_ablations", [row("D", name, [value, value]) for name, value in values.items()])
    found = {line.row: (line.against, round(line.effect.mean, 3)) for line in differences(run)}
    assert found["kd_10"] == ("qat_direct", 0.05)
    assert found["kd_100"] == ("qat_direct", 0.4)
    assert found["kd_100_learnt"] == ("qat_direct_learnt", 0.3)
    assert found["ortho_kd_0"] == ("ortho_kd_1", -0.1)
    run.record("07_ablations", [row("D", name, [values[name]] * 2) for name in ("qat_teacher", "kd_100")])
    assert [line.against for line in differences(run)] == ["qat_teacher"]


@pytest.mark.parametrize(("low", "high", "words"), [
    (0.01, 0.05, "better"), (-0.05, -0.01, "worse"), (-0.01, 0.015, "no difference"), (-0.01, 0.03, "undecided"),
    (0.001, 0.004, "no difference worth a word"), (None, None, "undecided (one seed)")])
def test_words_are_two_sided(low, high, words):
    mean = 0.0 if low is None else (low + high) / 2
    assert Change("a", 30.0, "b", Effect(mean, low, high, 5, 14)).words() == words
