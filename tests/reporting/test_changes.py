"""Differences of stage 3's variants beside the seeds' noise, with exact numbers."""

import math

import pytest

from paperlib.reporting.summary import write_summary
from paperlib.reporting.tables import changes, differences, in_words
from paperlib.reporting.verdicts import noise
from paperlib.run import measured_row, open_run


def row(table, name, values):
    return measured_row(table, name, "int8", "psnr", values, "validation")


def test_noise_is_that_of_a_difference_and_unknown_for_one_seed():
    assert noise([{"sd": 3.0}, {"sd": 4.0}]) == 5.0
    assert noise([{"sd": 3.0}, {"sd": None}]) is None
    assert noise([{"sd": 3.0}, {}]) is None


def test_words_are_two_sided():
    assert in_words(0.04, 0.05) == in_words(-0.04, 0.05) == "below the seeds' noise of 0.05"
    assert in_words(0.05, 0.05) == in_words(-0.06, 0.05) == "above the noise of 0.05"
    assert in_words(9.0, None) == "one seed: noise unknown"


def test_every_variant_is_compared_with_its_own_base(tmp_path):
    run = open_run("demo", tmp_path)
    assert differences(run) == []
    run.record("07_ablations", [
        row("D", "qat_teacher", [27.0, 27.2]), row("D", "qat_direct", [26.9, 27.1]), row("switches", "ema_off", 27.0),
        row("switches", "quantiser_paper", [26.0, 26.0]), row("switches", "branches_qat", [25.5, 25.5]),
        row("switches", "post_training", 25.1)])
    found = {line["row"]: line for line in differences(run)}
    sd = math.sqrt(0.02)
    assert list(found) == ["qat_direct", "ema_off", "quantiser_paper", "branches_qat", "post_training"]
    assert found["qat_direct"]["difference"] == pytest.approx(-0.1)
    assert found["qat_direct"]["noise"] == pytest.approx(math.hypot(sd, sd))
    assert found["qat_direct"]["words"] == "below the seeds' noise of 0.2"
    assert found["ema_off"]["words"] == "one seed: noise unknown"
    assert found["branches_qat"]["against"] == "quantiser_paper"
    assert (found["branches_qat"]["difference"], found["branches_qat"]["noise"]) == (-0.5, 0.0)
    assert found["post_training"]["noise"] == pytest.approx(sd)
    assert found["post_training"]["words"] == "above the noise of 0.14"
    assert changes(run).iloc[0].tolist() == [
        "qat_direct", "27.000", "qat_teacher", "-0.100", "below the seeds' noise of 0.2"]
    text = write_summary(run).read_text()
    assert "| qat_direct | 27.000 | qat_teacher | -0.100 | below the seeds' noise of 0.2 |" in text
    assert "## What it would take to win" in text
