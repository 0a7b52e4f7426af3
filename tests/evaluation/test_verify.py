"""The audit that runs the authors' files: recorded scores, and DIV2K image by image."""

import json
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from paperlib.cli import main
from paperlib.data import div2k
from paperlib.data.div2k import validation_at_hand, validation_ids
from paperlib.data.images import read_rgb
from paperlib.data.photographs import Source, make_pair
from paperlib.data.resize import bicubic_downscale
from paperlib.data.sources import embedded_path
from paperlib.evaluation import verify
from paperlib.evaluation.audit import FILES, REPORT_KEYS
from paperlib.evaluation.metrics import psnr_rgb
from paperlib.evaluation.scoring import evaluate, mean_psnr
from paperlib.evaluation.upscalers import Bicubic
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.weights import pretrained

MEASURED = {
    "bicubic": ("bicubic", 0.001), "stage2_fp32": ("stage 2, fused float", 0.001),
    "stage3_weights_fp32": ("stage 3, fused float", 0.001), "stage3_fakequant": ("fake-quant", 0.001),
    "dynamic_int8": ("dynamic INT8", 0.001), "re_exported_int8": ("re-exported", 0.001)}
"""Entries of expected.json by a part of their names; dB that another machine may be off."""


@pytest.fixture(scope="module")
def upscalers(assets):
    if not (assets / "aio_mai").is_dir():
        pytest.skip(f"{assets / 'aio_mai'} is absent: none of the authors' files to audit")
    with verify.audited(assets / "aio_mai") as upscalers:
        yield upscalers | {"bicubic": Bicubic()}


@pytest.fixture(scope="module")
def photographs(data_root):
    found = validation_at_hand(data_root / "div2k_valid")
    if not found:
        pytest.skip(f"{data_root / 'div2k_valid'} holds none of DIV2K")
    return found


@pytest.mark.parametrize("name", MEASURED)
def test_set5_scores_are_the_recorded_ones(upscalers, golden, set5, name):
    part, limit = MEASURED[name]
    expected = json.loads((golden / "expected.json").read_text())
    (wanted,) = (value["Set5"] for key, value in expected.items() if part in key)
    mean = evaluate(upscalers[name], set5)["mean"]
    assert mean["psnr_rgb"] == pytest.approx(wanted["psnr_rgb_shave0"], abs=limit)
    assert mean["psnr_y"] == pytest.approx(wanted["psnr_y_shave3"], abs=limit)


@pytest.mark.parametrize(("place", "names"), [
    (1, ["dynamic_int8"]), (3, ["dynamic_int8", "fixed_int8", "stage3_weights_fp32"])])
def test_a_photograph_of_div2k_scores_what_the_report_says(upscalers, photographs, place, names):
    measured, rounding = verify.measured_div2k([photographs[place]], {name: upscalers[name] for name in names})
    for row in verify.div2k_rows(measured):
        assert row["psnr_y_full_range"] == pytest.approx(row["psnr_y_full_range_reported"], abs=1e-4)
        (line,) = verify.div2k_images(measured[row["row"]], row["row"])
        assert line["name"] == photographs[place].name
        assert line["psnr"] == pytest.approx(line["psnr_reported"], abs=1e-4)
        assert line["ssim_tensorflow"] == pytest.approx(line["ssim_reported"], abs=1e-5)
        assert line["verdict"] == "reproduced (evaluation)"
        assert line["ssim"] < line["ssim_tensorflow"] - 0.001
    reported = verify.report_of("int8_against_float")["psnr"]
    assert rounding == ({"0877": pytest.approx(reported["0877"], abs=1e-4)} if place == 3 else {})


def test_the_command_measures_what_of_div2k_is_at_hand(monkeypatch, tmp_path, upscalers, capsys):
    """A small picture by the name of one of them."""
    names = ("dynamic_int8", "stage3_weights_fp32")
    hr = read_rgb(embedded_path("coffee.png"))[:60, :90]
    for folder, name, pixels in (("HR", "0877.png", hr), ("LR_bicubic/X3", "0877x3.png", bicubic_downscale(hr))):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / folder / name)
    monkeypatch.setattr(div2k, "blob_id", lambda path: validation_ids()[path.name])
    monkeypatch.setattr(verify, "audited", lambda _: nullcontext({name: upscalers[name] for name in names}))
    monkeypatch.setattr(verify, "sets_at_hand", dict)
    assert main(["verify", "--div2k", str(tmp_path), "--json", str(tmp_path / "audit.json")]) == 0
    result, text = json.loads((tmp_path / "audit.json").read_text()), capsys.readouterr().out
    assert "1 of 100 images" in text
    assert (result["div2k_images"], result["div2k_of"]) == (1, 100)
    (line,), (rounding,) = result["div2k"], result["div2k_int8_against_float"]
    assert list(line)[:6] == ["name", "psnr_reported", "psnr", "ssim_reported", "ssim_tensorflow", "ssim"]
    assert (line["name"], line["verdict"], rounding["name"]) == ("0877", "differs", "0877")
    assert rounding["psnr_reported"] == pytest.approx(46, abs=5)
    assert [row["row"] for row in result["div2k_rows"]] == [*names, "bundled_int8", "bicubic_torch", "bicubic_matlab"]
    released = result["released_run"]
    assert (released["epoch"], released["kd_w"], released["kd_res_w"]) == (109, 0.02, 0.01)
    assert released["steps"] == 110 * 800  # so batch 1


