"""Scores of known upscalers, the JSON of an evaluation, and finding an upscaler by name."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea, coffee

from paperlib.data.photographs import Pair, make_pair, read_pairs
from paperlib.data.resize import bicubic_upscale
from paperlib.errors import UserError
from paperlib.evaluation.metrics import METRICS, scores
from paperlib.evaluation.scoring import evaluate, mean_psnr, measure, score_lines
from paperlib.evaluation.torch_upscalers import TorchUpscaler
from paperlib.evaluation.upscalers import load_upscaler
from paperlib.quantisation.qat import prepare_qat, save_qat
from paperlib.settings import QuantSettings, StudentSettings
from paperlib.student.graph import image_batch
from paperlib.student.models import fuse_model, save_student
from paperlib.student.network import Student

SMALL = StudentSettings(channels=8, blocks=2, init="bilinear")

class Shifted:
    """An upscaler that knows the original and answers it shifted by `offset`."""

    def __init__(self, pairs: list[Pair], offset: float) -> None:
        self.known, self.offset = {pair.lr.tobytes(): pair.hr for pair in pairs}, offset
        self.name, self.about = "shifted", {"offset": offset}

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        return self.known[lr.tobytes()].astype(np.float32) + self.offset


def some_pairs() -> list[Pair]:
    photographs = {"chelsea": chelsea()[:90, :120], "coffee": coffee()[:60, :66]}
    return [make_pair(name, hr.clip(0, 254)) for name, hr in photographs.items()]


def test_evaluation_is_per_image_values_and_their_mean():
    pairs = some_pairs()
    upscaler = load_upscaler("bicubic")
    seen = []
    result = evaluate(upscaler, pairs, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    for row, pair in zip(result["images"], pairs, strict=True):
        assert row == {"name": pair.name, **scores(upscaler(pair.lr), pair.hr)}
    for metric in METRICS:
        wanted = np.mean([row[metric] for row in result["images"]])
        assert result["mean"][metric] == pytest.approx(wanted)
    one, other = (row["psnr_rgb"] for row in result["images"])
    assert mean_psnr([*pairs, pairs[0]], upscaler) == pytest.approx((2 * one + other) / 3)
    assert set(result) >= {"model", "images", "mean", "protocol", "provenance"}


def test_infinite_and_undefined_values_are_null_and_noted():
    pairs = [*some_pairs(), make_pair("tiny", chelsea()[:12, :12])]
    result = evaluate(Shifted(pairs, 0.0), pairs)
    equal = {"psnr_rgb": None, "ssim_rgb": 1, "psnr_y": None, "ssim_y": 1}
    assert result["images"][0] == {"name": "chelsea", **equal}
    assert result["images"][2]["ssim_y"] is None
    assert result["mean"] == equal
    assert [note.split(": ")[1] for note in result["notes"]] == ["chelsea, coffee, tiny", "tiny"]
    json.dumps(result, allow_nan=False)
    assert "–" in score_lines(result)


def test_unreadable_images_are_listed_and_the_others_scored(tmp_path):
    for name, image in (("a", coffee()[:60, :90]), ("c", chelsea()[:60, :90])):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    Image.fromarray(coffee()[:2, :2]).save(tmp_path / "d.png")
    result = evaluate(load_upscaler("bicubic"), read_pairs(tmp_path))
    assert [row["name"] for row in result["images"]] == ["a", "c"]
    assert len(result["failed"]) == 2
    assert "b.png" in result["failed"][0]
    assert "2×2" in result["failed"][1]


def test_a_row_a_metric_and_set_keeps_the_values_of_its_images(tmp_path):
    data = SimpleNamespace(valid=some_pairs(), tests={"Set5": some_pairs()[:1]})
    upscaler = load_upscaler("bicubic")
    rows = measure(data, upscaler, "B", "bicubic", "fp32", steps=7)
    found = {name: evaluate(upscaler, pairs) for name, pairs in (
        ("validation", data.valid), ("Set5", data.tests["Set5"]))}
    assert rows == [
        {"table": "B", "row": "bicubic", "precision": "fp32", "metric": metric.removesuffix("_rgb"),
         "dataset": dataset, "value": result["mean"][metric], "steps": 7,
         "images": [round(image[metric], 5) for image in result["images"]]}
        for dataset, result in found.items() for metric in METRICS]
    Image.fromarray(coffee()[:2, :2]).save(tmp_path / "d.png")
    data.tests["Set14"] = read_pairs(tmp_path)
    with pytest.raises(UserError, match="Set14: d is 2×2"):
        measure(data, upscaler, "B", "bicubic", "fp32")


def test_the_input_hash_is_of_the_pixels():
    pairs = some_pairs()
    changed = [pairs[0], Pair("coffee", pairs[1].lr, pairs[1].hr ^ 1)]
    inputs = (("bicubic", pairs), ("bicubic-matlab", pairs), ("bicubic", pairs[::-1]), ("bicubic", changed))
    hashes = [evaluate(load_upscaler(model), chosen)["provenance"]["inputs_sha256"] for model, chosen in inputs]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_network_is_scored_in_evaluation_mode_on_its_clipped_float_output():
    student, lr = Student(SMALL), coffee()[:21, :30]
    with torch.no_grad():
        student.head.bias.add_(torch.linspace(-300, 300, 27))
        wanted = student.eval()(image_batch(lr))[0].permute(1, 2, 0).numpy()
    assert wanted.min() < 0
    assert wanted.max() > 255
    sr = TorchUpscaler(student.train(), "student")(lr)
    np.testing.assert_array_equal(sr, wanted.clip(0, 255))
    assert sr.dtype == np.float32
    np.testing.assert_array_equal(TorchUpscaler(student, "", rounded=True)(lr), np.rint(sr))


def test_checkpoints_of_every_form_load_as_what_they_are(tmp_path):
    student, lr = Student(SMALL).eval(), coffee()[:24, :30]
    wanted = TorchUpscaler(fuse_model(student), "fused")(lr)
    for model in (student, fuse_model(student)):
        path = save_student(model, tmp_path / f"{model.form}.safetensors", stage="stage1")
        upscaler = load_upscaler(path)
        np.testing.assert_allclose(upscaler(lr), wanted, atol=2e-3)
        assert upscaler.about["checkpoint"]["stage"] == "stage1"
    qat = prepare_qat(fuse_model(student), QuantSettings(quantiser="tflite"), [lr])
    upscaler = load_upscaler(save_qat(qat, tmp_path / "qat.safetensors"))
    np.testing.assert_array_equal(upscaler(lr), TorchUpscaler(qat, "qat")(lr))
    assert 0 < np.abs(upscaler(lr) - wanted).max() < 30


def test_what_is_no_upscaler_is_told(tmp_path):
    for spec, words in (("bicubik", "unknown model 'bicubik'. Name pretrained"),
                        (tmp_path / "none.tflite", "no model file"), (tmp_path, "unknown model")):
        with pytest.raises(UserError, match=words):
            load_upscaler(spec)


def test_bicubic_kernels_go_by_name():
    lr = chelsea()[:30, :40]
    for name, kernel in (("bicubic", "torch"), ("bicubic-matlab", "matlab")):
        np.testing.assert_array_equal(load_upscaler(name)(lr), bicubic_upscale(lr, kernel=kernel))
