import csv
from dataclasses import replace

import pytest

from paperlib.errors import UserError
from paperlib.evaluation import reported
from paperlib.reporting import tables
from paperlib.reporting.summary import teacher_used, write_summary
from paperlib.reporting.verdicts import COMPARED, DROPS, TIE, Row, Verdict, tolerance, trend
from paperlib.run import measured_row, open_run

PSNR = {key: value for key, value in reported.reported().items() if key[3] == "psnr" and key[0] != "A"}


def rows_of(values, **more):
    """Measured rows on the validation photographs: {key: value} → rows for a record."""
    return [measured_row(*key, value, "validation", **more) for key, value in values.items()]


def open_with(tmp_path, profile, values):
    run = open_run(profile, tmp_path / profile)
    run.record("07_ablations", rows_of(values))
    return run


def verdicts(run, *names):
    return {(row.table, row.row, row.precision, row.metric): row.verdict for row in tables.table_rows(run, names)}


def test_every_reported_number_has_a_verdict_in_every_profile(tmp_path):
    for profile in ("smoke", "demo", "benchmark", "paper"):
        rows = tables.table_rows(open_run(profile, tmp_path / profile))
        assert len(rows) == len(reported.reported()) == 58
        assert {row.verdict for row in rows} == {Verdict.NOT_RUN, Verdict.NOT_PUBLIC, Verdict.RECOMPUTED}


def test_every_measurable_row_has_a_comparison_and_a_tolerance_with_a_reason():
    for key in reported.reported():
        if key[0] != "A":
            assert COMPARED[key[:3]], key
            limit, reason = tolerance(key)
            assert limit > 0, key
            assert reason, key
    models = {key[:3] for key in reported.reported()}
    others = {model for part in [*COMPARED.values(), *DROPS.values()] for model in part}
    assert set(COMPARED) | set(DROPS) | others <= models


def test_the_papers_own_numbers_hold_every_trend():
    ours = {key: {"value": value} for key, value in reported.reported().items()}
    for key in reported.reported():
        if key[0] != "A":
            assert trend(key, reported.reported(), ours)[0] is Verdict.HOLDS, key


@pytest.mark.parametrize("verdict", [Verdict.REPRODUCED, Verdict.MISSED])
def test_reproduced_and_missed_cannot_be_built_outside_the_paper_profile(verdict):
    key = ("B", "bicubic", "fp32", "psnr")
    paper = Row(*key, 28.26, 28.27, 0.01, verdict, "", "paper")
    assert paper.delta == pytest.approx(0.01)
    with pytest.raises(ValueError, match="paper profile"):
        Row(*key, 28.26, 28.27, 0.01, verdict, "", "demo")
    with pytest.raises(ValueError, match="paper profile"):
        replace(paper, profile="benchmark")


def test_there_are_no_other_words():
    key = ("B", "bicubic", "fp32", "psnr")
    with pytest.raises(ValueError, match="almost"):
        Row(*key, 28.26, 28.27, 0.01, "almost", "", "paper")
    with pytest.raises(ValueError, match="measured value"):
        Row(*key, 28.26, None, 0.01, "trend holds", "", "demo")
    assert Row(*key, 28.26, 28.0, 0.01, "trend holds", "", "demo").verdict is Verdict.HOLDS


def test_paper_profile_reproduces_inside_the_tolerance_and_misses_outside(tmp_path):
    run = open_with(tmp_path, "paper", {("B", "bicubic", "fp32", "psnr"): 28.265,
                                        ("B", "student_stage2", "fp32", "psnr"): 30.22})
    found = verdicts(run, "B")
    assert found["B", "bicubic", "fp32", "psnr"] is Verdict.REPRODUCED
    assert found["B", "student_stage2", "fp32", "psnr"] is Verdict.MISSED
    assert found["B", "abpn", "int8", "psnr"] is Verdict.NOT_RUN


def test_smaller_profiles_speak_of_trends_and_name_what_was_compared(tmp_path):
    run = open_with(tmp_path, "demo", {("B", "bicubic", "fp32", "psnr"): 26.0, ("B", "fsrcnn", "fp32", "psnr"): 25.9,
                                       ("B", "student_stage2", "fp32", "psnr"): 27.0})
    rows = {row.row: row for row in tables.table_rows(run, ["B"]) if row.metric == "psnr"}
    assert rows["student_stage2"].verdict is Verdict.HOLDS
    assert rows["bicubic"].verdict is rows["fsrcnn"].verdict is Verdict.FAILS
    assert rows["fsrcnn"].evidence == (
        "records/07_ablations.json: against bicubic fp32: paper +1.19, here -0.1 (not so); "
        "against student_stage2 fp32: paper -0.83, here -1.1")
    assert rows["student_deploy"].verdict is Verdict.NOT_RUN


