"""A run beside the committed one of its profile, and the spread that two machines may show."""

import json

import pytest

from paperlib.errors import UserError
from paperlib.reporting import reference
from paperlib.reporting.reference import compare, kind_of, reference_text, stated_spread
from paperlib.reporting.results import Results
from paperlib.run import measured_row, open_run

TEACHER = "small MambaIRv2 (45 parameters)"
LIMITS = {"trained": {"psnr": 0.05, "ssim": 0.001}, "untrained": {"psnr": 0.0}}


def row(name, value, metric="psnr", table="stages", precision="fp32"):
    return measured_row(table, name, precision, metric, value, "validation")


def agreeing(found):
    return found.values.set_index(["row", "metric"])["agrees"].to_dict()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with a committed demo and a stated spread; returns (reference run, a new run)."""
    monkeypatch.setattr(reference, "root", lambda: tmp_path)
    committed = open_run("demo", tmp_path / "results" / "reference" / "demo")
    committed.record("01_data", [row("bicubic", 26.76, table="B")])
    committed.record("02_stage1", [row("stage1", 27.50), row("stage1", 0.8000, "ssim")])
    committed.record("04_stage2", [row("student_stage2", 27.60, table="B")], teacher=TEACHER)
    (tmp_path / "results" / "reference" / "spread.json").write_text(json.dumps({"stated": LIMITS}))
    return committed, open_run("demo", tmp_path / "results" / "demo")


def test_values_within_the_spread_agree_and_the_others_are_listed(clone):
    committed, run = clone
    run.record("01_data", [row("bicubic", 26.7603, table="B")])
    run.record("02_stage1", [row("stage1", 27.54), row("stage1", 0.8004, "ssim")])
    run.record("04_stage2", [row("student_stage2", 27.54, table="B")], teacher=TEACHER.replace(")", "; other)"))
    found = compare(Results(run), Results(committed), stated_spread())
    assert agreeing(found) == {("bicubic", "psnr"): False, ("stage1", "psnr"): True,
                               ("stage1", "ssim"): True, ("student_stage2", "psnr"): False}
    assert (found.different, found.missing) == ({}, 0)
    lines = reference_text(run).splitlines()
    assert "2 of 4 values differ" in lines[0]
    # by how far beyond what is allowed
    assert [line.split()[1:3] for line in lines[1:]] == [["B", "bicubic"], ["B", "student_stage2"]]


def test_all_that_agrees_is_one_line_and_what_is_missing_another(clone):
    committed, run = clone
    run.record("02_stage1", [row("stage1", 27.50)])
    assert "Yes: 1 of 1 values agree" in reference_text(run)
    assert compare(Results(run), Results(committed), LIMITS).missing == 1
    assert "1 values of that run were not measured here" in reference_text(run)


def test_other_settings_are_said_and_their_values_not_compared(clone, tmp_path):
    committed, _ = clone
    run = open_run("demo", tmp_path / "other", {"stage2.steps": 7, "stage1.checkpoint_every": 10})
    run.record("02_stage1", [row("stage1", 27.50)])
    run.record("04_stage2", [row("student_stage2", 20.0, table="B")], teacher=TEACHER)
    found = compare(Results(run), Results(committed), LIMITS)
    assert found.values["record"].tolist() == ["02_stage1"]  # stage 1 does not depend on stage 2
    steps = committed.settings.stage2.steps
    assert found.different == {"04_stage2": [f"stage2.steps 7, there {steps}"]}
    assert f"stage2.steps 7, there {steps}" in reference_text(run)


def test_another_teacher_or_seed_is_not_another_machine(clone, tmp_path):
    committed, run = clone
    run.record("02_stage1", [row("stage1", 27.50)])
    run.record("04_stage2", [row("student_stage2", 27.60, table="B")], teacher="MambaIRv2-light (1 parameters)")
    found = compare(Results(run), Results(committed), LIMITS)
    assert found.different == {"04_stage2": ["teacher MambaIRv2-light, there small MambaIRv2"]}
    seeded = open_run("demo", tmp_path / "seeded", {"seed": 5})
    seeded.record("02_stage1", [row("stage1", 27.50)])
    assert compare(Results(seeded), Results(committed), LIMITS).different == {"02_stage1": ["seed 5, there 1234"]}


def test_a_setting_that_an_older_reference_does_not_know_counts_as_the_profiles(clone):
    committed, run = clone
    path = committed.out / "records" / "02_stage1.json"
    record = json.loads(path.read_text())
    del record["settings"]["stage1"]["permute_colours"]
    record["settings"]["stage1"]["gone"] = 1
    path.write_text(json.dumps(record))
    run.record("02_stage1", [row("stage1", 27.50)])
    assert compare(Results(run), Results(committed), LIMITS).different == {}


def test_a_run_without_a_counterpart_is_said(clone, tmp_path):
    committed, run = clone
    run.record("07_ablations", [row("kd_1", 27.1, table="D")])
    assert "Nothing can be compared with the committed demo" in reference_text(run)
    assert "No run of profile smoke is committed" in reference_text(open_run("smoke", tmp_path / "smoke"))
    assert "This run is the committed one of its profile" in reference_text(committed)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"stated": 3}', '{"stated": {"trained": {"psnr": null}}}'])
def test_a_missing_or_damaged_spread_is_said_and_costs_nothing(clone, tmp_path, text):
    path = tmp_path / "results" / "reference" / "spread.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match="spread"):
        stated_spread()
    assert "Not compared" in reference_text(clone[1])


@pytest.mark.parametrize(("table", "name", "precision", "kind"), [
    ("B", "bicubic", "fp32", "untrained"), ("B", "bicubic_antialiased", "fp32", "untrained"),
    ("stages", "stage1", "fp32", "trained"), ("C", "mobileone_float", "fp32", "trained"),
    ("C", "mobileone", "fp32", "rounded"), ("stages", "fakequant", "fake-quant", "rounded"),
    ("D", "qat_teacher", "int8", "rounded"), ("shipped", "shipped_int8", "int8", "trained")])
def test_what_is_rounded_to_grids_is_a_kind_of_its_own(table, name, precision, kind):
    assert kind_of(table, name, precision) == kind


def test_rounded_rows_have_their_own_limit(clone):
    committed, run = clone
    for each, value in ((committed, 27.0), (run, 27.15)):
        each.record("02_stage1", [row("stage1", value), row("fakequant", value, precision="fake-quant")])
    found = compare(Results(run), Results(committed), LIMITS | {"rounded": {"psnr": 0.2}})
    assert agreeing(found) == {("stage1", "psnr"): False, ("fakequant", "psnr"): True}