def test_without_div2k_a_line_says_how_to_get_it(monkeypatch, tmp_path, assets, capsys):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(verify, "sets_at_hand", dict)
    assert main(["verify"]) == 0
    assert "paperlib data fetch div2k-valid" in capsys.readouterr().out.splitlines()[-1]
    assert main(["verify", "--div2k", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(("psnr", "ssim", "word"), [
    (30.00009, 0.900009, "reproduced (evaluation)"), (30.0002, 0.9, "differs"), (30.0, 0.90002, "differs")])
def test_a_part_is_compared_with_the_reports_mean_over_the_same_part(monkeypatch, psnr, ssim, word):
    report = pd.DataFrame({"0801": (30.0, 0.9, 33.0), "0802": (31.0, 0.9, 33.0),
                           "0803": (35.0, 0.9, 33.0), "0804": (38.0, 0.9, 33.0)},
                          index=list(REPORT_KEYS)).T
    monkeypatch.setattr(verify, "report_of", lambda name: report)
    measured = pd.DataFrame({"0801": (psnr, ssim, 0.88, 33.5), "0802": (31.0, 0.9, 0.88, 33.5),
                             "0803": (35.0, 0.9, 0.88, 33.5)}, index=list(verify.COLUMNS)).T
    verdicts = [image["verdict"] for image in verify.div2k_images(measured)]
    assert verdicts == [word, "reproduced (evaluation)", "reproduced (evaluation)"]
    with_report, without = verify.div2k_rows({"dynamic_int8": measured, "bicubic_torch": measured})
    assert (with_report["images"], with_report["psnr_reported"]) == (3, 32.0)
    assert with_report["psnr"] == pytest.approx((psnr + 31 + 35) / 3)
    assert with_report["psnr_largest"] == pytest.approx(psnr - 30)
    assert with_report["ssim_largest"] == pytest.approx(ssim - 0.9)
    assert with_report["verdict"] == word
    assert "psnr_reported" not in without


def test_lr_alone_gives_the_cost_of_rounding_and_hr_alone_gets_its_lr(tmp_path):
    hr = read_rgb(embedded_path("coffee.png"))[:60, :90]
    for name, image in (("0801.png", hr), ("0802x3.png", bicubic_downscale(hr))):
        Image.fromarray(image).save(tmp_path / name)
    sources = [Source("0801", tmp_path / "0801.png"), Source("0802", None, tmp_path / "0802x3.png")]
    upscalers = {"dynamic_int8": Bicubic("torch"), "stage3_weights_fp32": Bicubic("matlab"), "other": Bicubic()}
    measured, rounding = verify.measured_div2k(sources, upscalers)
    one, other = (Bicubic(kernel)(bicubic_downscale(hr)) for kernel in ("torch", "matlab"))
    assert rounding == dict.fromkeys(("0801", "0802"), psnr_rgb(one, other))
    assert [list(images.index) for images in measured.values()] == [["0801"]] * 3
    assert measured["other"]["psnr"]["0801"] == psnr_rgb(one, hr)


def test_without_the_authors_files_there_is_no_audit(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("paperlib.evaluation.audit.URL", "http://127.0.0.1:9")
    monkeypatch.setattr("paperlib.data.download.RETRIES", 1)
    assert verify.measured_authors({}).empty
    assert main(["verify"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert FILES["fixed_int8"] in line
    assert "refused" in line


def test_sets_are_those_at_hand(monkeypatch, tmp_path):
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    assert list(verify.sets_at_hand()) == ["embedded"]
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    hr = read_rgb(embedded_path("coffee.png"))[:60, :90]
    lr, folder = hr[::3, ::3], tmp_path / "benchmark" / "Set5"
    for name, image in (("HR", hr), ("LR_bicubic/X3", lr)):
        (folder / name).mkdir(parents=True)
        Image.fromarray(image).save(folder / name / "a.png")
    sets = verify.sets_at_hand()
    assert list(sets) == ["Set5"]
    assert np.array_equal(sets["Set5"][0].hr, hr)
    assert np.array_equal(sets["Set5"][0].lr, lr)


def test_the_committed_audit_is_the_paper_by_its_images():
    title, images = verify.committed_div2k()
    assert "36 of DIV2K's 100" in title
    assert (images["verdict"] == verify.REPRODUCED).all()
    assert (images["psnr"] - images["psnr_reported"]).abs().max() < 1e-4
    audit = json.loads((verify.root() / verify.COMMITTED).read_text())
    rounding = [line["psnr"] for line in audit["div2k_int8_against_float"]]
    assert (len(rounding), np.mean(rounding)) == (100, pytest.approx(45.9426, abs=1e-4))
    files = {name: file["git"] for name, file in audit["div2k_files"].items()}
    assert files.items() <= validation_ids().items()
    assert not audit["provenance"]["dirty"]


def test_peers_at_hand_are_measured_too(monkeypatch, tmp_path):
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "mine.tflite").symlink_to(pretrained())
    pair = make_pair("one", read_rgb(embedded_path("chelsea.png"))[:96, :96])
    (line,) = verify.measured_authors({"one": [pair]}).to_dict("records")
    assert (line["as"], line["file"]) == ("peer mine", "mine.tflite")
    assert line["psnr_rgb"] == mean_psnr([pair], TFLiteUpscaler(pretrained()))
