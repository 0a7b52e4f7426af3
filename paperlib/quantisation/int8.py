"""A graph with its INT8 grids: what quantisation-aware training hands to the export (section 5).

Every activation lies on a grid value = scale·(q − zero_point) with int8 q; every kernel on a
symmetric grid, one scale for the whole kernel (`paper`, QNNPACK) or one per output channel
(`tflite`); biases are int32 on the grid input scale × weight scale. `run_quantised` executes this
in float: the reference that a TFLite file must match.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.student.graph import SHARES_GRID, Graph, Images, Node, image_batch, run_graph

QMIN, QMAX = -128, 127
QW = 127  # largest |int8| of a weight in TFLite
EPS = 2.0**-23  # smallest activation scale; keeps a constant map computable
WEIGHT_EPS = 1e-5
"""Smallest weight scale: in a (nearly) dead channel the bias, on steps of input scale × this, must
still fit int32."""

SAMPLES = 8192
"""Values kept of each tensor and image for the search; minimum and maximum are of all values."""
SHRINK = torch.linspace(0.3, 1.0, 29)  # fractions of the seen extremes that are tried


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
        """x rounded to the grid (half to even) and clipped; straight-through gradient inside."""
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, QMIN, QMAX)


IMAGE_GRID = QParams(1.0, QMIN)  # 8-bit pixels 0..255, exactly


@dataclass(frozen=True, eq=False)
class QuantisedGraph:
    """A graph of learned float weights, every activation's grid, every kernel's scales."""

    graph: Graph
    grids: dict[str, QParams]  # per node that owns a grid (see `qparam_owners`)
    weight_scales: dict[str, Tensor]
    """Per node with weights: (1,) per tensor or (O,) per output channel; float32."""
    quantiser: str  # "paper" or "tflite"

    @cached_property
    def owners(self) -> dict[str, str]:
        """See `qparam_owners`."""
        return qparam_owners(self.graph)

    def grid(self, name: str) -> QParams:
        """The grid on which node `name`'s output lies."""
        return self.grids[self.owners[name]]


def tied(graph: Graph, ops: Sequence[str]) -> dict[str, str]:
    """For every node the first, in the order of execution, of those it is tied to: operators in
    `ops` tie their inputs to their output."""
    first = {node.name: node.name for node in graph.nodes}
    order = list(first)
    for node in graph.nodes:
        if node.op in ops:
            group = {first[name] for name in (node.name, *node.inputs)}
            earliest = min(group, key=order.index)
            first = {name: earliest if old in group else old for name, old in first.items()}
    return first


def qparam_owners(graph: Graph) -> dict[str, str]:
    """For every node, the node whose grid its output lies on: operators that only move values
    (TFLite: CONCATENATION, DEPTH_TO_SPACE, …) share one grid with all their inputs."""
    return tied(graph, SHARES_GRID)


def with_representable_scales(qgraph: QuantisedGraph) -> QuantisedGraph:
    """The same with no step so small that a file could not hold or run it: XNNPACK wants input step
    × weight step / output step below 256 in a convolution, and an addend's step between 2^-10 and
    2^8 of the sum's; a bias must fit int32. Only a map that is zero nearly everywhere comes near.
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


def grid_of_range(low: float, high: float) -> QParams:
    """The int8 grid that covers low … high, with an exact 0 for zero padding and ReLU."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (QMAX - QMIN), EPS)
    return QParams(scale, int(np.clip(round(QMIN - low / scale), QMIN, QMAX)))


def best_grid(values: Tensor, low: float, high: float) -> QParams:
    """The grid with the least mean squared error on `values` (1-D), its range inside low … high."""
    grids = {grid_of_range(a * low, b * high) for b in SHRINK.tolist()
             for a in (SHRINK[::4].tolist() if low < 0 else [0.0])}
    errors = {grid: float((grid.fake(values) - values).square().mean()) for grid in grids}
    return min(errors, key=lambda grid: (errors[grid], grid.scale))


@torch.no_grad()
def calibrate(graph: Graph, images: Images) -> dict[str, QParams]:
    """A grid for every tensor that owns one; image and result always lie on 8-bit pixels."""
    owners = qparam_owners(graph)
    kept: dict[str, list[Tensor]] = {name: [] for name in owners.values()}
    extremes: dict[str, list[float]] = {name: [] for name in kept}
    generator = torch.Generator().manual_seed(0)

    def after(node: Node, out: Tensor) -> Tensor:
        name, flat = owners[node.name], out.reshape(-1)
        picks = torch.randint(flat.numel(), (min(SAMPLES, flat.numel()),), generator=generator)
        kept[name].append(flat[picks])
        extremes[name] += [float(flat.min()), float(flat.max())]
        return out

    for image in images:
        run_graph(graph, image_batch(image), after=after)
    grids = {name: best_grid(torch.cat(parts), min(extremes[name]), max(extremes[name]))
             for name, parts in kept.items()}
    return grids | {owners[node.name]: IMAGE_GRID for node in (graph.nodes[0], graph.nodes[-1])}


