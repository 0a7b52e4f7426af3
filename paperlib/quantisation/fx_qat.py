"""Quantiser `paper`: PyTorch FX graph mode with QNNPACK defaults, as published (paper section 4).

The only module that imports torch.ao. Activations: per-tensor affine uint8, moving-average min/max. Weights: per-tensor
symmetric int8. Grids for everything FX puts one on, the image and PixelShuffle included.
"""

import copy
import operator
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, disable_observer, get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_qat_fx
from torch.fx import Node as FxNode

from paperlib.files import reading
from paperlib.quantisation.int8 import QParams, QuantisedGraph, channel_scales, qparam_owners, with_representable_scales
from paperlib.settings import StudentSettings
from paperlib.student.graph import Graph
from paperlib.student.models import (
    build_model,
    deployment_graph,
    fuse_model,
    key_from_published,
    load_pickle,
    load_weights,
)


class FakeQuantize(FusedMovingAvgObsFakeQuantize):
    """PyTorch's fake-quantiser that observes in training mode only, so that validation cannot move a grid."""

    def forward(self, x: Tensor) -> Tensor:
        observer = self.activation_post_process
        observing = self.observer_enabled if self.training else torch.zeros_like(self.observer_enabled)
        return torch.fused_moving_avg_obs_fake_quant(
            x, observing, self.fake_quant_enabled, observer.min_val, observer.max_val, self.scale, self.zero_point,
            observer.averaging_constant, observer.quant_min, observer.quant_max, self.ch_axis, self.is_per_channel,
            self.is_symmetric_quant)


def _qconfig_mapping():
    """QNNPACK's default QAT configuration with the fake-quantiser above, for every layer (PReLU included)."""
    mapping = get_default_qat_qconfig_mapping("qnnpack")
    default = mapping.global_qconfig
    activation, weight = (FakeQuantize.with_args(**factory.p.keywords) for factory in default)
    ours = type(default)(activation=activation, weight=weight)
    return mapping.set_global(ours).set_object_type(nn.PReLU, ours).set_object_type(nn.ConvTranspose2d, ours)


def prepare_fx(model: nn.Module) -> nn.Module:
    """A copy of a network (3 channels in) with fake-quantisers wherever FX puts them, in training mode."""
    with warnings.catch_warnings():  # torch.ao announces its removal at every call; torch is pinned below that
        warnings.simplefilter("ignore", DeprecationWarning)
        return prepare_qat_fx(copy.deepcopy(model).train(), _qconfig_mapping(), (torch.zeros(1, 3, 8, 8),))


class PaperQat(nn.Module):
    """A fused model under FX fake-quantisation; (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W) in about 0..255.

    Args:
        fused: model in form "fused"; copied. Its output is clamped from here on (paper section 1).
    """

    quantiser = "paper"

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.settings, self.form, self.clamp = fused.settings, "qat", True
        self.fx = prepare_fx(fuse_model(fused, clamp=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.fx(x)


def freeze_paper(model: PaperQat) -> None:
    """Stop the observers: from here on every grid stays as it is (curriculum of paper section 4)."""
    model.apply(disable_observer)


@torch.no_grad()
def calibrate_paper(model: PaperQat, batches: list[Tensor]) -> None:
    """Let the observers see `batches` ((B, 3, H, W) in 0..255), in place."""
    mode = model.training
    model.train()
    for batch in batches:
        model(batch)
    model.train(mode)


def _fused_tensors(model: PaperQat) -> dict[str, Tensor]:
    """The parameters of the fused model inside, by its own names."""
    return {name.removeprefix("fx."): value.detach().clone() for name, value in model.named_parameters()}


def _observed_node(model: PaperQat, observed: FxNode, adds: list[FxNode], graph: Graph) -> str:
    """Name of the deployment node that produced what a fake-quantiser sees; ReLU and clamp belong to their producer."""
    while True:
        if observed.op == "placeholder":
            return "input"
        if observed in adds:
            return [node.name for node in graph.nodes if node.op == "add"][adds.index(observed)]
        if observed.op == "call_module":
            target = str(observed.target)
            if isinstance(model.fx.get_submodule(target), nn.Conv2d | nn.PReLU):
                return target
        observed = observed.args[0]


def paper_graph(model: PaperQat) -> QuantisedGraph:
    """Graph, grids and weight scales of a model under the `paper` quantiser.

    PReLU slopes, which FX leaves in float, get the per-tensor scale TFLite would give them.
    """
    fused = build_model(model.settings, "fused", clamp=True)
    fused.load_state_dict(_fused_tensors(model))
    graph = deployment_graph(fused)
    owners = qparam_owners(graph)
    adds = [node for node in model.fx.graph.nodes if node.op == "call_function" and node.target is operator.add]
    grids: dict[str, QParams] = {}
    for node in model.fx.graph.nodes:
        module = model.fx.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, FakeQuantize):
            owner = owners[_observed_node(model, node.args[0], adds, graph)]
            if owner not in grids:
                grids[owner] = QParams(float(module.scale), int(module.zero_point) - 128)
    scales = {}
    for node in graph.nodes:
        if node.op == "conv":
            scales[node.name] = model.fx.get_submodule(node.name).weight_fake_quant.scale.detach().clone()
        elif node.op == "prelu":
            scales[node.name] = channel_scales(node.weight.reshape(1, -1))
    return with_representable_scales(QuantisedGraph(graph, grids, scales, "paper"))


def _by_observed_node(model: PaperQat, published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors under the names of `model`: a grid belongs to the node that it observes, not to a number.

    Their state numbers the grids in the order of the nodes that they observe. Their clamp is one operator, ours ReLU
    and minimum: both take its grid.
    """
    prefix = "activation_post_process_"
    seen = {node.args[0].name: node.target for node in model.fx.graph.nodes
            if node.op == "call_module" and isinstance(model.fx.get_submodule(node.target), FakeQuantize)}
    numbers = {name: number for number, name in enumerate(name for name in seen if name != "relu")}
    numbers["relu"] = numbers["clamp"]
    observers = {f"{prefix}{number}": [seen[name] for name in seen if numbers[name] == number]
                 for number in numbers.values()}
    tensors = {}
    for key, tensor in published.items():
        observer, _, field = key.partition(".")
        # what no node of ours has keeps its name, for the strict loading to refuse
        tensors |= {f"fx.{own}.{field}": tensor for own in observers[observer]} if observer in observers else {
            f"fx.{key_from_published(key)}": tensor}
    return tensors


def read_published_qat(path: str | Path) -> QuantisedGraph:
    """The authors' quantisation-aware state (`ckpt_best_s3_qat.pt`, EMA weights) with its learned grids, strictly.

    Raises:
        UserError: missing or damaged file, or another layout.
    """
    what = "the authors' QAT checkpoint"
    state = load_pickle(path, what)
    with reading(path, what):
        published = state["model_ema"]
        blocks = sum(name.endswith(".reparam.weight") for name in published)
        settings = StudentSettings(channels=published["conv_in.weight"].shape[0], blocks=blocks)
        model = PaperQat(build_model(settings, "fused"))
        tensors = _by_observed_node(model, published)
    load_weights(model, tensors, path)
    return paper_graph(model)
