"""The deployed network as data (paper section 5): what is quantised, rebuilt in TensorFlow, counted and drawn.

A `Graph` is a list of nodes in the order of execution, read off a fused model. Each node's output is one tensor of the
shipped file. PixelShuffle's channel order is kept here; the export permutes it once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.baselines import ABPN, FSRCNN
from paperlib.blocks import FusedConv, FusedRepDW
from paperlib.student import SCALE, Student

Op = Literal["input", "conv", "prelu", "add", "concat", "repeat", "depth_to_space", "clamp"]
SHARES_GRID = ("concat", "repeat", "depth_to_space", "clamp")
"""Operators whose output must lie on the grid of their inputs (TFLite's rule: they move values, nothing more)."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operator; its output tensor bears its name.

    conv: weight (O, I/groups, k, k), bias (O,), stride 1, zero padding k//2. prelu: weight (C,). repeat: each channel
    `SCALE`² times in a row. clamp: to 0..255.
    """

    name: str
    op: Op
    inputs: tuple[str, ...] = ()
    weight: Tensor | None = None
    bias: Tensor | None = None
    groups: int = 1
    relu: bool = False
    """The operator ends with a ReLU of its own (conv and add)."""


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in the order of execution; the first is the input image, the last its ×3 enlargement, both in 0..255."""

    nodes: tuple[Node, ...]

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def consumers(self, name: str) -> list[Node]:
        """The nodes that read tensor `name`."""
        return [node for node in self.nodes if name in node.inputs]

    def with_weights(self, weights: dict[str, tuple[Tensor, Tensor]]) -> "Graph":
        """A copy with other (weight, bias) for the named nodes, of the same shapes.

        Raises:
            ValueError: an unknown node, or a shape that differs.
        """
        unknown = set(weights) - {node.name for node in self.nodes if node.weight is not None}
        if unknown:
            raise ValueError(f"no weights at {sorted(unknown)}")
        changed = []
        for node in self.nodes:
            if node.name in weights:
                weight, bias = weights[node.name]
                if weight.shape != node.weight.shape or (bias is None) != (node.bias is None):
                    raise ValueError(f"{node.name}: {tuple(weight.shape)} is not {tuple(node.weight.shape)}")
                node = replace(node, weight=weight, bias=bias)
            changed.append(node)
        return Graph(tuple(changed))


def _conv(name: str, conv: nn.Conv2d, source: str, relu: bool = False) -> Node:
    weight, bias = conv.weight.detach().clone().contiguous(), conv.bias.detach().clone()
    return Node(name, "conv", (source,), weight, bias, conv.groups, relu)


def _student_nodes(model: Student) -> list[Node]:
    nodes = [_conv("stem", model.stem, "input")]
    for index, block in enumerate(model.body):
        source, name = nodes[-1].name, f"body.{index}"
        if isinstance(block, FusedConv):
            nodes.append(_conv(f"{name}.conv", block.conv, source, relu=True))
        elif isinstance(block, FusedRepDW):
            nodes.append(_conv(f"{name}.depthwise", block.depthwise, source))
            nodes.append(_conv(f"{name}.pointwise", block.pointwise, nodes[-1].name))
            nodes.append(Node(f"{name}.add", "add", (nodes[-1].name, source), relu=True))
    nodes.append(Node("skip", "add", (nodes[-1].name, "stem")))
    return [*nodes, _conv("head", model.head, "skip")]


def _fsrcnn_nodes(model: FSRCNN) -> list[Node]:
    nodes: list[Node] = []
    for index, (conv, act) in enumerate(zip(model.body, model.act, strict=True)):
        nodes.append(_conv(f"body.{index}", conv, nodes[-1].name if nodes else "input"))
        nodes.append(Node(f"act.{index}", "prelu", (nodes[-1].name,), act.weight.detach().clone()))
    return [*nodes, _conv("head", model.head, nodes[-1].name)]


def _abpn_nodes(model: ABPN) -> list[Node]:
    nodes: list[Node] = []
    for index, conv in enumerate(model.body):
        nodes.append(_conv(f"body.{index}", conv, nodes[-1].name if nodes else "input", relu=True))
    nodes.append(_conv("head", model.head, nodes[-1].name))
    nodes.append(Node("anchor", "repeat", ("input",)))
    return [*nodes, Node("sum", "add", ("head", "anchor"))]


def deployment_graph(model: nn.Module) -> Graph:
    """The deployed graph of a fused model, with copies of its weights; it always ends with the clip to 0..255.

    Raises:
        ValueError: the model is not in form "fused".
    """
    if getattr(model, "form", None) != "fused":
        raise ValueError(f"only a fused model has a deployment graph; this one is {getattr(model, 'form', model)!r}")
    readers = {Student: _student_nodes, FSRCNN: _fsrcnn_nodes, ABPN: _abpn_nodes}
    nodes = readers[type(model)](model)
    shuffle = Node("shuffle", "depth_to_space", (nodes[-1].name,))
    return Graph((Node("input", "input"), *nodes, shuffle, Node("output", "clamp", ("shuffle",))))


def _compute(node: Node, inputs: list[Tensor], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    match node.op:
        case "conv":
            out = F.conv2d(inputs[0], weight, bias, padding=weight.shape[-1] // 2, groups=node.groups)
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
        after: called with every node and its output, returns what the next nodes see; default: the output itself.
            Fake-quantisation and measurements enter here.
        prelu: computes a PReLU node from (node, input, slopes) where a device's arithmetic is wanted.
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
            out = prelu(node, inputs[0], weight) if special else _compute(node, inputs, weight, bias)
        tensors[node.name] = after(node, out) if after else out
        for source in set(node.inputs):
            if last_use[source] == index:
                del tensors[source]  # lets a whole photograph through without keeping every map
    return tensors[graph.nodes[-1].name]


def parameters(graph: Graph) -> int:
    """Number of weights and biases the deployed file stores."""
    return sum(value.numel() for node in graph.nodes for value in (node.weight, node.bias) if value is not None)


def macs_per_lr_pixel(graph: Graph) -> int:
    """Multiply–accumulates per LR pixel: every weight of every convolution once (all run at LR resolution)."""
    return sum(node.weight.numel() for node in graph.nodes if node.op == "conv")
