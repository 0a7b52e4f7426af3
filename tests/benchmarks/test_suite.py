"""Benchmarks compare like with like: the same patches, the same losses; no test asserts a time."""

import json

import numpy as np
import torch

from paperlib.benchmarks.epoch import bench_epoch, decoded_batch, write_photographs
from paperlib.benchmarks.tflite import bench_upscale
from paperlib.benchmarks.timing import interleaved
from paperlib.data.dataset import TrainSet
from paperlib.data.pixel_store import open_store
from paperlib.settings import DataSettings


def test_both_sides_of_an_epoch_see_the_same_and_learn_the_same():
    result = bench_epoch(rounds=1, steps=3, batch=2, patch=16, photographs=3, height=96, width=120)
    assert result["same_samples"] is True
    assert result["max_loss_difference"] < 1e-4
    epoch = 50 * (result["s_load_ours"] + result["s_step_ours"]) + 100 * result["s_validate_ours"]
    assert np.isclose(result["s_epoch_ours"], epoch)
    assert np.isclose(result["ratio_naive_vs_ours"] * result["share_of_naive"], 1)
    json.dumps(result)


def test_decoding_and_the_store_give_the_same_patches(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    write_photographs(tmp_path / "photographs", 3, 96, 120)
    settings = DataSettings(source="folders", train=(str(tmp_path / "photographs"),))
    patches = TrainSet(open_store(settings), settings, 0, "bench", 16)
    one = patches.batch(0, 6)
    other = decoded_batch(patches, tmp_path / "photographs", one.samples)
    assert torch.equal(one.hr, other.hr)
    assert torch.equal(one.lr, other.lr)


def test_interleaved_runs_every_job_in_every_round():
    calls = []
    seconds = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_upscaling_a_frame_is_measured_on_the_shipped_student():
    result = bench_upscale(24, 40, rounds=1)
    assert result["overhead"] > 0
    assert result["cpu_overhead"] == result["cpu_s_upscale"] / result["cpu_s_interpreter"] > 0
    assert "40×24 frame made 120×72" in result["what"]
