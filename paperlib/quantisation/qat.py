"""Both quantisers behind one door: prepare, freeze, read out, save, load (paper section 4)."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import disable_observer

from paperlib.errors import UserError
from paperlib.files import reading
from paperlib.quantisation import rewriting
from paperlib.quantisation.fx_qat import PaperQat, paper_graph, read_published_qat
from paperlib.quantisation.int8 import (
    QParams,
    QuantisedGraph,
    calibrate,
    channel_scales,
    run_quantised,
    with_representable_scales,
)
from paperlib.settings import SCALE, QuantSettings
from paperlib.student import models
from paperlib.student.graph import Graph, Images, Node, image_batch


class TfliteQat(nn.Module):
    """Quantiser `tflite`, TFLite's own arithmetic: (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W), whole.

    Weights: symmetric, −127..127, one scale per output channel from its largest weight.
    Activations: int8 per tensor, the range calibrated by least squares and then kept (learned step
    sizes gave nothing: `tried.md`). Biases: int32. Image and result: 8-bit pixels.

    Args:
        grids: the activations' grids, per owner (`calibrate`).
        graph: what the model `fused` computes, without ADD for instance.
    """

    def __init__(self, fused: nn.Module, grids: Mapping[str, QParams], graph: Graph) -> None:
        super().__init__()
        self.settings, self.form, self.clamp, self.graph = fused.settings, "qat", True, graph
        self.kernels = nn.ModuleDict({  # latent float weights; pairs, for a dict would be sorted
            node.name.replace(".", "_"): nn.ParameterDict([
                (kind, getattr(node, kind).clone()) for kind in ("weight", "bias")
                if getattr(node, kind) is not None])
            for node in graph.nodes if node.weight is not None})
        self.owners = sorted(grids)
        chosen = [grids[name] for name in self.owners]
        self.register_buffer("scales", torch.tensor([float(grid.scale) for grid in chosen]))
        zeros = torch.tensor([grid.zero_point for grid in chosen], dtype=torch.int32)
        self.register_buffer("zero_points", zeros)

    def quantised(self) -> QuantisedGraph:
        """The graph with the weights as they are now, part of the autograd graph."""
        weights, scales = {}, {}
        for node in self.graph.nodes:
            if node.weight is not None:
                kernel = self.kernels[node.name.replace(".", "_")]
                weight = kernel["weight"]
                weights[node.name] = (weight, kernel.get("bias"))
                # PReLU: one for all slopes
                scales[node.name] = channel_scales(
                    weight.reshape(1, -1) if node.op == "prelu" else weight)
        steps = zip(self.scales.tolist(), self.zero_points.tolist(), strict=True)
        grids = {name: QParams(*step) for name, step in zip(self.owners, steps, strict=True)}
        return QuantisedGraph(self.graph.with_weights(weights), grids, scales, "tflite")

    def forward(self, x: Tensor) -> Tensor:
        return run_quantised(self.quantised(), x)


def prepare_qat(fused: nn.Module, settings: QuantSettings, images: Images) -> nn.Module:
    """A copy of a student or baseline, fused, under fake-quantisation, calibrated, in training:
    (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W)."""
    if settings.quantiser == "paper":
        paper = PaperQat(fused).train()
        with torch.no_grad():
            for image in images:
                paper(image_batch(image))
        return paper
    graph = float_graph(fused, settings, images)
    if settings.rounding == "data":
        graph = rewriting.round_to_data(graph, images)
    return TfliteQat(fused, calibrate(graph, images), graph).train()


def float_graph(fused: nn.Module, settings: QuantSettings, images: Images) -> Graph:
    """What `prepare_qat` (same arguments) rounds, in float: the same function as `fused`, channels
    equalised, the skip in its form (the exact one without the last block's channels that show
    nothing on any of the images)."""
    graph = models.deployment_graph(models.fuse_model(fused, clamp=True))
    if settings.equalise:
        graph = rewriting.equalise(graph, images)
    if settings.skip == "exact":
        last = rewriting.skip_input(graph)
        peaks = rewriting.channel_peaks(graph, {last: last}, images)[last]
        graph = rewriting.exact_skip(graph, calibrate(graph, images)[last].high, peaks)
    return graph


def freeze_observers(model: nn.Module) -> None:
    """Freeze every activation grid of a model from `prepare_qat`, in place (paper section 4); those
    of the `tflite` quantiser never move."""
    if isinstance(model, PaperQat):
        model.apply(disable_observer)


def quantised_graph(model: nn.Module) -> QuantisedGraph:
    """Graph, grids and copies of the weights of a model from `prepare_qat`, for the export."""
    if isinstance(model, PaperQat):
        return paper_graph(model)
    return with_representable_scales(copy.deepcopy(model).requires_grad_(False).quantised())


def save_qat(model: nn.Module, path: str | Path, **metadata: Any) -> Path:
    """Write the quantised graph of a model from `prepare_qat` as .safetensors: tensors
    `<node>.weight`, `<node>.bias`, `<node>.scale`; in the metadata nodes, grids, quantiser."""
    qgraph = quantised_graph(model)
    nodes = [{"name": node.name, "op": node.op, "inputs": node.inputs, "groups": node.groups,
              "relu": node.relu} for node in qgraph.graph.nodes]
    grids = {name: [grid.scale, grid.zero_point] for name, grid in sorted(qgraph.grids.items())}
    about = {"form": "qat", "clamp": True, "quantiser": qgraph.quantiser, "nodes": nodes,
             "grids": grids, "architecture": model.settings.model_dump(), **metadata}
    tensors = {f"{node.name}.{kind}": value for node in qgraph.graph.nodes for kind, value in (
        ("weight", node.weight), ("bias", node.bias),
        ("scale", qgraph.weight_scales.get(node.name))) if value is not None}
    return models.write_weights(path, tensors, about)


def read_network(path: Path) -> nn.Module | QuantisedGraph:
    """The network, fused, of a .safetensors checkpoint of this kit or an authors' .pt file; of a
    quantised one its graph."""
    if path.suffix == ".pt":
        published = models.load_pickle(path, "one of the authors' checkpoints")
        quantised = isinstance(published, dict) and "model_ema" in published
        deployed = not quantised or "cfg" in published
        return models.read_published(path) if deployed else read_published_qat(path)
    tensors, about = models.read_weights(path)
    if about["form"] != "qat":
        return models.fuse_model(models.load_model(path))
    with reading(path, "a quantised checkpoint of this version of the kit"):
        nodes = [Node(**node | {"inputs": tuple(node["inputs"])},
                      weight=tensors.get(f"{node['name']}.weight"),
                      bias=tensors.get(f"{node['name']}.bias")) for node in about["nodes"]]
        scales = {node.name: tensors[f"{node.name}.scale"]
                  for node in nodes if node.weight is not None}
        grids = {name: QParams(float(scale), int(zero))
                 for name, (scale, zero) in about["grids"].items()}
        qgraph = QuantisedGraph(Graph(tuple(nodes)), grids, scales, about["quantiser"])
        shape = run_quantised(qgraph, torch.zeros(1, 3, 4, 4)).shape  # everything fits everything
        if shape != (1, 3, 4 * SCALE, 4 * SCALE):
            raise ValueError(f"it makes {tuple(shape)} of 4×4 pixels")
    return qgraph


def read_quantised(path: str | Path) -> QuantisedGraph:
    """The quantised graph in a `qat.safetensors` of this kit, or in the authors'
    `ckpt_best_s3_qat.pt`; any other file is a `UserError`."""
    network = read_network(Path(path))
    if not isinstance(network, QuantisedGraph):
        raise UserError(f"{path} is not quantised. Name a qat.safetensors of a run.")
    return network
