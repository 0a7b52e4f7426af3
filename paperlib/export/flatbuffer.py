"""A .tflite file as plain data, read by the schema of the interpreter; not run (section 5)."""

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.files import reading

LEAST_INPUTS = {"CONV_2D": 2, "CONV_3D": 2, "DEPTHWISE_CONV_2D": 2, "TRANSPOSE_CONV": 3,
                "FULLY_CONNECTED": 2, "BATCH_MATMUL": 2}
"""Of operators whose weights are looked at here."""
STEPS = (1e-12, 1e12)
"""Least and largest scale: kernels abort the process where steps cannot be divided."""
LOCAL = frozenset((
    "ADD", "CAST", "CONCATENATION", "DEQUANTIZE", "GATHER", "MAXIMUM", "MINIMUM", "MUL", "PACK",
    "PAD", "PRELU", "QUANTIZE", "RELU", "RELU6", "RESHAPE", "SHAPE", "SPLIT", "STRIDED_SLICE",
    "SUB", "TILE", "TRANSPOSE"))
"""Operators that, as upscalers use them, look at no neighbouring pixel (TRANSPOSE and RESHAPE:
PixelShuffle)."""


@dataclass(frozen=True, eq=False)
class FileTensor:
    """One tensor of a file; `shape` has -1 where the size is dynamic."""

    name: str
    type: str  # the schema's name of it in small letters; numpy's where numpy has one
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    data: np.ndarray | None
    """The values of a constant, as stored; None for a feature map, which is computed."""
    variable: bool  # whether it keeps its values from one inference to the next

    @property
    def itemsize(self) -> int:
        """Bytes of one value (1 where numpy has no such type)."""
        return np.dtype(self.type).itemsize if self.type in np.sctypeDict else 1


