"""Both quantisers behind one door: prepare, freeze, read out, save, load (paper section 4)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paperlib.errors import UserError
from paperlib.files import atomic_path, reading
from paperlib.quantisation.calibration import calibrate
from paperlib.quantisation.cross_layer_equalisation import channel_peaks, equalise
from paperlib.quantisation.fx_qat import PaperQat, calibrate_paper, freeze_paper, paper_graph, read_published_qat
from paperlib.quantisation.int8 import QParams, QuantisedGraph, run_quantised
from paperlib.quantisation.rounding import round_to_data
from paperlib.quantisation.skip import exact_skip, skip_input
from paperlib.quantisation.tflite_qat import TfliteQat, tflite_graph
from paperlib.settings import SCALE, QuantSettings
from paperlib.student.graph import Graph, Node, image_batch
from paperlib.student.models import deployment_graph, fuse_model, read_weights


def prepare_qat(
    fused: nn.Module, settings: QuantSettings, images: Sequence[np.ndarray | Tensor],
) -> nn.Module:
    """A fused model under fake-quantisation, calibrated, ready for the ordinary `fit`; the input is not changed.

    Args:
        fused: student or baseline; folded first where it still has branches.
        settings: which quantiser; `tflite` only: equalised channels, rounding to data, the form of the skip.
        images: calibration images, uint8 (h, w, 3), or batches (B, 3, h, w) in 0..255.

    Raises:
        ValueError: skip "exact" for a network without the student's global skip.

    Returns:
        (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W), in training mode.
    """
    fused = fuse_model(fused, clamp=True)
    if settings.quantiser == "paper":
        paper = PaperQat(fused)
        calibrate_paper(paper, [image_batch(image) for image in images])
        return paper.train()
    graph = float_graph(fused, settings, images)
    if settings.rounding == "data":
        graph = round_to_data(graph, images)
    return TfliteQat(fused, calibrate(graph, images), graph).train()


def float_graph(fused: nn.Module, settings: QuantSettings, images: Sequence[np.ndarray | Tensor]) -> Graph:
    """What `prepare_qat` rounds, in float: the same function as `fused`, channels equalised, the skip in its form
    (the exact one without the last block's channels that show nothing on any of the images).

    Args:
        fused, settings, images: as for `prepare_qat`.
    """
    graph = deployment_graph(fuse_model(fused, clamp=True))
    if settings.equalise:
        graph = equalise(graph, images)
    if settings.skip == "exact":
        last = skip_input(graph)
        graph = exact_skip(graph, calibrate(graph, images)[last].high, channel_peaks(graph, {last: last}, images)[last])
    return graph


def freeze_observers(model: nn.Module) -> None:
    """Freeze every activation grid of a model from `prepare_qat`, in place; training then only moves weights.

    The `tflite` quantiser's grids are those of calibration and never move.
    """
    if isinstance(model, PaperQat):
        freeze_paper(model)


def quantised_graph(model: nn.Module) -> QuantisedGraph:
    """Graph, weights and grids of a model from `prepare_qat`, as the export wants them (on the CPU)."""
    return paper_graph(model) if isinstance(model, PaperQat) else tflite_graph(model)


def save_qat(model: nn.Module | QuantisedGraph, path: str | Path, **metadata: Any) -> Path:
    """Write a quantised graph, or that of a model from `prepare_qat`, as .safetensors.

    Tensors: `<node>.weight`, `<node>.bias`, `<node>.scale`; in the metadata: nodes, grids, quantiser.
    """
    if isinstance(model, nn.Module):
        metadata = {"architecture": model.settings.model_dump(), **metadata}
        model = quantised_graph(model)
    nodes = [{"name": node.name, "op": node.op, "inputs": node.inputs, "groups": node.groups,
              "relu": node.relu} for node in model.graph.nodes]
    grids = {name: [grid.scale, grid.zero_point] for name, grid in sorted(model.grids.items())}
    about = {"form": "qat", "clamp": True, "quantiser": model.quantiser, "nodes": nodes,
             "grids": grids, **metadata}
    tensors = {f"{node.name}.{kind}": value.detach().cpu().contiguous()
               for node in model.graph.nodes for kind, value in (
                   ("weight", node.weight), ("bias", node.bias),
                   ("scale", model.weight_scales.get(node.name))) if value is not None}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"paperlib": json.dumps(about)})
    return Path(path)


def read_quantised(path: str | Path) -> QuantisedGraph:
    """The quantised graph in a `qat.safetensors` of this kit, or in the authors' `ckpt_best_s3_qat.pt`.

    Raises:
        UserError: missing or damaged file, or one that is not quantised.
    """
    if Path(path).suffix == ".pt":
        return read_published_qat(path)
    tensors, about = read_weights(path)
    if about["form"] != "qat":
        raise UserError(f"{path} is in form {about['form']!r}, not quantised. "
                        "Name a qat.safetensors of a run.")
    with reading(path, "a quantised checkpoint of this version of the kit"):
        nodes = [Node(**{**node, "inputs": tuple(node["inputs"])}, weight=tensors.get(f"{node['name']}.weight"),
                      bias=tensors.get(f"{node['name']}.bias")) for node in about["nodes"]]
        scales = {node.name: tensors[f"{node.name}.scale"] for node in nodes if node.weight is not None}
        grids = {name: QParams(float(scale), int(zero)) for name, (scale, zero) in about["grids"].items()}
        qgraph = QuantisedGraph(Graph(tuple(nodes)), grids, scales, about["quantiser"])
        shape = run_quantised(qgraph, torch.zeros(1, 3, 4, 4)).shape  # everything fits everything
        if shape != (1, 3, 4 * SCALE, 4 * SCALE):
            raise ValueError(f"it makes {tuple(shape)} of 4×4 pixels")
    return qgraph
