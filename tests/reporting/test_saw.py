"""What we saw: the sentences follow the values, whichever way they point."""

import numpy as np
import pandas as pd
import pytest
from IPython.display import Markdown

from paperlib.reporting import saw
from paperlib.run import measured_row, open_run


def row(table, name, value, precision="fp32"):
    return measured_row(table, name, precision, "psnr", value, "validation")


@pytest.fixture
def run(tmp_path):
    return open_run("demo", tmp_path)


def test_a_smoke_run_is_named_in_red_first(tmp_path, run):
    assert saw.said(open_run("smoke", tmp_path / "smoke"), ["x"]).data.startswith('<span style="color:#d93025">')
    assert saw.said(run, ["x", "", "y"]).data == "- x\n- y"


def test_a_difference_in_words():
    assert saw.against(0.5, "bicubic") == "0.50 dB above bicubic"
    assert saw.against(-0.0301, "bicubic") == "0.030 dB below bicubic"
    assert saw.against(-0.0049, "bicubic").startswith("level with bicubic")


def test_empty_tables_say_why():
    assert isinstance(saw.shown(pd.DataFrame(), "No table."), Markdown)
    table = pd.DataFrame([{"a": 1}])
    assert saw.shown(table, "No table.") is table


def test_the_kernels_are_compared_both_ways(run):
    for torch, matlab, words in ((27.0, 26.9, "0.10 dB above"), (26.9, 27.0, "0.10 dB below")):
        rows = [row("B", "bicubic", torch), row("B", "bicubic_matlab", matlab)]
        text = saw.baseline(run, rows, 0.125).data
        assert words in text
        assert "12.5 %" in text
        assert "different photographs" in text


def test_stage_1_says_whether_it_passed_bicubic(run):
    history = [{"step": 1, "loss": 0.2, "psnr_rgb": 20.0}, {"step": 2, "loss": 0.1, "psnr_rgb": 27.5}]
    rows = [row("stages", "stage1", 27.5)]
    assert "Run 01_data" in saw.stage1(run, rows, history, [0] * 8).data
    run.record("01_data", [row("B", "bicubic", 27.0)])
    good = saw.stage1(run, rows, history, [0] * 8).data
    assert "0.50 dB above bicubic" in good
    assert "it fell" in good
    assert "might still gain" in good
    assert "No channel has fallen silent" in good
    assert "too short" not in good
    bad = saw.stage1(run, [row("stages", "stage1", 21.0)], history[::-1], [7, 4, 0, 0, 0, 0, 0, 8]).data
    assert "6.00 dB below bicubic" in bad
    assert "did not fall" in bad
    assert "too short" in bad
    assert "at step 2 of 1" in bad
    assert "19 of 256 channels have fallen silent" in bad


def test_a_teacher_weaker_than_its_student_is_called_so(run):
    run.record("02_stage1", [row("stages", "stage1", 27.5)])
    weights = np.array([[0.75, 0.75], [0.1, 0.4]], np.float32)
    weak = saw.teacher(run, [row("stages", "teacher", 26.8)], weights).data
    assert "weaker than the student" in weak
    assert "50 % of the pixels have full weight" in weak
    assert "25 % the least" in weak
    assert "weaker" not in saw.teacher(run, [row("stages", "teacher", 28.8)], weights).data


def shares_of(**terms):
    return pd.DataFrame([{"term": name, "value share": value, "gradient share": gradient}
                         for name, (value, gradient) in terms.items()])


def test_stage_2_names_the_strongest_term_and_the_teachers_share(run):
    run.record("02_stage1", [row("stages", "stage1", 27.5)])
    run.record("03_teacher", [row("stages", "teacher", 26.8)])
    shares = shares_of(charbonnier=(0.14, 0.18), dct=(0.8589, 0.81), kd=(0.0011, 0.01))
    text = saw.stage2(run, [row("B", "student_stage2", 27.6)], shares).data
    assert "0.10 dB above stage 1" in text
    assert "DCT pulls hardest: 85.9 % of the loss and 81.0 % of the gradient" in text
    assert "0.11 % of the loss" in text
    assert "hardly be felt" in text
    assert "(26.80 dB) is weaker" in text
    loud = shares_of(charbonnier=(0.1, 0.05), dct=(0.6, 0.05), kd=(0.3, 0.9))
    assert "distillation pulls hardest" in saw.stage2(run, [row("B", "student_stage2", 27.4)], loud).data
    assert "does not distil" in saw.stage2(run, [row("B", "student_stage2", 27.4)], shares_of(l1=(1.0, 1.0))).data


