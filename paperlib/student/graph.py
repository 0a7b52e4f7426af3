"""The deployed network as data (paper section 5): quantised, rebuilt in TensorFlow, counted.

A `Graph` is a list of nodes in the order of execution, read off a fused model. Each node's output
is one tensor of the shipped file, in PixelShuffle's channel order, which the export permutes once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.settings import SCALE

Images = Sequence[np.ndarray | Tensor]
"""LR pictures, uint8 (h, w, 3), or batches of them, (B, 3, h, w) in 0..255."""
Op = Literal["input", "conv", "prelu", "add", "concat", "repeat", "depth_to_space", "clamp"]
SHARES_GRID = ("concat", "repeat", "depth_to_space", "clamp")
"""Operators that only move values: TFLite wants their output on the grid of their inputs."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operator; its output tensor bears its name.

    conv: weight (O, I/groups, k, k), bias (O,), stride 1, zero padding k//2. prelu: weight (C,).
    repeat: each channel `SCALE`² times in a row. clamp: to 0..255.
    """

    name: str
    op: Op
    inputs: tuple[str, ...] = ()
    weight: Tensor | None = None
    bias: Tensor | None = None
    groups: int = 1
    relu: bool = False  # the operator ends with a ReLU of its own (conv and add)


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in the order of execution, from the image to its ×3 enlargement, both in 0..255."""

    nodes: tuple[Node, ...]

    def __getitem__(self, name: str) -> Node:
        return {node.name: node for node in self.nodes}[name]

    def with_weights(self, weights: dict[str, tuple[Tensor, Tensor]]) -> "Graph":
        """A copy with other (weight, bias), of the same shapes, for the named nodes."""
        return Graph(tuple(
            replace(node, weight=weights[node.name][0], bias=weights[node.name][1])
            if node.name in weights else node for node in self.nodes))


def conv_node(name: str, conv: nn.Conv2d, source: str, relu: bool = False) -> Node:
    weight, bias = conv.weight.detach().clone().contiguous(), conv.bias.detach().clone()
    return Node(name, "conv", (source,), weight, bias, conv.groups, relu)


def _compute(node: Node, inputs: list[Tensor], weight: Tensor | None,
             bias: Tensor | None) -> Tensor:
    match node.op:
        case "conv":
            out = F.conv2d(inputs[0], weight, bias, padding=weight.shape[-1] // 2,
                           groups=node.groups)
        case "prelu":
            out = F.prelu(inputs[0], weight)
        case "add":
            out = inputs[0] + inputs[1]
        case "concat":
            out = torch.cat(inputs, dim=1)
        case "repeat":
            out = inputs[0].repeat_interleave(SCALE**2, dim=1)
        case "depth_to_space":
            out = F.pixel_shuffle(inputs[0], SCALE)
        case "clamp":
            out = torch.clamp(inputs[0], 0.0, 255.0)
    return F.relu(out) if node.relu else out


def run_graph(
    graph: Graph, x_255: Tensor, *,
    weights: Callable[[Node], tuple[Tensor | None, Tensor | None]] | None = None,
    after: Callable[[Node, Tensor], Tensor] | None = None,
    prelu: Callable[[Node, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Execute a graph in PyTorch: (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W) in 0..255.

    Args:
        weights: gives the (weight, bias) a node is computed with; default: its own.
        after: called with every node and its output, returns what the next nodes see:
            fake-quantisation and measurements enter here.
        prelu: computes a PReLU node from (node, input, slopes) in a device's arithmetic.
    """
    tensors: dict[str, Tensor] = {}
    last_use = {source: index for index, node in enumerate(graph.nodes) for source in node.inputs}
    for index, node in enumerate(graph.nodes):
        if node.op == "input":
            out = x_255
        else:
            weight, bias = weights(node) if weights else (node.weight, node.bias)
            inputs = [tensors[source] for source in node.inputs]
            special = prelu and node.op == "prelu"
            out = (prelu(node, inputs[0], weight) if special
                   else _compute(node, inputs, weight, bias))
        tensors[node.name] = after(node, out) if after else out
        for source in set(node.inputs):
            if last_use[source] == index:
                del tensors[source]  # lets a whole photograph through without keeping every map
    return tensors[graph.nodes[-1].name]


def parameters(graph: Graph) -> int:
    """Number of weights and biases the deployed file stores."""
    return sum(value.numel() for node in graph.nodes for value in (node.weight, node.bias)
               if value is not None)


def receptive_radius(graph: Graph) -> int:
    """How many LR pixels away a pixel can change the result: the sum of k//2 of all convolutions
    (exact for a chain, and never too small)."""
    return sum(node.weight.shape[-1] // 2 for node in graph.nodes if node.op == "conv")


def macs_per_lr_pixel(graph: Graph) -> int:
    """Multiply–accumulates per LR pixel: every weight of every convolution, all at LR size."""
    return sum(node.weight.numel() for node in graph.nodes if node.op == "conv")


def image_batch(image: np.ndarray | Tensor) -> Tensor:
    """One of `Images` as float (B, 3, h, w)."""
    if isinstance(image, Tensor):
        return image.float()
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
