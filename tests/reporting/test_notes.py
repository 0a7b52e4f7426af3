"""What a notebook measured beside what it is compared with; code, tables and records for display."""

import pandas as pd
import pytest

from paperlib.reporting import notes
from paperlib.run import measured_row, open_run
from paperlib.student import blocks
from paperlib.training import losses


def row(table, name, value, precision="fp32"):
    return measured_row(table, name, precision, "psnr", value, "validation")


STAGE1 = {"rows": [row("stages", "stage1", 27.5)], "silent": [7, 4, 0]}
TERMS = [{"term": "dct", "gradient share": 0.785}, {"term": "kd", "gradient share": 0.0249}]
DROP = [{"what": what, "drop": drop} for what, drop in (
    ("float", 0.0), ("weights only", 0.639), ("both", 0.6))]
PARITY = [{"equal": 0.99, "max_lsb": 1.0}, {"equal": 0.98, "max_lsb": 2.000005}]


@pytest.mark.parametrize(("records", "lines"), [
    ({"02_stage1": STAGE1}, [("Stage 1", "27.50 dB"), ("Channels that fell silent", "11")]),
    ({"01_data": {"rows": [row("B", "bicubic", 28.0)]}, "02_stage1": STAGE1 | {"silent": [0]}}, [
        ("Stage 1", "27.50 dB"), ("Stage 1, against bicubic", "-0.500 dB"),
        ("Channels that fell silent", "0")]),
    ({"02_stage1": STAGE1, "03_teacher": {"rows": [row("stages", "teacher", 28.8)]}}, [
        ("The teacher", "28.80 dB"), ("The teacher, against the student of stage 1", "+1.300 dB")]),
    ({"02_stage1": STAGE1, "04_stage2": {"rows": [], "shares": TERMS}}, [
        ("DCT, share of the loss's gradient", "78.5 %"),
        ("distillation, share of the loss's gradient", "2.5 %")]),
    ({"05_fuse_qat": {"rows": [row("stages", "fakequant", 27.708), row("stages", "fused_before_qat", 27.7)],
                      "drop": DROP}}, [
        ("Trained for 8 bits", "27.71 dB"), ("Trained for 8 bits, against the float network", "+0.008 dB"),
        ("Lost by rounding weights only", "0.639 dB"), ("Lost by rounding both", "0.600 dB")]),
    ({"06_tflite_eval": {"rows": [], "parity": PARITY}}, [
        ("Values of the file that are those of the network trained in stage 3", "98.00 %"),
        ("Largest difference, in steps of 255", "2")]),
    ({"07_ablations": {"rows": [], "shares": [
        {"condition": "qat_direct", "kd gradient": 0.0},
        {"condition": "qat_teacher", "kd gradient": 0.0123}]}}, [
        ("The teacher's share of stage 3's gradient when the stage begins", "1.23 %")])])
def test_what_was_measured_stands_beside_what_ran_and_nothing_else(records, lines):
    assert notes.findings(records, list(records)[-1]) == lines
    assert notes.findings({}, list(records)[-1]) == []


def test_a_smoke_run_is_named_in_red_first(tmp_path):
    smoke, demo = (open_run(profile, tmp_path / profile) for profile in ("smoke", "demo"))
    for run in (smoke, demo):
        run.record("01_data", [row("B", "bicubic", 27.0)])
    assert notes.saw(smoke, "01_data").data.startswith('<p style="color:#d93025">')
    shown = notes.saw(demo, "01_data").data
    assert shown.startswith("<table")
    assert "<td>27.00 dB</td>" in shown


def test_a_function_is_shown_as_it_stands_under_its_file():
    text = notes.source(losses.confidence, blocks.fold_bn).data
    assert text.startswith("`paperlib/training/losses.py`\n\n```python\n@torch.no_grad()\ndef confidence(")
    assert "`paperlib/student/blocks.py`" in text
    assert text.count("```") == 4
    assert "def distillation" not in text


def test_a_table_is_whole_with_fixed_decimals_or_says_why_not():
    long = "a cell of more than fifty characters, which pandas would cut off"
    text = notes.shown(pd.DataFrame({"what": [long], "dB": [1 / 3]})).data
    assert long in text
    assert "<td>0.333</td>" in text
    assert notes.shown(pd.DataFrame(), "Nothing measured.").data == "*Nothing measured.*"


def test_the_committed_audit_shows_the_papers_number_beside_the_authors_own():
    text = notes.committed_audit().data
    assert "<td>28.260</td>" in text
    assert "<td>28.411</td>" in text
