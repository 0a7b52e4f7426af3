"""A .tflite file is looked at before the interpreter has it: a limit, one line, and no library's chatter."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from networks import quantised
from PIL import Image
from skimage.data import coffee

from paperlib.cli import main
from paperlib.errors import UserError
from paperlib.export.convert import export_tflite
from paperlib.export.inspection import describe, inspect_model, inspect_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.settings import StudentSettings
from paperlib.student.models import deployment_graph, fuse_model
from paperlib.student.network import Student
from paperlib.weights import pretrained

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
flatbuffers = pytest.importorskip("flatbuffers")
LR = coffee()[:24, :24]


def student():
    return fuse_model(Student(StudentSettings(channels=4, blocks=1, init="bilinear")))


@pytest.fixture(scope="module")
def fixed_file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("file") / "fixed.tflite"
    return export_tflite(quantised(student(), [LR]), file, 24, 24)


def changed(source, target, change):
    """A copy of a .tflite file, its tables changed by a function."""
    model = schema.ModelT.InitFromPackedBuf(source.read_bytes(), 0)
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(builder.Output())
    return target


def damage(what):
    """A change of a file's tables, by a side of its input or by name."""
    def change(model, graph):
        first, last = graph.operators[0], graph.operators[-1]
        lr, sr = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
        match what:
            case int():
                lr.shape = np.array([1, what, what, 3], np.int32)
                sr.shape = np.array([1, 3 * what, 3 * what, 3], np.int32)
            case "shrunk":  # every feature map stated as 1×1: kernels give what they must all the same
                for tensor in graph.tensors:
                    if len(tensor.shape) == 4 and model.buffers[tensor.buffer].data is None:
                        tensor.shape = np.array([1, 1, 1, 1], np.int32)
                lr.shape = np.array([1, 10_000, 10_000, 3], np.int32)
            case "emptied":
                graph.operators = []
            case "unscaled":
                lr.quantization.scale = np.array([np.nan], np.float32)
            case "misnamed":
                lr.name = b"\xff\xfe\xff"
            case "self reading":
                last.inputs = last.outputs
            case "beyond":
                first.outputs = np.array([10**9], np.int32)
            case "written twice":
                graph.operators.insert(1, first)
            case "constant written":
                first.outputs = first.inputs[1:2]
            case "too few":
                first.inputs = first.inputs[:1]
            case "without output":
                graph.outputs = np.array([], np.int32)
            case "tiny step":
                step = graph.tensors[first.outputs[0]].quantization
                step.scale = np.array([1e-38], np.float32)
            case "strided":
                first.builtinOptions.strideW = 5
            case _:
                raise ValueError(what)

    return change


@pytest.mark.parametrize(("what", "words"), [
    (20_000, r"would take about .* GB .*the limit is 2.1 GB"), (100_000, "the limit is 2.1 GB"),
    ("shrunk", "the limit is 2.1 GB"), (0, "has the shape"), ("emptied", "no operators"),
    ("unscaled", "has the scale nan"), ("misnamed", "not a TFLite file")])
def test_what_cannot_be_run_is_said_before_it_is(fixed_file, tmp_path, what, words):
    path = changed(fixed_file, tmp_path / "changed.tflite", damage(what))
    with pytest.raises(UserError, match=words):
        TFLiteUpscaler(path)
    if what in ("emptied", "misnamed"):  # else `inspect` describes it, and says that
        with pytest.raises(UserError, match=words):
            inspect_tflite(path)
    else:
        assert re.search(words, inspect_tflite(path)["notes"][0])


@pytest.mark.parametrize("what", ["self reading", "beyond", "written twice", "constant written",
                                  "too few", "without output", "tiny step", "strided"])
def test_a_file_that_contradicts_itself_is_one_line_and_no_crash(fixed_file, tmp_path, what, capfd):
    path = changed(fixed_file, tmp_path / "changed.tflite", damage(what))
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(LR).save(folder / "a.png")
    for command in (["evaluate", path, "--hr", folder],
                    ["upscale", folder, "--model", path, "--out", tmp_path / "out"]):
        assert main([str(word) for word in command]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "changed.tflite" in line


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
    fused = student()
    with torch.no_grad():
        fused.stem.weight[0, 0, 0, 0] = float("nan")
    path = export_tflite(deployment_graph(fused), tmp_path / "nan.tflite")
    with pytest.raises(UserError, match="no numbers"):
        TFLiteUpscaler(path)


def test_a_file_whose_input_nothing_reads_is_described(fixed_file, tmp_path):
    def change(model, graph):
        graph.inputs = np.array([*graph.inputs, len(graph.tensors)], np.int32)
        graph.tensors.append(schema.TensorT())
        graph.tensors[-1].shape, graph.tensors[-1].name, graph.tensors[-1].buffer = [1, 5], b"unused", 0

    inputs = inspect_tflite(changed(fixed_file, tmp_path / "changed.tflite", change))["inputs"]
    assert [port["name"] for port in inputs][-1] == "unused"


def test_a_file_for_another_machine_is_described(tmp_path):
    """With operators that the interpreter does not know, as of an accelerator's compiler."""
    def foreign(model, graph):
        code = model.operatorCodes[graph.operators[0].opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = b"my-accelerator-op"

    path = changed(pretrained(), tmp_path / "a.tflite", foreign)
    about, known = inspect_model(path), inspect_model(pretrained())
    assert "my-accelerator-op" in about["operators"]
    assert about["parameters"] <= known["parameters"]
    assert (about["inputs"], about["macs_per_lr_pixel"]) == (known["inputs"], None)
    assert "cannot be run here" in about["notes"][0]
    assert "cannot be run here" in describe(about)
    with pytest.raises(UserError, match="my-accelerator-op"):
        TFLiteUpscaler(path)(np.zeros((9, 9, 3), np.uint8))
