"""TFLite files as upscalers: ours and the authors', dynamic or fixed shape, INT8 or float (paper sections 5 and 6)."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from paperlib.data.tiles import run_padded, run_tiled
from paperlib.environment import quiet_libraries
from paperlib.errors import UserError
from paperlib.export.flatbuffer import file_radius, read_graph
from paperlib.export.tflite_check import check_contents, check_size, check_tables
from paperlib.files import sha256_file
from paperlib.settings import SCALE


@cache
def interpreter_module() -> tuple[Any, str]:
    """The interpreter's module and its name: `ai_edge_litert` where installed, else TensorFlow's."""
    try:
        from ai_edge_litert import interpreter

        return interpreter, "ai_edge_litert"
    except ImportError:
        from paperlib.export.tf_graph import tensorflow

        return tensorflow().lite, "tf.lite"


def open_interpreter(path: str | Path, threads: int = 1, xnnpack: bool = True) -> Any:
    """An interpreter for a .tflite file, tensors not yet allocated.

    Args:
        xnnpack: let the XNNPACK delegate take what it can (default of every Android app); False: built-in kernels.

    Raises:
        UserError: missing file, not a TFLite model, or one that cannot be run; see `check_contents`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no TFLite file at {path}. Name an existing file, or make one with `paperlib export`.")
    check_tables(read_graph(path), path)
    module, _ = interpreter_module()
    resolver = module.experimental.OpResolverType if hasattr(module, "experimental") else module.OpResolverType
    kind = resolver.AUTO if xnnpack else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        with quiet_libraries(tell=False):
            interpreter = module.Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=kind)
        check_contents(interpreter, path)
    except (ValueError, RuntimeError, MemoryError) as error:  # names that are no UTF-8 are ValueErrors too
        raise UserError(f"{path} is not a TFLite model ({_reason(error)}). Name a .tflite file.") from error
    return interpreter


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def allocate(interpreter: Any, path: Path, height: int, width: int) -> None:
    """Allocate a file's tensors for an input of that size, when it is known what they take.

    Raises:
        UserError: too much, or its operators do not fit each other.
    """
    check_size(interpreter, path, height, width)
    entry = interpreter.get_input_details()[0]
    try:
        with quiet_libraries(tell=False):
            if -1 in entry["shape_signature"]:
                interpreter.resize_tensor_input(entry["index"], [1, height, width, int(entry["shape"][3])])
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path} cannot be run for an image of {width}×{height} pixels ({_reason(error)}). Name "
                        "another file, or export this one again.") from error


def _allocate_least(interpreter: Any, path: Path) -> None:
    """Allocate the tensors of a file that takes no picture, each open side of its inputs with one element."""
    try:
        with quiet_libraries(tell=False):
            for entry in interpreter.get_input_details():
                shape = [max(1, int(side)) for side in entry["shape_signature"]]
                if -1 in entry["shape_signature"]:
                    interpreter.resize_tensor_input(entry["index"], shape)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path} cannot be prepared ({_reason(error)}). It may need another runtime's operators; name "
                        "another file.") from error


