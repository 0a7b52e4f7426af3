import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paperlib.errors import UserError
from paperlib.evaluation import paper_numbers
from paperlib.reporting import tables
from paperlib.reporting.claims import CLAIMS, claims_table
from paperlib.reporting.printed import format_tables
from paperlib.reporting.verdicts import COMPARED, DROPS, Row, Verdict, kept_order, tolerance, trend
from paperlib.run import measured_row, open_run

PSNR = {key: value for key, value in paper_numbers.reported().items() if key[3] == "psnr" and key[0] != "A"}


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
        assert len(rows) == len(paper_numbers.reported()) == 58
        assert {row.verdict for row in rows} == {Verdict.NOT_RUN, Verdict.NOT_PUBLIC, Verdict.RECOMPUTED}


def test_every_measurable_row_has_a_comparison_and_a_tolerance_with_a_reason():
    for key in paper_numbers.reported():
        if key[0] != "A":
            assert COMPARED[key[:3]], key
            limit, reason = tolerance(key)
            assert limit > 0, key
            assert reason, key
    models = {key[:3] for key in paper_numbers.reported()}
    others = {model for part in [*COMPARED.values(), *DROPS.values()] for model in part}
    assert set(COMPARED) | set(DROPS) | others <= models


def over_seeds(values, spread=0.001, seeds=5):
    """Measured rows with five seeds around given values, each seed a little off."""
    offsets = np.linspace(-spread, spread, seeds)
    return {key: {"value": value, "values": [value + offset for offset in offsets], "seed_ids": list(range(seeds))}
            for key, value in values.items()}


def test_the_papers_own_numbers_hold_every_trend_if_five_seeds_agree_and_none_with_one():
    paper = paper_numbers.reported()
    for key in paper:
        if key[0] != "A":
            assert trend(key, paper, over_seeds(paper, 0.0))[0] is Verdict.HOLDS, key
            assert trend(key, paper, {other: {"value": value} for other, value in paper.items()})[
                0] is Verdict.UNDECIDED, key


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
    run = open_run("demo", tmp_path / "demo")
    run.record("07_ablations", [
        measured_row("B", "bicubic", "fp32", "psnr", 26.0, "validation", images=[25.0, 27.0]),
        *(measured_row("B", name, "fp32", "psnr", [value, value + 0.02], "validation", seed_ids=[1, 2],
                       images=[[value - 1, value + 1], [value - 0.98, value + 1.02]])
          for name, value in (("fsrcnn", 25.9), ("student_stage2", 27.0)))])
    rows = {row.row: row for row in tables.table_rows(run, ["B"]) if row.metric == "psnr"}
    assert rows["student_stage2"].verdict is Verdict.HOLDS
    assert rows["fsrcnn"].verdict is Verdict.UNDECIDED  # two seeds are too few to be sure of -0.09 ± 0.01
    assert "against bicubic fp32: paper +1.19, here -0.090 [" in rows["fsrcnn"].evidence
    assert "(2 seeds, 2 images), trend holds" in rows["fsrcnn"].evidence
    assert rows["student_deploy"].verdict is Verdict.NOT_RUN


PIPELINE = {("C", "mobileone_float", "fp32"): 29.0, ("C", "mobileone", "fp32"): 28.9, ("C", "mobileone", "int8"): 28.7}


def recorded_pipeline(run, rows=PIPELINE, more=()):
    """Table C's MobileOne over two seeds and two images."""
    run.record("07_ablations", [*more, *(
        measured_row(*key, "psnr", [value, value + 0.02], "validation", seed_ids=[1, 2],
                     images=[[value - 1, value + 1], [value - 0.98, value + 1.02]]) for key, value in rows.items())])


def test_table_cs_pipeline_stands_for_table_b_where_only_that_was_run(tmp_path):
    run = open_run("demo", tmp_path / "demo")
    bicubic = measured_row("B", "bicubic", "fp32", "psnr", 26.0, "validation", images=[25.0, 27.0])
    recorded_pipeline(run, more=[bicubic])
    rows = {row.row: row for row in tables.table_rows(run, ["B", "abstract"]) if row.metric == "psnr"}
    assert rows["student_stage2"].verdict is Verdict.HOLDS
    assert rows["student_stage2"].reproduced == pytest.approx(29.01)
    assert "(as C mobileone_float fp32)" in rows["student_stage2"].evidence
    assert rows["student_deploy"].reproduced == pytest.approx(28.91)
    assert rows["student_dynamic_tflite"].reproduced == pytest.approx(28.71)
    assert rows["student_fixed_tflite"].verdict is Verdict.NOT_RUN


