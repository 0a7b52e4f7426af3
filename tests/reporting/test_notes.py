"""What we saw: the sentences follow the values, whichever way they point."""

import pandas as pd
import pytest

from paperlib.reporting import notes
from paperlib.run import measured_row, open_run
from paperlib.student import blocks
from paperlib.training import losses


def row(table, name, value, precision="fp32"):
    return measured_row(table, name, precision, "psnr", value, "validation")


def records(**parts):
    """Records by name, from their rows and other fields."""
    return {name: {"rows": rows} | more for name, (rows, more) in parts.items()}


def test_a_difference_in_words():
    assert notes.against(0.5, "bicubic") == "0.50 dB above bicubic"
    assert notes.against(-0.0301, "bicubic") == "0.030 dB below bicubic"
    assert notes.against(-0.0049, "bicubic") == "level with bicubic"


def test_a_score_stands_beside_what_ran_and_nothing_else():
    stage1 = ([row("stages", "stage1", 27.5)], {"silent": [7, 4, 0]})
    assert notes.sentences(records(stage1=stage1), "01_data") == []
    alone = records(**{"02_stage1": stage1})
    assert notes.sentences(alone, "02_stage1") == ["Stage 1: 27.50 dB.", "11 channels fell silent."]
    both = records(**{"01_data": ([row("B", "bicubic", 28.0)], {}), "02_stage1": stage1})
    assert notes.sentences(both, "02_stage1")[0] == "Stage 1: 27.50 dB, 0.50 dB below bicubic."


@pytest.mark.parametrize(("psnr", "weaker"), [(26.8, True), (28.8, False)])
def test_a_teacher_weaker_than_its_student_is_called_so(psnr, weaker):
    found = records(**{"02_stage1": ([row("stages", "stage1", 27.5)], {}),
                       "03_teacher": ([row("stages", "teacher", psnr)], {})})
    assert any("weaker" in line for line in notes.sentences(found, "03_teacher")) == weaker


def test_what_rounding_costs_and_what_training_won():
    rows = [row("stages", "fused_before_qat", 27.7), row("stages", "rounded_before_qat", 27.1),
            row("stages", "fakequant", 27.708)]
    drop = [{"what": what, "drop": drop} for what, drop in (
        ("float", 0.0), ("weights only", 0.639), ("activations only", 0.033), ("both", 0.6))]
    said = notes.sentences(records(**{"05_fuse_qat": (rows, {"drop": drop})}), "05_fuse_qat")
    assert said == [
        "Rounded to 8 bits, not trained for it: 27.10 dB, 0.60 dB below the float network.",
        "Trained for 8 bits: 27.71 dB, 0.61 dB above plain rounding, 0.008 dB above the float network.",
        "Rounding the weights alone costs 0.639 dB, the activations alone 0.033 dB, both 0.600 dB."]


@pytest.mark.parametrize(("far", "words"), [(1.000005, "more than 1 step away"), (2, "more than 2 steps away")])
def test_the_file_beside_the_network_it_was_made_from(far, words):
    parity = [{"equal": 0.99, "max_lsb": 1.0}, {"equal": 0.98, "max_lsb": far}]
    rows = [row("export", "tflite_dynamic", 27.66), row("box", "box_int8", 28.4)]
    said = notes.sentences(records(**{"06_tflite_eval": (rows, {"parity": parity})}), "06_tflite_eval")
    assert said[1] == ("The shipped file, trained for much longer: 28.40 dB, 0.74 dB above this "
                       "run's own file.")
    assert said[2].startswith("98.00 % of the file's values")
    assert said[2].endswith(f"no other is {words}.")


def test_networks_below_bicubic_say_nothing_of_an_order():
    rows = [row("C", name, value, "int8") for name, value in (
        ("repdw", 27.5), ("mobileone", 27.0), ("mobileone_learnt", 29.0))]
    shares = [{"condition": "qat_teacher", "kd value": 0.0007, "kd gradient": 0.0123}]
    found = records(**{"01_data": ([row("B", "bicubic", 26.0)], {}), "07_ablations": (rows, {"shares": shares})})
    said = notes.sentences(found, "07_ablations")
    assert said == ["The teacher has 0.07 % of stage 3's loss and 1.2 % of its gradient when the stage begins.",
                    "Table C, INT8: RepDW 27.50 dB, MobileOne 27.00 dB."]
    found["01_data"]["rows"][0]["value"] = 28.0
    assert "below bicubic (28.00 dB)" in notes.sentences(found, "07_ablations")[-1]


def test_a_smoke_run_is_named_in_red_first(tmp_path):
    smoke, demo = (open_run(profile, tmp_path / profile) for profile in ("smoke", "demo"))
    for run in (smoke, demo):
        run.record("01_data", [row("B", "bicubic", 27.0)])
    assert notes.saw(smoke, "01_data").data.startswith('<span style="color:#d93025">')
    assert notes.saw(demo, "01_data").data == "- Bicubic with PyTorch's kernel: 27.00 dB."


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
