"""A graph together with its INT8 grids: what quantisation-aware training hands to the export (paper section 5).

Every activation lies on a grid value = scale·(q − zero_point) with int8 q; every kernel on a symmetric grid, one scale
for the whole kernel (`paper`, QNNPACK) or one per output channel (`tflite`); biases are int32 on the grid
input scale × weight scale. `run_quantised` executes this in float: the reference that a TFLite file must match.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.student.graph import SHARES_GRID, Graph, Node, run_graph

QMIN, QMAX = -128, 127
QW = 127
"""Largest |int8| of a weight in TFLite."""
EPS = 2.0**-23
"""Smallest activation scale; keeps a constant map computable."""
WEIGHT_EPS = 1e-5
"""Smallest weight scale: in a (nearly) dead channel the bias, on steps of input scale × this, must still fit int32."""


@dataclass(frozen=True)
class QParams:
    """An int8 grid: value = scale·(q − zero_point), q in −128..127."""

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """Smallest value on the grid."""
        return self.scale * (QMIN - self.zero_point)

    @property
    def high(self) -> float:
        """Largest value on the grid."""
        return self.scale * (QMAX - self.zero_point)

    def fake(self, x: Tensor) -> Tensor:
        """x rounded to the grid (half to even) and clipped to it; straight-through gradient inside the range."""
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, QMIN, QMAX)


IMAGE_GRID = QParams(1.0, QMIN)
"""8-bit pixels 0..255, exactly."""


@dataclass(frozen=True, eq=False)
class QuantisedGraph:
    """A graph with learned float weights, the grid of every activation and the scale(s) of every kernel."""

    graph: Graph
    grids: dict[str, QParams]
    """Per node that owns a grid (see `qparam_owners`)."""
    weight_scales: dict[str, Tensor]
    """Per node with weights: (1,) per tensor or (O,) per output channel; float32."""
    quantiser: str
    """"paper" or "tflite"."""

    @cached_property
    def owners(self) -> dict[str, str]:
        """See `qparam_owners`."""
        return qparam_owners(self.graph)

    def grid(self, name: str) -> QParams:
        """The grid on which node `name`'s output lies."""
        return self.grids[self.owners[name]]


def qparam_owners(graph: Graph) -> dict[str, str]:
    """For every node, the node whose grid its output lies on.

    Operators that only move values (TFLite: CONCATENATION, DEPTH_TO_SPACE, …) share one grid with all their inputs; the
    first node of such a group in the order of execution owns it.
    """
    owner = {node.name: node.name for node in graph.nodes}

    def root(name: str) -> str:
        while owner[name] != name:
            name = owner[name]
        return name

    order = {node.name: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op in SHARES_GRID:
            members = sorted({root(name) for name in (node.name, *node.inputs)}, key=order.__getitem__)
            for member in members:
                owner[member] = members[0]
    return {name: root(name) for name in owner}


def with_representable_scales(qgraph: QuantisedGraph) -> QuantisedGraph:
    """The same with no step so small that a file could not hold or run it (source: XNNPACK's checks; int32 biases).

    XNNPACK wants input step × weight step / output step below 256 in a convolution, and an addend's step between 2^-10
    and 2^8 of the sum's; a bias must fit int32. Only a map that is zero nearly everywhere, of a network whose block has
    died, comes near that.
    """
    owners, grids = qgraph.owners, dict(qgraph.grids)
    fixed = {owners[qgraph.graph.nodes[0].name], owners[qgraph.graph.nodes[-1].name]}

    def at_least(name: str, scale: float) -> None:
        owner = owners[name]
        if owner not in fixed and grids[owner].scale < scale:
            grids[owner] = QParams(scale, grids[owner].zero_point)

    for node in qgraph.graph.nodes:
        if node.op == "conv":
            scales = qgraph.weight_scales[node.name]
            if node.bias is not None:
                at_least(node.inputs[0], float((node.bias.detach().abs() / scales).max()) / 2**30)
            at_least(node.name, grids[owners[node.inputs[0]]].scale * float(scales.max()) / 128)
        elif node.op == "add":
            for name in node.inputs:
                at_least(name, grids[owners[node.name]].scale / 512)
                at_least(node.name, grids[owners[name]].scale / 128)
    return replace(qgraph, grids=grids)


def channel_scales(weight: Tensor) -> Tensor:
    """TFLite's weight scales: largest |w| of each output channel / 127, (O,), without gradient."""
    peak = weight.detach().abs().flatten(1).amax(1)
    return torch.clamp(peak / QW, min=WEIGHT_EPS)


def fake_quant_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """A kernel rounded to its symmetric int8 grid in −127..127; straight-through gradient inside the range.

    Args:
        weight: (O, …); scale: (1,) for the whole kernel or (O,) per output channel.
    """
    if scale.numel() == 1:
        return torch.fake_quantize_per_tensor_affine(weight, float(scale), 0, QMIN, QW)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, QMIN, QW)


def fake_quant_bias(bias: Tensor, step: Tensor) -> Tensor:
    """A bias rounded to int32 steps of input scale × weight scale ((1,) or (O,)); straight-through gradient."""
    rounded = torch.round(bias.detach() / step) * step
    return bias + (rounded - bias.detach())