def test_table_b_measured_by_its_own_notebooks_is_not_replaced(tmp_path):
    run = open_run("demo", tmp_path / "demo")
    run.record("04_stage2", [measured_row("B", "student_stage2", "fp32", "psnr", 27.0, "validation")])
    recorded_pipeline(run)
    rows = {row.row: row for row in tables.table_rows(run, ["B"]) if row.metric == "psnr"}
    assert rows["student_stage2"].reproduced == 27.0


def test_an_older_record_without_the_float_row_stands_for_nothing(tmp_path):
    run = open_run("demo", tmp_path / "demo")
    recorded_pipeline(run, {key: value for key, value in PIPELINE.items() if key[1] != "mobileone_float"})
    assert all(row.verdict is Verdict.NOT_RUN for row in tables.table_rows(run, ["B", "abstract"]))


def test_a_short_pipeline_of_table_c_cannot_miss_table_b_of_the_paper(tmp_path):
    run = open_run("paper", tmp_path / "paper", {"ablation.stage1_steps": 7})
    recorded_pipeline(run)
    rows = {row.row: row for row in tables.table_rows(run, ["B"]) if row.metric == "psnr"}
    assert rows["student_stage2"].verdict not in (Verdict.MISSED, Verdict.REPRODUCED)


def test_one_seed_decides_nothing_however_large_the_difference(tmp_path):
    run = open_with(tmp_path, "demo", {("B", "bicubic", "fp32", "psnr"): 26.0,
                                       ("B", "student_stage2", "fp32", "psnr"): 29.0})
    assert verdicts(run, "B")["B", "student_stage2", "fp32", "psnr"] is Verdict.UNDECIDED


def test_a_row_with_nothing_to_compare_with_is_not_run(tmp_path):
    run = open_with(tmp_path, "demo", {("D", "qat_direct", "int8", "psnr"): 27.0})
    row = next(row for row in tables.table_rows(run, ["D"]) if row.row == "qat_direct")
    assert row.verdict is Verdict.NOT_RUN
    assert "qat_teacher" in row.evidence


def test_what_cannot_fail_is_no_evidence():
    """The fixed file computes what the dynamic one does: their comparison is not counted."""
    for model in (("abstract", f"student_{name}_tflite", "int8") for name in ("fixed", "dynamic")):
        assert not any(other[0] == "abstract" for other in COMPARED[model])


def test_table_c_compares_what_int8_costs_as_well():
    """RepConv ahead of RepDW in both precisions, as reported, but losing more by rounding than RepDW does."""
    ours = over_seeds({("C", "repconv", "fp32", "psnr"): 28.0, ("C", "repconv", "int8", "psnr"): 27.0,
                       ("C", "repdw", "fp32", "psnr"): 26.5, ("C", "repdw", "int8", "psnr"): 26.4})
    assert trend(("C", "repconv", "fp32", "psnr"), paper_numbers.reported(), ours)[0] is Verdict.HOLDS
    verdict, text = trend(("C", "repconv", "int8", "psnr"), paper_numbers.reported(), ours)
    assert verdict is Verdict.FAILS
    assert "change by INT8 against that of repdw: paper +0.4147, here -0.900" in text


def test_mobileone_is_compared_with_repconv_in_both_precisions():
    paper = paper_numbers.reported()
    for precision in ("fp32", "int8"):
        keys = [("C", name, precision, "psnr") for name in ("mobileone", "repconv")]
        for better, word in ((0, Verdict.HOLDS), (1, Verdict.FAILS)):
            ours = over_seeds({keys[better]: 30.1, keys[1 - better]: 30.0})
            verdict, text = trend(keys[0], paper, ours)
            assert verdict is word
            assert "against repconv" in text


def test_nothing_surely_is_a_failure_of_a_reported_difference_and_noise_decides_nothing():
    keys = [("D", name, "int8", "psnr") for name in ("qat_teacher", "qat_direct")]
    noisy = np.array([0.1, -0.08, 0.05, -0.06, 0.02])
    for offsets, word in ((np.full(5, 0.004), Verdict.FAILS), (noisy, Verdict.UNDECIDED),
                          (np.array([0.05, 0.06, 0.05, 0.07, 0.06]), Verdict.HOLDS)):
        ours = {keys[0]: {"value": 27.0, "values": list(27 + offsets), "seed_ids": [1, 2, 3, 4, 5]},
                keys[1]: {"value": 27.0, "values": [27.0] * 5, "seed_ids": [1, 2, 3, 4, 5]}}
        assert trend(keys[0], paper_numbers.reported(), ours)[0] is word


