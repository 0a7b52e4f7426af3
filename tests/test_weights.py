"""The bundled student: what was shipped, all integers, better than bicubic, and it scores what its card says."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from paperlib.cli import main
from paperlib.data.photographs import read_pairs
from paperlib.data.resize import bicubic_downscale
from paperlib.errors import UserError
from paperlib.evaluation.metrics import psnr_rgb
from paperlib.evaluation.scoring import mean_psnr
from paperlib.evaluation.upscalers import load_upscaler
from paperlib.export.convert import export_tflite, parity_images, shipped_graph
from paperlib.export.inspection import inspect_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import sha256_file, write_json
from paperlib.run import measured_row, open_run
from paperlib.student.graph import parameters
from paperlib.student.network import count_parameters
from paperlib.weights import FILES, FOLDER, pretrained, start_file
from paperlib.weights.release import release

CARD = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")


def shipped_scores() -> dict[tuple[str, str], float]:
    """(image set, precision) → PSNR RGB in dB, as shipped."""
    scores = json.loads((FOLDER / "weights.json").read_text(encoding="utf-8"))["scores"]
    return {(line["images"], line["precision"]): float(line["PSNR RGB (dB)"]) for line in scores}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_or_missing_file_is_refused(name, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(FOLDER, folder)
    path = folder / FILES[name]
    assert pretrained(name, folder) == path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged: SHA-256"):
        pretrained(name, folder)
    path.unlink()
    with pytest.raises(UserError, match="no shipped student"):
        pretrained(name, folder)
    with pytest.raises(UserError, match="There are pretrained, pretrained-float"):
        pretrained("best", folder)


def test_it_is_the_papers_student_all_integers_and_loses_little():
    scores = shipped_scores()
    assert {"validation", "Set5", "Set14", "B100"} == {name for name, _ in scores}
    assert all(scores[name, "float"] - scores[name, "INT8 TFLite"] <= 0.08 for name, _ in scores)
    assert count_parameters(load_upscaler("pretrained-float").model) == 82_683
    assert inspect_tflite(pretrained(), 48, 64)["float_tensors"] == []
    assert parameters(shipped_graph().graph) == 88_085
    assert "88,085 values in INT8" in CARD.splitlines()[0]
    assert "82,683 weights and biases" in CARD
    assert sum(path.stat().st_size for path in FOLDER.glob("*.*")) < 1e6


def test_its_graph_gives_the_shipped_file_again_byte_for_byte(tmp_path):
    export_tflite(shipped_graph(), tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == pretrained().read_bytes()


def test_every_form_of_it(tmp_path):
    assert main(["export", "pretrained", "--out", str(tmp_path), "--height", "24", "--width", "32"]) == 0
    report = json.loads((tmp_path / "export.json").read_text())
    twins = {f"student_{form}_{kind}.tflite" for form in ("dynamic", "fixed") for kind in ("int8", "uint8")}
    assert set(report["files"]) == {*twins, "student_float.tflite"} == {file.name for file in tmp_path.glob("*.tflite")}
    for name in twins:
        kind = "uint8" if "uint8" in name else "int8"
        for port in (*report["files"][name]["inputs"], *report["files"][name]["outputs"]):
            assert (port["type"], port["scale"], port["zero_point"]) == (kind, 1.0, 0 if kind == "uint8" else -128)
        assert report["files"][name]["float_tensors"] == []
    image = parity_images(1, 40)[0][:24, :32]
    for form in ("dynamic", "fixed"):
        raw = {kind: TFLiteUpscaler(tmp_path / f"student_{form}_{kind}.tflite", 1).raw(image)
               for kind in ("int8", "uint8")}
        np.testing.assert_array_equal(raw["int8"].view(np.uint8) ^ 128, raw["uint8"])


def test_one_kind_alone(tmp_path):
    assert main(["export", "pretrained", "--out", str(tmp_path), "--height", "24", "--width", "24",
                 "--input", "uint8"]) == 0
    assert sorted(file.name for file in tmp_path.glob("*_*int8.tflite")) == [
        "student_dynamic_uint8.tflite", "student_fixed_uint8.tflite"]


def test_one_command_enlarges_a_photograph_better_than_bicubic(tmp_path):
    hr = astronaut()[:510, :510]
    lr = bicubic_downscale(hr)
    Image.fromarray(lr).save(tmp_path / "portrait.png")
    assert main(["upscale", str(tmp_path / "portrait.png"), "--out", str(tmp_path)]) == 0
    sr = np.asarray(Image.open(tmp_path / "portrait_x3.png"))
    assert psnr_rgb(sr, hr) > psnr_rgb(load_upscaler("bicubic")(lr), hr) + 1


@pytest.mark.parametrize("dataset", ["Set5", "Set14"])
def test_it_scores_what_its_card_says(dataset, data_root):
    pairs = read_pairs(data_root / "benchmark" / dataset / "HR", data_root / "benchmark" / dataset / "LR_bicubic/X3")
    for name, precision in (("pretrained", "INT8 TFLite"), ("pretrained-float", "float")):
        measured = mean_psnr(pairs, load_upscaler(name))
        assert measured == pytest.approx(shipped_scores()[dataset, precision], abs=0.002)


def finished_run(folder):
    run = open_run("benchmark", folder)
    int8 = run.stage_folder("export") / "student_dynamic_int8.tflite"
    shutil.copyfile(pretrained(), int8)
    shutil.copyfile(pretrained("pretrained-float"), run.stage_folder("stage3") / "fused.safetensors")
    shutil.copyfile(pretrained("pretrained-qat"), run.stage_folder("stage3") / "qat.safetensors")
    run.record("02_stage1", [], history=[{"seconds": 60.0}, {"seconds": 4500.0}])
    run.record("04_stage2", [], teacher="a teacher of this test", history=[{"seconds": 660.0}])
    run.record("05_fuse_qat", [], targets="the float student itself", history=[{"seconds": 120.0}])
    rows = [measured_row("export", "tflite_dynamic", "int8", metric, value, "Set5")
            for metric, value in (("psnr", 31.4), ("psnr_y", 33.4), ("ssim", 0.9))]
    run.record("06_tflite_eval", rows, inputs={"dynamic": int8}, overlaps=["one shows what another shows"])
    return run


def test_a_release_holds_what_was_measured_and_a_card_of_its_records(tmp_path):
    run = finished_run(tmp_path / "run")
    folder = release(run, tmp_path / "released")
    for name in FILES:
        assert pretrained(name, folder).read_bytes() == pretrained(name).read_bytes()
    card, stage = (folder / "MODEL_CARD.md").read_text(encoding="utf-8"), run.settings.stage1
    for words in (
            "| Set5 | INT8 TFLite | 31.400 | 33.400 | 0.9000 |", "not the paper's numbers", CARD.splitlines()[0],
            "teacher of stage 2: a teacher of this test; of stage 3: the float student itself",
            f"- stage 1: {stage.steps:,} steps of {stage.batch} patches of {stage.patch}² LR pixels, SOAP, learning "
            f"rate {stage.lr:g} (cosine after 40 % at that rate), form collapsed, loss 1 l1; 75 min\n",
            "silent channels revived, 5% text in the first 50% of the steps, loss 1 charbonnier", "; 11 min\n",
            "reported images: one shows what another shows\n", "BSDS500 (its photographs"):
        assert words in card
    assert "with the seeds" not in card


def test_a_release_refuses_what_was_not_measured_and_seeds_of_another_student(tmp_path):
    run, target = finished_run(tmp_path / "run"), tmp_path / "released"
    int8 = run.stage_folder("export") / "student_dynamic_int8.tflite"
    write_json(run.out / "seeds.json", {"files": {}})
    with pytest.raises(UserError, match=r"seeds\.json is of another student"):
        release(run, target)
    rows = [{"dataset": "benchmark/Set5", "precision": precision, "values": values}
            for precision, values in (("fp32", [31.45, 31.47]), ("int8", [31.40, 31.44]))]
    write_json(run.out / "seeds.json", {"seeds": [1234, 7], "commit": "0123456789abcdef", "rows": rows,
                                        "files": {str(run.settings.seed): sha256_file(int8)}})
    assert "| Set5 | 31.460 ± 0.014 | 31.420 ± 0.028 | -0.040 ± 0.014 |" in (
        release(run, target) / "MODEL_CARD.md").read_text(encoding="utf-8")
    run.record("04_stage2", [], history=[{"seconds": 660.0}])
    with pytest.raises(UserError, match=r"lacks something .*'teacher'"):
        release(run, target)
    int8.write_bytes(b"another")
    with pytest.raises(UserError, match="has not measured"):
        release(run, target)


def test_a_start_is_absolute_or_under_the_assets_or_bundled(tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path / "assets"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(b"the one in the current folder is not meant")
    assert start_file("a.pt") == tmp_path / "assets" / "a.pt"
    assert start_file(str(tmp_path / "a.pt")) == tmp_path / "a.pt"
    assert start_file("pretrained-float") == pretrained("pretrained-float")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert start_file("~/a.pt") == tmp_path / "a.pt"
    monkeypatch.delenv("PAPERLIB_ASSETS")
    with pytest.raises(UserError, match=r"PAPERLIB_ASSETS is unset. Set it to the folder"):
        start_file("a.pt")
