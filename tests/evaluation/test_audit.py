"""The authors' files from a local server, and what their log and report say."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paperlib.errors import UserError
from paperlib.evaluation import audit, paper_numbers
from paperlib.evaluation.audit import FILES, LOG, PUBLISHED, REPORT, authors_folder, fetch_authors
from paperlib.reporting.costs import selection_figure, selection_section
from paperlib.run import open_run
from tests.hosts import answer, host

CONTENTS = {"a.pt": b"weights" * 99, "b.csv": b"1,2\n"}


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(audit, "PUBLISHED", pd.DataFrame.from_dict(
        {name: (f"in/{name[0]}", len(data), sha256(data).hexdigest())
         for name, data in CONTENTS.items()}, orient="index"))
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    with host({f"in/{name[0]}/{name}": data for name, data in CONTENTS.items()}) as httpd:
        monkeypatch.setattr(audit, "URL", f"http://127.0.0.1:{httpd.server_port}")
        yield httpd


def test_they_are_fetched_once_into_the_cache(server, tmp_path):
    assert authors_folder() is None
    folder = fetch_authors()
    assert folder == tmp_path / "aio_mai" == authors_folder()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS
    assert fetch_authors() == folder
    assert [path for path, _ in server.asked] == ["in/a/a.pt", "in/b/b.csv"]


@pytest.mark.parametrize("lie", [b"<!doctype html><title>Sign in</title>" * 4, b"2,1\n"])
def test_other_bytes_are_refused_and_half_a_set_is_none(server, tmp_path, lie):
    server.behave["b.csv"] = answer(200, lie, Content_Length=str(len(lie)))
    with pytest.raises(UserError, match=r"b\.csv"):
        fetch_authors()
    assert [path.name for path in (tmp_path / "aio_mai").iterdir()] == ["a.pt"]
    assert authors_folder() is None  # a.pt alone is not the set
    server.behave.clear()
    assert fetch_authors() == authors_folder()


def test_files_of_the_user_come_first(server, monkeypatch, tmp_path):
    mine = tmp_path / "assets" / "aio_mai"
    mine.mkdir(parents=True)
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path / "assets"))
    assert fetch_authors() == mine
    assert server.asked == []


def test_the_pinned_hashes_are_those_of_the_files_at_hand(assets):
    assert {*FILES.values(), REPORT, LOG} == set(PUBLISHED.index)
    for name, _, size, digest in PUBLISHED.itertuples():
        content = (assets / "aio_mai" / name).read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (size, digest), name


def test_the_papers_numbers_are_those_that_were_read_twice():
    """After a change: read the file against the paper again, and only then pin its hash."""
    content = Path(paper_numbers.__file__).with_name("reported.csv").read_bytes()
    assert sha256(content).hexdigest() == ("258d94d98f6b60a47c692841c7bfdda231bc7f9a073a98d130730df426efe860")


def test_their_log_and_report_beside_the_papers_figures(assets):
    rows = audit.authors_report()
    psnr, ssim = ({row["row"]: (row["reported"], round(row["reproduced"], 4)) for row in rows
                   if row["metric"] == metric} for metric in ("psnr", "ssim"))
    assert psnr == {
        "stage1": (None, 30.2618), "student_stage2": (30.28, 30.2765), "student_deploy": (30.13, 30.135),
        "mobileone": (30.135, 30.135), "stage3_float": (None, 30.2045), "dynamic_tflite": (30.0003, 30.0003),
        "fixed_tflite": (30.006, 30.0065), "bicubic": (28.26, 28.4115)}
    assert ssim == {
        "stage1": (None, 0.8624), "student_stage2": (0.863, 0.8628), "student_deploy": (0.858, 0.8589),
        "mobileone": (0.859, 0.8589), "stage3_float": (None, 0.8652), "dynamic_tflite": (0.856, 0.856),
        "fixed_tflite": (0.857, 0.857), "bicubic": (0.828, 0.819)}


def test_best_of_many_equal_epochs_is_luck(tmp_path, monkeypatch):
    folder = tmp_path / "aio_mai"
    folder.mkdir()
    psnr = 30 + np.random.default_rng(0).normal(0, 0.03, 150)
    pd.DataFrame({"stage": ["s2_fp32"] + ["s3_qat"] * 150, "epoch": [0, *range(150)],
                  "psnr_sr_rgb_sh0": [99.0, *psnr]}).to_csv(folder / "metrics.csv")
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path))
    epochs = audit.stage3_epochs()
    assert epochs.to_dict() == dict(enumerate(psnr))
    run = open_run("smoke", tmp_path / "run")
    selection_section(run)
    assert (run.out / "figures" / "07_selection.png").is_file()
    (axes,) = selection_figure(epochs).axes
    assert f": {psnr.max() - psnr[90:].mean():.3f} dB above their mean" in axes.get_title()
    assert axes.get_title().endswith("0.089 dB")
    mean, best = (text.get_text() for text in axes.get_legend().get_texts())
    assert f"{psnr[90:].mean():.3f} dB, ± {psnr[30:].std(ddof=1):.3f}" in mean
    assert f"{psnr.max():.3f}" in best


def test_nothing_at_hand_is_nothing(monkeypatch, tmp_path):
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    assert audit.authors_report() == []
    assert audit.report_of("dynamic_int8").empty
    run = open_run("smoke", tmp_path)
    assert "set `PAPERLIB_ASSETS`" in selection_section(run).data
    assert not (tmp_path / "figures" / "07_selection.png").exists()


def test_the_published_log_scatters_as_known(assets):
    psnr = audit.stage3_epochs()
    assert len(psnr) == 150
    found = [psnr.loc[30:].std(), psnr.iloc[-60:].mean(), psnr.max()]
    assert found == pytest.approx([0.032, 30.090, 30.135], abs=5e-4)
