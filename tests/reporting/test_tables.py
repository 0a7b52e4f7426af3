"""Tables for the eye and as files."""

import csv
from pathlib import Path

import pytest

from paperlib.errors import UserError
from paperlib.files import read_json
from paperlib.profiles import load_settings
from paperlib.reporting import tables
from paperlib.reporting.results import COLUMNS, TABLES, Results
from paperlib.run import Run, measured_row, open_run

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
RUNS = sorted(path.parent.relative_to(REFERENCE).as_posix() for path in REFERENCE.rglob("tables"))
ASKED = read_json(REFERENCE / "questions.json")


def open_with(tmp_path, values, profile="demo"):
    run = open_run(profile, tmp_path / profile)
    run.record("07_ablations", [measured_row(*key, value, "validation") for key, value in values.items()])
    return run


BICUBIC = {("B", "bicubic", "fp32", "psnr"): 26.0}
BOTH = {("B", "bicubic", "fp32", "psnr"): 26.123456, ("B", "bicubic", "fp32", "ssim"): 0.8,
        ("B", "student_stage2", "fp32", "psnr"): 27.0, ("B", "student_stage2", "fp32", "ssim"): 0.9}


def test_csv_has_the_contracts_columns_and_is_read_back(tmp_path):
    folder = tables.write_tables(open_with(tmp_path, BOTH))
    assert {path.name for path in folder.iterdir()} == {f"{name}.csv" for name in TABLES}
    lines = list(csv.DictReader((folder / "B.csv").read_text().splitlines()))
    assert ",".join(lines[0]) == (
        "table,row,precision,metric,reported,reproduced,delta,tolerance,verdict,evidence,"
        "effect_reported,effect,low,high,seeds,images,reported_inside") == ",".join(COLUMNS)
    assert lines[0] | {"evidence": ""} == {
        "table": "B", "row": "bicubic", "precision": "fp32", "metric": "psnr", "reported": "28.26",
        "reproduced": "26.123456", "delta": "", "tolerance": "", "verdict": "one seed",
        "evidence": "", "effect_reported": "2.02", "effect": "0.876544", "low": "", "high": "",
        "seeds": "1", "images": "0", "reported_inside": ""}
    assert lines[0]["evidence"].startswith("records/07_ablations.json; Table B: the student beats")
    back = tables.read_table(folder / "B.csv")
    assert (back.loc[0, "effect"], back["low"].isna().all()) == (0.876544, True)


@pytest.mark.parametrize(("fmt", "mark"), [("text", "Table B: "), ("markdown", "| --- |"), ("latex", r"\toprule")])
def test_tables_print_in_three_formats(tmp_path, fmt, mark):
    run = open_with(tmp_path, BICUBIC)
    with pytest.raises(UserError, match="paperlib reproduce"):
        tables.format_tables(run.out)
    tables.write_tables(run)
    text = tables.format_tables(run.out, fmt)
    assert mark in text
    assert text.count("Table") + text.count("Abstract") + text.count("Audit") == 6
    assert "21.81" in text  # Table A, one line an entry
    assert "reproduced" not in text  # no such heading over measured values


@pytest.mark.parametrize("damage", [
    lambda text: b"", lambda text: b"\xff\xfe" + text, lambda text: b"\0" * len(text), lambda text: text + b"a," * 40,
    lambda text: text.replace(b"verdict", b"verdicts"), lambda text: text.replace(b"28.26", b"many")])
def test_a_damaged_table_is_named_in_one_line(tmp_path, damage):
    run = open_with(tmp_path, BOTH)
    path = tables.write_tables(run) / "B.csv"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"^{path} is not a table of this kit") as told:
        tables.format_tables(run.out)
    assert str(told.value).isprintable()


@pytest.mark.parametrize("name", RUNS)
def test_committed_tables_are_what_the_committed_records_give(name):
    run = Run(load_settings("benchmark"), REFERENCE / name, every_record=True)
    for table, content in Results(run, ASKED[name].get("images", "validation")).tables.items():
        assert (run.out / "tables" / f"{table}.csv").read_text(encoding="utf-8") == (
            tables.csv_text(content)), "run python results/pages.py"
    assert "Table B: " in tables.format_tables(run.out)
    assert len(RUNS) > 4


def test_reported_and_measured_stand_in_one_line_a_row(tmp_path):
    shown = tables.reported_vs_measured(open_with(tmp_path, BOTH), ["B"]).set_index("model")
    assert list(shown.index) == ["bicubic", "FSRCNN", "ABPN", "student after stage 2", "student after stage 3"]
    assert shown.loc["bicubic"].tolist() == ["fp32", "28.26 / 0.828", "26.123 / 0.8000"]
    assert shown.loc["student after stage 2", "paper: PSNR / SSIM"] == "30.28 / 0.863 *"
    assert shown.loc["FSRCNN", "here: PSNR / SSIM"] == "not run"
    run = open_with(tmp_path, {("C", "mobileone", "fp32", "psnr"): 27.0})
    assert len(tables.reported_vs_measured(run, ["B", "C", "D", "abstract"])) == 15


