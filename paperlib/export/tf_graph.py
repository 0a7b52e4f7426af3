"""The deployment graph rebuilt in TensorFlow, NHWC, for the TFLite converter (paper section 5).

The last convolution's output channels are permuted once, from PixelShuffle's order (colour,
sub-pixel) to DEPTH_TO_SPACE's (sub-pixel, colour).
"""

import os
from functools import cache
from typing import Any

import numpy as np
from einops import rearrange
from torch import Tensor

from paperlib.environment import cache_dir, silence_native_stderr
from paperlib.quantisation.int8 import QW, QuantisedGraph, quantised_weights
from paperlib.settings import SCALE
from paperlib.student.graph import SHARES_GRID, Graph, Node


@cache
def tensorflow() -> Any:
    """The tensorflow module, imported on first use without its chatter (errors are heard)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # else it writes a keras.json into the user's home
    os.environ.setdefault("KERAS_HOME", str(cache_dir() / "keras"))
    with silence_native_stderr():  # looking for a GPU, it writes of CUDA where there is none
        import tensorflow as tf

        tf.config.list_physical_devices()
    tf.get_logger().setLevel("ERROR")
    return tf


def tile_order(values: Tensor) -> Tensor:
    """Values per output channel (27, …) from PixelShuffle's order to (sub-pixel, colour)."""
    return rearrange(values, "(colour sub) ... -> (sub colour) ...", sub=SCALE**2)


def before_shuffle(graph: Graph) -> set[str]:
    """Names of the nodes from the last convolution to PixelShuffle, whose channels TensorFlow gets
    in another order: `repeat` repeats the whole image (r, g, b, r, g, b, …), not each channel."""
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


class Builder:
    """Computes a graph with TensorFlow operators: (1, H, W, 3) → (1, 3H, 3W, 3) in 0..255, float32.

    A quantised graph has its grids as `fake_quant` operators, which the converter takes as given,
    on the image, every activation and every (already rounded) kernel, and no clamp: the output grid
    saturates. Depthwise kernels and PReLU slopes carry no fake_quant (it has no axis for them): the
    converter then takes max |w| / 127, which is their scale.

    Args:
        upsample: "depth_to_space" is one operator, fast on CPUs, unknown to Arm's NPUs. "rows" is
            the same without it (fixed size only): the last convolution runs as three, one per
            sub-pixel row, (1, H, W, 9) each; laid side by side, (1, H, 3W, 9), they are in memory
            already the rows of (1, 3H, 3W, 3).
    """

    def __init__(self, graph: Graph | QuantisedGraph, upsample: str = "depth_to_space") -> None:
        self.qgraph = graph if isinstance(graph, QuantisedGraph) else None
        self.graph = self.qgraph.graph if self.qgraph else graph
        self.by_rows, self.last = upsample == "rows", before_shuffle(self.graph)

    def __call__(self, x: Any) -> Any:
        tf = tensorflow()
        tensors: dict[str, Any] = {}
        for node in self.graph.nodes:
            if self.by_rows and node.name in self.last:
                continue  # computed row by row below
            if self.by_rows and node.op == "depth_to_space":
                rows = [self._row(node.inputs[0], row, tensors) for row in range(SCALE)]
                size = (1, SCALE * x.shape[1], SCALE * x.shape[2], 3)
                tensors[node.name] = tf.reshape(tf.concat(rows, 2), size)
            elif node.op == "input":
                tensors[node.name] = self._mark(node, x)
            else:
                tensors[node.name] = self._emit(node, [tensors[name] for name in node.inputs])
        return tensors[self.graph.nodes[-1].name]

    def _row(self, name: str, row: int, tensors: dict[str, Any]) -> Any:
        """Sub-pixel row `row` of a node before the shuffle: channels (sub-pixel column, colour),
        (1, H, W, 9)."""
        node = self.graph[name]
        inputs = [self._row(source, row, tensors) if source in self.last else tensors[source]
                  for source in node.inputs]
        return self._emit(node, inputs, slice(9 * row, 9 * (row + 1)))

    def _mark(self, node: Node, out: Any) -> Any:
        """A node's output on its grid."""
        if self.qgraph is None or node.op in SHARES_GRID:
            return out
        grid = self.qgraph.grid(node.name)
        return tensorflow().quantization.fake_quant_with_min_max_args(out, grid.low, grid.high)

    def _weights(self, node: Node, channels: slice) -> tuple[Any, np.ndarray | None]:
        """Kernel (k, k, I, O), depthwise (k, k, C, 1), and bias (O,) of some output channels;
        PReLU: slopes (1, 1, C), None."""
        weight, bias = node.weight, node.bias
        if self.qgraph:
            weight, bias = quantised_weights(self.qgraph, node)
        if node.op == "prelu":
            return weight.numpy().reshape(1, 1, -1), None
        if node.name in self.last:
            weight, bias = tile_order(weight), tile_order(bias)
        order = (2, 3, 0, 1) if node.groups > 1 else (2, 3, 1, 0)
        kernel, bias = weight[channels].permute(order).contiguous().numpy(), bias[channels].numpy()
        return (self._mark_kernel(node, kernel, channels) if self.qgraph else kernel), bias

    def _mark_kernel(self, node: Node, kernel: np.ndarray, channels: slice) -> Any:
        fake, scale = tensorflow().quantization, self.qgraph.weight_scales[node.name]
        if scale.numel() == 1:
            # −128, which TFLite's own quantisers avoid, only where the `paper` quantiser chose it
            lowest = min(-QW, round(float(kernel.min() / scale)))
            low, high = lowest * float(scale), QW * float(scale)
            return fake.fake_quant_with_min_max_args(kernel, low, high, narrow_range=lowest == -QW)
        if node.groups > 1:
            return kernel
        high = QW * (tile_order(scale) if node.name in self.last else scale)[channels].numpy()
        return fake.fake_quant_with_min_max_vars_per_channel(kernel, -high, high, narrow_range=True)

    def _emit(self, node: Node, inputs: list[Any], channels: slice = slice(None)) -> Any:
        """The TensorFlow operators of one node, or of some of its output channels."""
        tf = tensorflow()
        if node.op in ("conv", "prelu"):
            weight, bias = self._weights(node, channels)
        match node.op:
            case "conv" if node.groups > 1:
                out = tf.nn.depthwise_conv2d(inputs[0], weight, (1, 1, 1, 1), "SAME")
                out = tf.nn.bias_add(out, bias)
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
                out = inputs[0] if self.qgraph else tf.minimum(tf.nn.relu(inputs[0]), 255.0)
        return self._mark(node, tf.nn.relu(out) if node.relu else out)
