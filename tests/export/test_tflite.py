"""A .tflite file is looked at before the interpreter has it: a limit, one line, and no library's chatter."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import coffee

from paperlib.cli import main
from paperlib.errors import UserError
from paperlib.export.convert import export_tflite
from paperlib.export.inspection import inspect_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.quantisation.qat import prepare_qat, quantised_graph
from paperlib.settings import QuantSettings, StudentSettings
from paperlib.student.models import deployment_graph
from paperlib.student.network import Student, fuse
from paperlib.upscale import upscale_pixels

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
flatbuffers = pytest.importorskip("flatbuffers")
LR = coffee()[:24, :24]


@pytest.fixture(scope="module")
def fixed_file(tmp_path_factory):
    torch.manual_seed(0)
    student = fuse(Student(StudentSettings(channels=4, blocks=1, init="bilinear")))
    qat = prepare_qat(student, QuantSettings(quantiser="tflite"), [LR])
    return export_tflite(quantised_graph(qat), tmp_path_factory.mktemp("file") / "fixed.tflite", 24, 24)


def changed(source, target, change):
    """A copy of a .tflite file, its tables changed by a function."""
    model = schema.ModelT.InitFromPackedBuf(source.read_bytes(), 0)
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(builder.Output())
    return target


def resized(side):
    def change(model, graph):
        graph.tensors[graph.inputs[0]].shape = np.array([1, side, side, 3], np.int32)
        graph.tensors[graph.outputs[0]].shape = np.array([1, 3 * side, 3 * side, 3], np.int32)

    return change


def emptied(model, graph):
    graph.operators = []


def unscaled(model, graph):
    graph.tensors[graph.inputs[0]].quantization.scale = np.array([np.nan], np.float32)


def misnamed(model, graph):
    graph.tensors[graph.inputs[0]].name = b"\xff\xfe\xff"


def shrunk(model, graph):
    """Every feature map stated as 1×1, the input as large: kernels give what they must all the same."""
    for index, tensor in enumerate(graph.tensors):
        if len(tensor.shape) == 4 and model.buffers[tensor.buffer].data is None:
            tensor.shape = np.array([1, 10_000, 10_000, 3] if index in graph.inputs else [1] * 4, np.int32)


@pytest.mark.parametrize(("change", "words"), [
    (resized(20_000), r"would take about .* GB .*the limit is 2.1 GB"), (resized(100_000), "the limit is 2.1 GB"),
    (shrunk, "the limit is 2.1 GB"), (resized(0), "has the shape"), (emptied, "no operators"),
    (unscaled, "has the scale nan"), (misnamed, "not a TFLite file")])
def test_what_cannot_be_run_is_said_before_it_is(fixed_file, tmp_path, change, words):
    path = changed(fixed_file, tmp_path / "changed.tflite", change)
    for use in (lambda: upscale_pixels(TFLiteUpscaler(path), LR), lambda: inspect_tflite(path)):
        with pytest.raises(UserError, match=words):
            use()


def test_mutated_files_are_refused_or_run(fixed_file, tmp_path):
    content, outcomes = fixed_file.read_bytes(), set()
    for number in range(80):
        random = np.random.default_rng(number)
        data = bytearray(content)
        for place in random.integers(0, len(data), 1 + number % 3):
            data[place] = random.integers(256)
        (tmp_path / "mutated.tflite").write_bytes(data)
        try:
            outcomes.add(upscale_pixels(TFLiteUpscaler(tmp_path / "mutated.tflite"), LR).shape)
        except UserError as error:
            outcomes.add(f"newline in {error}" if "\n" in str(error) else "refused")
    assert outcomes == {(72, 72, 3), "refused"}


def test_libraries_say_nothing_and_leave_the_home_alone(fixed_file, tmp_path):
    script = ("import sys; from skimage.data import coffee; from paperlib.export.tflite import TFLiteUpscaler\n"
              "from paperlib.export.tf_graph import tensorflow\n"
              "print(TFLiteUpscaler(sys.argv[1])(coffee()[:24, :24]).shape)\n"
              "print('heard', file=sys.stderr); tensorflow().keras.layers")
    done = subprocess.run([sys.executable, "-c", script, str(fixed_file)], capture_output=True, text=True, check=True,
                          env=os.environ | {"HOME": str(tmp_path), "PAPERLIB_CACHE": str(tmp_path / "cache")})
    assert not (tmp_path / ".keras").exists()
    assert done.stdout.strip() == "(72, 72, 3)"
    assert done.stderr.strip() == "heard"


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    student = fuse(Student(StudentSettings(channels=4, blocks=1, init="bilinear")))
    with torch.no_grad():
        student.stem.weight[0, 0, 0, 0] = float("nan")
    path = export_tflite(deployment_graph(student), tmp_path / "nan.tflite")
    with pytest.raises(UserError, match="no numbers"):
        TFLiteUpscaler(path)


def self_reading(model, graph):
    graph.operators[-1].inputs = graph.operators[-1].outputs


def beyond(model, graph):
    graph.operators[0].outputs = np.array([10**9], np.int32)


def written_twice(model, graph):
    graph.operators.insert(1, graph.operators[0])


def constant_written(model, graph):
    graph.operators[0].outputs = graph.operators[0].inputs[1:2]


def too_few(model, graph):
    graph.operators[0].inputs = graph.operators[0].inputs[:1]


def without_output(model, graph):
    graph.outputs = np.array([], np.int32)


def tiny_step(model, graph):
    graph.tensors[graph.operators[0].outputs[0]].quantization.scale = np.array([1e-38], np.float32)


def strided(model, graph):
    graph.operators[0].builtinOptions.strideW = 5


@pytest.mark.parametrize("change", [
    self_reading, beyond, written_twice, constant_written, too_few, without_output, tiny_step, strided])
def test_a_file_that_contradicts_itself_is_one_line_and_no_crash(fixed_file, tmp_path, change, capfd):
    path = changed(fixed_file, tmp_path / "changed.tflite", change)
    (tmp_path / "in").mkdir()
    Image.fromarray(LR).save(tmp_path / "in" / "a.png")
    for command in (["evaluate", path, "--hr", tmp_path / "in"],
                    ["upscale", tmp_path / "in", "--model", path, "--out", tmp_path / "out"]):
        assert main([str(word) for word in command]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "changed.tflite" in line


def test_a_file_whose_input_nothing_reads_is_described(fixed_file, tmp_path):
    def change(model, graph):
        graph.inputs = np.array([*graph.inputs, len(graph.tensors)], np.int32)
        graph.tensors.append(schema.TensorT())
        graph.tensors[-1].shape, graph.tensors[-1].name, graph.tensors[-1].buffer = [1, 5], b"unused", 0

    assert inspect_tflite(changed(fixed_file, tmp_path / "changed.tflite", change))["arena_bytes"] > 0
