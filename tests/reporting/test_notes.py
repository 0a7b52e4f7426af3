"""What a notebook measured beside what it is compared with; code, tables and records for display."""

import pandas as pd
import pytest

from paperlib.reporting import notes
from paperlib.run import measured_row, open_run
from paperlib.student import blocks
from paperlib.training import losses

TERMS = [{"term": "dct", "gradient share": 0.785}, {"term": "kd", "gradient share": 0.0249}]
DROP = [{"what": what, "drop": drop} for what, drop in (("float", 0.0), ("weights only", 0.639), ("both", 0.6))]
PARITY = [{"equal": 0.99, "max_lsb": 1.0}, {"equal": 0.98, "max_lsb": 2.000005}]
SHARES = [{"condition": "qat_direct", "kd gradient": 0.0}, {"condition": "qat_teacher", "kd gradient": 0.0123}]


@pytest.mark.parametrize(("record", "values"), [
    ({}, []), ({"silent": [7, 4, 0]}, ["11"]), ({"silent": [0]}, ["0"]),
    ({"shares": TERMS}, ["78.5 %", "2.5 %"]), ({"shares": SHARES}, ["1.23 %"]),
    ({"drop": DROP}, ["0.639 dB", "0.600 dB"]), ({"parity": PARITY}, ["98.00 %", "2"])])
def test_what_a_record_holds_beside_scores(record, values):
    assert [value for _, value in notes.findings(record)] == values


def test_a_smoke_run_is_named_in_red_first(tmp_path):
    smoke, demo = (open_run(profile, tmp_path / profile) for profile in ("smoke", "demo"))
    for run in (smoke, demo):
        run.record("01_data", [measured_row("B", "bicubic", "fp32", "psnr", 27.0, "validation")], silent=[3])
    assert notes.saw(smoke, "01_data").data.startswith('<p style="color:#d93025">')
    shown = notes.saw(demo, "01_data").data
    assert shown.startswith("<table")
    assert all(f"<td>{value}</td>" in shown for value in ("27.00", "3"))


def test_a_function_is_shown_as_it_stands_under_its_file():
    text = notes.source(losses.confidence, blocks.fold_bn).data
    assert text.startswith("`paperlib/training/losses.py`\n\n```python\n@torch.no_grad()\ndef confidence(")
    assert "`paperlib/student/blocks.py`" in text
    assert text.count("```") == 4
    assert "def distillation" not in text


def test_a_table_is_whole_with_fixed_decimals_or_says_why_not():
    long = "a cell of more than fifty characters, which pandas would cut off"
    text = notes.shown(pd.DataFrame({"what <b>": [long], "dB": [1 / 3], "equal": [float("inf")]})).data
    assert f'<td><div style="text-align: left">{long}</div></td>' in text
    assert "<b>" not in text
    assert all(f"<td>{number}</td>" in text for number in ("0.333", "inf"))  # numbers stay on the right
    assert notes.shown(pd.DataFrame(), "Nothing measured.").data == "*Nothing measured.*"


def test_the_committed_audit_and_claims_show_the_papers_number_beside_others():
    assert "Table C: MobileOne beats RepConv, FP32 | +0.045 | +" in notes.committed_claims().data
    assert all(f"<td>{value}</td>" in notes.committed_audit().data for value in ("28.260", "28.411"))
