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
from paperlib.files import atomic_path
from paperlib.quantisation.calibration import calibrate
from paperlib.quantisation.equalisation import channel_peaks, equalise
from paperlib.quantisation.fx_qat import PaperQat, calibrate_paper, freeze_paper, paper_graph, read_published_qat
from paperlib.quantisation.int8 import QuantisedGraph
from paperlib.quantisation.rounding import round_to_data
from paperlib.quantisation.skip import exact_skip, skip_input
from paperlib.quantisation.tflite_qat import TfliteQat, tflite_graph
from paperlib.settings import QuantSettings, StudentSettings
from paperlib.student.graph import Graph, image_batch
from paperlib.student.models import build_model, deployment_graph, fuse_model, load_weights, read_weights


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
    model = TfliteQat(fused, calibrate(graph, images), graph)
    model.skip = settings.skip
    return model.train()


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
    """Graph, weights and grids of a model from `prepare_qat`, as the export wants them."""
    return paper_graph(model) if isinstance(model, PaperQat) else tflite_graph(model)


def save_qat(model: nn.Module, path: str | Path, **metadata: Any) -> Path:
    """Write a model under quantisation as .safetensors with architecture, quantiser and grids in its metadata."""
    qgraph = quantised_graph(model)
    grids = {name: [grid.scale, grid.zero_point] for name, grid in sorted(qgraph.grids.items())}
    about = {"architecture": model.settings.model_dump(), "form": "qat", "clamp": True,
             "quantiser": model.quantiser, "skip": model.skip, "grids": grids, **metadata}
    # FX lets several names share one observer; safetensors wants each tensor for itself.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"paperlib": json.dumps(about)})
    return Path(path)


def load_qat(path: str | Path) -> nn.Module:
    """A model saved by `save_qat`, in evaluation mode.

    Raises:
        UserError: missing or damaged file, not a quantised checkpoint, or weights that do not fit.
    """
    tensors, about = read_weights(path)
    if about["form"] != "qat":
        raise UserError(f"{path} is in form {about['form']!r}, not quantised. Name a qat.safetensors of a run.")
    fused = build_model(StudentSettings.model_validate(about["architecture"]), "fused", clamp=True)
    if about["quantiser"] == "paper":
        model: nn.Module = PaperQat(fused)
    else:
        graph = deployment_graph(fused)
        if about["skip"] == "exact":
            graph = _exact_shapes(graph, tensors)
        model = TfliteQat(fused, {}, graph)
        model.skip = about["skip"]
    load_weights(model, tensors, path)
    return model.eval()


def _exact_shapes(graph: Graph, tensors: dict[str, Tensor]) -> Graph:
    """The exact skip's graph with as many channels of the last block as a file's kernel has, weights to come."""
    last = graph[skip_input(graph)]
    kept = len(tensors.get(f"kernels.{last.name.replace('.', '_')}.weight", last.weight))
    return exact_skip(graph, 255.0, 255.0 * (torch.arange(len(last.weight)) < kept))


def read_quantised(path: str | Path) -> QuantisedGraph:
    """The quantised graph of a checkpoint: a `qat.safetensors` of this kit, or the authors' `ckpt_best_s3_qat.pt`.

    Raises:
        UserError: missing or damaged file, or one that is not quantised.
    """
    if Path(path).suffix == ".pt":
        return read_published_qat(path)
    return quantised_graph(load_qat(path))