class TFLiteUpscaler:
    """A ×3 upscaler from a .tflite file: uint8 (h, w, 3) → float32 (3h, 3w, 3) in 0..255.

    A dynamic file is resized to each image; a fixed one sees overlapping tiles (`paperlib.data.tiles`).

    Args:
        path: INT8 or float file with one (1, H, W, 3) input and one (1, 3H, 3W, 3) output, RGB in 0..255.
        threads: CPU threads.
        overlap: LR pixels that neighbouring tiles of a fixed file share; no seams from twice the
            reach on (the student's is 10).
        xnnpack: False runs the built-in kernels.
        borders: of a fixed file. "true": what the dynamic file gives; "reflected": the authors' padding and tiles
            (`paperlib.data.tiles.run_padded`).

    Raises:
        UserError: missing file, not TFLite, or other inputs and outputs.
    """

    def __init__(self, path: str | Path, threads: int = 2, overlap: int = 24, xnnpack: bool = True,
                 borders: Literal["true", "reflected"] = "true") -> None:
        self.path, self.overlap, self.borders = Path(path), overlap, borders
        self._interpreter = open_interpreter(path, threads, xnnpack)
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._check(inputs, outputs)
        self.input, self.output = inputs[0], outputs[0]
        if -1 not in self.input["shape_signature"]:
            check_size(self._interpreter, self.path, *(int(side) for side in self.input["shape_signature"][1:3]))
        signature = self.input["shape_signature"]
        self.fixed: tuple[int, int] | None = None if -1 in signature else (int(signature[1]), int(signature[2]))
        """Input height and width of a fixed file; None: any size."""
        self._size: tuple[int, int] | None = None
        self.name = self.path.name
        self._threads, self._xnnpack = threads, xnnpack

    def _check(self, inputs: list[dict], outputs: list[dict]) -> None:
        shapes = [tuple(int(size) for size in d["shape_signature"]) for d in (*inputs, *outputs)]
        kinds = {np.dtype(d["dtype"]).name for d in (*inputs, *outputs)}
        image = all(len(shape) == 4 and shape[3] == 3 for shape in shapes) and len(shapes) == 2
        if not image or kinds not in ({"int8"}, {"uint8"}, {"float32"}):
            raise UserError(f"{self.path} is no RGB upscaler: it maps {shapes[: len(inputs)]} to "
                            f"{shapes[len(inputs):]} as {', '.join(sorted(kinds))}. Name a ×{SCALE} RGB model.")
        sizes = list(zip(shapes[0][1:3], shapes[1][1:3], strict=True))
        if any(small > 0 and large > 0 and large != SCALE * small for small, large in sizes if -1 not in shapes[0]):
            raise UserError(f"{self.path} does not upscale ×{SCALE}: {shapes[0]} → {shapes[1]}. Name a ×{SCALE} model.")

    @property
    def about(self) -> dict[str, Any]:
        """Provenance: file, hash, interpreter, delegate, threads."""
        return {
            "file": str(self.path), "sha256": sha256_file(self.path), "interpreter": interpreter_module()[1],
            "kernels": "XNNPACK" if self._xnnpack else "built-in", "threads": self._threads,
            "precision": np.dtype(self.input["dtype"]).name, "fixed_input": self.fixed, "borders": self.borders}

    @property
    def radius(self) -> int | None:
        """How many LR pixels away a pixel can still change the result; None where an operator is not known."""
        return file_radius(read_graph(self.path))

    def quantise(self, lr: np.ndarray) -> np.ndarray:
        """uint8 pixels as the file's input type."""
        scale, zero_point = self.input["quantization"]
        if self.input["dtype"] == np.float32:
            return lr.astype(np.float32)
        limits = np.iinfo(self.input["dtype"])
        q = np.round(lr.astype(np.float32) / np.float32(scale)) + zero_point
        return np.clip(q, limits.min, limits.max).astype(self.input["dtype"])

    def dequantise(self, raw: np.ndarray) -> np.ndarray:
        """The file's output as float32, clipped to 0..255."""
        scale, zero_point = self.output["quantization"]
        values = raw.astype(np.float32)
        if self.output["dtype"] != np.float32:
            values = (values - zero_point) * np.float32(scale)
        return np.clip(values, 0.0, 255.0)

    def _run(self, image: np.ndarray) -> np.ndarray:
        size = image.shape[:2]
        if size != self._size:
            allocate(self._interpreter, self.path, *size)
            self._size = size
        try:
            self._interpreter.set_tensor(self.input["index"], image[None])
            self._interpreter.invoke()
            sr = self._interpreter.get_tensor(self.output["index"])[0]
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{self.path} fails while it runs ({_reason(error)}). Export it again.") from error
        if sr.shape != (size[0] * SCALE, size[1] * SCALE, 3):
            raise UserError(f"{self.path} made {sr.shape} from {size}. Name a ×{SCALE} model.")
        if sr.dtype == np.float32 and not np.isfinite(sr).all():
            raise UserError(f"{self.path} gave values that are no numbers. Export it again.")
        return sr

    def raw(self, lr: np.ndarray) -> np.ndarray:
        """The file's own numbers: uint8 (h, w, 3) → output type (3h, 3w, 3), not de-quantised."""
        image = self.quantise(lr)
        if self.fixed is None:
            return self._run(image)
        if self.borders == "reflected":
            return run_padded(self._run, image, *self.fixed)
        overlap = min(self.overlap, 3 * min(self.fixed) // 4)
        return run_tiled(self._run, image, *self.fixed, overlap)

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        return self.dequantise(self.raw(lr))


def tflite_values(path: str | Path) -> int:
    """Number of weights, biases and slopes that a .tflite file holds: the constants its convolutions and PReLUs read.

    Raises:
        UserError: missing file, or not a TFLite model.
    """
    interpreter = open_interpreter(path, xnnpack=False)
    sizes = {tensor["index"]: int(np.prod(tensor["shape"])) for tensor in interpreter.get_tensor_details()}
    read = {int(index) for operator in interpreter._get_ops_details()
            if operator["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "PRELU")
            for index in operator["inputs"][1:] if index >= 0}
    return sum(sizes[index] for index in read)


def inspect_tflite(path: str | Path, height: int = 720, width: int = 1280) -> dict[str, Any]:
    """Describe a .tflite file without running it.

    Args:
        path: any TFLite model.
        height, width: input size to assume for a file with dynamic shape.

    Returns:
        `operators`: names in the order of execution; `counts`; `tensors`: index, name, type, shape, scales, zero points
        of each tensor; `float_tensors`: names of float tensors (none in a full-INT8 file); `bytes`, `sha256`;
        `inputs`, `outputs`: name, type, shape (-1: open), scale and zero point of each; `input_size`;
        `arena_bytes`: the least memory that holds all maps alive at one moment, at that size.

    Raises:
        UserError: missing file, not a TFLite model, or one with operators that the interpreter does not have.
    """
    interpreter = open_interpreter(path, xnnpack=False)
    entries = interpreter.get_input_details()
    if not entries:
        raise UserError(f"{path} takes no input. Name a model that does.")
    ends = [[_port(entry) for entry in part] for part in (entries, interpreter.get_output_details())]
    picture = len(entries[0]["shape_signature"]) == 4
    if picture and -1 not in entries[0]["shape_signature"]:
        height, width = (int(size) for size in entries[0]["shape"][1:3])
    operators = interpreter._get_ops_details()
    # Shapes behind shape arithmetic are known only to the planner; they need the tensors allocated.
    if picture:
        allocate(interpreter, Path(path), height, width)
    else:
        _allocate_least(interpreter, Path(path))
    entry = interpreter.get_input_details()[0]
    sides = entry["shape"][1:3] if picture else entry["shape"]
    # kernels add scratch tensors of their own, which no operator names
    used = {int(index) for operator in operators for end in ("inputs", "outputs") for index in operator[end]}
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details() if tensor["index"] in used}
    names = [operator["op_name"] for operator in operators]
    return {
        "file": Path(path).name, "bytes": Path(path).stat().st_size, "sha256": sha256_file(path),
        "interpreter": interpreter_module()[1], "input_size": [int(side) for side in sides],
        "dynamic": any(-1 in port["shape"] for port in ends[0]), "inputs": ends[0], "outputs": ends[1],
        "operators": names, "counts": dict(Counter(names)),
        "tensors": [_describe(tensor) for tensor in tensors.values()],
        "float_tensors": [tensor["name"] for tensor in tensors.values() if np.dtype(tensor["dtype"]).kind == "f"],
        "arena_bytes": _arena(interpreter, operators, tensors)}


def _port(entry: dict[str, Any]) -> dict[str, Any]:
    """An input or output as a caller needs it: value = scale·(number − zero point)."""
    scale, zero_point = entry["quantization"]
    integer = np.dtype(entry["dtype"]).kind in "iu" and scale
    return {"name": entry["name"], "type": np.dtype(entry["dtype"]).name,
            "shape": [int(side) for side in entry["shape_signature"]],
            "scale": float(scale) if integer else None, "zero_point": int(zero_point) if integer else None}


def _describe(tensor: dict[str, Any]) -> dict[str, Any]:
    grid = tensor["quantization_parameters"]
    return {
        "index": int(tensor["index"]), "name": tensor["name"], "type": np.dtype(tensor["dtype"]).name,
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
    alive = [sum(size.get(index, 0) for index, first in written.items() if first <= step <= last[index])
             for step in range(len(operators))]
    return max(alive)