def fake_quant_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """A kernel (O, …) rounded to its symmetric int8 grid, straight-through gradient inside the
    range; scale (1,) for the whole kernel or (O,) per output channel."""
    if scale.numel() == 1:
        return torch.fake_quantize_per_tensor_affine(weight, float(scale), 0, QMIN, QW)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, QMIN, QW)


def fake_quant_bias(bias: Tensor, step: Tensor) -> Tensor:
    """A bias rounded to int32 steps of input scale × weight scale; straight-through gradient."""
    rounded = torch.round(bias.detach() / step) * step
    return bias + (rounded - bias.detach())


def quantised_weights(qgraph: QuantisedGraph, node: Node, int32_bias: bool = True,
                      ) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a node as the INT8 file holds them, in float."""
    if node.weight is None:
        return None, None
    scale, bias = qgraph.weight_scales[node.name], node.bias
    if bias is not None and int32_bias:
        bias = fake_quant_bias(bias, scale * qgraph.grid(node.inputs[0]).scale)
    return fake_quant_weight(node.weight, scale), bias


def dequantised_graph(qgraph: QuantisedGraph) -> Graph:
    """The float graph with weights and biases as the INT8 file holds them.

    The latent weights of training are no network of their own: their rounding errors no longer
    cancel, which costs up to 5 dB after `round_to_data`.
    """
    return qgraph.graph.with_weights({node.name: quantised_weights(qgraph, node)
                                      for node in qgraph.graph.nodes if node.weight is not None})


def post_training_graph(qgraph: QuantisedGraph) -> Graph:
    """The float graph that post-training quantisation starts from: under the paper's quantiser the
    latent weights, as the authors exported them (`*_deploy.pt`), else those on their grids."""
    return qgraph.graph if qgraph.quantiser == "paper" else dequantised_graph(qgraph)


def run_quantised(
    qgraph: QuantisedGraph, x_255: Tensor, *, weights: bool = True, activations: bool = True,
    int32_bias: bool = True, after: Callable[[Node, Tensor], Tensor] | None = None,
) -> Tensor:
    """The fake-quant forward: (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W) in 0..255; gradients pass
    straight through every rounding inside its range.

    Args:
        weights, activations: switch one half off to see what the other costs.
        int32_bias: False leaves biases in float, as PyTorch's FX fake-quant does: on the published
            weights a third of the output values differ by one step, with equal PSNR.
        after: as for `run_graph`; sees every output on its grid.
    """
    def rounded(node: Node, out: Tensor) -> Tensor:
        # a tensor that only moved is on its grid already
        if activations and node.op not in SHARES_GRID:
            out = qgraph.grid(node.name).fake(out)
        return after(node, out) if after else out

    def prelu(node: Node, x: Tensor, slopes: Tensor) -> Tensor:
        """As TFLite's integer kernel rounds it; gradient of the float PReLU."""
        before, here = qgraph.grid(node.inputs[0]).scale, qgraph.grid(node.name).scale
        step, out = float(qgraph.weight_scales[node.name]), F.prelu(x, slopes)
        q = (x.detach() / before).round().long()
        product = q * (slopes.detach() / step).round().long().reshape(1, -1, 1, 1)
        steps = torch.where(q >= 0, multiply(q, before / here),
                            multiply(product, before * step / here)).to(x.dtype)
        return out + (steps * here - out.detach())

    compute = (lambda node: quantised_weights(qgraph, node, int32_bias)) if weights else None
    whole = prelu if weights and activations else None
    return run_graph(qgraph.graph, x_255, weights=compute, after=rounded, prelu=whole)


def multiply(values: Tensor, factor: float) -> Tensor:
    """Integers (int64, within int32) times a positive factor as TFLite does it: doubling high
    multiplication by a 31-bit integer, then a rounding shift to the right."""
    fraction, exponent = math.frexp(factor)
    m = round(fraction * 2**31)
    if m == 2**31:
        m, exponent = m // 2, exponent + 1
    product = (values << max(exponent, 0)) * m
    nudge = torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = torch.div(product + nudge, 1 << 31, rounding_mode="trunc")
    shift = max(-exponent, 0)
    mask = (1 << shift) - 1
    threshold = (mask >> 1) + (high < 0).long()
    return (high >> shift) + ((high & mask) > threshold).long()
