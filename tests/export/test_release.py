"""The student in the box: its files are what was shipped, it beats bicubic, and it scores what its card says."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from paperlib import environment
from paperlib.cli import main
from paperlib.data.photographs import read_pairs
from paperlib.data.resize import bicubic_downscale
from paperlib.errors import UserError
from paperlib.evaluation.metrics import psnr_rgb
from paperlib.evaluation.scoring import score_pairs
from paperlib.evaluation.upscalers import load_upscaler
from paperlib.export.release import ship_pretrained
from paperlib.export.tflite import inspect_tflite, tflite_values
from paperlib.files import sha256_file, write_json
from paperlib.quantisation.skip import exact_skip
from paperlib.run import measured_row, open_run
from paperlib.student.graph import parameters
from paperlib.student.models import deployment_graph
from paperlib.student.network import count_parameters
from paperlib.weights import FILES, FOLDER, pretrained


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
    with pytest.raises(UserError, match=r"is damaged: SHA-256 .* Install paperlib again"):
        pretrained(name, folder)
    path.unlink()
    with pytest.raises(UserError, match="no shipped student"):
        pretrained(name, folder)
    with pytest.raises(UserError, match="There are pretrained, pretrained-float"):
        pretrained("best", folder)


def test_it_is_the_papers_student_and_all_integers():
    assert count_parameters(load_upscaler("pretrained-float").model) == 82_683
    inside = inspect_tflite(pretrained(), 48, 64)
    assert inside["float_tensors"] == []
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1e6


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
        measured = score_pairs(load_upscaler(name), pairs)["psnr_rgb"]
        assert measured == pytest.approx(shipped_scores()[dataset, precision], abs=0.002)


def test_the_card_counts_what_the_files_hold():
    values = tflite_values(pretrained())
    three_silent = 255.0 * (torch.arange(32) < 29)  # in their place the head reads the image once more
    graph = exact_skip(deployment_graph(load_upscaler("pretrained-float").model), 255.0, three_silent)
    assert values == parameters(graph) == 88_085
    assert f"{values:,} values in INT8" in (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines()[0]


def test_int8_loses_little():
    scores = shipped_scores()
    for dataset in ("validation", "Set5", "Set14", "B100"):
        assert scores[dataset, "float"] - scores[dataset, "INT8 TFLite"] <= 0.08


def test_only_what_was_measured_is_shipped(tmp_path):
    run = open_run("benchmark", tmp_path / "run")
    with pytest.raises(UserError, match="no record of 06_tflite_eval"):
        ship_pretrained(run, tmp_path / "box")
    int8 = run.stage_folder("export") / "student_dynamic_int8.tflite"
    shutil.copyfile(pretrained(), int8)
    shutil.copyfile(pretrained("pretrained-float"), run.stage_folder("stage3") / "fused.safetensors")
    rows = [measured_row("export", "tflite_dynamic", "int8", metric, value, "Set5")
            for metric, value in (("psnr", 31.4), ("psnr_y", 33.4), ("ssim", 0.9))]
    run.record("06_tflite_eval", rows, inputs={"dynamic": int8})
    with pytest.raises(UserError, match=(r"02_stage1: the history.*04_stage2: the teacher; 05_fuse_qat: the targets of "
                                         r"stage 3; 06.*reported")):
        ship_pretrained(run, tmp_path / "box")
    assert not (tmp_path / "box").exists()
    run.record("02_stage1", [], history=[{"seconds": 60.0}, {"seconds": 4500.0}])
    run.record("04_stage2", [], teacher="a teacher of this test", history=[{"seconds": 660.0}])
    run.record("05_fuse_qat", [], targets="the float student itself", history=[{"seconds": 120.0}])
    shared = ["bsds400/302003.jpg shows what Set5/woman shows (correlation 0.998)"]
    run.record("06_tflite_eval", rows, inputs={"dynamic": int8}, overlaps=shared)
    folder = ship_pretrained(run, tmp_path / "box")
    assert pretrained(folder=folder).read_bytes() == int8.read_bytes()
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| Set5 | INT8 TFLite | 31.400 | 33.400 | 0.9000 |" in card
    assert "not the paper's numbers" in card
    assert "# Model card: ×3 student, 88,085 values in INT8" in card
    assert "82,683 weights and biases" in card
    assert "teacher of stage 2: a teacher of this test; of stage 3: the float student itself" in card
    assert f"seed {run.settings.seed}, on {environment.processor()['model']}." in card
    stage = run.settings.stage1
    assert (f"- stage 1: {stage.steps:,} steps of {stage.batch} patches of {stage.patch}² LR pixels, SOAP, "
            f"learning rate {stage.lr:g} (cosine after 40 % at that rate), form collapsed, loss 1 l1; "
            "75 min\n") in card
    assert "; 11 min\n" in card
    assert "; 2 min\n" in card
    assert "silent channels revived, 5% text in the first 50% of the steps, loss 1 charbonnier" in card
    assert "BSDS500 (its photographs" in card
    assert f"- pictures shared with reported images: {shared[0]}\n" in card
    assert "with the seeds" not in card
    rows_of = [{"dataset": "benchmark/Set5", "precision": precision, "values": values}
               for precision, values in (("fp32", [31.45, 31.47]), ("int8", [31.40, 31.44]))]
    seeds = {"seeds": [run.settings.seed, 7], "commit": "0123456789abcdef", "files": {}, "rows": rows_of}
    write_json(run.out / "seeds.json", seeds)
    with pytest.raises(UserError, match=r"seeds\.json is of another student"):
        ship_pretrained(run, tmp_path / "box")
    write_json(run.out / "seeds.json", seeds | {"files": {str(run.settings.seed): sha256_file(int8)}})
    ship_pretrained(run, tmp_path / "box")
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"with the seeds {run.settings.seed}, 7: mean" in card
    assert "commit `0123456789ab`" in card
    assert "| Set5 | 31.460 ± 0.014 | 31.420 ± 0.028 | -0.040 ± 0.014 |" in card
    write_json(run.out / "seeds.json", seeds | {"files": {str(run.settings.seed): sha256_file(int8)},
                                                "stage2_shared_steps": 4500})
    ship_pretrained(run, tmp_path / "box")
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"Stage 2 from its step 4,500 on and stage 3 anew with the seeds {run.settings.seed}, 7: mean" in card
    other = open_run("benchmark", run.out, {"data.train": ["my_photographs"]})
    other.record("06_tflite_eval", rows, inputs={"dynamic": int8})
    with pytest.raises(UserError, match="the data set my_photographs"):
        ship_pretrained(other, tmp_path / "box")
    run.record("06_tflite_eval", rows, inputs={"dynamic": int8})
    int8.write_bytes(b"another")
    with pytest.raises(UserError, match="not the file that 06_tflite_eval measured"):
        ship_pretrained(run, tmp_path / "box")
