"""The comparison of optimisers: paired by seed and image, equal but for the optimiser and its rate."""

import json

import numpy as np
import pytest

from paperlib.benchmarks.optimisers import RATES, compare, short_stage

TINY = {"student.blocks": 1, "student.channels": 4, "student.branches": 2, "data.train_crop": 48, "data.valid_crop": 24,
        "data.max_train": 1, "data.max_valid": 2, "stage1.patch": 8, "stage1.form": "collapsed"}


def test_the_record_has_every_training_and_their_paired_difference(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    record = json.loads(compare(tmp_path / "o.json", 3, [1, 2], "smoke", TINY).read_text(encoding="utf-8"))
    images = {name: np.array([run["images"] for run in record["runs"][name]]) for name in RATES}
    assert images["soap"].shape == images["adam"].shape == (2, 2)
    assert record["effect"]["mean"] == pytest.approx((images["soap"] - images["adam"]).mean())
    assert record["effect"]["mean"] != 0
    assert (record["effect"]["seeds"], record["effect"]["images"]) == (2, 2)
    assert record["commit"]


def test_trainings_differ_in_optimiser_and_rate_alone():
    adam, soap = (short_stage(500, name, 7) for name in ("adam", "soap"))
    assert {field for field in adam if adam[field] != soap[field]} == {"stage1.optimizer", "stage1.lr"}