def test_one_training_named_twice_is_one():
    keys = [("D", name, "int8", "psnr") for name in ("qat_teacher", "qat_direct")]
    ours = {key: {"value": value, "values": [value, value], "images": [[value, value - 0.01]] * 2, "seed_ids": [1, 1]}
            for key, value in zip(keys, (27.1, 27.0), strict=True)}
    verdict, text = trend(keys[0], paper_numbers.reported(), ours)
    assert verdict is Verdict.UNDECIDED
    assert "1 seed" in text


def test_other_seeds_are_not_paired():
    keys = [("D", name, "int8", "psnr") for name in ("qat_teacher", "qat_direct")]
    ours = {key: {"value": value, "values": [value, value], "seed_ids": seeds}
            for key, value, seeds in zip(keys, (27.1, 27.0), ([1, 2], [3, 4]), strict=True)}
    verdict, text = trend(keys[0], paper_numbers.reported(), ours)
    assert verdict is Verdict.UNDECIDED
    assert "other seeds" in text


def test_a_reversed_order_is_never_reproduced(tmp_path):
    """Both of Table D within the tolerance, but the teacher behind."""
    keys = [("D", name, "int8", "psnr") for name in ("qat_teacher", "qat_direct")]
    ours = {keys[0]: {"value": 29.951}, keys[1]: {"value": 29.960}}
    assert not kept_order(keys[0], paper_numbers.reported(), ours)
    run = open_with(tmp_path, "paper", {key: row["value"] for key, row in ours.items()})
    assert set(verdicts(run, "D").values()) == {Verdict.MISSED, Verdict.NOT_RUN}


def test_unequal_schedules_are_named():
    keys = [("B", name, "fp32", "psnr") for name in ("student_stage2", "fsrcnn")]
    ours = {keys[0]: {"value": 27, "steps": 1200}, keys[1]: {"value": 26, "steps": 150}}
    assert "trained for 1,200 and 150 steps" in trend(keys[0], paper_numbers.reported(), ours)[1]


def test_one_constant_gives_all_five_scores_as_printed(tmp_path):
    rows = [row for row in tables.table_rows(open_run("smoke", tmp_path), ["A"]) if row.metric == "score"]
    assert len(rows) == 5
    for row in rows:
        assert row.verdict is Verdict.RECOMPUTED
        assert abs(row.delta) < 0.05, row
    assert paper_numbers.fitted_constant() == pytest.approx(1.155e16, rel=0.002)
    assert paper_numbers.score(30.5, 10) == pytest.approx(2 * paper_numbers.score(30, 10))


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
                               "verdict", "evidence",
                               "effect_reported", "effect", "low", "high", "seeds", "images")
    assert lines[0] | {"evidence": ""} == {
        "table": "C", "row": "repconv", "precision": "fp32", "metric": "psnr", "reported": "30.0897",
        "reproduced": "28.0897", "delta": "", "tolerance": "0.05", "verdict": "undecided", "evidence": "",
        "effect_reported": "-0.0453", "effect": "-0.0453", "low": "", "high": "", "seeds": "1", "images": "0"}
    assert lines[0]["evidence"].startswith("records/07_ablations.json")


@pytest.mark.parametrize(("fmt", "mark"), [("text", "Table B: "), ("markdown", "| --- |"), ("latex", r"\toprule")])
def test_tables_print_in_three_formats(tmp_path, fmt, mark):
    run = open_with(tmp_path, "demo", {("B", "bicubic", "fp32", "psnr"): 26.0})
    tables.write_tables(run)
    text = format_tables(run.out, fmt)
    assert mark in text
    assert "not public" in text
    assert text.count("Table") + text.count("Abstract") + text.count("Audit") == 6


def test_printing_tables_that_do_not_exist_is_an_error(tmp_path):
    with pytest.raises(UserError, match="paperlib reproduce"):
        format_tables(tmp_path)
    with pytest.raises(ValueError, match="html"):
        format_tables(tmp_path, "html")


