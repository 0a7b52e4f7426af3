"""TFLite files as upscalers: dynamic or fixed shape, INT8 or float (paper sections 5 and 6)."""

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from paperlib.data.tiles import run_padded, run_tiled, to_multiple
from paperlib.environment import silence_native_stderr
from paperlib.errors import UserError
from paperlib.export.flatbuffer import FileGraph, file_reach, read_graph
from paperlib.files import reading, sha256_file
from paperlib.settings import SCALE

MOST_BYTES = 2 << 30
"""Largest estimated working memory that a file is run with: the bundled one takes 0.4 GB at
1280×720."""


def open_interpreter(path: str | Path, threads: int = 1,
                     xnnpack: bool = True) -> tuple[Any, FileGraph]:
    """An interpreter for a .tflite file, tensors not yet allocated, and what the file holds; with
    `xnnpack` that delegate takes what it can, as in every Android app."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    graph = read_graph(path)
    shape = graph.tensors[graph.inputs[0]].shape if graph.inputs else ()
    if len(shape) == 4 and -1 not in shape:
        check_size(graph, path, *shape[1:3])
    kind = "AUTO" if xnnpack else "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
    with reading(path, "a TFLite file"), silence_native_stderr(tell=False):
        return Interpreter(str(path), num_threads=threads,
                           experimental_op_resolver_type=OpResolverType[kind]), graph


def check_size(graph: FileGraph, path: str | Path, height: int, width: int) -> None:
    """Refuse an input size for which a file would take more than `MOST_BYTES`, before it does: by
    the shapes that it states, or by what its kernels must give, whatever it states."""
    need = 0
    for operator in graph.operators:
        ends = [graph.tensors[index] for index in {*operator.inputs, *operator.outputs} - {-1}]
        kernels = [tensor.shape[0] for tensor in ends if len(tensor.shape) == 4]
        channels = max(kernels, default=27) if operator.name == "CONV_2D" else 27
        stated = sum(math.prod(max(side, 1) for side in tensor.shape) * tensor.itemsize
                     for tensor in ends)
        item = max(tensor.itemsize for tensor in ends)
        need = max(need, stated, 2 * height * width * channels * min(item, 4))
    if need > MOST_BYTES:
        raise UserError(f"{path} would take about {need / 1e9:.1f} GB for its input of "
                        f"{width}×{height} pixels; the limit is {MOST_BYTES / 1e9:.1f} GB. Export "
                        "it with a smaller input.")


def allocate(interpreter: Any, graph: FileGraph, path: str | Path, height: int, width: int) -> None:
    """Allocate a file's tensors: open sides of a picture get that size, all others one element."""
    check_size(graph, path, height, width)
    what = f"a TFLite file for {width}×{height} pixels"
    with reading(path, what), silence_native_stderr(tell=False):
        for entry in interpreter.get_input_details():
            shape = [max(1, int(side)) for side in entry["shape_signature"]]
            if -1 in entry["shape_signature"]:
                size = [1, height, width, shape[-1]] if len(shape) == 4 else shape
                interpreter.resize_tensor_input(entry["index"], size)
        interpreter.allocate_tensors()


def grid_peaks(path: str | Path, scales: tuple[float, float]) -> tuple[float, float]:
    """What white is to an integer file's input and output, 255.0 or 1.0, from the steps of both."""
    span, result = (255 * scale for scale in scales)
    if not (0.5 < span < 1.6 or span > 100):
        raise UserError(f"{path} takes values that span {span:.3g}, neither 0..255 nor 0..1. "
                        "Export it with one of those.")
    return 255.0 if span > 100 else 1.0, 255.0 if result > 16 else 1.0


