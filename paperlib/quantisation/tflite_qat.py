"""Quantiser `tflite`: fake-quantisation that is TFLite's INT8 arithmetic (paper section 4; rules of section 5).

Weights: symmetric, −127..127, one scale per output channel from its largest weight. Activations: int8 per tensor, the
range learnt as one step size per tensor (LSQ: Esser et al., ICLR 2020), started from calibration by least squares.
Learning the steps measured no better than leaving them as calibrated (31.39 and 31.39, 31.45 and 31.45 dB on Set5 after
400 steps): calibration does the work, learning follows the weights in long trainings. Biases: int32.
Image and result: 8-bit pixels. ADD has its own grid; what only moves values (PixelShuffle, concatenation) has none.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from paperlib.quantisation.int8 import (
    IMAGE_GRID,
    QMAX,
    QMIN,
    Grid,
    QuantisedGraph,
    channel_scales,
    fake_prelu,
    fake_quant_bias,
    fake_quant_weight,
    grid_owners,
    runnable,
)
from paperlib.student.graph import SHARES_GRID, Graph, Node, run_graph
from paperlib.student.models import deployment_graph


class _LearntStep(torch.autograd.Function):
    """Fake-quantisation with gradients for input and step: dy/ds = (y − x)/s inside the range, y/s outside."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        y, mask = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(
            x, float(scale), int(zero_point), QMIN, QMAX)
        ctx.save_for_backward(x, y, mask, scale)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y, mask, scale = ctx.saved_tensors
        inside = gradient * mask
        step = None
        if ctx.needs_input_grad[1]:
            # Esser's factor 1/√(n·Qmax) keeps the step's gradient at the size of a weight's.
            factor = (x.numel() * QMAX) ** -0.5
            step = ((gradient * y).sum() - (inside * x).sum()) / scale * factor
        return inside, step, None


class ActivationGrid(nn.Module):
    """The grid of one activation: step size learnt as its logarithm, zero point fixed by calibration.

    Args:
        grid: start; fixed: never learn (image and result).
    """

    def __init__(self, grid: Grid, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        log_scale = torch.tensor(float(grid.scale)).log()
        if fixed:
            self.register_buffer("log_scale", log_scale)
        else:
            self.log_scale = nn.Parameter(log_scale)
        self.register_buffer("zero_point", torch.tensor(grid.zero_point, dtype=torch.int32))
        self.register_buffer("frozen", torch.tensor(fixed))

    @property
    def scale(self) -> Tensor:
        """Step size, a scalar tensor; without gradient once frozen."""
        return self.log_scale.detach().exp() if bool(self.frozen) else self.log_scale.exp()

    @property
    def grid(self) -> Grid:
        """The grid as plain numbers."""
        return Grid(float(self.scale.detach()), int(self.zero_point))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale
        if scale.requires_grad and torch.is_grad_enabled():
            return _LearntStep.apply(x, scale, self.zero_point)
        return self.grid.fake(x)


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
        pixels: owners of further grids that hold whole pixel values 0..255 and must stay so.
    """

    quantiser = "tflite"

    def __init__(
        self, fused: nn.Module, grids: Mapping[str, Grid], graph: Graph | None = None, pixels: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.settings, self.form, self.clamp, self.residual = fused.settings, "qat", True, "add"
        self.graph = graph or deployment_graph(fused)
        self.owners = grid_owners(self.graph)
        image = {self.owners[self.graph.nodes[0].name], self.owners[self.graph.nodes[-1].name], *pixels}
        self.kernels = nn.ModuleDict(
            {_key(node.name): Kernel(node.weight, node.bias) for node in self.graph.nodes if node.weight is not None})
        self.grids = nn.ModuleDict(
            {_key(name): ActivationGrid(IMAGE_GRID if name in image else grids.get(name, IMAGE_GRID), name in image)
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
        step = scale * self.grids[_key(self.owners[node.inputs[0]])].scale.detach()
        return weight, fake_quant_bias(kernel.bias, step)

    def _after(self, node: Node, out: Tensor) -> Tensor:
        if node.op in SHARES_GRID or not self.quantise_activations:
            return out
        return self.grids[_key(self.owners[node.name])](out)

    def _prelu(self, node: Node, x: Tensor, slopes: Tensor) -> Tensor:
        before, after = (self.grids[_key(self.owners[name])].grid for name in (node.inputs[0], node.name))
        return fake_prelu(x, slopes, float(self.scales(node)), before, after)

    def forward(self, x: Tensor) -> Tensor:
        prelu = self._prelu if self.quantise_weights and self.quantise_activations else None
        return run_graph(self.graph, x, weights=self._weights, after=self._after, prelu=prelu)


def freeze_tflite(model: TfliteQat) -> None:
    """Stop learning the activation grids: from here on they stay as they are."""
    for grid in model.grids.values():
        grid.frozen.fill_(True)


def tflite_graph(model: TfliteQat) -> QuantisedGraph:
    """Graph with the latent weights, grids and weight scales of a model under the `tflite` quantiser."""
    weights, scales = {}, {}
    for node in model.graph.nodes:
        if node.weight is not None:
            kernel = model.kernels[_key(node.name)]
            bias = None if kernel.bias is None else kernel.bias.detach().clone()
            weights[node.name] = (kernel.weight.detach().clone(), bias)
            scales[node.name] = model.scales(node)
    grids = {name: model.grids[_key(name)].grid for name in set(model.owners.values())}
    return runnable(QuantisedGraph(model.graph.with_weights(weights), grids, scales, "tflite"))
