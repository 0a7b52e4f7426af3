"""Claims and tables of a run: which comparison decides a row, and what a run may say at all."""

import numpy as np
import pytest

from paperlib.evaluation import paper_numbers
from paperlib.evaluation.paper_numbers import reported
from paperlib.reporting.results import COLUMNS, Results
from paperlib.reporting.verdicts import Verdict
from paperlib.run import measured_row, open_run

PAPER = {key: value for key, value in reported().items() if key[0] != "A"}
TEACHER, DIRECT = ("D", "qat_teacher", "int8", "psnr"), ("D", "qat_direct", "int8", "psnr")


def rows_of(values, seeds=5, spread=0.0, images=2):
    """Measured rows whose seeds and images all give the value, or scatter around it by `spread`."""
    offsets = spread * np.linspace(-1, 1, seeds) if seeds > 1 else np.zeros(1)
    rows = []
    for key, value in values.items():
        if key[1].startswith("bicubic"):
            rows.append(measured_row(*key, value, "validation", images=[value] * images))
        else:
            found = [float(value + offset) for offset in offsets]
            rows.append(measured_row(*key, found, "validation", seed_ids=list(range(seeds)),
                                     images=[[each] * images for each in found]))
    return rows


def results(tmp_path, values, profile="demo", paper_data=None, overrides=None, **more):
    run = open_run(profile, tmp_path / profile, overrides)
    if paper_data is not None:
        run.record("01_data", [], inputs={"is_paper_data": paper_data})
    run.record("07_ablations", rows_of(values, **more))
    return Results(run)


def line(found, key):
    table = found.tables[key[0]]
    (row,) = table[(table[["table", "row", "precision", "metric"]] == list(key)).all(axis=1)].to_dict("records")
    return row


def claim(found, text):
    (row,) = [row for row in found.claims if text in row["claim"]]
    return row


@pytest.mark.parametrize("profile", ["smoke", "demo", "benchmark", "paper"])
def test_every_reported_number_has_a_verdict_in_every_profile(tmp_path, profile):
    tables = Results(open_run(profile, tmp_path)).tables
    assert all(tuple(table.columns) == COLUMNS for table in tables.values())
    assert sum(len(table) for table in tables.values()) == len(reported()) == 58
    assert {word for table in tables.values() for word in table["verdict"]} == {
        Verdict.NOT_RUN, Verdict.NOT_PUBLIC, Verdict.RECOMPUTED}


@pytest.mark.parametrize(("seeds", "word"), [(5, Verdict.HOLDS), (1, Verdict.ONE_SEED)])
def test_the_papers_own_numbers_hold_every_trend_over_five_seeds_and_none_over_one(tmp_path, seeds, word):
    found = results(tmp_path, PAPER, seeds=seeds)
    assert {line(found, key)["verdict"] for key in PAPER if key[3] == "psnr"} == {word}


def test_the_papers_own_numbers_are_reproduced_by_its_data_schedule_and_method_alone(tmp_path):
    numbers = {key: value for key, value in PAPER.items() if key[0] == "D"}
    made = dict(seeds=3, spread=0.01, profile="paper", paper_data=True)
    row = line(results(tmp_path / "a", numbers, **made), TEACHER)
    assert (row["verdict"], row["reported_inside"]) == (Verdict.REPRODUCED, "yes")
    assert row["delta"] == pytest.approx(0)
    for name, changed in {"seeds": {"seeds": 2}, "data": {"paper_data": False}, "unknown": {"paper_data": None},
                          "schedule": {"overrides": {"ablation.stage3_steps": 7}},
                          "method": {"overrides": {"method": "ours"}}}.items():
        row = line(results(tmp_path / name, numbers, **made | changed), TEACHER)
        assert row["verdict"] is Verdict.HOLDS, name
        assert (row["delta"] is None) == (name != "seeds"), name
    assert line(results(tmp_path / "one", numbers, **made | {"seeds": 1}), TEACHER)["verdict"] is Verdict.ONE_SEED


@pytest.mark.parametrize(("seeds", "word"), [(1, Verdict.ONE_SEED), (3, Verdict.MISSED)])
def test_nearly_equal_networks_do_not_pass_table_d(tmp_path, seeds, word):
    """Both within 0.05 dB of the paper's numbers, but not 0.0889 dB apart."""
    found = results(tmp_path, {TEACHER: 29.9605, DIRECT: 29.9604}, seeds=seeds, profile="paper", paper_data=True)
    assert {line(found, key)["verdict"] for key in (TEACHER, DIRECT)} == {word}


