"""Both quantisers behind one door: prepare, freeze, read out, save, load (paper section 4)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn

from paperlib.errors import UserError
from paperlib.files import atomic_path
from paperlib.quantisation.calibration import calibrate
from paperlib.quantisation.equalisation import equalise
from paperlib.quantisation.fx_qat import PaperQat, calibrate_paper, freeze_paper, paper_graph, read_published_qat
from paperlib.quantisation.int8 import QuantisedGraph
from paperlib.quantisation.rounding import round_to_data
from paperlib.quantisation.skip import exact_skip, without_add
from paperlib.quantisation.tflite_qat import TfliteQat, freeze_tflite, tflite_graph
from paperlib.settings import QuantSettings, StudentSettings
from paperlib.student.graph import Graph, image_batch
from paperlib.student.models import build_model, deployment_graph, fuse_model, load_weights, read_checkpoint

RESIDUALS = ("add", "concat", "exact")
"""How the residual sums of a network are computed under INT8."""


def prepare_qat(
    fused: nn.Module, settings: QuantSettings, images: Sequence[np.ndarray | Tensor], residual: str = "add",
) -> nn.Module:
    """A fused model under fake-quantisation, calibrated, ready for the ordinary `fit`; the input is not changed.

    Args:
        fused: student or baseline; folded first where it still has branches.
        settings: which quantiser, and whether channels are equalised first (`tflite` only).
        images: calibration images, uint8 (h, w, 3), or batches (B, 3, h, w) in 0..255.
        residual: "add" as published; `tflite` only: "concat" (`without_add`), "exact" (`exact_skip`).

    Raises:
        ValueError: another `residual`, one that the network or the `paper` quantiser cannot have.

    Returns:
        (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W), in training mode.
    """
    if residual not in RESIDUALS or (residual != "add" and settings.quantiser == "paper"):
        raise ValueError(f"residual={residual!r} does not go with quantiser {settings.quantiser!r}")
    fused = fuse_model(fused, clamp=True)
    if settings.quantiser == "paper":
        paper = PaperQat(fused)
        calibrate_paper(paper, [image_batch(image) for image in images])
        return paper.train()
    graph = deployment_graph(fused)
    if settings.equalise:
        graph = equalise(graph, images)
    peak = calibrate(graph, images)[graph["skip"].inputs[0]].high if residual == "exact" else 255.0
    graph = _form(graph, residual, peak)
    if settings.rounding == "data":
        graph = round_to_data(graph, images)
    model = TfliteQat(fused, calibrate(graph, images), graph, _pixel_grids(residual))
    model.residual = residual
    return model.train()


def _form(graph: Graph, residual: str, peak: float) -> Graph:
    """The graph with its residual sums in another form."""
    if residual == "exact":
        return exact_skip(graph, peak)
    return without_add(graph) if residual == "concat" else graph


def _pixel_grids(residual: str) -> tuple[str, ...]:
    """Owners of grids, besides image and result, that hold pixels."""
    return ("stem",) if residual == "exact" else ()


def freeze_observers(model: nn.Module) -> None:
    """Freeze every activation grid of a model from `prepare_qat`, in place; training then only moves weights."""
    if isinstance(model, PaperQat):
        freeze_paper(model)
    else:
        freeze_tflite(model)


def quantised_graph(model: nn.Module) -> QuantisedGraph:
    """Graph, weights and grids of a model from `prepare_qat`, as the export wants them."""
    return paper_graph(model) if isinstance(model, PaperQat) else tflite_graph(model)


def save_qat(model: nn.Module, path: str | Path, **metadata: Any) -> Path:
    """Write a model under quantisation as .safetensors with architecture, quantiser and grids in its metadata."""
    qgraph = quantised_graph(model)
    grids = {name: [grid.scale, grid.zero_point] for name, grid in sorted(qgraph.grids.items())}
    about = {"architecture": model.settings.model_dump(), "form": "qat", "clamp": True,
             "quantiser": model.quantiser, "residual": model.residual, "grids": grids, **metadata}
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
    tensors, about = read_checkpoint(path)
    if about["form"] != "qat":
        raise UserError(f"{path} is in form {about['form']!r}, not quantised. Name a qat.safetensors of a run.")
    fused = build_model(StudentSettings.model_validate(about["architecture"]), "fused", clamp=True)
    if about["quantiser"] == "paper":
        model: nn.Module = PaperQat(fused)
    else:
        graph = _form(deployment_graph(fused), about["residual"], peak=255.0)
        model = TfliteQat(fused, {}, graph, _pixel_grids(about["residual"]))
        model.residual = about["residual"]
    load_weights(model, tensors, path)
    return model.eval()


def read_quantised(path: str | Path) -> QuantisedGraph:
    """The quantised graph of a checkpoint: a `qat.safetensors` of this kit, or the authors' `ckpt_best_s3_qat.pt`.

    Raises:
        UserError: missing or damaged file, or one that is not quantised.
    """
    if Path(path).suffix == ".pt":
        return read_published_qat(path)
    return quantised_graph(load_qat(path))
