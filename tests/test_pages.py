"""The committed pages are what `results/pages.py` makes of the committed records, and their links lead somewhere."""

import importlib
import json
import re
from pathlib import Path

import pytest

from paperlib.profiles import load_settings
from paperlib.reporting.report import write_summary
from paperlib.settings import flatten

RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(str(RESULTS))
    return importlib.import_module("pages")


def read(name: str) -> str:
    return (RESULTS / name).read_text(encoding="utf-8")


def test_committed_pages_are_what_the_script_writes(pages):
    folder = RESULTS / "reference"
    runs, questions = pages.read_runs(folder)
    assert read("README.md") == pages.page(folder, runs, questions), "run python results/pages.py"
    assert read("settings.md") == pages.settings_text(), "run python results/pages.py"
    for name in questions:
        if (folder / name / "notebooks").is_dir():
            assert read(f"reference/{name}/README.md") == pages.run_page(folder, name, questions[name])


def test_committed_summaries_are_what_their_records_give(pages, tmp_path, monkeypatch):
    folder = RESULTS / "reference"
    for name, found in pages.read_runs(folder)[0].items():
        monkeypatch.setattr("paperlib.reporting.report.write_text", lambda path, text: text)
        monkeypatch.setattr(found.run, "figure", lambda *_: None)
        assert write_summary(found) == read(f"reference/{name}/summary.md"), name


@pytest.mark.parametrize("page", ["../README.md", "README.md", *(
    path.relative_to(RESULTS).as_posix() for path in (RESULTS / "reference").rglob("README.md"))])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", read(page))
    assert links or page.endswith("div2k/README.md")
    for link in links:
        assert "://" in link or ((RESULTS / page).parent / link).exists(), link


def test_every_setting_has_a_line_with_its_meaning():
    tables = read("settings.md").partition("## What `method` switches")[0].splitlines()
    lines = {line.split("`")[1]: line for line in tables if line.startswith("| `")}
    for name in flatten("", load_settings("smoke").model_dump(mode="json")):
        short = re.sub(r"^stage\d\.(loss\.)?", "", name)
        if not name.endswith(".expect"):
            assert len(lines.get(name, lines.get(short, "")).split(" | ")[1]) > 8, name


def test_the_answers_numbers_are_in_the_summaries():
    for name, asked in json.loads(read("reference/questions.json")).items():
        summary = read(f"reference/{name}/summary.md").partition("## ")[2]
        for number in re.findall(r"\d+\.\d{3}", asked.get("answer", "")):
            assert number in summary, (name, number)