def test_a_row_shows_the_claim_that_decides_it_and_one_number_has_one_verdict(tmp_path):
    """MobileOne's file is ahead of RepConv's, but INT8 costs it more."""
    values = {("C", "mobileone", "fp32", "psnr"): 30.5, ("C", "mobileone", "int8", "psnr"): 30.2,
              ("C", "repconv", "fp32", "psnr"): 30.1, ("C", "repconv", "int8", "psnr"): 30.0}
    found = results(tmp_path, values)
    drop = claim(found, "INT8 costs MobileOne less than RepConv")
    assert drop["verdict"] is Verdict.FAILS
    assert drop["effect"] == pytest.approx(-0.2)
    assert claim(found, "MobileOne beats RepConv, INT8")["verdict"] is Verdict.HOLDS
    for name in ("mobileone", "repconv"):
        row = line(found, ("C", name, "int8", "psnr"))
        assert row["verdict"] is Verdict.FAILS
        assert (row["effect_reported"], row["effect"]) == (drop["reported"], drop["effect"])
        assert "INT8 costs MobileOne less than RepConv" in row["evidence"]
        assert line(found, ("C", name, "fp32", "psnr"))["verdict"] is Verdict.HOLDS


@pytest.mark.parametrize(("text", "values", "effect"), [
    ("from the float networks", {
        ("C", "mobileone", "fp32"): 30.1, ("C", "mobileone", "int8"): 30.0,
        ("C", "repconv", "fp32"): 30.0, ("C", "repconv", "int8"): 29.8,
        ("C", "mobileone_float", "fp32"): 31.0, ("C", "repconv_float", "fp32"): 30.4}, -0.4),
    ("the fixed file beats the dynamic one", {
        ("abstract", "student_dynamic_tflite", "int8"): 30.0,
        ("abstract", "student_fixed_tflite", "int8"): 29.8}, -0.2)])
def test_a_claim_is_measured_on_its_own_rows(tmp_path, text, values, effect):
    found = results(tmp_path, {(*model, "psnr"): value for model, value in values.items()})
    row = claim(found, text)
    assert (row["effect"], row["verdict"]) == (pytest.approx(effect), Verdict.FAILS)
    if "float" in text:  # it decides no row
        assert line(found, ("C", "mobileone", "int8", "psnr"))["verdict"] is Verdict.HOLDS


def test_another_ssim_is_never_compared(tmp_path):
    found = results(tmp_path, PAPER)
    for key in PAPER:
        row = line(found, key)
        if key[3] == "ssim" and key[1] not in ("bicubic", "fsrcnn", "abpn"):
            assert (row["verdict"], row["effect"]) == (Verdict.NOT_RUN, None), key
            assert "another SSIM" in row["evidence"]
            assert row["reproduced"] == pytest.approx(PAPER[key])
    bicubics = line(found, ("B", "fsrcnn", "fp32", "ssim"))["effect_reported"]
    assert bicubics == pytest.approx(0.01)  # against bicubic, not the student
    assert "tf.image.ssim" in line(found, ("C", "mobileone", "int8", "ssim"))["evidence"]


@pytest.mark.parametrize(("more", "value", "effect"), [
    ({}, 26.2, 0.8), ({("B", "bicubic_matlab", "fp32", "psnr"): 26.1}, 26.1, 0.9)])
def test_bicubic_is_compared_with_the_kernel_it_was_made_with(tmp_path, more, value, effect):
    key = ("B", "bicubic", "fp32", "psnr")
    row = line(results(tmp_path, {key: 26.2, ("B", "fsrcnn", "fp32", "psnr"): 27.0} | more), key)
    assert (row["reproduced"], row["effect"]) == (value, pytest.approx(effect))
    assert ("another kernel" in row["evidence"]) == (not more)


PIPELINE = {("C", "mobileone_float", "fp32", "psnr"): 29.0, ("C", "mobileone", "fp32", "psnr"): 28.9,
            ("C", "mobileone", "int8", "psnr"): 28.7, ("B", "bicubic", "fp32", "psnr"): 26.0}
STAGE2 = ("B", "student_stage2", "fp32", "psnr")


