"""The smoke profile from end to end: real papermill, real kernel, real converter, the committed notebooks."""

import csv
import json
import os
import subprocess
import sys

import pytest

from paperlib.evaluation.reported import reported
from paperlib.reporting.tables import COLUMNS, TABLES
from paperlib.reporting.verdicts import Verdict
from paperlib.run import NOTEBOOKS


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A finished smoke run: its folder and what the terminal showed."""
    folder = tmp_path_factory.mktemp("reproduce")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PAPERLIB_")}
    environment |= {"PAPERLIB_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "paperlib", "reproduce", "--profile", "smoke", "--out", str(folder / "smoke")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "smoke", done.stdout


def test_every_notebook_leaves_its_record_and_executed_copy(results):
    out, _ = results
    for name in NOTEBOOKS:
        record = json.loads((out / "records" / f"{name}.json").read_text())
        assert record["profile"] == "smoke"
        assert record["seed"] == 1234
        assert record["versions"]["torch"]
        assert record["rows"] or name == "05_fuse_qat"
        assert (out / "notebooks" / f"{name}.ipynb").is_file()


def test_tables_have_every_reported_number_with_an_honest_verdict(results):
    out, shown = results
    found = {}
    for name in TABLES:
        with (out / "tables" / f"{name}.csv").open(newline="") as file:
            reader = csv.DictReader(file)
            found |= {(row["table"], row["row"], row["precision"], row["metric"]): row for row in reader}
            assert tuple(reader.fieldnames) == COLUMNS
    assert set(reported()) <= set(found)
    words = {row["verdict"] for row in found.values()}
    assert words <= {verdict.value for verdict in Verdict} - {"reproduced", "missed"}
    assert float(found["B", "student_deploy", "int8", "psnr"]["reproduced"]) > 0
    assert "not the paper's numbers" in (out / "summary.md").read_text()
    assert "Table C" in shown


def test_the_end_says_how_the_run_compares_with_the_committed_one(results):
    assert "No reference for profile smoke" in results[1]


def test_the_int8_file_is_what_was_trained(results):
    record = json.loads((results[0] / "records" / "06_tflite_eval.json").read_text())
    assert len(record["parity"]) == 2
    for file in record["parity"]:
        assert file["within_1_lsb"] >= 0.99, file
    values = {(row["table"], row["row"]): row["value"] for row in record["rows"]
              if row["metric"] == "psnr" and row["dataset"] == "validation"}
    assert values["export", "tflite_dynamic"] == pytest.approx(values["export", "fakequant"], abs=0.01)


def test_the_report_is_one_page_without_network(results):
    page = (results[0] / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<img" in page