@pytest.mark.parametrize("damage", [
    lambda text: b"", lambda text: b"\xff\xfe" + text, lambda text: b"\0" * len(text), lambda text: text + b'a,b,"c',
    lambda text: text + b"a," * 40, lambda text: text.replace(b"verdict", b"verdicts"),
    lambda text: text[: len(text) // 2], lambda text: text + b'B,"unfinished',
    lambda text: text.replace(b"28.26", b"many"), lambda text: text.replace(b"bicubic", b"bi\x1b[31mcubic")])
def test_a_damaged_table_is_named_in_one_line(tmp_path, damage):
    run = open_with(tmp_path, "demo", {("B", "bicubic", "fp32", "psnr"): 26.0})
    path = tables.write_tables(run) / "B.csv"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as told:
        format_tables(run.out)
    assert str(told.value).startswith(f"{path} is no table of this kit")
    assert str(told.value).isprintable()


def test_committed_tables_are_read_as_they_were_written():
    folders = sorted((Path(__file__).parents[2] / "results" / "reference").rglob("tables"))
    assert len(folders) > 4
    for folder in folders:
        assert "Table B: " in format_tables(folder.parent)


def test_audit_rows_come_from_the_record_and_obey_the_vocabulary(tmp_path):
    run = open_run("demo", tmp_path)
    line = {"row": "dynamic tflite on Set5", "precision": "int8", "metric": "psnr", "reported": None,
            "reproduced": 31.294, "verdict": "recomputed"}
    run.record("06_tflite_eval", [], audit=[line])
    (row,) = tables.table_rows(run, ["audit"])
    assert (row.table, row.reproduced, row.delta) == ("audit", 31.294, None)
    assert row.evidence == "records/06_tflite_eval.json"
    run.record("06_tflite_eval", [], audit=[line | {"evidence": "their log: epoch 3"}])
    assert tables.table_rows(run, ["audit"])[0].evidence == "records/06_tflite_eval.json: their log: epoch 3"
    run.record("06_tflite_eval", [], audit=[line | {"verdict": "reproduced"}])
    with pytest.raises(ValueError, match="paper profile"):
        tables.write_tables(run)


def test_reported_and_measured_stand_in_one_line_a_row(tmp_path):
    run = open_run("demo", tmp_path)
    run.record("07_ablations", rows_of({("B", "bicubic", "fp32", "psnr"): 26.123456,
                                        ("B", "bicubic", "fp32", "ssim"): 0.8,
                                        ("B", "student_stage2", "fp32", "psnr"): 27.0}))
    whole, width = tables.reported_vs_measured(run, ["B"]), pd.get_option("display.max_colwidth")
    assert "-0.877 (1 seed, means of the set)" in whole._repr_html_()
    whole.loc[0, "verdict"] = "word " * 30 + "end"
    assert "word end" in whole._repr_html_()
    assert "word end" in repr(whole)
    assert pd.get_option("display.max_colwidth") == width  # a notebook's other tables are shown as ever
    shown = tables.reported_vs_measured(run, ["B"]).set_index("row")
    assert list(shown.index) == ["bicubic", "fsrcnn", "abpn", "student_stage2", "student_deploy"]
    assert shown.loc["bicubic", "reported"] == "28.26 / 0.828"
    assert shown.loc["bicubic", "measured"] == "26.1235 / 0.8"
    assert shown.loc["bicubic", "paper's difference"] == "-2.02"
    assert shown.loc["bicubic", "ours"] == "-0.877 (1 seed, means of the set)"
    assert shown.loc["bicubic", "verdict"] == "undecided (SSIM: not run)"
    assert shown.loc["fsrcnn", "verdict"] == "not run"


def test_claims_are_the_papers_differences_and_one_word(tmp_path):
    run = open_run("demo", tmp_path)
    keys = [("D", name, "int8") for name in ("qat_teacher", "qat_direct")]
    run.record("07_ablations", [
        measured_row(*key, "psnr", [27.0 + offset, 27.1 + offset, 27.05 + offset], "validation", seed_ids=[1, 2, 3],
                     images=[[27 + offset] * 4, [27.1 + offset] * 4, [27.05 + offset] * 4])
        for key, offset in zip(keys, (0.1, 0.0), strict=True)])
    table = claims_table(run).set_index("claim")
    (line,) = [table.loc[name] for name in table.index if "Table D" in name]
    assert line["the paper (dB)"] == "+0.089"
    assert line["here (dB)"] == "+0.100 [+0.100, +0.100] (3 seeds, 4 images)"
    assert line["verdict"] == "trend holds"
    assert set(table["verdict"]) == {"trend holds", "not run"}
    assert {key for claim in CLAIMS for key in (*claim.plus, *claim.minus)} <= set(paper_numbers.reported())


def test_no_claim_of_tables_c_and_d_is_left_out():
    pairs = {(claim.plus, claim.minus) for claim in CLAIMS}
    for precision in ("fp32", "int8"):
        one, other = (("C", name, precision, "psnr") for name in ("mobileone", "repconv"))
        assert ((one,), (other,)) in pairs
    assert ((("D", "qat_teacher", "int8", "psnr"),), (("D", "qat_direct", "int8", "psnr"),)) in pairs