def test_table_cs_pipeline_stands_for_table_b_where_only_that_was_run(tmp_path):
    found = results(tmp_path, PIPELINE)
    stage2 = line(found, STAGE2)
    assert (stage2["verdict"], stage2["reproduced"]) == (Verdict.HOLDS, 29.0)
    assert "as C mobileone_float fp32" in stage2["evidence"]
    assert line(found, ("B", "student_deploy", "int8", "psnr"))["reproduced"] == 28.9
    assert line(found, ("abstract", "student_dynamic_tflite", "int8", "psnr"))["reproduced"] == 28.7
    assert line(found, ("abstract", "student_fixed_tflite", "int8", "psnr"))["verdict"] is Verdict.NOT_RUN
    found.run.record("04_stage2", [measured_row(*STAGE2, 27.0, "validation")])
    assert line(Results(found.run), STAGE2)["reproduced"] == 27.0  # measured by its own notebook
    older = results(tmp_path / "older", {key: value for key, value in PIPELINE.items() if key[1] != "mobileone_float"})
    assert line(older, STAGE2)["verdict"] is Verdict.NOT_RUN
    short = results(tmp_path, PIPELINE, profile="paper", paper_data=True, overrides={"ablation.stage1_steps": 7})
    assert line(short, STAGE2)["verdict"] is Verdict.HOLDS  # another schedule than Table B's: never missed


def test_table_ds_files_stand_for_the_abstracts_where_only_they_were_measured(tmp_path):
    values = {TEACHER: 29.0, ("D", "qat_teacher_fixed", "int8", "psnr"): 28.9}
    row = claim(results(tmp_path, values), "the fixed file beats the dynamic one")
    assert (row["effect"], row["verdict"]) == (pytest.approx(-0.1), Verdict.FAILS)
    own = {("abstract", "student_fixed_tflite", "int8", "psnr"): 30.0}  # a file never stands beside another network's
    assert claim(results(tmp_path / "own", values | own), "the fixed file beats")["verdict"] is Verdict.NOT_RUN


def test_a_row_with_nothing_to_compare_it_with_or_of_another_set_is_not_run(tmp_path):
    row = line(results(tmp_path, {DIRECT: 27.0}), DIRECT)
    assert (row["verdict"], row["reproduced"]) == (Verdict.NOT_RUN, 27.0)
    run = open_run("demo", tmp_path / "other")
    run.record("01_data", [measured_row("B", "bicubic", "fp32", "psnr", 30.0, "Set5")])
    assert set(Results(run).tables["B"]["verdict"]) == {Verdict.NOT_RUN}
    assert (Results(run).psnr("B", "bicubic"), Results(run, "Set5").psnr("B", "bicubic")) == (None, 30.0)


def test_other_seeds_are_not_paired_and_unequal_schedules_are_named(tmp_path):
    run = open_run("demo", tmp_path)
    run.record("07_ablations", [
        measured_row(*key, [27.0, 27.1], "validation", seed_ids=seeds, steps=steps)
        for key, seeds, steps in ((TEACHER, [1, 2], 1200), (DIRECT, [3, 4], 150))])
    row = claim(Results(run), "teacher")
    assert (row["verdict"], row["low"]) == (Verdict.UNDECIDED, None)
    assert row["remarks"] == ["trained for 1,200 and 150 steps", "other seeds"]


def test_one_constant_gives_all_five_scores_as_printed(tmp_path):
    table = Results(open_run("smoke", tmp_path)).tables["A"]
    scores = table[table["metric"] == "score"]
    assert len(scores) == 5
    assert (scores["verdict"] == Verdict.RECOMPUTED).all()
    assert (scores["delta"].abs() < scores["tolerance"]).all()
    psnr, ms = np.array(list(paper_numbers.entries().values())).T
    printed = scores["reported"].to_numpy(np.float64)
    fitted = np.linalg.lstsq((4**psnr / ms)[:, None], printed)[0][0]
    assert paper_numbers.fitted_constant() == pytest.approx(1 / fitted) == pytest.approx(1.155e16, rel=0.002)
    assert paper_numbers.score(30.5, 10) == pytest.approx(2 * paper_numbers.score(30, 10))


def test_the_audits_rows_come_from_the_record_and_say_nothing_of_a_training(tmp_path):
    run = open_run("demo", tmp_path)
    row = {"row": "bicubic (Table B)", "precision": "fp32", "metric": "psnr", "reported": 28.26,
           "reproduced": 28.41, "verdict": "recomputed", "evidence": "their log"}
    run.record("06_tflite_eval", [], audit=[row])
    (found,) = Results(run).tables["audit"].to_dict("records")
    assert (found["table"], found["reproduced"], found["delta"]) == ("audit", 28.41, None)
    assert found["evidence"] == "records/06_tflite_eval.json; bicubic by another kernel; their log"
    run.record("06_tflite_eval", [], audit=[row | {"verdict": "reproduced (evaluation)"}])
    assert Results(run).tables["audit"].loc[0, "verdict"] is Verdict.EVALUATION
    for word in ("reproduced", "almost"):
        run.record("06_tflite_eval", [], audit=[row | {"verdict": word}])
        with pytest.raises(ValueError, match=word):
            _ = Results(run).tables
