"""What a .tflite file would take and whether it can be trusted to run, from its tables alone (paper section 5)."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.errors import UserError

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
