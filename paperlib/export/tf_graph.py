"""The deployment graph rebuilt in TensorFlow, NHWC, for the TFLite converter (paper section 5).

The learnt grids enter as `fake_quant` operators, which the converter takes as given; no calibration happens. The last
convolution's output channels are permuted once, from PixelShuffle's order (colour, sub-pixel) to DEPTH_TO_SPACE's
(sub-pixel, colour). TensorFlow is imported only when something is built.
"""

import os
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from paperlib.environment import cache_dir, silence_native_stderr
from paperlib.quantisation.int8 import QW, QuantisedGraph, quantised_weights
from paperlib.settings import SCALE
from paperlib.student.graph import SHARES_GRID, Graph, Node


@cache
def tensorflow() -> Any:
    """The tensorflow module, imported on first use, with its start-up chatter (not its errors) silenced."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_HOME", str(cache_dir() / "keras"))  # else it writes a keras.json into the user's home
    with silence_native_stderr():  # looking for a GPU, it writes of CUDA where there is none
        import tensorflow as tf

        tf.config.list_physical_devices()
    tf.get_logger().setLevel("ERROR")
    return tf


def tile_order(values: Tensor) -> Tensor:
    """Values per output channel (27, …) from PixelShuffle's order (colour, sub-pixel) to (sub-pixel, colour)."""
    return values.reshape(-1, SCALE**2, *values.shape[1:]).transpose(0, 1).flatten(0, 1)


def before_shuffle(graph: Graph) -> set[str]:
    """Names of the nodes whose channels are (colour, sub-pixel): from the last convolution to PixelShuffle.

    TensorFlow gets them in (sub-pixel, colour) order: convolutions are permuted, and `repeat` repeats the whole image
    (r, g, b, r, g, b, …) instead of each channel.
    """
    names: set[str] = set()
    waiting = [node.inputs[0] for node in graph.nodes if node.op == "depth_to_space"]
    while waiting:
        node = graph[waiting.pop()]
        names.add(node.name)
        if node.op == "add":
            waiting.extend(node.inputs)
        elif node.op not in ("conv", "repeat"):
            raise ValueError(f"cannot reorder the channels of {node.op} {node.name}")
    return names


