"""What is inside a .tflite file: operators, tensors, grids, memory (paper section 5; the audit's operator lists)."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.files import sha256_file
from paperlib.tflite import interpreter_module, open_interpreter


def inspect_tflite(path: str | Path, height: int = 720, width: int = 1280) -> dict[str, Any]:
    """Describe a .tflite file without running it.

    Args:
        path: any TFLite model.
        height, width: input size to assume for a file with dynamic shape.

    Returns:
        `operators`: names in the order of execution; `counts`; `tensors`: name, type, shape, scales, zero points of
        each tensor; `float_tensors`: names of float tensors (none in a full-INT8 file); `bytes`, `sha256`;
        `input_size`; `arena_bytes`: the least memory that holds all maps alive at one moment, at that input size.

    Raises:
        UserError: missing file, or not a TFLite model.
    """
    interpreter = open_interpreter(path, xnnpack=False)
    entry = interpreter.get_input_details()[0]
    if -1 in entry["shape_signature"]:
        interpreter.resize_tensor_input(entry["index"], [1, height, width, int(entry["shape"][3])])
    else:
        height, width = (int(size) for size in entry["shape"][1:3])
    operators = interpreter._get_ops_details()
    # Shapes behind shape arithmetic are known only to the planner; they need the tensors allocated.
    interpreter.allocate_tensors()
    # kernels add scratch tensors of their own, which no operator names
    used = {int(index) for operator in operators for end in ("inputs", "outputs") for index in operator[end]}
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details() if tensor["index"] in used}
    names = [operator["op_name"] for operator in operators]
    return {
        "file": Path(path).name, "bytes": Path(path).stat().st_size, "sha256": sha256_file(path),
        "interpreter": interpreter_module()[1], "input_size": [height, width],
        "dynamic": bool(-1 in entry["shape_signature"]),
        "operators": names, "counts": dict(Counter(names)),
        "tensors": [_describe(tensor) for tensor in tensors.values()],
        "float_tensors": [tensor["name"] for tensor in tensors.values() if np.dtype(tensor["dtype"]).kind == "f"],
        "arena_bytes": _arena(interpreter, operators, tensors)}


def _describe(tensor: dict[str, Any]) -> dict[str, Any]:
    grid = tensor["quantization_parameters"]
    return {
        "name": tensor["name"], "type": np.dtype(tensor["dtype"]).name,
        "shape": [int(size) for size in tensor["shape"]],
        "scales": [float(scale) for scale in grid["scales"]],
        "zero_points": sorted({int(zero) for zero in grid["zero_points"]}),
        "axis": int(grid["quantized_dimension"])}


def _arena(interpreter: Any, operators: list[dict], tensors: dict[int, dict]) -> int:
    """Largest sum of the sizes of maps alive during one operator; constants are not maps."""
    size = {index: int(np.prod(t["shape"])) * np.dtype(t["dtype"]).itemsize for index, t in tensors.items()}
    written = {int(index): step for step, operator in enumerate(operators) for index in operator["outputs"]}
    for entry in interpreter.get_input_details():
        written[entry["index"]] = 0
    last = dict(written)
    for step, operator in enumerate(operators):
        for index in operator["inputs"]:
            if int(index) in last:
                last[int(index)] = step
    for result in interpreter.get_output_details():
        last[result["index"]] = len(operators) - 1
    alive = [sum(size[index] for index, first in written.items() if first <= step <= last[index])
             for step in range(len(operators))]
    return max(alive)