def test_a_row_with_nothing_to_compare_with_is_not_run(tmp_path):
    run = open_with(tmp_path, "demo", {("D", "qat_direct", "int8", "psnr"): 27.0})
    row = next(row for row in tables.table_rows(run, ["D"]) if row.row == "qat_direct")
    assert row.verdict is Verdict.NOT_RUN
    assert "qat_teacher" in row.evidence


def test_reported_ties_hold_when_ours_is_close_whatever_its_sign(tmp_path):
    fixed, dynamic = (("abstract", f"student_{name}_tflite", "int8", "psnr") for name in ("fixed", "dynamic"))
    for gap, expected in ((-1.9 * TIE["psnr"], Verdict.HOLDS), (2.1 * TIE["psnr"], Verdict.FAILS)):
        run = open_with(tmp_path, "demo", {fixed: 27.0 + gap, dynamic: 27.0})
        assert verdicts(run, "abstract")[fixed] is expected


def test_table_c_compares_what_int8_costs_as_well():
    """RepConv ahead of RepDW in both precisions, as reported, but losing more by rounding than RepDW does."""
    values = {("C", "repconv", "fp32", "psnr"): 28.0, ("C", "repconv", "int8", "psnr"): 27.0,
              ("C", "repdw", "fp32", "psnr"): 26.5, ("C", "repdw", "int8", "psnr"): 26.4}
    ours = {key: {"value": value} for key, value in values.items()}
    assert trend(("C", "repconv", "fp32", "psnr"), reported.reported(), ours)[0] is Verdict.HOLDS
    verdict, text = trend(("C", "repconv", "int8", "psnr"), reported.reported(), ours)
    assert verdict is Verdict.FAILS
    assert "change by INT8 against that of repdw: paper +0.4147, here -0.9 (not so)" in text


def test_differences_below_the_seeds_noise_are_called_that():
    keys = [("D", name, "int8", "psnr") for name in ("qat_teacher", "qat_direct")]
    def ours(sd):
        return {key: {"value": value, "sd": sd} for key, value in zip(keys, (27.05, 27.0), strict=True)}

    verdict, text = trend(keys[0], reported.reported(), ours(0.05))
    assert verdict is Verdict.FAILS  # the sign alone is no order
    assert "noise of 0.071" in text
    verdict, text = trend(keys[0], reported.reported(), ours(0.03))
    assert verdict is Verdict.HOLDS
    assert "noise" not in text


def test_one_seed_shows_no_order_by_a_thousandth_of_a_db():
    keys = [("D", name, "int8", "psnr") for name in ("qat_teacher", "qat_direct")]
    for gap, expected in ((0.001, Verdict.FAILS), (0.006, Verdict.HOLDS), (-0.006, Verdict.FAILS)):
        ours = {keys[0]: {"value": 27.0 + gap}, keys[1]: {"value": 27.0}}
        assert trend(keys[0], reported.reported(), ours)[0] is expected


def test_unequal_schedules_are_named():
    keys = [("B", name, "fp32", "psnr") for name in ("student_stage2", "fsrcnn")]
    ours = {keys[0]: {"value": 27, "steps": 1200}, keys[1]: {"value": 26, "steps": 150}}
    assert "trained for 1,200 and 150 steps" in trend(keys[0], reported.reported(), ours)[1]


def test_one_constant_gives_all_five_scores_as_printed(tmp_path):
    rows = [row for row in tables.table_rows(open_run("smoke", tmp_path), ["A"]) if row.metric == "score"]
    assert len(rows) == 5
    for row in rows:
        assert row.verdict is Verdict.RECOMPUTED
        assert abs(row.delta) < 0.05, row
    assert reported.fitted_constant() == pytest.approx(1.155e16, rel=0.002)
    assert reported.score(30.5, 10) == pytest.approx(2 * reported.score(30, 10))


def test_only_validation_photographs_enter_the_tables(tmp_path):
    run = open_run("demo", tmp_path)
    run.record("01_data", [measured_row("B", "bicubic", "fp32", "psnr", 30.0, "Set5")])
    assert set(verdicts(run, "B").values()) == {Verdict.NOT_RUN}
    assert tables.measured(run, ["B"])["dataset"].tolist() == ["Set5"]


