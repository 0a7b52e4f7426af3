"""An experiment trained in parts is the one that was trained at once."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

from paperlib.errors import UserError
from paperlib.reporting.join import join, joined
from paperlib.reporting.verdicts import compare
from paperlib.run import measured_row, open_run
from paperlib.training.ablations import over_seeds

IMAGES = {("qat_teacher", 1): [27.0, 29.0], ("qat_teacher", 2): [27.1, 29.2], ("qat_teacher", 3): [27.2, 29.1],
          ("qat_direct", 1): [26.9, 28.8], ("qat_direct", 2): [27.0, 29.0], ("qat_direct", 3): [27.0, 29.0],
          ("kd_100", 1): [26.0, 28.0], ("kd_100", 2): [26.5, 28.5]}
CONDITION = {"qat_teacher": "kd_1", "qat_direct": "kd_0", "kd_100": "kd_100"}


def part(folder, rows, seeds, changes=None, teacher="the same", values=IMAGES, steps=30, inputs=None):
    """A run of notebook 07 with some rows of Table D, as `reproduce` leaves it."""
    overrides = {"ablation.seeds": seeds, "ablation.conditions": [CONDITION[row] for row in rows],
                 "ablation.archs": []} | (changes or {})
    run = open_run("demo", folder, overrides)
    trained = [[measured_row("D", row, "int8", "psnr", sum(values[row, seed]) / 2, "validation", steps=steps,
                             images=values[row, seed]) for row in rows] for seed in seeds]
    run.record("07_ablations", over_seeds(trained, seeds), inputs or {"start": "aa"}, teacher=teacher, shares=[
        {"condition": row, "kd value": 0.25} for row in rows])
    run.record("00_reproduce", [], overrides=overrides, notebooks={"07_ablations": {"seconds": 60.0, "peak_bytes": 7}})
    return folder


def rows_of(folder):
    rows = json.loads((folder / "records" / "07_ablations.json").read_text())["rows"]
    return {row["row"]: {field: row.get(field) for field in ("value", "values", "sd", "seed_ids", "images", "steps")}
            for row in rows}


def test_parts_with_other_seeds_give_the_rows_of_all_seeds_at_once(tmp_path):
    whole = part(tmp_path / "whole", ["qat_teacher", "qat_direct"], [1, 2, 3])
    into = part(tmp_path / "into", ["qat_teacher", "qat_direct"], [1, 3])
    summary = join(into, part(tmp_path / "more", ["qat_teacher", "qat_direct"], [2]))
    assert rows_of(into) == rows_of(whole)
    text = summary.read_text(encoding="utf-8")
    assert "(3 seeds, 2 images)" in text
    assert "seeds 1, 3 of kd_1, kd_0" in text
    assert "seeds 2 of kd_1, kd_0" in text
    record, about = (json.loads((into / "records" / f"{name}.json").read_text())
                     for name in ("07_ablations", "00_reproduce"))
    assert record["settings"]["ablation"]["seeds"] == about["overrides"]["ablation.seeds"] == [1, 2, 3]
    assert [entry["seeds"] for entry in record["parts"]] == [[1, 3], [2]]
    assert [entry["inputs"] for entry in record["parts"]] == [{"start": "aa"}] * 2
    assert about["notebooks"]["07_ablations"]["seconds"] == 120.0
    assert (into / "report.html").is_file()
    assert "qat_teacher" in (into / "tables" / "D.csv").read_text()


def test_a_part_with_another_condition_brings_its_rows_and_is_compared_over_the_seeds_that_both_have(tmp_path):
    into = part(tmp_path / "into", ["qat_teacher", "qat_direct"], [1, 2, 3])
    text = join(into, part(tmp_path / "more", ["kd_100"], [1, 2])).read_text(encoding="utf-8")
    found = rows_of(into)
    assert list(found) == ["qat_teacher", "qat_direct", "kd_100"]
    assert found["kd_100"]["seed_ids"] == [1, 2]
    line = next(line for line in text.splitlines() if line.startswith("| kd_100 |"))
    assert "| qat_direct | -0.675" in line  # the mean over seeds 1 and 2: 27.25 - 27.925
    assert "(2 seeds, 2 images)" in line
    record = json.loads((into / "records" / "07_ablations.json").read_text())
    assert [line["condition"] for line in record["shares"]] == ["qat_teacher", "qat_direct", "kd_100"]


def test_three_parts_are_kept_apart_in_whatever_order_they_come(tmp_path):
    into = part(tmp_path / "into", ["qat_teacher"], [3])
    join(into, part(tmp_path / "more", ["qat_teacher"], [1]))
    join(into, part(tmp_path / "last", ["qat_teacher"], [2]))
    assert rows_of(into) == rows_of(part(tmp_path / "whole", ["qat_teacher"], [1, 2, 3]))
    record = json.loads((into / "records" / "07_ablations.json").read_text())
    assert [entry["seeds"] for entry in record["parts"]] == [[3], [1], [2]]


def test_the_inputs_of_every_part_count(tmp_path):
    """The first part is of a version that recorded none."""
    into = part(tmp_path / "into", ["qat_teacher"], [1])
    path = into / "records" / "07_ablations.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": {}}))
    join(into, part(tmp_path / "more", ["qat_teacher"], [2]))
    with pytest.raises(UserError, match="start = aa and bb"):
        join(into, part(tmp_path / "last", ["qat_teacher"], [3], inputs={"start": "bb"}))


@pytest.mark.parametrize(("other", "words"), [
    ({"changes": {"stage3.loss.dct": 0.5}}, "stage3.loss.dct = 0.015 and 0.5"),
    ({"changes": {"ablation.stage3_steps": 41}}, "ablation.stage3_steps = 40 and 41"),
    ({"teacher": "another"}, "teacher = the same and another"),
    ({"inputs": {"start": "bb"}}, "start = aa and bb"),
    ({"steps": 31}, "trained for 30 and 31 steps"),
    ({"seeds": [1], "values": IMAGES | {("qat_teacher", 1): [9.0, 9.0]}}, "other values, seed 1"),
])
def test_parts_of_another_experiment_are_refused_and_nothing_is_written(tmp_path, other, words):
    into = part(tmp_path / "into", ["qat_teacher"], [1])
    before = {path: path.read_bytes() for path in into.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        join(into, part(tmp_path / "more", ["qat_teacher"], other.pop("seeds", [2]), **other))
    assert {path: path.read_bytes() for path in into.rglob("*") if path.is_file()} == before


def test_a_row_without_training_stays_one_row_whatever_the_seeds(tmp_path):
    one, other = (json.loads((part(tmp_path / str(seed), ["qat_teacher"], [seed]) / "records" / "07_ablations.json")
                             .read_text()) for seed in (1, 2))
    bicubic = measured_row("B", "bicubic", "fp32", "psnr", 26.0, "validation", images=[25.0, 27.0])
    for record in (one, other):
        record["rows"].append(bicubic)
    assert joined(one, other)["rows"][1] == bicubic
    other["rows"][1] = bicubic | {"value": 26.5}
    with pytest.raises(UserError, match="bicubic"):
        joined(one, other)


def test_a_row_that_could_not_be_measured_is_not_averaged(tmp_path):
    one, other = (json.loads((part(tmp_path / str(seed), ["qat_teacher"], [seed]) / "records" / "07_ablations.json")
                             .read_text()) for seed in (1, 2))
    other["rows"][0] |= {"value": None, "images": None}
    with pytest.raises(UserError, match="no value for seed 2"):
        joined(one, other)


def test_a_part_is_joined_once(tmp_path):
    into, more = part(tmp_path / "into", ["qat_teacher"], [1]), part(tmp_path / "more", ["qat_teacher"], [2])
    join(into, more)
    with pytest.raises(UserError, match="no training that the first does not hold"):
        join(into, more)


@pytest.mark.parametrize("damage", [
    lambda record: record["rows"][0].update(seed_ids=[1, 2, 3], values=[27.0]),
    lambda record: record["settings"].pop("ablation"),
    lambda record: record.pop("started") and record["settings"]["ablation"].pop("seeds")])
def test_a_damaged_record_is_told_and_nothing_is_written(tmp_path, damage):
    into, more = part(tmp_path / "into", ["qat_teacher"], [1]), part(tmp_path / "more", ["qat_teacher"], [2])
    path = more / "records" / "07_ablations.json"
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    before = {file: file.read_bytes() for file in into.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="damaged"):
        join(into, more)
    assert {file: file.read_bytes() for file in into.rglob("*") if file.is_file()} == before


def test_what_an_older_version_did_not_know_has_its_methods_value(tmp_path):
    one, other = (json.loads((part(tmp_path / str(seed), ["qat_teacher"], [seed]) / "records" / "07_ablations.json")
                             .read_text()) for seed in (1, 2))
    older = deepcopy(one)
    del older["settings"]["stage3"]["optimizer"]
    older["settings"]["data"]["long_gone"] = 7
    assert joined(older, other)["rows"] == joined(one, other)["rows"]
    other["settings"]["stage3"]["optimizer"] = "soap"
    with pytest.raises(UserError, match="optimizer"):
        joined(older, other)


def test_the_command_joins_and_refuses_without_a_traceback(tmp_path):
    into, more = part(tmp_path / "into", ["qat_teacher"], [1]), part(tmp_path / "more", ["qat_teacher"], [2])
    call = [sys.executable, "-m", "paperlib.reporting.join", str(into)]
    done = subprocess.run([*call, str(more)], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == into / "summary.md"
    assert not done.stderr
    later = part(tmp_path / "later", ["qat_teacher"], [3]) / "records" / "07_ablations.json"
    later.write_text(json.dumps(json.loads(later.read_text()) | {"commit": "0123456789"}))
    done = subprocess.run([*call, str(later.parents[1])], capture_output=True, text=True, check=True)
    assert "01234567: see by `git log` that nothing between them changed how" in done.stderr
    failed = subprocess.run([*call, str(tmp_path)], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert "07_ablations.json" in failed.stderr


def test_three_rows_are_compared_over_the_seeds_of_all():
    keys = [("D", name, "int8", "psnr") for name in ("qat_teacher", "qat_direct")]
    ours = {keys[0]: {"value": 27.5, "values": [27.0, 27.2, 28.3], "seed_ids": [1, 2, 3]},
            keys[1]: {"value": 27.0, "values": [27.1, 26.9], "seed_ids": [2, 1]}}
    found = compare(dict.fromkeys(keys, 30.0), ours, [keys[0]], [keys[1]], "")
    assert found.effect.seeds == 2
    assert found.effect.mean == pytest.approx(0.1)
    assert found.effect.high - found.effect.low < 1e-9  # 27.0 - 26.9 and 27.2 - 27.1, by seed and not by place
