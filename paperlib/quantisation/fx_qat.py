"""Quantiser `paper`: PyTorch FX graph mode with QNNPACK defaults, as published (paper section 4).

Activations: per-tensor affine uint8, moving-average min/max. Weights: per-tensor symmetric int8.
Grids for everything FX puts one on, the image and PixelShuffle included.
"""

import operator
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_qat_fx
from torch.fx import Node as FxNode

from paperlib.files import reading
from paperlib.quantisation.int8 import (
    QParams,
    QuantisedGraph,
    channel_scales,
    qparam_owners,
    with_representable_scales,
)
from paperlib.settings import StudentSettings
from paperlib.student import models
from paperlib.student.graph import Graph


class FakeQuantize(FusedMovingAvgObsFakeQuantize):
    """PyTorch's fake-quantiser, observing in training mode only: validation moves no grid."""

    def forward(self, x: Tensor) -> Tensor:
        observer = self.activation_post_process
        observing = self.observer_enabled
        if not self.training:
            observing = torch.zeros_like(observing)
        return torch.fused_moving_avg_obs_fake_quant(
            x, observing, self.fake_quant_enabled, observer.min_val, observer.max_val, self.scale,
            self.zero_point, observer.averaging_constant, observer.quant_min, observer.quant_max,
            self.ch_axis, self.is_per_channel, self.is_symmetric_quant)


class PaperQat(nn.Module):
    """A copy of a fused model under FX fake-quantisation, in training mode, its output clamped from
    here on (paper section 1); (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W) in about 0..255.

    QNNPACK's default QAT configuration with the fake-quantiser above, wherever FX puts one, for
    every layer (PReLU included).
    """

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.settings, self.form, self.clamp = fused.settings, "qat", True
        mapping = get_default_qat_qconfig_mapping("qnnpack")
        default = mapping.global_qconfig
        ours = type(default)(*(FakeQuantize.with_args(**part.p.keywords) for part in default))
        mapping.set_global(ours)
        for layer in (nn.PReLU, nn.ConvTranspose2d):
            mapping.set_object_type(layer, ours)
        with warnings.catch_warnings():  # torch.ao announces its removal; torch is pinned below
            warnings.simplefilter("ignore", DeprecationWarning)
            self.fx = prepare_qat_fx(
                models.fuse_model(fused, clamp=True).train(), mapping, (torch.zeros(1, 3, 8, 8),))

    def forward(self, x: Tensor) -> Tensor:
        return self.fx(x)


def _observed(model: PaperQat) -> list[tuple[FxNode, str]]:
    """The nodes that fake-quantisers see, and the name of each one's fake-quantiser."""
    return [(node.args[0], node.target) for node in model.fx.graph.nodes
            if node.op == "call_module"
            and isinstance(model.fx.get_submodule(node.target), FakeQuantize)]


def _producer(model: PaperQat, observed: FxNode, graph: Graph) -> str:
    """Name of the deployment node that produced what a fake-quantiser sees: no ReLU, no clamp."""
    adds = [node for node in model.fx.graph.nodes if node.target is operator.add]
    while observed.op != "placeholder":
        if observed in adds:
            return [node.name for node in graph.nodes if node.op == "add"][adds.index(observed)]
        if observed.op == "call_module":
            module = model.fx.get_submodule(observed.target)
            if isinstance(module, nn.Conv2d | nn.PReLU):
                return observed.target
        observed = observed.args[0]
    return "input"


def paper_graph(model: PaperQat) -> QuantisedGraph:
    """Graph, grids and weight scales of a model under the `paper` quantiser; PReLU slopes, which FX
    leaves in float, get the per-tensor scale TFLite would give them."""
    fused = models.build_model(model.settings, "fused", clamp=True)
    fused.load_state_dict({name.removeprefix("fx."): value.detach()
                           for name, value in model.named_parameters()})
    graph = models.deployment_graph(fused)
    owners, scales = qparam_owners(graph), {}
    grids: dict[str, QParams] = {}
    for observed, target in _observed(model):
        owner, module = owners[_producer(model, observed, graph)], model.fx.get_submodule(target)
        grids.setdefault(owner, QParams(float(module.scale), int(module.zero_point) - 128))
    for node in graph.nodes:
        if node.op == "conv":
            layer = model.fx.get_submodule(node.name)
            scales[node.name] = layer.weight_fake_quant.scale.detach().clone()
        elif node.op == "prelu":
            scales[node.name] = channel_scales(node.weight.reshape(1, -1))
    return with_representable_scales(QuantisedGraph(graph, grids, scales, "paper"))


def _by_observed_node(model: PaperQat, published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors under the names of `model`: a grid belongs to the node that it observes.

    Their state numbers the grids in the order of the nodes that they observe. Their clamp is one
    operator, ours ReLU and minimum: both take its grid.
    """
    seen = {node.name: target for node, target in _observed(model)}
    numbers = {name: number for number, name in enumerate(name for name in seen if name != "relu")}
    numbers["relu"] = numbers["clamp"]
    tensors = {}
    for key, tensor in published.items():
        observer, _, field = key.partition(".")
        own = [seen[name] for name in seen
               if observer == f"activation_post_process_{numbers[name]}"]
        # what no node of ours has keeps its name, for the strict loading to refuse
        names = [f"{name}.{field}" for name in own] or [models.key_from_published(key)]
        tensors |= {f"fx.{name}": tensor for name in names}
    return tensors


def read_published_qat(path: str | Path) -> QuantisedGraph:
    """The authors' quantisation-aware state (`ckpt_best_s3_qat.pt`, EMA weights) with its grids."""
    what = "the authors' QAT checkpoint"
    state = models.load_pickle(path, what)
    with reading(path, what):
        published = state["model_ema"]
        blocks = sum(name.endswith(".reparam.weight") for name in published)
        settings = StudentSettings(channels=published["conv_in.weight"].shape[0], blocks=blocks)
        model = PaperQat(models.build_model(settings, "fused"))
        tensors = _by_observed_node(model, published)
    models.load_weights(model, tensors, path)
    return paper_graph(model)