def test_qat_says_what_was_lost_and_won_back(run):
    drop = pd.DataFrame([{"what": "weights only", "drop": 0.16}, {"what": "activations only", "drop": 0.02}])
    noise = [{"name": name, "sqnr_db": value} for name, value in (("input", np.inf), ("stem", 39.0), ("head", 31.0))]
    rows = [row("stages", "fused_before_qat", 27.7), row("stages", "rounded_before_qat", 27.5)]
    good = saw.qat(run, [*rows, row("stages", "fakequant", 27.65)], drop, noise).data
    assert "0.20 dB below its float form; the weights are the dearer half" in good
    assert "75 % of the loss is won back" in good
    assert "after head: 31.0 dB" in good
    assert "won nothing back" in saw.qat(run, [*rows, row("stages", "fakequant", 27.4)], drop, noise).data


@pytest.mark.parametrize(("far", "words"), [(1.000005, "at most 1 step away"), (2.0, "at most 2 steps away")])
def test_the_file_is_judged_against_both_ways_and_the_box(run, far, words):
    run.record("01_data", [row("B", "bicubic", 26.8)])
    parity = pd.DataFrame([{"equal": 0.99, "max_lsb": 1.0}, {"equal": 0.98, "max_lsb": far}])
    rows = [row("export", name, value) for name, value in {
        "tflite_dynamic": 27.66, "fakequant": 27.66, "tflite_post_training": 27.5, "float_before_qat": 27.7,
        "float_in_8_bits": 27.68}.items()]
    text = saw.shipped(run, [*rows, row("box", "box_int8", 28.4)], parity).data
    assert "98.00 % of its values are equal, the others " + words in text
    assert "0.16 dB above post-training ones on the same weights." in text
    assert "8-bit pixels alone costs 0.020 dB" in text
    assert "28.40 dB, 0.74 dB above this run's own file" in text
    assert "1.60 dB above bicubic" in text
    rows[2] = row("export", "tflite_post_training", 27.7)
    assert "keeping them gains nothing" in saw.shipped(run, rows, parity).data


def test_ablations_name_the_order_and_whether_it_is_the_papers(run):
    rows = [row("C", name, value, "int8") for name, value in (("mobileone", 27.0), ("repdw", 27.5))]
    text = saw.ablations(run, [*rows, row("C", "mobileone_learnt", 28.0, "int8")]).data
    assert "best first: repdw 27.50 dB, mobileone 27.00 dB" in text
    assert "another: mobileone, repdw" in text
    pair = [row("D", "qat_teacher", 27.0, "int8"), row("D", "qat_direct", 27.2, "int8")]
    text = saw.ablations(run, pair).data
    assert "0.20 dB below stage 3 without" in text
    assert "the paper reports +0.089 dB" in text
    assert "One seed each" in text
    several = [line | {"values": [line["value"] - 0.01, line["value"] + 0.01], "seed_ids": [1, 2]} for line in pair]
    assert "As an effect: -0.200 [-0.200, -0.200] (2 seeds, means of the set) dB" in saw.ablations(run, several).data
    shares = pd.DataFrame([{"condition": name, "kd value": 0.0007, "kd gradient": share, "dct gradient": 0.8}
                           for name, share in (("qat_teacher", 0.0123), ("kd_100", 0.5))])
    text = saw.ablations(run, several, shares).data
    assert "has 0.07 % of stage 3's loss and 1.2 % of its gradient when it begins; the DCT term has 80 %" in text
