"""Every reported row gets the strongest verdict of the committed runs, and says on what it rests."""

import json

import pytest

from paperlib.errors import UserError
from paperlib.evaluation.paper_numbers import reported
from paperlib.reporting.strongest import strongest, strongest_text
from paperlib.reporting.tables import write_tables
from paperlib.run import measured_row, open_run

SURE, NONE, NOISY = (0.05, 0.06, 0.05), (0.001, 0.002, 0.0), (0.05, -0.04, 0.03)


def table_d(folder, gains, method="paper"):
    """A run of Table D whose teacher gives so many dB, a value a seed, alike on two images."""
    run = open_run("demo", folder, {"method": method})
    seeds = list(range(len(gains)))
    run.record("07_ablations", [
        measured_row("D", row, "int8", "psnr", [27 + gain for gain in values], "validation", seed_ids=seeds,
                     images=[[26 + gain, 28 + gain] for gain in values])
        for row, values in (("qat_teacher", gains), ("qat_direct", [0.0] * len(gains)))])
    write_tables(run)


def line_of(folder, runs, row):
    (line,) = [line for line in strongest_text(folder, runs).splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_decided_run_comes_before_an_undecided_one_wherever_it_stands(tmp_path):
    table_d(tmp_path / "one", NOISY)
    table_d(tmp_path / "two", SURE, method="ours")
    for runs in (["one", "two"], ["two", "one"]):
        cells = line_of(tmp_path, runs, "D qat_teacher int8")
        assert cells[3].startswith("PSNR: trend holds")
        assert cells[4] == "[two](reference/two/summary.md)"


def test_of_two_decided_runs_the_papers_method_comes_first_then_the_more_seeds(tmp_path):
    table_d(tmp_path / "ours", (*SURE, 0.05), method="ours")
    table_d(tmp_path / "papers", NONE)
    table_d(tmp_path / "longer", (*NONE, 0.001))
    assert line_of(tmp_path, ["ours", "papers"], "D qat_teacher int8")[3].startswith("PSNR: trend fails")
    cells = line_of(tmp_path, ["ours", "papers", "longer"], "D qat_teacher int8")
    assert cells[1] == "+0.089 against qat_direct int8"
    assert cells[2].startswith("+0.001 [")
    assert cells[2].endswith("(4 seeds, 2 images)")
    assert cells[4] == "[longer](reference/longer/summary.md)"


def test_the_difference_shown_is_one_that_says_what_the_verdict_says(tmp_path):
    """MobileOne's file is ahead of RepConv's for sure; whether INT8 costs it less is open, and so is the row."""
    run = open_run("demo", tmp_path / "run")
    values = {("mobileone", "fp32"): (29.0, 29.2, 29.1), ("mobileone", "int8"): (28.5, 28.6, 28.55),
              ("repconv", "fp32"): (28.5, 28.3, 28.7), ("repconv", "int8"): (28.0, 28.1, 28.05)}
    run.record("07_ablations", [
        measured_row("C", row, precision, "psnr", list(seeds), "validation", seed_ids=[1, 2, 3],
                     images=[[value - 1, value + 1] for value in seeds]) for (row, precision), seeds in values.items()])
    write_tables(run)
    cells = line_of(tmp_path, ["run"], "C mobileone int8")
    assert cells[3].startswith("PSNR: undecided")
    assert cells[1] == "+0.106 change by INT8 against that of repconv"
    assert cells[5] == "more seeds"


def test_every_reported_row_has_one_line_and_what_is_not_public_says_so(tmp_path):
    table_d(tmp_path / "one", SURE)
    text = strongest_text(tmp_path, ["one"])
    rows = {" ".join(key[:3]) for key in reported()}
    assert {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()[6:]} == rows
    assert "score: recomputed; PSNR, SSIM, time: not public" in text
    assert line_of(tmp_path, ["one"], "B abpn int8")[1:5] == ["", "", "not run", ""]
    assert set(strongest(tmp_path, ["one"])) == {key[:3] for key in reported()}


def test_a_missing_table_or_a_damaged_record_is_named(tmp_path):
    table_d(tmp_path / "one", SURE)
    (tmp_path / "one" / "tables" / "D.csv").unlink()
    with pytest.raises(UserError, match=r"D\.csv"):
        strongest(tmp_path, ["one"])
    (tmp_path / "one" / "records" / "07_ablations.json").write_text(json.dumps({})[:1])
    with pytest.raises(UserError, match=r"07_ablations\.json"):
        strongest(tmp_path, ["one"])
