"""`paperlib inspect`: what a file is, counted by hand for small models of several kinds, ours and others'."""

import json

import pytest
import torch
from networks import deployed

from paperlib.cli import main
from paperlib.errors import UserError
from paperlib.export.convert import export_tflite, parity_images
from paperlib.export.flatbuffer import file_reach, read_graph
from paperlib.export.inspection import describe, inspect_model
from paperlib.export.tf_graph import tensorflow
from paperlib.quantisation.qat import prepare_qat, quantised_graph, save_qat
from paperlib.settings import QuantSettings
from paperlib.student.graph import macs_per_lr_pixel, parameters, receptive_radius
from paperlib.student.models import deployment_graph, save_student
from paperlib.weights import pretrained


def convert(path, build, *shape, optimise=False):
    """A float file of a TensorFlow function, as somebody else might have made it."""
    tf = tensorflow()
    traced = tf.function(build, autograph=False).get_concrete_function(tf.TensorSpec(shape))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
    if optimise:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    path.write_bytes(converter.convert())
    return path


def test_a_file_and_its_checkpoint_agree(tmp_path):
    settings = QuantSettings(quantiser="tflite")
    qat = prepare_qat(deployed("mobileone"), settings, parity_images(1, 16))
    qgraph = quantised_graph(qat)
    graph = qgraph.graph
    file = inspect_model(export_tflite(qgraph, tmp_path / "a.tflite"))
    assert size_of(file) == (parameters(graph), macs_per_lr_pixel(graph), receptive_radius(graph))
    assert file["operators"] == {"CONV_2D": 4, "ADD": 1, "DEPTH_TO_SPACE": 1}
    assert file["precision"] == "full INT8, weights per channel"
    assert file["float_tensors"] == 0
    port = {"type": "int8", "shape": [1, -1, -1, 3], "scale": 1.0, "zero_point": -128}
    assert file["inputs"][0].items() >= port.items()
    checkpoint = inspect_model(save_qat(qat, tmp_path / "qat.safetensors"))
    assert size_of(checkpoint) == size_of(file)
    assert checkpoint["precision"] == "F32, fake-quantised (tflite)"
    fused = deployed("repdw")
    graph = deployment_graph(fused)
    float_one = inspect_model(save_student(fused, tmp_path / "fused.safetensors"))
    assert float_one["macs_per_lr_pixel"] == macs_per_lr_pixel(graph)
    float_file = inspect_model(export_tflite(graph, tmp_path / "b.tflite"))
    assert float_file["precision"] == "float32"
    assert size_of(float_file)[1:] == size_of(float_one)[1:]


def test_the_bundled_file_says_what_the_card_says(tmp_path, capsys):
    assert main(["inspect", str(pretrained()), "--json", str(tmp_path / "a.json")]) == 0
    macs = 9 * sum((3 * 28, 28 * 32, *[32 * 32] * 6, 32 * 29, 63 * 27))
    about = json.loads((tmp_path / "a.json").read_text())
    assert size_of(about)[1:] == (macs, 10) == (87_777, 10)
    said = capsys.readouterr().out
    assert all(words in said for words in ("10 × CONV_2D", "reach", "full INT8"))


def size_of(about):
    return about["parameters"], about["macs_per_lr_pixel"], about["radius"]


@pytest.mark.parametrize("name", [
    "model.tflite", "model_none.tflite", "ckpt_best_s2_deploy.pt", "ckpt_best_s3_qat.pt"])
def test_published_files(assets, name):
    assert size_of(inspect_model(assets / "aio_mai" / name)) == (82_683, 82_368, 10)


def test_strides_dilation_and_layers_of_other_people(tmp_path):
    tf = tensorflow()
    kernel = tf.constant(torch.rand(3, 3, 4, 8).numpy())

    def encoder(x):
        x = tf.nn.conv2d(x, kernel, 2, "SAME")
        return tf.nn.conv2d(x, tf.transpose(kernel, (0, 1, 3, 2)), 1, "SAME", dilations=2)

    about = inspect_model(convert(tmp_path / "a.tflite", encoder, 1, 16, 16, 4))
    assert about["macs"] == 2 * 8 * 8 * 9 * 4 * 8
    assert about["radius"] == 2 + 2 * 2  # each result of the first stands for two pixels
    classifier = convert(tmp_path / "b.tflite", lambda x: tf.matmul(x, tf.ones((12, 5))), 2, 12)
    about = inspect_model(classifier)
    assert (about["macs"], about["macs_per_lr_pixel"], about["radius"]) == (2 * 12 * 5, None, None)
    assert "MACs per inference" in describe(about)


def test_dynamic_range_is_not_called_full_int8(tmp_path):
    tf = tensorflow()
    kernel = tf.constant(torch.rand(3, 3, 16, 64).numpy())
    path = convert(tmp_path / "a.tflite", lambda x: tf.nn.conv2d(x, kernel, 1, "SAME"), 1, 16, 16, 16, optimise=True)
    assert inspect_model(path)["precision"] == "float32 maps, INT8 weights (dynamic range)"


def test_the_longest_way_counts(tmp_path):
    tf = tensorflow()
    small, large = (tf.constant(torch.rand(size, size, 3, 3).numpy()) for size in (3, 5))
    fork = lambda x: tf.nn.conv2d(x, large, 1, "SAME") + tf.nn.conv2d(x, small, 1, "SAME")
    assert file_reach(read_graph(convert(tmp_path / "a.tflite", fork, 1, 16, 16, 3))) == (2, 1)


@pytest.mark.parametrize(("name", "content", "says"), [
    *(("cut.tflite", length, "not a TFLite file") for length in (0, 9, 40, 1000, 50_000, 100_000)), ("a.tflite",
    b"hello", "not a TFLite file"), ("c.safetensors", b"hello", "not a .safetensors file"), ("d.safetensors",
    b"\x05" + bytes(7) + b"hello", "not a .safetensors file"), ("e.pt", b"hello", "authors'"), ("f.txt", b"hello",
    "no model file")])
def test_what_is_no_model_gets_a_sentence(tmp_path, name, content, says):
    if isinstance(content, int):
        content = pretrained().read_bytes()[:content]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        inspect_model(tmp_path / name)
    with pytest.raises(UserError, match="no file at"):
        inspect_model(tmp_path / "missing.tflite")
