"""Files of others: range of values, strides, an open batch, and what sees the whole picture."""

import numpy as np
import pytest
from networks import quantised
from PIL import Image
from skimage.data import coffee

from paperlib.cli import main
from paperlib.data.photographs import Pair, make_pair
from paperlib.errors import UserError
from paperlib.evaluation import scoring
from paperlib.export.convert import export_tflite
from paperlib.export.tf_graph import tensorflow
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.settings import StudentSettings
from paperlib.student.models import fuse_model
from paperlib.student.network import Student
from paperlib.upscale import upscale_pixels
from tests.export.test_inspection import convert
from tests.export.test_tflite import changed

PICTURE = coffee()[100:141, 100:135]


def repeated(x):
    """×3 by repetition."""
    tf = tensorflow()
    return tf.nn.depth_to_space(tf.concat([x] * 9, 3), 3)


def clipped(x, top):
    return tensorflow().clip_by_value(repeated(x), 0.0, top)


def compressed(x, top):
    """Lights above nine tenths are softened; nothing is clipped."""
    return repeated(x) - 0.8 * tensorflow().nn.relu(repeated(x) - 0.9 * top)


@pytest.mark.parametrize(("kind", "top", "shape"), [
    (clipped, 1.0, (1, None, None, 3)), (clipped, 255.0, (None, 24, 24, 3)),
    (compressed, 1.0, (None, 24, 24, 3)), (compressed, 255.0, (1, None, None, 3))])
def test_a_float_file_is_read_in_its_own_range(tmp_path, kind, top, shape):
    path = convert(tmp_path / "a.tflite", lambda x: kind(x, top), *shape)
    upscaler = TFLiteUpscaler(path)
    wanted = np.kron(np.minimum(PICTURE, 229), np.ones((3, 3, 1)))
    np.testing.assert_allclose(np.minimum(upscaler(PICTURE), 229), wanted, atol=0.01)
    assert upscaler.values == f"0..{top:.0f} (tried on one picture)"
    assert upscaler.about["values"] == upscaler.values
    assert upscaler.fixed == shape[1:3] or shape[1] is None


def test_a_float_file_of_signed_values_is_refused(tmp_path):
    tf = tensorflow()
    path = convert(tmp_path / "a.tflite", lambda x: tf.tanh(repeated(x) - 100.0), 1, None, None, 3)
    with pytest.raises(UserError, match="values of -1"):
        TFLiteUpscaler(path)(PICTURE)


def scaled(factor):
    """Maps and biases stand for values `factor` times as large: the same network in other units."""
    def change(model, graph):
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            constant = data is not None and len(data)
            grid = tensor.quantization
            if grid is not None and grid.scale is not None and (not constant or tensor.type == 2):
                grid.scale = (grid.scale * factor).astype(np.float32)

    return change


@pytest.fixture(scope="module")
def int8_file(tmp_path_factory):
    student = fuse_model(Student(StudentSettings(channels=4, blocks=1, init="bilinear")))
    return export_tflite(quantised(student, [PICTURE]), tmp_path_factory.mktemp("int8") / "a.tflite")


def test_an_integer_file_says_its_range(int8_file, tmp_path, capsys):
    whole = TFLiteUpscaler(int8_file)
    unit = TFLiteUpscaler(changed(int8_file, tmp_path / "unit.tflite", scaled(1 / 255)))
    assert (whole.peaks, unit.peaks) == ((255, 255), (1, 1))
    np.testing.assert_array_equal(unit.raw(PICTURE), whole.raw(PICTURE))
    np.testing.assert_array_equal(upscale_pixels(unit, PICTURE), upscale_pixels(whole, PICTURE))
    with pytest.raises(UserError, match="neither 0"):
        TFLiteUpscaler(changed(int8_file, tmp_path / "signed.tflite", scaled(2 / 255)))
    (tmp_path / "hr").mkdir()
    Image.fromarray(coffee()[:90, :96]).save(tmp_path / "hr" / "a.png")
    for command in (["evaluate", unit.path, "--hr", tmp_path / "hr"], ["inspect", unit.path],
                    ["upscale", tmp_path / "hr", "-o", tmp_path, "--model", unit.path]):
        assert main([str(word) for word in command]) == 0
    said = capsys.readouterr().out
    assert said.count("0..1 (by its grid)") == 2
    assert said.count("pictures in 0..1\n") == 2


def mean(size, inputs, outputs):
    """A kernel of random positive weights that keeps the mean about what it is."""
    kernel = np.random.default_rng(0).random((size, size, inputs, outputs), np.float32)
    return kernel / (size * size * inputs / 2)


def halved(x):
    """Works at half the size: even sides alone."""
    tf = tensorflow()
    inner = tf.nn.conv2d(tf.nn.space_to_depth(x, 2), mean(3, 12, 108), 1, "SAME")
    return tf.nn.depth_to_space(inner, 6)


def strided(x):
    tf = tensorflow()
    return tf.nn.depth_to_space(tf.nn.conv2d(x, mean(3, 3, 108), 2, "SAME"), 6)


@pytest.mark.parametrize("build", [halved, strided])
def test_tiles_lie_at_multiples_of_the_stride(tmp_path, monkeypatch, build):
    dynamic = TFLiteUpscaler(convert(tmp_path / "a.tflite", build, 1, None, None, 3))
    fixed = TFLiteUpscaler(convert(tmp_path / "b.tflite", build, 1, 16, 20, 3))
    assert (dynamic.stride, fixed.stride) == (2, 2)
    whole = np.rint(dynamic(PICTURE))
    assert whole.shape == (123, 105, 3)
    for upscaler, tile in ((dynamic, 15), (dynamic, 19), (fixed, None)):
        assert np.abs(upscale_pixels(upscaler, PICTURE, tile) - whole).max() <= 1
    assert np.abs(fixed(PICTURE) - whole).max() <= 1
    for name, value in (("MOST_AT_ONCE", 100), ("TILE", 15)):
        monkeypatch.setattr(scoring, name, value)
    pair = Pair("scored whole", PICTURE, np.zeros((123, 105, 3), np.uint8))
    (scored,) = scoring.evaluate(dynamic, [pair])["images"]
    assert scored["psnr_rgb"] == scoring.mean_psnr([pair], dynamic)


def test_tiles_share_twice_the_reach(tmp_path):
    wide = lambda x: repeated(tensorflow().nn.conv2d(x, mean(31, 3, 3), 1, "SAME"))
    fixed, dynamic = (TFLiteUpscaler(convert(tmp_path / "a.tflite", wide, 1, *size, 3))
                      for size in ((33, 33), (None, None)))
    assert fixed.radius == 15
    np.testing.assert_allclose(fixed(PICTURE), dynamic(PICTURE), atol=0.01)


def test_what_sees_the_whole_picture_is_not_tiled_without_a_word(tmp_path, capsys):
    tf = tensorflow()
    attention = lambda x: repeated(x * tf.reduce_mean(x, (1, 2), keepdims=True) / 128.0)
    path = convert(tmp_path / "a.tflite", attention, 1, 20, 20, 3)
    for side, said in ((20, 0), (33, 1)):
        picture = tmp_path / f"{side}.png"
        Image.fromarray(coffee()[:side, :side]).save(picture)
        assert main(["upscale", str(picture), "-o", str(tmp_path / "o"), "--model", str(path)]) == 0
        assert capsys.readouterr().out.count("seams can be seen") == said
    scored = scoring.evaluate(TFLiteUpscaler(path), [make_pair("a", coffee()[:99, :99])])
    assert "seams can be seen" in scored["notes"][0]