def test_rows_of_two_tables_or_records_with_one_name_stay_two_lines(tmp_path):
    run = open_run("demo", tmp_path)
    run.record("06_tflite_eval", [measured_row("abstract", "student", "int8", "psnr", 30.0, "Set5"),
                                  measured_row("abstract", "student", "int8", "ssim", 0.8, "Set5"),
                                  measured_row("export", "student", "int8", "psnr", 31.0, "Set5")])
    run.record("07_ablations", [measured_row("export", "student", "int8", "psnr", 35.0, "Set5")])
    shown = tables.measured(run, ["abstract", "export"])
    assert list(zip(shown["table"], shown["psnr"], strict=True)) == [
        ("abstract", 30.0), ("export", 31.0), ("export", 35.0)]
    assert list(shown.columns) == ["table", "row", "precision", "dataset", "psnr", "ssim"]
    assert tables.measured(run, ["export"])["psnr"].tolist() == [31.0, 35.0]


def test_csv_has_the_contracts_columns_and_is_read_back(tmp_path):
    run = open_with(tmp_path, "demo", {key: value - 2 for key, value in PSNR.items()})
    folder = tables.write_tables(run)
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.csv" for name in tables.TABLES)
    lines = list(csv.DictReader((folder / "C.csv").open()))
    assert tuple(lines[0]) == ("table", "row", "precision", "metric", "reported", "reproduced", "delta", "tolerance",
                               "verdict", "evidence")
    assert lines[0] | {"evidence": ""} == {
        "table": "C", "row": "repconv", "precision": "fp32", "metric": "psnr", "reported": "30.0897",
        "reproduced": "28.0897", "delta": "-2", "tolerance": "0.05", "verdict": "trend holds", "evidence": ""}
    assert lines[0]["evidence"].startswith("records/07_ablations.json")


@pytest.mark.parametrize(("fmt", "mark"), [("text", "Table B: "), ("markdown", "| --- |"), ("latex", r"\toprule")])
def test_tables_print_in_three_formats(tmp_path, fmt, mark):
    run = open_with(tmp_path, "demo", {("B", "bicubic", "fp32", "psnr"): 26.0})
    tables.write_tables(run)
    text = tables.format_tables(run.out, fmt)
    assert mark in text
    assert "not public" in text
    assert text.count("Table") + text.count("Abstract") + text.count("Audit") == 6


def test_printing_tables_that_do_not_exist_is_an_error(tmp_path):
    with pytest.raises(UserError, match="paperlib reproduce"):
        tables.format_tables(tmp_path)
    with pytest.raises(ValueError, match="html"):
        tables.format_tables(tmp_path, "html")


def test_audit_rows_come_from_the_record_and_obey_the_vocabulary(tmp_path):
    run = open_run("demo", tmp_path)
    line = {"row": "dynamic tflite on Set5", "precision": "int8", "metric": "psnr", "reported": None,
            "reproduced": 31.294, "verdict": "recomputed"}
    run.record("06_tflite_eval", [], audit=[line])
    (row,) = tables.table_rows(run, ["audit"])
    assert (row.table, row.reproduced, row.delta) == ("audit", 31.294, None)
    assert row.evidence == "records/06_tflite_eval.json"
    run.record("06_tflite_eval", [], audit=[line | {"verdict": "reproduced"}])
    with pytest.raises(ValueError, match="paper profile"):
        tables.write_tables(run)


def test_the_summary_names_profile_teacher_missing_records_and_tolerances(tmp_path):
    run = open_with(tmp_path, "demo", {("B", "bicubic", "fp32", "psnr"): 26.0})
    run.record("03_teacher", [], teacher="small MambaIRv2 trained here")
    path = write_summary(run)
    text = path.read_text()
    assert path == run.out / "summary.md"
    assert "not the paper's numbers" in text
    assert "Teacher: small MambaIRv2 trained here." in text
    assert "- 02_stage1: not run" in text
    assert "[07_ablations](records/07_ablations.json)" in text
    assert "psnr ±0.01: nothing is trained" in text
    assert teacher_used({}) == "no record names one"


def test_compare_shows_rounded_numbers(tmp_path):
    run = open_with(tmp_path, "demo", {("B", "bicubic", "fp32", "psnr"): 26.123456})
    line = tables.reported_vs_measured(run, ["B"]).iloc[0]
    assert (line["reported"], line["reproduced"], line["delta"]) == ("28.26", "26.1235", "-2.1365")
