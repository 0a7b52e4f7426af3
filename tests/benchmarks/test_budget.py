"""The cost estimate: counted by hand where that is possible, and proportional where it must be."""

import pytest

from paperlib.benchmarks.training import GPUS, UTILISATION, cost_table, macs_of_form, step_flops
from paperlib.profiles import load_settings
from paperlib.settings import StudentSettings
from paperlib.student.models import build_model, fuse_model

BENCH = {"batch": 16, "patch": 42, "s_expanded": 0.4, "s_collapsed": 0.1}


def test_multiply_adds_are_the_kernels():
    fused = fuse_model(build_model(StudentSettings()))
    assert macs_of_form(fused) == 9 * (3 * 32 + 8 * 32 * 32 + 32 * 27)  # stem, eight blocks, head
    branches = build_model(StudentSettings(branches=5))
    assert macs_of_form(branches) == 9 * (3 * 32 + 32 * 27) + 8 * 32 * 32 * (5 * 9 + 1)


def test_hours_follow_from_the_measured_step():
    settings = load_settings("paper")
    table = cost_table(BENCH).set_index(["profile", "stage"])
    row, stage = table.loc["paper", "stage1"], settings.stage1
    seconds = BENCH["s_expanded"] * (stage.batch * stage.patch**2) / (16 * 42**2)
    assert row["h here"] == pytest.approx(seconds * stage.steps / 3600, rel=1e-3)
    flops = step_flops(settings, stage, "expanded")
    assert row["h T4"] == pytest.approx(flops * stage.steps / (GPUS["T4"] * UTILISATION) / 3600, rel=1e-3)
    collapsed = table.loc["benchmark", "stage1"]
    stage = load_settings("benchmark").stage1
    expected = BENCH["s_collapsed"] * stage.patch**2 / 42**2 * stage.batch / 16 * stage.steps / 3600
    assert collapsed["h here"] == pytest.approx(expected, rel=1e-3, abs=1e-3)