def test_rows_of_two_tables_or_records_with_one_name_stay_two_lines(tmp_path):
    run = open_run("demo", tmp_path)
    row = lambda table, metric, value: measured_row(table, "student", "int8", metric, value, "Set5")
    run.record("06_tflite_eval", [row("abstract", "psnr", 30.0), row("abstract", "ssim", 0.8),
                                  row("export", "psnr", 31.0)])
    run.record("07_ablations", [row("export", "psnr", 35.0)])
    shown = tables.measured(run, ["abstract", "export"])
    assert list(zip(shown["table"], shown["PSNR (dB)"], strict=True)) == [
        ("abstract", "30.000"), ("export", "31.000"), ("export", "35.000")]
    assert list(shown.columns) == ["table", "model", "precision", "images", "PSNR (dB)", "SSIM"]
    assert tables.measured(run, ["B"]).empty
    assert [tables.name(row) for row in ("qat_direct_fixed", "dct_off+skip_add", "mobileone_fakequant")] == [
        "stage 3 without a teacher, fixed size", "no DCT term + skip as ADD", "MobileOne, fake-quantised"]


def test_the_audit_says_another_kernel(tmp_path):
    run = open_run("demo", tmp_path)
    audit = [{"row": f"{name} (Table B)", "precision": "fp32", "metric": "psnr", "reported": 28.26,
              "reproduced": 28.4115, "verdict": "recomputed", "evidence": "their log"}
             for name in ("bicubic", "student_stage2")]
    run.record("06_tflite_eval", [], audit=audit)
    shown = tables.audit_table(run)
    assert ["another kernel" in words for words in shown["evidence"]] == [True, False]
    assert shown["their own files"].tolist() == ["28.4115", "28.4115"]


def test_claims_for_the_eye(tmp_path):
    run = open_run("demo", tmp_path)
    run.record("07_ablations", [
        measured_row("D", name, "int8", "psnr", [27.0 + gain, 27.1 + gain, 27.05 + gain],
                     "validation", seed_ids=[1, 2, 3], images=[[27 + gain] * 4, [27.1 + gain] * 4, [27.05 + gain] * 4])
        for name, gain in (("qat_teacher", 0.1), ("qat_direct", 0.0))])
    assert tables.claims_table(run).to_numpy().tolist() == [[
        "Table D: the Mamba teacher helps stage 3, INT8", "+0.089",
        "+0.100 [+0.100, +0.100] (3 seeds, 4 images)", "trend holds", "no", ""]]


def stage3(name, values, table="D"):
    return measured_row(table, name, "int8", "psnr", values, "validation")


def test_every_choice_of_stage_3_is_compared_with_its_own_base(tmp_path):
    run = open_run("demo", tmp_path)
    assert tables.changes(run).empty
    run.record("07_ablations", [
        stage3("qat_teacher", [27.0, 27.2]), stage3("qat_direct", [26.9, 27.1]),
        stage3("ema_off", 27.0, "switches"), stage3("post_training", 25.1, "switches")])
    direct, ema_off, post_training = tables.changes(run).to_numpy().tolist()
    assert direct == [  # the same in both seeds
        "stage 3 without a teacher", "27.000", "stage 3 with the teacher",
        "-0.100 [-0.100, -0.100] (2 seeds, means of the set)", "worse"]
    assert (ema_off[0], ema_off[-1]) == ("ema off", "one seed")
    assert "2 seeds" in post_training[3]  # nothing random in it: stands beside both


def test_a_larger_weight_of_the_teacher_is_held_against_none(tmp_path):
    run = open_run("demo", tmp_path)
    values = {"qat_teacher": 27.0, "qat_direct": 26.9, "kd_10": 26.95, "kd_100": 27.3, "qat_teacher_learnt": 28.0,
              "qat_direct_learnt": 27.8, "kd_100_learnt": 28.1, "ortho_kd_1": 27.5, "ortho_kd_0": 27.4}
    run.record("07_ablations", [stage3(name, [value, value]) for name, value in values.items()])
    found = {line[0]: (line[2], line[3][:6]) for line in tables.changes(run).to_numpy().tolist()}
    direct = tables.name("qat_direct")
    assert found[tables.name("kd_10")] == (direct, "+0.050")
    assert found[tables.name("kd_100")] == (direct, "+0.400")
    assert found[tables.name("kd_100_learnt")] == (f"{direct}, learned grids", "+0.300")
    assert found[tables.name("ortho_kd_0")] == (tables.name("ortho_kd_1"), "-0.100")
    run.record("07_ablations", [stage3(name, [values[name]] * 2) for name in ("qat_teacher", "kd_100")])
    assert tables.changes(run)["against"].tolist() == [tables.name("qat_teacher")]


def test_the_abstract_is_a_table_of_paired_differences(tmp_path):
    """Positive is for the abstract, also where INT8's cost is compared."""
    run = open_with(tmp_path, {("abstract_claims", row, precision, "psnr"): value
                               for row, precision, value in (
        ("published", "fp32", 30.0), ("published", "int8", 29.8), ("kd_off", "fp32", 30.1),
        ("clip_off", "fp32", 30.2), ("clip_off", "int8", 29.5), ("post_training", "int8", 29.0))})
    lines = tables.abstract_table(run)
    assert dict(zip(lines["the abstract"], lines["effect (dB)"].str[:6], strict=True)) == {
        "distillation from a teacher": "-0.100", "quantisation-aware training": "+0.800",
        "weight clipping": "+0.500", "a score of 1.8 in the challenge": ""}
    assert set(lines["so it is"]) == {"one seed", "not public"}
    assert tables.abstract_table(open_with(tmp_path / "none", BICUBIC)).empty