@dataclass(frozen=True)
class FileOperator:
    """One operator: TFLite name, indices of its tensors (-1: an input left out), and options."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class FileGraph:
    """The main graph of a file, operators in the order of execution."""

    operators: tuple[FileOperator, ...]
    tensors: tuple[FileTensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraphs: int


def _ints(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(value) for value in values)


def _tensor(tensor: Any, buffers: list[Any], types: dict[int, str]) -> FileTensor:
    kind, grid = types.get(tensor.type, "unknown").lower(), tensor.quantization
    content, data, scales, zero_points = buffers[tensor.buffer].data, None, (), ()
    if content is not None and len(content) and kind in np.sctypeDict:
        data = np.frombuffer(np.asarray(content, np.uint8).tobytes(), kind)
        data = data.reshape(_ints(tensor.shape))
    if grid is not None:
        scales = () if grid.scale is None else tuple(float(scale) for scale in grid.scale)
        zero_points = _ints(grid.zeroPoint)
    shape = _ints(tensor.shapeSignature) or _ints(tensor.shape)
    return FileTensor((tensor.name or b"").decode("utf-8"), kind, shape, scales, zero_points, data,
                      bool(tensor.isVariable))


def read_graph(path: str | Path, check: bool = True) -> FileGraph:
    """The main graph of a .tflite file, checked for what would crash the interpreter."""
    from ai_edge_litert import schema_py_generated as schema

    with reading(path, "a TFLite file"):
        content = Path(path).read_bytes()
        if content[4:8] != b"TFL3":
            raise ValueError("its identifier is not TFL3")
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        graph = model.subgraphs[0]
        names, types = ({value: name for name, value in vars(kind).items()
                         if isinstance(value, int)}
                        for kind in (schema.BuiltinOperator, schema.TensorType))
        operators = []
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            custom = (code.customCode or b"").decode("utf-8", "replace")
            builtin = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "unknown")
            options = dict(vars(operator.builtinOptions)) if operator.builtinOptions else {}
            operators.append(FileOperator(
                custom or builtin, _ints(operator.inputs), _ints(operator.outputs), options))
        tensors = tuple(_tensor(tensor, model.buffers, types) for tensor in graph.tensors)
        found = FileGraph(tuple(operators), tensors, _ints(graph.inputs), _ints(graph.outputs),
                          len(model.subgraphs))
        if check:
            _check(found)
    return found


def _check(graph: FileGraph) -> None:
    """Refuse what kernels abort the process for: tensors read before they are written, or written
    twice; ends or steps that are none; weights that are no numbers."""
    if not all((graph.operators, graph.outputs, *(part.outputs for part in graph.operators))):
        raise ValueError("it has no operators or no output")
    written = {*graph.inputs, *(index for part in graph.operators for index in part.outputs)}
    known = {index for index, tensor in enumerate(graph.tensors) if tensor.data is not None
             or tensor.variable or (0 in tensor.shape and index not in written)}
    for part in (FileOperator("the graph", (), graph.inputs, {}), *graph.operators):
        if not set(part.inputs) - {-1} <= known:
            raise ValueError(f"{part.name} reads a tensor that nothing has written")
        if len(part.inputs) < LEAST_INPUTS.get(part.name, 0):
            raise ValueError(f"{part.name} has {len(part.inputs)} inputs")
        if len(set(part.outputs) - known) < len(part.outputs):
            raise ValueError(f"{part.name} writes a constant, or a tensor twice")
        known |= set(part.outputs)
    if not set(graph.outputs) <= known or not known <= set(range(len(graph.tensors))):
        raise ValueError("nothing writes its output, or a tensor is none of the file's")
    for index, tensor in enumerate(graph.tensors):
        scales = tensor.scales if tensor.type != "int32" else ()
        if not all(STEPS[0] <= scale <= STEPS[1] for scale in scales):
            raise ValueError(f"{tensor.name} has the scale {min(scales)}")
        stored = tensor.data if tensor.type.startswith("float") else None
        if stored is not None and not np.isfinite(stored).all():
            raise ValueError(f"weights that are no numbers in {tensor.name}")
        if index in (*graph.inputs, *graph.outputs):
            batch = tensor.shape[0] if len(tensor.shape) == 4 else 1
            if any(side == 0 or side < -1 for side in tensor.shape) or batch not in (1, -1):
                raise ValueError(f"{tensor.name} has the shape {list(tensor.shape)}")
            if tensor.type in ("int8", "uint8", "int16") and not tensor.scales:
                raise ValueError(f"{tensor.name} has no scale")


def file_reach(graph: FileGraph) -> tuple[int | None, int]:
    """How many input pixels away a pixel can still change the result (None: unbounded or not
    known), and the largest stride, in input pixels."""
    # per computed map: how far its pixels have looked, and how many input pixels one step in it is
    seen: dict[int, tuple[Fraction | None, Fraction]] = {
        index: (Fraction(0), Fraction(1)) for index in graph.inputs}
    for operator in graph.operators:
        known = [seen[index] for index in operator.inputs if index in seen]
        if not known:
            continue
        step = max(step for _, step in known)
        size, stride = _window(operator, graph)
        looked = [radius for radius, _ in known]
        radius = None if size is None or None in looked else max(looked) + step * size
        seen |= dict.fromkeys(operator.outputs, (radius, step * stride))
    ends = [seen[index][0] for index in graph.outputs if index in seen]
    # one of hundreds of pixels is a pooling over the whole map
    stride = math.lcm(*(math.ceil(step) for _, step in seen.values() if step <= 64))
    return (None if not ends or None in ends else math.ceil(max(ends))), stride


def _window(operator: FileOperator, graph: FileGraph) -> tuple[int | None, Fraction]:
    """Pixels that an operator looks to either side (None: all of them), and its stride."""
    options = operator.options
    stride = max(options.get("strideH", 1), options.get("strideW", 1))
    match operator.name:
        case "CONV_2D" | "DEPTHWISE_CONV_2D" | "AVERAGE_POOL_2D" | "MAX_POOL_2D":
            if "CONV" in operator.name:
                sides = graph.tensors[operator.inputs[1]].shape[1:3]
                size = max((side - 1) * options[f"dilation{axis}Factor"] + 1
                           for side, axis in zip(sides, "HW", strict=True))
            else:
                size = max(options["filterHeight"], options["filterWidth"])
            # from any of the `stride` pixels that its one result stands for
            looked = max(stride - 1 + (size - 1) // 2, size - 1 - max(0, size - stride) // 2)
            return looked, Fraction(stride)
        case "TRANSPOSE_CONV":
            sides = graph.tensors[operator.inputs[1]].shape[1:3]
            return -(-max(sides) // stride), Fraction(1, stride)
        case "RESIZE_BILINEAR" | "RESIZE_NEAREST_NEIGHBOR":  # enlarges, by how much a run tells
            return 1, Fraction(1)
        case "DEPTH_TO_SPACE":
            return 0, Fraction(1, options["blockSize"])
        case "SPACE_TO_DEPTH":
            return options["blockSize"] - 1, Fraction(options["blockSize"])
    return (0 if operator.name in LOCAL else None), Fraction(1)
