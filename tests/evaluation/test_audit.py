"""The authors' files from a local server, and what their log and report say."""

import csv
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from paperlib.errors import UserError
from paperlib.evaluation import audit
from paperlib.evaluation.audit import (
    FILES,
    LOG,
    PUBLISHED,
    REPORT,
    Published,
    authors_folder,
    authors_report,
    fetch_authors,
    selection_noise,
)
from paperlib.reporting.costs import selection_figure, selection_section
from paperlib.run import open_run

CONTENTS = {"a.pt": b"weights" * 99, "b.csv": b"1,2\n"}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A host of two files; `server.lies` maps a name to what it sends instead."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            name = self.path.rpartition("/")[2]
            data = self.server.lies.get(name, CONTENTS[name])
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.lies = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(audit, "URL", f"http://127.0.0.1:{server.server_port}/at/commit")
    monkeypatch.setattr(audit, "PUBLISHED", {
        name: Published(f"in/{name[0]}", len(data), sha256(data).hexdigest()) for name, data in CONTENTS.items()})
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_they_are_fetched_once_into_the_cache(server, tmp_path):
    assert authors_folder() is None
    folder = fetch_authors()
    assert folder == tmp_path / "aio_mai" == authors_folder()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS
    assert server.asked == ["/at/commit/in/a/a.pt", "/at/commit/in/b/b.csv"]
    assert fetch_authors() == folder
    assert len(server.asked) == 2


@pytest.mark.parametrize("lie", [b"<!doctype html><title>Sign in</title>" * 4, b"weightz" * 99])
def test_other_bytes_are_refused_and_half_a_set_is_none(server, tmp_path, lie):
    server.lies["b.csv"] = lie[:4]
    with pytest.raises(UserError, match=r"b\.csv.* gave wrong bytes"):
        fetch_authors()
    assert authors_folder() is None  # a.pt alone is not the set
    server.lies = {"a.pt": lie}
    (tmp_path / "aio_mai" / "a.pt").unlink()
    with pytest.raises(UserError, match=r"a\.pt"):
        fetch_authors()
    assert not (tmp_path / "aio_mai" / "a.pt").exists()
    server.lies = {}
    assert authors_folder() is None
    assert fetch_authors() == authors_folder()


def test_files_of_the_user_come_first(server, monkeypatch, tmp_path):
    mine = tmp_path / "assets" / "aio_mai"
    mine.mkdir(parents=True)
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path / "assets"))
    assert fetch_authors() == mine
    assert server.asked == []


def test_the_pinned_hashes_are_those_of_the_files_at_hand(assets):
    assert {*FILES.values(), REPORT, LOG} == PUBLISHED.keys()
    for name, file in PUBLISHED.items():
        content = (assets / "aio_mai" / name).read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (file.bytes, file.sha256), name


def test_means_of_their_report_are_the_papers_int8_figures(assets):
    rows = {(row["row"], row["metric"]): row["reproduced"] for row in authors_report()}
    for row, psnr, ssim in (("dynamic_tflite", 30.0003, 0.8560), ("fixed_tflite", 30.0065, 0.8570),
                            ("student_deploy", 30.1350, 0.8589), ("mobileone", 30.1350, 0.8589)):
        assert rows[row, "psnr"] == pytest.approx(psnr, abs=1e-4)
        assert rows[row, "ssim"] == pytest.approx(ssim, abs=1e-4)
    assert rows["stage3_float", "psnr"] == pytest.approx(30.2045, abs=1e-4)


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
    run = open_run("smoke", tmp_path / "run")
    text = selection_section(run).data
    assert f"{psnr.max() - psnr[90:].mean():.3f} dB above the mean of the last 60" in text
    assert "Table D's 0.089 dB" in text
    assert (run.out / "figures" / "07_selection.png").is_file()
    (axes,) = selection_figure(noise).axes
    assert f"{psnr.max():.3f}" in axes.get_legend().get_texts()[1].get_text()


def test_nothing_at_hand_is_nothing(monkeypatch, tmp_path):
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    assert authors_report() == []
    assert selection_noise() is None
    run = open_run("smoke", tmp_path)
    assert "set `PAPERLIB_ASSETS`" in selection_section(run).data
    assert not (tmp_path / "figures" / "07_selection.png").exists()


def test_the_published_log_scatters_as_known(assets):
    noise = selection_noise()
    assert (round(noise.scatter, 3), round(noise.settled, 3), round(noise.best, 3)) == (0.032, 30.090, 30.135)
