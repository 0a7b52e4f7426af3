"""Quantiser `tflite`: fake-quantisation that is TFLite's INT8 arithmetic (paper section 4; rules of section 5).

Weights: symmetric, −127..127, one scale per output channel from its largest weight. Activations: int8 per tensor, the
range calibrated by least squares and then kept (learnt step sizes gave nothing: `tried.md`). Biases: int32.
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
    fake_prelu,
    fake_quant_bias,
    fake_quant_weight,
    qparam_owners,
    with_representable_scales,
)
from paperlib.student.graph import SHARES_GRID, Graph, Node, run_graph
from paperlib.student.models import deployment_graph


class ActivationQParams(nn.Module):
    """Scale and zero point of one activation, from calibration; gradients pass straight through inside the range."""

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(qparams.scale)))
        self.register_buffer("zero_point", torch.tensor(qparams.zero_point, dtype=torch.int32))

    @property
    def qparams(self) -> QParams:
        """Scale and zero point as plain numbers."""
        return QParams(float(self.scale), int(self.zero_point))

    def forward(self, x: Tensor) -> Tensor:
        return self.qparams.fake(x)


class Kernel(nn.Module):
    """Latent float weight and bias of one node."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())


def _key(name: str) -> str:
    return name.replace(".", "_")


class TfliteQat(nn.Module):
    """A graph under TFLite's arithmetic; (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W) in 0..255, whole numbers.

    Args:
        fused: model in form "fused"; its weights are copied.
        grids: start of the activation grids, per owner (`calibrate`); empty: placeholders, to be loaded.
        graph: another form of the same network, for instance without ADD; default: `deployment_graph(fused)`.
    """

    quantiser = "tflite"

    def __init__(
        self, fused: nn.Module, grids: Mapping[str, QParams], graph: Graph | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.form, self.clamp, self.skip = fused.settings, "qat", True, "add"
        self.graph = graph or deployment_graph(fused)
        self.owners = qparam_owners(self.graph)
        image = {self.owners[self.graph.nodes[0].name], self.owners[self.graph.nodes[-1].name]}
        self.kernels = nn.ModuleDict(
            {_key(node.name): Kernel(node.weight, node.bias) for node in self.graph.nodes if node.weight is not None})
        self.grids = nn.ModuleDict(
            {_key(name): ActivationQParams(IMAGE_GRID if name in image else grids.get(name, IMAGE_GRID))
             for name in sorted(set(self.owners.values()))})
        self.quantise_weights = self.quantise_activations = True
        """Switches that show what one half costs (drop decomposition)."""

    def scales(self, node: Node) -> Tensor:
        """Weight scales of a node: (O,) per output channel; PReLU slopes: (1,)."""
        weight = self.kernels[_key(node.name)].weight
        return channel_scales(weight.reshape(1, -1) if node.op == "prelu" else weight)

    def _weights(self, node: Node) -> tuple[Tensor | None, Tensor | None]:
        if node.weight is None:
            return None, None
        kernel = self.kernels[_key(node.name)]
        if not self.quantise_weights:
            return kernel.weight, kernel.bias
        scale = self.scales(node)
        weight = fake_quant_weight(kernel.weight, scale)
        if kernel.bias is None:
            return weight, None
        step = scale * self.grids[_key(self.owners[node.inputs[0]])].scale
        return weight, fake_quant_bias(kernel.bias, step)

    def _after(self, node: Node, out: Tensor) -> Tensor:
        if node.op in SHARES_GRID or not self.quantise_activations:
            return out
        return self.grids[_key(self.owners[node.name])](out)

    def _prelu(self, node: Node, x: Tensor, slopes: Tensor) -> Tensor:
        before, after = (self.grids[_key(self.owners[name])].qparams for name in (node.inputs[0], node.name))
        return fake_prelu(x, slopes, float(self.scales(node)), before, after)

    def forward(self, x: Tensor) -> Tensor:
        prelu = self._prelu if self.quantise_weights and self.quantise_activations else None
        return run_graph(self.graph, x, weights=self._weights, after=self._after, prelu=prelu)


def tflite_graph(model: TfliteQat) -> QuantisedGraph:
    """Graph with the latent weights, grids and weight scales of a model under the `tflite` quantiser."""
    weights, scales = {}, {}
    for node in model.graph.nodes:
        if node.weight is not None:
            kernel = model.kernels[_key(node.name)]
            bias = None if kernel.bias is None else kernel.bias.detach().clone()
            weights[node.name] = (kernel.weight.detach().clone(), bias)
            scales[node.name] = model.scales(node)
    grids = {name: model.grids[_key(name)].qparams for name in set(model.owners.values())}
    return with_representable_scales(QuantisedGraph(model.graph.with_weights(weights), grids, scales, "tflite"))