class TFLiteUpscaler:
    """A ×3 upscaler from a .tflite file: uint8 (h, w, 3) → float32 (3h, 3w, 3) in 0..255.

    A dynamic file is resized to each image; a fixed one sees overlapping tiles.

    Args:
        path: file with one (1, H, W, 3) input and one (1, 3H, 3W, 3) output of equal type, RGB.
        overlap: LR pixels that neighbouring tiles of a fixed file share; no seams from twice the
            reach on (the student's is 10). Default: that, and at least 24.
        borders: of a fixed file. "true": what the dynamic file gives; "reflected": the authors'
            padding and tiles (`paperlib.data.tiles.run_padded`).
    """

    def __init__(self, path: str | Path, threads: int = 2, overlap: int | None = None,
                 xnnpack: bool = True, borders: Literal["true", "reflected"] = "true") -> None:
        self.path, self.borders, self.name = Path(path), borders, Path(path).name
        self._threads, self._xnnpack = threads, xnnpack
        self._interpreter, self._graph = open_interpreter(path, threads, xnnpack)
        ends = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._check(*ends)
        self.input, self.output = ends[0][0], ends[1][0]
        height, width = map(int, self.input["shape_signature"][1:3])  # an open batch counts as one
        self.fixed: tuple[int, int] | None = None if -1 in (height, width) else (height, width)
        """Input height and width of a fixed file; None: any size."""
        self._size: tuple[int, int] | None = None
        self.radius, self._stride = file_reach(self._graph)
        """How many LR pixels away a pixel can still change the result; None: not known."""
        self.overlap = max(24, 2 * (self.radius or 0)) if overlap is None else overlap
        self._float = self.input["dtype"] == np.float32
        if not self._float:
            self.peaks = grid_peaks(path, (self.input["quantization"][0],
                                           self.output["quantization"][0]))

    def _check(self, inputs: list[dict], outputs: list[dict]) -> None:
        shapes = [tuple(map(int, end["shape_signature"])) for end in (*inputs, *outputs)]
        kinds = {np.dtype(end["dtype"]).name for end in (*inputs, *outputs)}
        image = all(len(shape) == 4 and shape[3] == 3 for shape in shapes) and len(shapes) == 2
        if not image or kinds not in ({"int8"}, {"uint8"}, {"float32"}):
            raise UserError(
                f"{self.path} is no RGB upscaler: it maps {shapes[: len(inputs)]} to "
                f"{shapes[len(inputs):]} as {', '.join(sorted(kinds))}. Name a ×{SCALE} RGB model.")
        if any(small > 0 and large > 0 and large != SCALE * small
               for small, large in zip(shapes[0][1:3], shapes[1][1:3], strict=True)):
            raise UserError(f"{self.path} does not upscale ×{SCALE}: {shapes[0]} → {shapes[1]}. "
                            f"Name a ×{SCALE} model.")

    @property
    def about(self) -> dict[str, Any]:
        """Provenance: file, hash, interpreter, delegate, threads."""
        return {
            "file": str(self.path), "sha256": sha256_file(self.path),
            "interpreter": "ai_edge_litert", "kernels": "XNNPACK" if self._xnnpack else "built-in",
            "threads": self._threads, "precision": np.dtype(self.input["dtype"]).name,
            "fixed_input": self.fixed, "borders": self.borders, "values": self.values}

    @property
    def stride(self) -> int:
        """Heights, widths and places of tiles are multiples of it, in LR pixels."""
        return 1 if self.fixed and any(side % self._stride for side in self.fixed) else self._stride

    @cached_property
    def peaks(self) -> tuple[float, float]:
        """What white is to its input and to its output: 255.0 or 1.0 each.

        A float file does not say. It enlarges one smooth picture: it takes 0..1 where 0..255 gives
        nothing above 1, or a picture clearly farther from the true one than 0..1 does.
        """
        height, width = self.fixed or [-(-48 // self.stride) * self.stride] * 2
        down, across = (np.arange(SCALE * side, dtype=np.float32) / 48 for side in (height, width))
        waves = np.sin(down[:, None, None] + np.arange(3, dtype=np.float32))
        wanted = 0.5 + 0.3 * (waves * np.cos(across[:, None]))
        lr = wanted[1::SCALE, 1::SCALE]
        far, near = self._run(255 * lr), self._run(lr)
        if far.min() < -0.1 and far.max() <= 1:
            raise UserError(f"{self.path} gives values of -1..1. Export it with 0..255 or 0..1.")
        errors = [np.sqrt(np.mean((np.clip(sr, 0, 1) - wanted)**2)) for sr in (far / 255, near)]
        unit = far.max() <= 1 or (errors[1] < 0.06 and errors[1] < 0.8 * errors[0])
        return (1.0, 1.0) if unit else (255.0, 255.0)

    @property
    def values(self) -> str:
        """Which values the file takes and gives, and how that is known, for people."""
        ends = " to ".join(dict.fromkeys(f"0..{peak:.0f}" for peak in self.peaks))
        return f"{ends} ({'tried on one picture' if self._float else 'by its grid'})"

    @property
    def seams(self) -> str | None:
        """A warning where pictures of another size than a fixed file's can have seams."""
        if not self.fixed or (self.radius is not None and 2 * self.radius < min(self.fixed)):
            return None
        return (f"{self.name} may look at all of its {self.fixed[1]}×{self.fixed[0]} pixels: in "
                "pictures of another size seams can be seen where its tiles meet")

    def quantise(self, lr: np.ndarray) -> np.ndarray:
        """uint8 pixels as the file's input type."""
        scale, zero_point = self.input["quantization"]
        values, peak = lr.astype(np.float32), self.peaks[0]
        if self._float:
            return values if peak == 255 else values / np.float32(255)
        limits = np.iinfo(self.input["dtype"])
        q = np.round(values / np.float32(scale * 255 / peak)) + zero_point
        return np.clip(q, limits.min, limits.max).astype(self.input["dtype"])

    def dequantise(self, raw: np.ndarray) -> np.ndarray:
        """The file's output as float32, clipped to 0..255."""
        scale, zero_point = self.output["quantization"]
        values, peak = raw.astype(np.float32), self.peaks[1]
        if not self._float:
            values = (values - zero_point) * np.float32(scale)
        return np.clip(values if peak == 255 else values * np.float32(255), 0.0, 255.0)

    def _run(self, image: np.ndarray) -> np.ndarray:
        size = image.shape[:2]
        if size != self._size:
            allocate(self._interpreter, self._graph, self.path, *size)
            self._size = size
        with reading(self.path, "a TFLite file that runs"):
            self._interpreter.set_tensor(self.input["index"], image[None])
            self._interpreter.invoke()
            sr = self._interpreter.get_tensor(self.output["index"])[0]
        if sr.shape != (size[0] * SCALE, size[1] * SCALE, 3):
            raise UserError(f"{self.path} made {sr.shape} from {size}. Name a ×{SCALE} model.")
        if sr.dtype == np.float32 and not np.isfinite(sr).all():
            raise UserError(f"{self.path} gave values that are no numbers. Export it again.")
        return sr

    def raw(self, lr: np.ndarray) -> np.ndarray:
        """The file's own numbers: uint8 (h, w, 3) → output type (3h, 3w, 3), not de-quantised."""
        image, (height, width) = to_multiple(self.quantise(lr), self.stride), lr.shape[:2]
        if self.fixed is None:
            return self._run(image)[: SCALE * height, : SCALE * width]
        if self.borders == "reflected":
            return run_padded(self._run, image, *self.fixed)
        most = min(self.fixed) - 1 if self.seams is None else 3 * min(self.fixed) // 4
        overlap = min(-(-self.overlap // self.stride), most // self.stride) * self.stride
        return run_tiled(self._run, image, *self.fixed, overlap)[: SCALE * height, : SCALE * width]

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        return self.dequantise(self.raw(lr))
