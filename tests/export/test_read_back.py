"""A shipped INT8 file read back and exported again gives the same integers; uint8 twins give the same pixels."""

import json

import numpy as np
import pytest
import torch
from networks import ARCHS, deployed

from paperlib.cli import main
from paperlib.errors import UserError
from paperlib.export import read_back as module
from paperlib.export.convert import export_float, export_tflite, parity_images
from paperlib.export.flatbuffer import read_graph
from paperlib.export.read_back import read_back, shipped_graph
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.quantisation.int8 import dequantised_graph
from paperlib.quantisation.qat import prepare_qat, quantised_graph, save_qat
from paperlib.settings import QuantSettings
from paperlib.weights import pretrained

IMAGES = parity_images(2, 24)


def same_integers(one, other) -> None:
    """Operator by operator: the same kernels, biases, steps and zero points."""
    one, other = read_graph(one), read_graph(other)
    assert [operator.name for operator in one.operators] == [operator.name for operator in other.operators]
    for left, right in zip(one.operators, other.operators, strict=True):
        for i, j in zip((*left.inputs, *left.outputs), (*right.inputs, *right.outputs), strict=True):
            a, b = one.tensors[i], other.tensors[j]
            np.testing.assert_allclose(a.scales, b.scales, rtol=2e-7)
            assert a.zero_points == b.zero_points
            if a.data is not None:
                exact = np.abs(a.data.astype(np.int64)) < 2**22  # a float32 on the way holds no more in whole steps
                np.testing.assert_array_equal(a.data[exact], b.data[exact])
                assert np.abs(a.data[~exact].astype(np.int64) - b.data[~exact]).max(initial=0) <= 1


@pytest.mark.parametrize(("arch", "quantiser", "skip"), [
    *((arch, "tflite", "add") for arch in ARCHS), ("mobileone", "tflite", "exact"), ("mobileone", "paper", "add")])
def test_read_back_and_exported_again(tmp_path, arch, quantiser, skip):
    torch.manual_seed(1)
    qat = prepare_qat(deployed(arch), QuantSettings(quantiser=quantiser, skip=skip), IMAGES)
    file = export_tflite(quantised_graph(qat), tmp_path / "a.tflite")
    qgraph = read_back(file)
    assert qgraph.quantiser == quantiser
    again = export_tflite(qgraph, tmp_path / "b.tflite")
    same_integers(file, again)
    one, other = TFLiteUpscaler(file, 1), TFLiteUpscaler(again, 1)
    for image in IMAGES:
        assert np.ptp(one.raw(image).astype(int)) > 50
        np.testing.assert_array_equal(one.raw(image), other.raw(image))


def test_the_student_in_the_box(tmp_path):
    again = export_tflite(shipped_graph(), tmp_path / "again.tflite")
    same_integers(pretrained(), again)
    left, right = read_graph(pretrained()), read_graph(again)
    for a, b in zip(left.tensors, right.tensors, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for image in (*parity_images(2, 64), noise):
        np.testing.assert_array_equal(TFLiteUpscaler(pretrained(), 1).raw(image), TFLiteUpscaler(again, 1).raw(image))


def test_a_box_with_its_checkpoint_is_read_from_that(tmp_path, monkeypatch):
    torch.manual_seed(1)
    qat = prepare_qat(deployed("mobileone"), QuantSettings(quantiser="tflite"), IMAGES)
    save_qat(qat, tmp_path / "qat.safetensors")
    assert len(shipped_graph(tmp_path).graph.nodes) == len(quantised_graph(qat).graph.nodes)
    monkeypatch.setattr(module, "pretrained", lambda folder: pretrained())
    assert len(shipped_graph(tmp_path / "empty").graph.nodes) == 14


def test_every_form_of_the_student_in_the_box(tmp_path, capsys):
    assert main(["export", "pretrained", "--out", str(tmp_path), "--height", "24", "--width", "32"]) == 0
    report = json.loads((tmp_path / "export.json").read_text())
    twins = {f"student_{form}_{kind}.tflite" for form in ("dynamic", "fixed") for kind in ("int8", "uint8")}
    assert set(report["files"]) == {*twins, "student_float.tflite"} == {
        file.name for file in tmp_path.glob("*.tflite")}
    assert report["twins"] == {"dynamic": 1.0, "fixed": 1.0}
    assert report["box"]["equal"] == 1.0
    for name in twins:
        kind = "uint8" if "uint8" in name else "int8"
        for port in (*report["files"][name]["inputs"], *report["files"][name]["outputs"]):
            assert (port["type"], port["scale"], port["zero_point"]) == (kind, 1.0, 0 if kind == "uint8" else -128)
        assert report["files"][name]["float_tensors"] == []
    assert "uint8 against int8: 100.0000%" in capsys.readouterr().out
    image = parity_images(1, 40)[0][:24, :32]
    raw = {kind: TFLiteUpscaler(tmp_path / f"student_fixed_{kind}.tflite", 1).raw(image) for kind in ("int8", "uint8")}
    np.testing.assert_array_equal(raw["int8"].view(np.uint8) ^ 128, raw["uint8"])


def test_one_kind_alone(tmp_path):
    assert main(["export", "pretrained", "--out", str(tmp_path), "--height", "24", "--width", "24", "--input",
                 "uint8"]) == 0
    assert sorted(file.name for file in tmp_path.glob("*_*int8.tflite")) == [
        "student_dynamic_uint8.tflite", "student_fixed_uint8.tflite"]
    assert json.loads((tmp_path / "export.json").read_text())["box"]["equal"] == 1.0


def test_what_cannot_be_read_back_says_why(tmp_path, assets):
    graph = dequantised_graph(shipped_graph())
    with pytest.raises(UserError, match="no int8 kernel"):
        read_back(export_float(graph, tmp_path / "float.tflite"))
    with pytest.raises(UserError, match="operator RESHAPE"):
        read_back(export_tflite(shipped_graph(), tmp_path / "rows.tflite", 8, 8, "rows"))
    with pytest.raises(UserError, match="cannot be read back"):
        read_back(assets / "aio_mai" / "model_none.tflite")