def quantised_weights(
    qgraph: QuantisedGraph, node: Node, int32_bias: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a node as the INT8 file holds them, in float."""
    if node.weight is None:
        return None, None
    scale = qgraph.weight_scales[node.name]
    weight = fake_quant_weight(node.weight, scale)
    if node.bias is None or not int32_bias:
        return weight, node.bias
    return weight, fake_quant_bias(node.bias, scale * qgraph.grid(node.inputs[0]).scale)


def dequantised_graph(qgraph: QuantisedGraph) -> Graph:
    """The float graph with weights and biases as the INT8 file holds them; only the activations are not rounded.

    What a quantised student is in float. The latent weights of training are no network of their own: each lies within
    half a step of its grid value, but their errors no longer cancel, which costs up to 5 dB after `round_to_data`.
    """
    return qgraph.graph.with_weights(
        {node.name: quantised_weights(qgraph, node) for node in qgraph.graph.nodes if node.weight is not None})


def post_training_graph(qgraph: QuantisedGraph) -> Graph:
    """The float graph that post-training quantisation starts from: what the paper's way makes its INT8 file of.

    Under the paper's quantiser that is the latent float weights, as the authors exported them (`*_deploy.pt`); under
    `tflite`, whose latent weights are no network of their own, the weights on their grids.
    """
    return qgraph.graph if qgraph.quantiser == "paper" else dequantised_graph(qgraph)


def fake_prelu(x: Tensor, slopes: Tensor, slope_scale: float, before: QParams, after: QParams) -> Tensor:
    """PReLU as TFLite's integer kernel rounds it, on values of the `before` grid; gradient of the float PReLU.

    Args:
        slopes: (C,), already rounded to steps of `slope_scale`.
    """
    out = F.prelu(x, slopes)
    steps = prelu_steps(x.detach() / before.scale, slopes / slope_scale, before.scale, slope_scale, after.scale)
    return out + (steps * after.scale - out.detach())


def run_quantised(
    qgraph: QuantisedGraph, x_255: Tensor, *, weights: bool = True, activations: bool = True,
    int32_bias: bool = True, observe: Callable[[Node, Tensor], Tensor] | None = None,
) -> Tensor:
    """The fake-quant forward: (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W) in 0..255.

    Training runs through it too: gradients pass straight through every rounding inside its range.

    Args:
        weights, activations: switch one half off to see what the other costs (drop decomposition).
        int32_bias: False leaves biases in float, as PyTorch's FX fake-quant does. The difference is at most half a
            step of the accumulator, yet in a deep network a tipped rounding here and there spreads: on the published
            weights about a third of the output values differ by one step, with equal PSNR.
        observe: called with every node and its output on its grid; returns what is passed on.
    """
    def after(node: Node, out: Tensor) -> Tensor:
        # a tensor that only moved is on its grid already
        if activations and node.op not in SHARES_GRID:
            out = qgraph.grid(node.name).fake(out)
        return observe(node, out) if observe else out

    def prelu(node: Node, x: Tensor, slopes: Tensor) -> Tensor:
        slope_scale = float(qgraph.weight_scales[node.name])
        return fake_prelu(x, slopes, slope_scale, qgraph.grid(node.inputs[0]), qgraph.grid(node.name))

    compute = (lambda node: quantised_weights(qgraph, node, int32_bias)) if weights else None
    whole = prelu if weights and activations else None
    return run_graph(qgraph.graph, x_255, weights=compute, after=after, prelu=whole)


def fixed_point(multiplier: float) -> tuple[int, int]:
    """A positive factor as (m, exponent): factor ≈ m·2^(exponent − 31), m a 31-bit integer."""
    fraction, exponent = math.frexp(multiplier)
    m = round(fraction * 2**31)
    return (m // 2, exponent + 1) if m == 2**31 else (m, exponent)


def multiply(values: Tensor, multiplier: float) -> Tensor:
    """Integers times a factor as TFLite does it: doubling high multiplication, then a rounding shift to the right.

    Args:
        values: int64, within int32.
    """
    m, exponent = fixed_point(multiplier)
    product = (values << max(exponent, 0)) * m
    nudge = torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = torch.div(product + nudge, 1 << 31, rounding_mode="trunc")
    shift = max(-exponent, 0)
    mask = (1 << shift) - 1
    threshold = (mask >> 1) + (high < 0).long()
    return (high >> shift) + ((high & mask) > threshold).long()


def prelu_steps(q: Tensor, slopes: Tensor, scale_in: float, slope_scale: float, scale_out: float) -> Tensor:
    """PRELU on integers.

    Args:
        q: input in steps of `scale_in` above its zero point, whole numbers, (B, C, H, W).
        slopes: in steps of `slope_scale`, whole numbers, (C,).

    Returns:
        Output in steps of `scale_out` above its zero point, not yet clipped, float like `q`.
    """
    whole = q.detach().round().long()
    negative = multiply(whole * slopes.detach().round().long().reshape(1, -1, 1, 1), scale_in * slope_scale / scale_out)
    return torch.where(whole >= 0, multiply(whole, scale_in / scale_out), negative).to(q.dtype)
