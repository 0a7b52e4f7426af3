"""Quantiser `tflite`: fake-quantisation that is TFLite's INT8 arithmetic (paper section 4; rules of section 5).

Weights: symmetric, −127..127, one scale per output channel from its largest weight. Activations: int8 per tensor, the
range calibrated by least squares and then kept (learned step sizes gave nothing: `tried.md`). Biases: int32.
Image and result: 8-bit pixels. ADD has its own grid; what only moves values (PixelShuffle, concatenation) has none.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paperlib.quantisation.int8 import (
    IMAGE_GRID,
    QParams,
    QuantisedGraph,
    channel_scales,
    qparam_owners,
    run_quantised,
    with_representable_scales,
)
from paperlib.student.graph import Graph
from paperlib.student.models import deployment_graph


class Kernel(nn.Module):
    """Latent float weight and bias of one node."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())


def _key(name: str) -> str:
    return name.replace(".", "_")


class TfliteQat(nn.Module):
    """A graph under TFLite's arithmetic; (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W), whole numbers.

    Args:
        fused: the model in form "fused" that the graph computes.
        grids: the activations' grids, per owner (`calibrate`); image and result have their own.
        graph: where it is not `deployment_graph(fused)`: an equal one, without ADD for instance.
    """

    quantiser = "tflite"

    def __init__(
        self, fused: nn.Module, grids: Mapping[str, QParams], graph: Graph | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.form, self.clamp = fused.settings, "qat", True
        self.graph = graph or deployment_graph(fused)
        self.kernels = nn.ModuleDict({
            _key(node.name): Kernel(node.weight, node.bias)
            for node in self.graph.nodes if node.weight is not None})
        owners = qparam_owners(self.graph)
        ends = {owners[node.name]: IMAGE_GRID for node in (self.graph.nodes[0], self.graph.nodes[-1])}
        self.owners = sorted(set(owners.values()))
        chosen = [(grids | ends)[name] for name in self.owners]
        self.register_buffer("scales", torch.tensor([float(grid.scale) for grid in chosen]))
        zeros = torch.tensor([grid.zero_point for grid in chosen], dtype=torch.int32)
        self.register_buffer("zero_points", zeros)

    def quantised(self) -> QuantisedGraph:
        """The graph with the weights as they are now, part of the autograd graph."""
        weights, scales = {}, {}
        for node in self.graph.nodes:
            if node.weight is not None:
                kernel = self.kernels[_key(node.name)]
                weights[node.name] = (kernel.weight, kernel.bias)
                flat = kernel.weight.reshape(1, -1) if node.op == "prelu" else kernel.weight
                scales[node.name] = channel_scales(flat)  # PReLU: one for all slopes
        steps = zip(self.scales.tolist(), self.zero_points.tolist(), strict=True)
        grids = dict(zip(self.owners, (QParams(*step) for step in steps), strict=True))
        return QuantisedGraph(self.graph.with_weights(weights), grids, scales, "tflite")

    def forward(self, x: Tensor) -> Tensor:
        return run_quantised(self.quantised(), x)


@torch.no_grad()
def tflite_graph(model: TfliteQat) -> QuantisedGraph:
    """Graph with copies of the latent weights, and the grids, of a model under `tflite`."""
    live = model.quantised()
    copies = {node.name: (node.weight.detach().clone(),
                          None if node.bias is None else node.bias.detach().clone())
              for node in live.graph.nodes if node.weight is not None}
    return with_representable_scales(
        QuantisedGraph(live.graph.with_weights(copies), live.grids, live.weight_scales, "tflite"))