class FloatBuilder:
    """Computes a graph with TensorFlow operators: (1, H, W, 3) in 0..255 → (1, 3H, 3W, 3) in 0..255, float32.

    Args:
        graph: deployment graph.
        upsample: "depth_to_space" is one operator, fast on CPUs, unknown to Arm's NPUs. "rows" is the same without it
            (fixed size only): the last convolution runs as three, one per sub-pixel row, (1, H, W, 9) each; laid side
            by side, (1, H, 3W, 9), they are in memory already the rows of (1, 3H, 3W, 3).
    """

    def __init__(self, graph: Graph, upsample: str = "depth_to_space") -> None:
        if upsample not in ("depth_to_space", "rows"):
            raise ValueError(f"upsample is depth_to_space or rows, not {upsample!r}")
        self.graph, self.upsample, self.last = graph, upsample, before_shuffle(graph)

    def __call__(self, x: Any) -> Any:
        tf = tensorflow()
        tensors: dict[str, Any] = {}
        for node in self.graph.nodes:
            if self.upsample == "rows" and node.name in self.last:
                continue  # computed row by row below
            if self.upsample == "rows" and node.op == "depth_to_space":
                rows = tf.concat([self.row(node.inputs[0], row, tensors) for row in range(SCALE)], 2)
                tensors[node.name] = tf.reshape(rows, (1, SCALE * x.shape[1], SCALE * x.shape[2], 3))
                continue
            out = x if node.op == "input" else self.emit(node, [tensors[name] for name in node.inputs])
            tensors[node.name] = self.mark(node, out)
        return tensors[self.graph.nodes[-1].name]

    def row(self, name: str, row: int, tensors: dict[str, Any]) -> Any:
        """Sub-pixel row `row` of a node before the shuffle: its channels (sub-pixel column, colour), (1, H, W, 9)."""
        node = self.graph[name]
        inputs = [self.row(source, row, tensors) if source in self.last else tensors[source] for source in node.inputs]
        return self.mark(node, self.emit(node, inputs, slice(9 * row, 9 * (row + 1))))

    def layout(
        self, node: Node, weight: Tensor, bias: Tensor | None, channels: slice,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Kernel (k, k, I, O), depthwise (k, k, C, 1), and bias (O,) for TensorFlow; PReLU: slopes (1, 1, C), None."""
        if node.op == "prelu":
            return weight.numpy().reshape(1, 1, -1), None
        if node.name in self.last:
            weight, bias = tile_order(weight), tile_order(bias)
        order = (2, 3, 0, 1) if node.groups > 1 else (2, 3, 1, 0)
        return weight[channels].permute(order).contiguous().numpy(), bias[channels].numpy()

    def weights(self, node: Node, channels: slice) -> tuple[Any, np.ndarray | None]:
        """Kernel and bias of some output channels of a node, in `layout`."""
        return self.layout(node, node.weight, node.bias, channels)

    def mark(self, node: Node, out: Any) -> Any:
        """Hook: what follows a node's output."""
        return out

    def clamp(self, x: Any) -> Any:
        """The last clip to 0..255."""
        tf = tensorflow()
        return tf.minimum(tf.nn.relu(x), 255.0)

    def emit(self, node: Node, inputs: list[Any], channels: slice = slice(None)) -> Any:
        """The TensorFlow operators of one node, or of some of its output channels."""
        tf = tensorflow()
        if node.op in ("conv", "prelu"):
            weight, bias = self.weights(node, channels)
        match node.op:
            case "conv" if node.groups > 1:
                out = tf.nn.bias_add(tf.nn.depthwise_conv2d(inputs[0], weight, (1, 1, 1, 1), "SAME"), bias)
            case "conv":
                out = tf.nn.bias_add(tf.nn.conv2d(inputs[0], weight, 1, "SAME"), bias)
            case "prelu":  # the form, slopes (1, 1, C) included, that the converter knows as PRELU
                out = tf.nn.relu(inputs[0]) + -weight * tf.nn.relu(-inputs[0])
            case "add":
                out = inputs[0] + inputs[1]
            case "concat":
                out = tf.concat(inputs, -1)
            case "repeat":
                copies = len(range(3 * SCALE**2)[channels]) // 3
                out = tf.concat([inputs[0]] * copies, -1)
            case "depth_to_space":
                out = tf.nn.depth_to_space(inputs[0], SCALE)
            case "clamp":
                out = self.clamp(inputs[0])
        return tf.nn.relu(out) if node.relu else out


class Int8Builder(FloatBuilder):
    """The same with the learnt grids as `fake_quant` operators on the image, every activation and every kernel.

    Kernels are handed over already rounded. Depthwise kernels and PReLU slopes carry no fake_quant (it has no axis for
    them): the converter then takes max |w| / 127, which is their scale. No clamp: the output grid saturates.
    """

    def __init__(self, qgraph: QuantisedGraph, upsample: str = "depth_to_space") -> None:
        super().__init__(qgraph.graph, upsample)
        self.qgraph = qgraph

    def weights(self, node: Node, channels: slice) -> tuple[Any, np.ndarray | None]:
        fake = tensorflow().quantization
        weight, bias = self.layout(node, *quantised_weights(self.qgraph, node), channels)
        scale = self.qgraph.weight_scales[node.name]
        if node.op == "prelu" or (node.groups > 1 and scale.numel() > 1):
            return weight, bias
        if scale.numel() == 1:
            # −128, which TFLite's own quantisers avoid, only where the `paper` quantiser chose it
            lowest = min(-QW, round(float(weight.min() / scale)))
            low, high = lowest * float(scale), QW * float(scale)
            return fake.fake_quant_with_min_max_args(weight, low, high, narrow_range=lowest == -QW), bias
        high = QW * (tile_order(scale) if node.name in self.last else scale)[channels].numpy()
        return fake.fake_quant_with_min_max_vars_per_channel(weight, -high, high, narrow_range=True), bias

    def mark(self, node: Node, out: Any) -> Any:
        if node.op in SHARES_GRID:
            return out
        grid = self.qgraph.grid(node.name)
        return tensorflow().quantization.fake_quant_with_min_max_args(out, grid.low, grid.high)

    def clamp(self, x: Any) -> Any:
        return x
