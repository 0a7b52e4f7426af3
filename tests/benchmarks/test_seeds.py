"""Several seeds of stages 2 and 3 from one stage 1: who starts where, what is kept, what the table says."""

import json
import statistics

import pytest

from paperlib.benchmarks import seeds
from paperlib.benchmarks.seeds import compare
from paperlib.data.dataset import open_data
from paperlib.errors import UserError
from paperlib.export.release import seeds_table
from paperlib.files import sha256_file
from paperlib.run import open_run
from paperlib.teacher.distillation import Targets
from paperlib.training.stages import stage1, stage2
from paperlib.training.state import read_state

TINY = {"student.blocks": 2, "student.channels": 4, "student.branches": 2, "data.train_crop": 48, "data.valid_crop": 24,
        "data.max_train": 1, "data.max_valid": 2, "stage1.patch": 8, "stage2.patch": 8, "stage3.patch": 8}


def test_every_seed_goes_on_from_one_stage_1_and_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"student\.safetensors is missing: stage 1 comes first"):
        compare(out, [1, 2], "smoke", TINY)
    with pytest.raises(UserError, match="two seeds at least"):
        compare(out, [1, 1], "smoke", TINY)
    run = open_run("smoke", out, TINY | {"seed": 1})
    stage1(run, open_data(run.settings.data))
    record = json.loads(compare(out, [1, 2, 3], "smoke", TINY).read_text(encoding="utf-8"))
    for seed in (2, 3):
        assert record["stage1"] == sha256_file(out / f"seeds/{seed}/checkpoints/stage1/student.safetensors")
    assert record["stage1"] == sha256_file(out / "checkpoints/stage1/student.safetensors")
    assert record["files"]["2"] == sha256_file(out / "seeds/2/checkpoints/export/student_dynamic_int8.tflite")
    assert len(set(record["files"].values())) == 3
    assert {(row["dataset"], row["precision"], row["metric"]) for row in record["rows"]} == {
        ("validation", "fp32", "psnr"), ("validation", "int8", "psnr")}
    for row in record["rows"]:
        assert row["seed_ids"] == [1, 2, 3]
        assert len(set(row["values"])) == 3
        assert [len(images) for images in row["images"]] == [2, 2, 2]
        assert row["values"] == pytest.approx([statistics.mean(images) for images in row["images"]], abs=1e-4)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("state-*.pt")}
    again = json.loads(compare(out, [1, 2, 3], "smoke", TINY).read_text(encoding="utf-8"))
    assert again["rows"] == record["rows"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("state-*.pt")} == before


def test_other_seeds_may_share_the_first_part_of_stage_2(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    # a small teacher would be each seed's own
    monkeypatch.setattr(seeds, "teacher_targets", lambda *_: Targets("none"))
    out = tmp_path / "run"
    half = TINY | {"seed": 1, "stage2.checkpoint_every": 2, "stage2.loss.kd": 0.0}
    run = open_run("smoke", out, half)
    data = open_data(run.settings.data)
    stage1(run, data)
    stage2(run, data, Targets("none"))
    kept = next((out / "checkpoints/stage2").glob("state-000002-*.pt"))
    record = json.loads(compare(out, [1, 2], "smoke", half, kept).read_text(encoding="utf-8"))
    assert record["stage2_shared_steps"] == 2
    own, other = (read_state(next((folder / "checkpoints/stage2").glob("state-000004-*.pt")))
                  for folder in (out, out / "seeds/2"))
    assert other["identity"] == own["identity"] | {"seed": 2}
    assert other["history"][0] == own["history"][0]  # trained once, with the run's own patches
    assert other["history"][1]["loss"] != own["history"][1]["loss"]
    longer = half | {"stage2.steps": 6}
    with pytest.raises(UserError, match=r"with other settings: stage\.steps: 4 → 6"):
        compare(out, [1, 3], "smoke", longer, kept)
    torn = kept.with_name("state-000002-0123456789abcdef.pt")
    torn.write_bytes(kept.read_bytes())
    with pytest.raises(UserError, match="does not hold its hash"):
        compare(out, [1, 4], "smoke", half, torn)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        compare(out, [1, 4], "smoke", half, tmp_path / "none.pt")


def test_the_table_pairs_int8_with_its_own_float_network():
    row = lambda precision, *values: {"dataset": "benchmark/Set5", "precision": precision, "values": list(values)}
    (line,) = seeds_table([row("fp32", 31.0, 31.2, 31.4), row("int8", 30.9, 31.1, 31.3)])
    assert line == {"images": "Set5", "float": "31.200 ± 0.200", "INT8 TFLite": "31.100 ± 0.200",
                    "INT8 minus float": "-0.100 ± 0.000"}
