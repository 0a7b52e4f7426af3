"""Benchmarks compare like with like: the same patches, the same losses; no test asserts a time."""

import numpy as np
import pytest
import torch

from paperlib.benchmarks import suite
from paperlib.data.dataset import TrainSet
from paperlib.data.pixel_store import open_store
from paperlib.settings import DataSettings


def test_both_sides_of_an_epoch_see_the_same_and_learn_the_same():
    result = suite.bench_epoch(rounds=1, steps=3, batch=2, patch=16, photographs=3, height=96, width=120)
    assert result["max_loss_difference"] < 1e-4
    epoch = 50 * (result["s_load_ours"] + result["s_step_ours"]) + 100 * result["s_validate_ours"]
    assert np.isclose(result["s_epoch_ours"], epoch)
    assert result["ratio_vs_naive"] == result["s_epoch_naive"] / result["s_epoch_ours"]


def test_decoding_and_the_store_give_the_same_patches(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    suite.write_photographs(tmp_path / "photographs", 3, 96, 120)
    settings = DataSettings(source="folders", train=(str(tmp_path / "photographs"),))
    patches = TrainSet(open_store(settings), settings, 0, "bench", 16)
    one = patches.batch(0, 6)
    other = suite.decoded_batch(patches, tmp_path / "photographs", one.samples)
    assert torch.equal(one.hr, other.hr)
    assert torch.equal(one.lr, other.lr)


def test_every_job_runs_in_every_round():
    calls = []
    jobs = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = suite.in_turn(jobs, rounds=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in found.items()} == {"a": 2, "b": 2}


def test_results_say_what_they_were_measured_on(monkeypatch):
    monkeypatch.setattr(suite, "BENCHMARKS", {"one": lambda: {"ratio_vs_other": 2.0}})
    for result in (suite.run_benchmarks(), suite.run_benchmarks("one")):
        assert result["one"] == {"ratio_vs_other": 2.0}
        about = result["provenance"]
        assert {"commit", "dirty", "versions", "cpu", "threads", "load_average"} <= about.keys()
        assert about["cpu"]["model"]
        assert len(about["load_average"]) == 3


def test_a_step_is_a_fraction_of_the_fastest_thing_seen():
    result = suite.bench_step(rounds=2, batch=2, patch=24)
    assert result["peak_gflops"] > 0
    assert result["peak_of"]
    assert {"ratio_vs_plain", "ratio_collapsed_vs_expanded", "fraction_of_peak"} <= result.keys()
    assert result["fraction_of_peak"] is None or 0 < result["fraction_of_peak"] <= 1


def test_the_peak_is_the_best_of_several_and_no_fraction_exceeds_1(monkeypatch):
    def seconds(jobs, rounds, warm):
        return {name: [100.0, 1e-6] if "128, plain" in name else [100.0] for name in jobs}

    monkeypatch.setattr(suite, "in_turn", seconds)
    peak = 1e6 * 2 * 128 * 32 * 9 * 2 * 100
    found = suite.fraction_of_peak(0.5 * peak, 2, 10, rounds=2)
    assert found["peak_of"] == "3×3 convolution 32→128, plain"
    assert found["peak_gflops"] == pytest.approx(peak / 1e9)
    assert found["fraction_of_peak"] == pytest.approx(0.5)
    assert suite.fraction_of_peak(1.1 * peak, 2, 10, 2)["fraction_of_peak"] is None  # not cut to 1


def test_a_batch_from_the_store_and_from_files_is_timed():
    result = suite.bench_data(rounds=1, batch=2, patch=16)
    assert np.isclose(result["ratio_cache_vs_decode"], result["seconds"]["decode"] / result["seconds"]["cache"])


def test_the_scan_is_timed_with_and_without_gradient():
    result = suite.bench_scan(tokens=64, rounds=1)
    assert result["ratio_vs_loop"] == result["seconds"]["loop"] / result["seconds"]["ours"]
    assert result["ratio_vs_loop_training"] > 0
