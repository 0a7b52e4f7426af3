"""The audit against recorded scores: the authors' files run by this kit, and their own report, image by image."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from paperlib.data.div2k import div2k_folder
from paperlib.data.images import read_rgb
from paperlib.data.photographs import read_pairs
from paperlib.data.resize import bicubic_downscale
from paperlib.data.sources import embedded_path
from paperlib.evaluation import audit
from paperlib.evaluation.audit import authors_report, authors_upscalers, released_run
from paperlib.evaluation.authors import FILES, REPORT
from paperlib.evaluation.scoring import evaluate, score_pairs
from paperlib.settings import DataSettings

MEASURED = {"stage2_fp32": ("stage 2, fused float", 0.001), "stage3_weights_fp32": ("stage 3, fused float", 0.001),
            "stage3_fakequant": ("fake-quant", 0.003), "dynamic_int8": ("dynamic INT8", 0.001)}
"""Entries of expected.json, by a part of their names, and how close (dB) another machine's arithmetic must come."""
PER_IMAGE = {"stage3_weights_fp32": "pt", "dynamic_int8": "model_none_int8", "fixed_int8": "model_fixed_int8"}
"""The authors' report: key of each file's scores."""


@pytest.fixture(scope="module")
def upscalers(assets):
    if not (assets / "aio_mai").is_dir():
        pytest.skip(f"{assets / 'aio_mai'} is absent: none of the authors' files to audit")
    return authors_upscalers(assets / "aio_mai")


@pytest.mark.parametrize("name", MEASURED)
def test_set5_scores_are_the_recorded_ones(upscalers, golden, data_root, name):
    part, limit = MEASURED[name]
    expected = json.loads((golden / "expected.json").read_text())
    (wanted,) = (value["Set5"] for key, value in expected.items() if part in key and "re-exported" not in key)
    folder = data_root / "benchmark" / "Set5"
    mean = score_pairs(upscalers[name], read_pairs(folder / "HR", folder / "LR_bicubic" / "X3"))
    assert mean["psnr_rgb"] == pytest.approx(wanted["psnr_rgb_shave0"], abs=limit)
    assert mean["psnr_y"] == pytest.approx(wanted["psnr_y_shave3"], abs=limit)


def test_the_fixed_file_on_a_small_image_is_the_dynamic_one_to_three_hundredths(upscalers, data_root):
    """expected.json has no fixed file; its tile is 720×1280, and the authors' report sets it 0.006 dB apart."""
    folder = data_root / "benchmark" / "Set5"
    pairs = [next(iter(read_pairs(folder / "HR", folder / "LR_bicubic" / "X3")))]
    fixed, dynamic = (score_pairs(upscalers[name], pairs)["psnr_rgb"] for name in ("fixed_int8", "dynamic_int8"))
    assert fixed == pytest.approx(dynamic, abs=0.03)


def test_means_of_their_report_are_the_papers_int8_figures(assets):
    rows = {(row["row"], row["metric"]): row for row in authors_report()}
    for row, psnr, ssim in (("dynamic TFLite (abstract, Tables C and D)", 30.0003, 0.8560),
                            ("fixed TFLite (abstract)", 30.0065, 0.8570),
                            ("student_deploy (Table B, called INT8)", 30.1350, 0.8589),
                            ("mobileone (Table C, called FP32)", 30.1350, 0.8589)):
        assert rows[row, "psnr"]["reproduced"] == pytest.approx(psnr, abs=1e-4)
        assert rows[row, "ssim"]["reproduced"] == pytest.approx(ssim, abs=1e-4)
    assert rows["stage-3 weights as float graph", "psnr"]["reproduced"] == pytest.approx(30.2045, abs=1e-4)


def test_the_released_run_had_losses_that_the_paper_has_not(assets):
    state = released_run()
    assert state["epoch"] == 109
    assert state["kd_res_w"] == 0.01


def div2k_validation() -> tuple[Path, Path]:
    """HR and LR folders of DIV2K's validation images, or a skip that says where they were looked for."""
    root = div2k_folder(DataSettings(source="div2k"))
    hr, lr = (next(iter(sorted(root.rglob(name))), None) for name in ("DIV2K_valid_HR", "DIV2K_valid_LR_bicubic/X3"))
    if hr is None or lr is None:
        pytest.skip(f"DIV2K's validation images are not at {root}: run `paperlib data prepare --profile paper`")
    return hr, lr


@pytest.mark.parametrize("name", PER_IMAGE)
def test_div2k_agrees_with_their_report_image_by_image(upscalers, assets, name):
    pairs = read_pairs(*div2k_validation())
    report = json.loads((assets / "aio_mai" / REPORT).read_text())["per_image"]
    wanted = {Path(image["hr_file"]).stem: image["metrics"][f"psnr_{PER_IMAGE[name]}_rgb_sh0"] for image in report}
    result = evaluate(upscalers[name], pairs)
    assert len(result["images"]) == len(wanted) == 100
    for image in result["images"]:
        assert image["psnr_rgb"] == pytest.approx(wanted[image["name"]], abs=0.01), image["name"]


def test_without_the_authors_files_there_is_no_audit(monkeypatch, tmp_path):
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("paperlib.evaluation.authors.URL", "http://127.0.0.1:9")
    monkeypatch.setattr("paperlib.data.download.RETRIES", 1)
    assert authors_report() == []
    assert released_run() == {}
    assert audit.measured_authors({}).empty
    with pytest.raises(audit.UserError, match=rf"{FILES['fixed_int8']}.*not at hand.*refused"):
        audit.verify()


def test_paper_report_and_file_stand_on_one_line():
    report = [{"row": row, "precision": "", "metric": metric, "reported": paper, "reproduced": value}
              for row, metric, paper, value in (
                  ("dynamic TFLite (abstract, Tables C and D)", "psnr", 30.0003, 30.00028),
                  ("fixed TFLite (abstract)", "ssim", 0.857, 0.8568), ("bicubic (Table B)", "psnr", 28.26, 28.49))]
    measured = pd.DataFrame([
        {"as": name, "dataset": dataset, "psnr_rgb": psnr, "ssim_rgb": 0.85}
        for name, dataset, psnr in (("dynamic_int8", "Set5", 31.3), ("dynamic_int8", "DIV2K validation", 30.001),
                                    ("fixed_int8", "Set5", 31.2))])
    dynamic, fixed, bicubic = audit.side_by_side(report, measured)
    assert (dynamic["paper"], dynamic["their report"], dynamic["here"]) == (30.0003, 30.00028, 30.001)
    assert dynamic["here - report"] == pytest.approx(0.00072)
    assert (fixed["here"], fixed["here - report"], bicubic["here"]) == (None, None, None)


def test_every_published_file_has_its_reported_row(assets):
    assert set(audit.MEASURED_AS.values()) == set(FILES)
    assert set(audit.MEASURED_AS) <= {row["row"] for row in authors_report()}


def test_div2k_is_measured_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    assert list(audit.sets_at_hand()) == ["embedded"]
    hr = read_rgb(embedded_path("coffee.png"))[:60, :90]
    for folder, name, image in (("DIV2K_valid_HR", "0801.png", hr),
                                ("DIV2K_valid_LR_bicubic/X3", "0801x3.png", bicubic_downscale(hr))):
        (tmp_path / "div2k" / folder).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "div2k" / folder / name)
    sets = audit.sets_at_hand()
    assert list(sets) == ["embedded", "DIV2K validation"]
    assert np.array_equal(sets["DIV2K validation"][0].hr, hr)
