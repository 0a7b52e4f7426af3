"""The counting of damaged files: every broken promise is noticed, and the command line keeps them on a few."""

import json
import random
import subprocess

import pytest
from PIL import Image
from skimage.data import astronaut

from paperlib.benchmarks import hostile
from paperlib.benchmarks.hostile import (
    KINDS,
    Case,
    broken,
    corpus_case,
    damaged,
    everything,
    odd_json,
    run_all,
    run_case,
    seeded,
)

PHOTOGRAPH = Image.fromarray(astronaut())


def ended(code, stderr="", stdout=""):
    return subprocess.CompletedProcess([], code, stdout, stderr)


@pytest.mark.parametrize(("done", "words"), [
    (ended(0), None), (ended(2, "x: no picture. Leave it out.\n"), None), (ended(1, "a\nb\n"), None),
    (ended(3, "x\n"), "exit code 3"), (ended(-11, "x\n"), "exit code -11"), (ended(2), "0 lines for one failure"),
    (ended(2, "x\ny\n"), "2 lines for one failure"), (ended(1), "0 lines for 2 files"),
    (ended(1, "a\nb\nc\n"), "3 lines for 2 files"), (ended(1, "Traceback (most recent call last):\n"), "traceback"),
    (ended(1, "a\x1b[31m\n"), "characters that steer")])
def test_broken_promises_of_a_process_are_named(tmp_path, done, words):
    found = broken(Case([], 2), done, everything(tmp_path), tmp_path)
    assert (not found) if words is None else any(words in line for line in found)


@pytest.mark.parametrize(("done", "fine"), [(ended(1, "", "valid: missing: x"), True), (ended(1), False),
                                             (ended(1, "x\n", "valid: missing: x"), False)])
def test_a_report_of_what_is_missing_is_no_failure(tmp_path, done, fine):
    assert (not broken(Case([], 1, report=True), done, {}, tmp_path)) is fine


def test_changed_new_and_removed_files_and_a_missing_result_are_named(tmp_path):
    for name in ("in", "out", "work"):
        (tmp_path / name).mkdir()
    for name in ("changed", "removed", "kept"):
        (tmp_path / "in" / name).write_text(name)
    before = everything(tmp_path)
    (tmp_path / "in" / "changed").write_text("other")
    (tmp_path / "in" / "removed").unlink()
    (tmp_path / "work" / "new").write_text("new")
    (tmp_path / "out" / "result").write_text("may be written")
    found = broken(Case([], 1, "good_x3.png"), ended(0), before, tmp_path)
    assert found == ["changed, made or removed in/changed", "changed, made or removed in/removed",
                     "changed, made or removed work/new", "the good picture was not enlarged"]


def test_the_same_seed_damages_alike_and_nearly_every_seed_damages():
    content = bytes(range(256)) * 8
    results = [damaged(random.Random(seed), content) for seed in range(60)]
    assert results == [damaged(random.Random(seed), content) for seed in range(60)]
    assert sum(result != content for result in results) > 50
    value = {"a": [1, 2, {"b": 3}], "c": {"d": "e"}}
    assert sum(repr(odd_json(random.Random(seed), value)) != repr(value) for seed in range(60)) > 50
    assert repr(value) == "{'a': [1, 2, {'b': 3}], 'c': {'d': 'e'}}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_keeps_its_promises_on_damaged_files(kind):
    done = run_case(seeded(kind, 5, PHOTOGRAPH))
    assert done["files"] >= 1
    assert done["broken"] == []


@pytest.mark.parametrize("kind", ["INT8 files (.tflite)", "checkpoints (.safetensors)", "tables"])
def test_what_is_not_damaged_is_accepted(monkeypatch, kind):
    """Else a command that refuses everything would look faultless."""
    monkeypatch.setattr(hostile, "damaged", lambda chance, content: content)
    monkeypatch.setattr(hostile, "odd_json", lambda chance, value: value)
    for seed in range(2):
        assert run_case(seeded(kind, seed, PHOTOGRAPH)) == {"files": 1, "refused": 0, "broken": []}


def test_a_setting_of_the_right_kind_is_accepted():
    fine = Case(["data", "status", "--profile", "smoke", "--set", "stage1.steps=7"], 1, report=True)
    assert run_case(lambda folder: fine) == {"files": 1, "refused": 0, "broken": []}


def test_a_command_that_never_ends_is_told(monkeypatch):
    monkeypatch.setattr(hostile, "LONGEST", 0.01)
    assert run_case(seeded("settings", 1, PHOTOGRAPH))["broken"] == ["no end after 0.01 s"]


def test_other_peoples_pictures_are_taken_as_they_are_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(hostile, "KINDS", {})
    monkeypatch.setattr(hostile, "BATCH", 2)
    for number, content in enumerate((b"%!PS-Adobe-3.0 EPSF-3.0", b"", b"x" * 100)):
        (tmp_path / "corpus" / "project").mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / "project" / f"{number}.png").write_bytes(content)
    record = json.loads(run_all(tmp_path / "record.json", 0, 0, tmp_path / "corpus").read_text(encoding="utf-8"))
    assert record["kinds"] == {"pictures of other projects' tests": {
        "commands": 2, "files": 3, "refused": 3, "wrong": 0}}
    assert record["corpora"] == ["project"]
    (tmp_path / "in").mkdir()
    case = corpus_case(sorted((tmp_path / "corpus" / "project").iterdir()), tmp_path / "in", PHOTOGRAPH)
    assert case.files == 3
    assert (tmp_path / "in" / "00.png").read_bytes() == b"%!PS-Adobe-3.0 EPSF-3.0"
