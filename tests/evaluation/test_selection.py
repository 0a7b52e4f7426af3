"""The scatter of the authors' log, against a log made to measure and against the facts known of the real one."""

import csv

import numpy as np
import pytest

from paperlib.evaluation.selection import SelectionNoise, selection_noise
from paperlib.reporting.selection import selection_figure, selection_section
from paperlib.run import open_run


def test_best_of_many_equal_epochs_is_luck(tmp_path, monkeypatch):
    folder = tmp_path / "aio_mai"
    folder.mkdir()
    psnr = 30 + np.random.default_rng(0).normal(0, 0.03, 150)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "epoch", "psnr_sr_rgb_sh0"])
        writer.writerows([("s2_fp32", 0, 99.0), *(("s3_qat", epoch, value) for epoch, value in enumerate(psnr))])
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path))
    noise = selection_noise()
    assert noise.best == psnr.max()
    assert noise.settled == pytest.approx(psnr[90:].mean())
    assert noise.scatter == pytest.approx(psnr[30:].std(ddof=1))
    words = noise.sentences(0.0889)
    assert f"{psnr.max() - psnr[90:].mean():.3f} dB above the mean of the last 60" in words
    run = open_run("smoke", tmp_path / "run")
    teacher, direct = 30.0003, 29.9114  # Table D
    assert selection_section(run).data == noise.sentences(teacher - direct)
    assert (run.out / "figures" / "07_selection.png").is_file()
    (axes,) = selection_figure(noise).axes
    assert f"{psnr.max():.3f}" in axes.get_legend().get_texts()[1].get_text()


def test_nothing_at_hand_is_nothing(monkeypatch, tmp_path):
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    assert selection_noise() is None
    run = open_run("smoke", tmp_path)
    assert "set `PAPERLIB_ASSETS`" in selection_section(run).data
    assert not (tmp_path / "figures" / "07_selection.png").exists()


def test_the_published_log_scatters_as_known(assets):
    noise = selection_noise()
    if noise is None:
        pytest.skip("the authors' log is not at hand")
    assert isinstance(noise, SelectionNoise)
    assert (round(noise.scatter, 3), round(noise.settled, 3), round(noise.best, 3)) == (0.032, 30.090, 30.135)
