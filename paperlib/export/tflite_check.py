"""What a .tflite file would take and whether it can be trusted to run, from its tables alone (paper section 5)."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.errors import UserError
from paperlib.export.flatbuffer import FileGraph, FileOperator

MOST_BYTES = 2 << 30
"""Largest estimated working memory that a file is run with: the shipped ones take 0.4 GB at 1280×720."""


def estimate_bytes(interpreter: Any, height: int, width: int) -> int:
    """Working memory of a file for an input of that size, as far as its operators and tensors tell.

    The largest of: the maps that one operator reads and writes, by the shapes that the file states, and those that its
    kernels must give (channels × pixels), which no stated shape can make smaller.
    """
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    size = {index: math.prod(int(side) for side in t["shape"]) * np.dtype(t["dtype"]).itemsize if len(t["shape"]) else 0
            for index, t in tensors.items()}
    largest = 0
    for operator in interpreter._get_ops_details():
        ends = {int(index) for end in ("inputs", "outputs") for index in operator[end] if int(index) in tensors}
        kernels = [tensors[index]["shape"] for index in ends if len(tensors[index]["shape"]) == 4]
        channels = max((int(shape[0]) for shape in kernels if operator["op_name"] == "CONV_2D"), default=27)
        item = max((np.dtype(tensors[index]["dtype"]).itemsize for index in ends), default=1)
        largest = max(largest, sum(size[index] for index in ends), 2 * height * width * channels * min(item, 4))
    return largest


def check_size(interpreter: Any, path: Path, height: int, width: int) -> None:
    """Refuse an input size for which a file would take more than `MOST_BYTES`, before any of it is taken.

    Raises:
        UserError: it would.
    """
    need = estimate_bytes(interpreter, height, width)
    if need > MOST_BYTES:
        raise UserError(f"{path} would take about {need / 1e9:.1f} GB for its input of {width}×{height} pixels; the "
                        f"limit is {MOST_BYTES / 1e9:.1f} GB. Export it with a smaller input.")


ARITY = {"CONV_2D": (2, 3), "DEPTHWISE_CONV_2D": (2, 3), "TRANSPOSE_CONV": (3, 4), "FULLY_CONNECTED": (2, 3),
         "ADD": (2, 2), "SUB": (2, 2), "MUL": (2, 2), "PRELU": (2, 2), "CONCATENATION": (1, 1000), "QUANTIZE": (1, 1),
         "DEQUANTIZE": (1, 1), "AVERAGE_POOL_2D": (1, 1), "MAX_POOL_2D": (1, 1), "RELU": (1, 1), "RELU6": (1, 1),
         "MINIMUM": (2, 2), "MAXIMUM": (2, 2), "RESIZE_BILINEAR": (2, 2), "RESIZE_NEAREST_NEIGHBOR": (2, 2),
         "DEPTH_TO_SPACE": (1, 1), "SPACE_TO_DEPTH": (1, 1), "RESHAPE": (1, 2), "TRANSPOSE": (2, 2), "PAD": (2, 2),
         "SHAPE": (1, 1), "PACK": (1, 1000), "STRIDED_SLICE": (4, 4), "LEAKY_RELU": (1, 1), "LOGISTIC": (1, 1)}
"""Least and most inputs of operators that pictures go through; each gives one output."""
EXACT = frozenset(("RESHAPE", "TRANSPOSE", "PAD", "SHAPE", "PACK", "STRIDED_SLICE"))
"""Those that move numbers and need no scale."""
STEPS = (1e-12, 1e12)
"""Least and largest step of an 8-bit grid: kernels abort the process where steps cannot be divided."""


def check_tables(graph: FileGraph, path: Path) -> None:
    """Refuse a file whose tables contradict each other, before the interpreter, which trusts them, reads it.

    Raises:
        UserError: a tensor that is not there, is read before it is written or written twice; an operator with too many
            or too few inputs; a grid without its steps.
    """
    try:
        if not graph.operators or not graph.outputs:
            raise ValueError("it holds no operators" if graph.outputs else "it has no output")
        written = {*graph.inputs, *(index for operator in graph.operators for index in operator.outputs)}
        known = {index for index, tensor in enumerate(graph.tensors)
                 if tensor.data is not None or tensor.variable or (0 in tensor.shape and index not in written)}
        _writable(graph.inputs, graph, known)
        for operator in graph.operators:
            _check_operator(operator, graph, known)
        for index in graph.outputs:
            _readable(index, graph, known)
    except ValueError as error:
        raise UserError(f"{path} cannot be run: {error}. Name another file, or export this one again.") from error


def _readable(index: int, graph: FileGraph, known: set[int]) -> None:
    if index not in known:
        raise ValueError(f"tensor {index} of {len(graph.tensors)} is read and nothing writes it before")


def _writable(indices: tuple[int, ...], graph: FileGraph, known: set[int]) -> None:
    """Count tensors as known that are written now."""
    for index in indices:
        if not 0 <= index < len(graph.tensors):
            raise ValueError(f"tensor {index} of {len(graph.tensors)} is written")
        if index in known and not graph.tensors[index].variable:
            raise ValueError(f"tensor {index} is written twice, or is a constant")
        known.add(index)


def _check_operator(operator: FileOperator, graph: FileGraph, known: set[int]) -> None:
    given = [index for index in operator.inputs if index != -1]
    for index in given:
        _readable(index, graph, known)
    _writable(operator.outputs, graph, known)
    if operator.name not in ARITY:
        return
    least, most = ARITY[operator.name]
    if not least <= len(operator.inputs) <= most or len(given) < least or len(operator.outputs) != 1:
        raise ValueError(f"{operator.name} has {len(operator.inputs)} inputs and {len(operator.outputs)} outputs")
    if operator.name in EXACT:
        return
    for index in (*given, *operator.outputs):
        tensor = graph.tensors[index]
        if tensor.type in ("int8", "uint8", "int16") and (
                not tensor.scales or not all(STEPS[0] <= scale <= STEPS[1] for scale in tensor.scales)):
            raise ValueError(f"{operator.name} has the scale {tensor.scales[0] if tensor.scales else 'none'}")
        if len(tensor.scales) > 1 and (not 0 <= tensor.axis < len(tensor.shape)
                                       or len(tensor.scales) != tensor.shape[tensor.axis]):
            raise ValueError(f"{operator.name} has {len(tensor.scales)} scales for {tensor.shape}")


def check_contents(interpreter: Any, path: Path) -> None:
    """Refuse a file that cannot compute anything sensible.

    Raises:
        UserError: no operators, an input without pixels, more than one picture at a time, steps of a scale that are
            none, or weights that are no numbers.
    """
    if not interpreter._get_ops_details():
        raise UserError(f"{path} holds no operators. Name another file, or export this one again.")
    for entry in (*interpreter.get_input_details(), *interpreter.get_output_details()):
        shape = [int(side) for side in entry["shape_signature"]]
        if any(side == 0 or side < -1 for side in shape) or (len(shape) == 4 and shape[0] not in (1, -1)):
            raise UserError(f"{path} cannot be run: {entry['name']} has the shape {shape}. Name another file.")
        scale = entry["quantization"][0]
        if np.dtype(entry["dtype"]).kind in "iu" and not (math.isfinite(scale) and scale > 0):
            raise UserError(f"{path} cannot be run: {entry['name']} has the scale {scale}. Export it again.")
    for tensor in interpreter.get_tensor_details():
        if np.dtype(tensor["dtype"]).kind != "f":
            continue
        try:
            values = interpreter.get_tensor(tensor["index"])
        except ValueError:  # a map: it has no values yet
            continue
        if not np.isfinite(values).all():
            raise UserError(f"{path} has weights that are no numbers, in {tensor['name']}. Export it again.")
