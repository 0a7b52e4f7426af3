"""What `paperlib reproduce` prints at its end, from a run's own values."""

import pytest

from paperlib.reporting.ending import ending_text, ladder
from paperlib.reporting.results import Results
from paperlib.run import measured_row, open_run


def rows(*values):
    return [measured_row(table, row, precision, "psnr", value, "validation", images=[value, value])
            for table, row, precision, value in values]


@pytest.fixture
def run(tmp_path):
    found = open_run("demo", tmp_path)
    found.record("01_data", rows(("B", "bicubic", "fp32", 26.0)))
    found.record("02_stage1", rows(("stages", "stage1", "fp32", 27.0)))
    found.record("04_stage2", rows(("B", "student_stage2", "fp32", 27.25)))
    return found


def test_the_ladder_has_what_ran_and_what_each_step_gained(run):
    run.record("03_teacher", rows(("stages", "teacher", "fp32", 26.5)))
    files = rows(("export", "tflite_dynamic", "int8", 27.2), ("shipped", "shipped_int8", "int8", 28.0))
    run.record("06_tflite_eval", files,
               parity=[{"file": "a", "equal": 0.9973, "within_1_lsb": 1.0, "max_lsb": 1, "values": 3}])
    steps = ladder(Results(run)).drop(columns="step").to_numpy().tolist()
    assert steps == [["26.00", ""], ["27.00", "+1.00"], ["26.50", ""], ["27.25", "+0.25"],
                     ["27.20", "99.73 % of its values are stage 3's"], ["28.00", ""]]


def test_one_seed_decides_nothing_the_end_says_where_to_look_and_smokes_is_one_line(run, tmp_path):
    text = ending_text(run)
    assert len(text.splitlines()) <= 20
    assert "with one, none is decided" in text
    assert str(run.out / "report.html") in text
    assert "stage 1 in 500 steps instead of 30,000, stage 2 in 150 steps instead of 10,000." in text
    smoke = open_run("smoke", tmp_path / "smoke")
    smoke.record("01_data", rows(("B", "bicubic", "fp32", 26.0)))
    assert len(ending_text(smoke).splitlines()) == 1
