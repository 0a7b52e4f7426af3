"""The page about the committed runs is what its function makes of them."""

import json
import re
import shutil
from pathlib import Path

import pytest

from paperlib.errors import UserError
from paperlib.reporting.answers import answers_text, command, run_page, write_answers
from paperlib.reporting.tables import write_tables
from paperlib.run import measured_row, open_run
from paperlib.settings import flatten

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def folder(tmp_path):
    """A reference with one demo of three notebooks, 02 continued from a training of an hour."""
    run = open_run("demo", tmp_path / "reference" / "demo")
    run.record("01_data", [measured_row("B", "bicubic", "fp32", "psnr", 26.0, "validation")])
    run.record("02_stage1", [], history=[{"step": 1, "seconds": 1800.0}, {"step": 2, "seconds": 3600.0}])
    run.record("04_stage2", [measured_row("B", "student_stage2", "fp32", "psnr", 27.0, "validation")])
    run.record("00_reproduce", [], overrides={"stage1.steps": 7, "quant.start": "/some/where/start.pt"}, notebooks={
        name: {"seconds": seconds, "peak_bytes": 1} for name, seconds in
        (("01_data", 60.0), ("02_stage1", 60.0), ("04_stage2", 120.0))})
    write_tables(run)
    (tmp_path / "reference" / "questions.json").write_text(json.dumps({"demo": "What does it give?"}))
    return tmp_path / "reference"


def test_the_committed_page_is_what_the_function_makes_of_the_committed_files():
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == answers_text(RESULTS / "reference"), (
        "run python -m paperlib.reporting.answers")


def test_the_page_inside_a_run_is_the_committed_one_and_its_links_lead_somewhere():
    pages = sorted((RESULTS / "reference").rglob("README.md"))
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text == run_page(RESULTS / "reference", page.parent.relative_to(RESULTS / "reference").as_posix())
        links = re.findall(r"\]\(([^)]+)\)", text)
        assert len(links) == 5 + len(list((page.parent / "notebooks").glob("*.ipynb")))
        assert not [link for link in links if not (page.parent / link).exists()]


def test_its_links_lead_somewhere_and_no_folder_of_a_machine_is_in_it():
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10
    assert not [link for link in links if not (RESULTS / link).is_file()]
    assert not re.search(r"/(work|home|root|tmp)/", text)


def test_a_table_names_notebooks_records_minutes_and_verdicts(folder):
    text = answers_text(folder)
    assert "What does it give?" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| B: ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "01 to 04"
    assert cells[2] == ("[01_data](reference/demo/records/01_data.json), "
                        "[04_stage2](reference/demo/records/04_stage2.json)")
    assert cells[3] == "64"  # 1 + 1 + 60 of the training that 02 continued + 2
    assert cells[4].startswith("2 × ")
    assert "paperlib reproduce --profile demo --until 04 --set stage1.steps=7 quant.start=.../start.pt" in text
    assert not [line for line in text.splitlines() if line.startswith("| C: ")]  # nothing measured
    assert write_answers(folder.parent).read_text(encoding="utf-8") == text


def test_single_settings_are_those_of_the_records_and_are_never_guessed(folder):
    runs = [path.parents[1] for path in (RESULTS / "reference").rglob("00_reproduce.json")]
    compared = 0
    for run in runs:
        overrides = json.loads((run / "records" / "00_reproduce.json").read_text(encoding="utf-8"))["overrides"]
        for record in (run / "records").glob("07*.json"):
            made = flatten("", json.loads(record.read_text(encoding="utf-8"))["settings"])
            for name, value in overrides.items():
                if name in made:
                    assert made[name] == value, (record, name)
                    compared += 1
    assert compared > 30
    path = folder / "demo" / "records" / "00_reproduce.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["overrides"]
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match="does not say which single settings"):
        answers_text(folder)


def test_a_command_names_what_is_not_usual():
    assert command("demo", "01", "07", {}) == "paperlib reproduce --profile demo"
    assert command("demo", "07", "07", {"ablation.seeds": [1, 2]}) == (
        "paperlib reproduce --profile demo --from 07 --set 'ablation.seeds=[1, 2]'")
    assert command("demo", "01", "07", {"quant.start": "$PAPERLIB_ASSETS/a.pt"}).endswith(
        '--set "quant.start=$PAPERLIB_ASSETS/a.pt"')  # the shell is to fill it in


def test_a_run_without_a_question_and_a_question_without_a_run_are_errors(folder):
    shutil.copytree(folder / "demo", folder / "other")
    with pytest.raises(UserError, match="other"):
        answers_text(folder)
    shutil.rmtree(folder / "other")
    shutil.rmtree(folder / "demo")
    with pytest.raises(UserError, match="demo"):
        answers_text(folder)


def test_damaged_files_are_named(folder):
    (folder / "demo" / "records" / "01_data.json").write_text("{")
    with pytest.raises(UserError, match=r"01_data\.json"):
        answers_text(folder)


def test_the_audit_stands_on_the_page_with_its_worst_photograph(folder):
    lines = [{"authors' file": "a.tflite", "as": name, "dataset": "Set", "psnr_rgb": sum(values) / 2,
              "images": dict(zip(("one", "two"), values, strict=True))}
             for name, values in (("dynamic_int8", (30.0, 31.5)), ("re_exported_int8", (31.0, 30.25)))]
    (folder / "audit.json").write_text(json.dumps(
        {"measured": lines, "input_grid": [0.0, 249.99], "provenance": {"commit": "0123456789"}}))
    text = answers_text(folder)
    assert "| a.tflite | dynamic int8 | 30.750 |" in text
    assert "1.25 dB behind their dynamic one on one photograph, two of Set: its input grid ends at 250" in text


def test_of_an_experiment_in_parts_every_commit_is_named_once(folder):
    path = folder / "demo" / "records" / "04_stage2.json"
    record = json.loads(path.read_text())
    same = {name: record[name] for name in ("dirty", "seconds", "device", "threads", "versions")}
    parts = [same | {"commit": commit, "seeds": [1], "archs": [], "conditions": []}
             for commit in ("a" * 40, "b" * 40, "a" * 40)]
    path.write_text(json.dumps(record | {"parts": parts}))
    assert "aaaaaaaa, bbbbbbbb; threads" in answers_text(folder)
    assert answers_text(folder).count("aaaaaaaa") == 1
