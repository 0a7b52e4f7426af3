"""PyTorch networks as upscalers: students and baselines, float or fake-quantised (section 6)."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.errors import UserError
from paperlib.files import sha256_file
from paperlib.quantisation.int8 import QuantisedGraph, run_quantised
from paperlib.quantisation.qat import read_network
from paperlib.student import models
from paperlib.student.graph import image_batch, receptive_radius


def _pixels(sr: Tensor, name: str) -> np.ndarray:
    """The one image of a batch (1, 3, h, w) as (h, w, 3), clipped to 0..255."""
    if not sr.isfinite().all():
        raise UserError(f"{name} gave values that are no numbers. Train that stage again, or name "
                        "another file.")
    return sr[0].clamp(0, 255).permute(1, 2, 0).contiguous().cpu().numpy()


class TorchUpscaler:
    """A torch network (student, baseline, fake-quant model) as an upscaler, on its own device.

    Args:
        model: NCHW RGB 0..255 → 0..255, ×3; put into evaluation mode.
        about: provenance to add.
        rounded: to 8 bits: the best that an INT8 file of the network could give.
    """

    def __init__(self, model: nn.Module, name: str, about: dict[str, Any] | None = None,
                 rounded: bool = False) -> None:
        self.model, self.name, self.rounded = model.eval(), name, rounded
        self.about = {"precision": "float32, then 8 bits" if rounded else "float32",
                      **(about or {})}

    @cached_property
    def radius(self) -> int | None:
        """See `Upscaler`; None for a network that does not say how it is built."""
        settings = getattr(self.model, "settings", None)
        if settings is None:
            return None
        with torch.device("meta"):  # shapes alone, and no random numbers drawn
            return receptive_radius(models.deployment_graph(models.build_model(settings, "fused")))

    @torch.inference_mode()
    def __call__(self, lr: np.ndarray) -> np.ndarray:
        device = next(self.model.parameters()).device
        sr = _pixels(self.model(image_batch(lr).to(device)), self.name)
        return np.rint(sr) if self.rounded else sr


class QuantisedUpscaler:
    """A quantised graph as an upscaler, by fake-quant in PyTorch, as it was trained.

    The paper's quantiser (FX) leaves biases in float, `tflite` rounds them.
    """

    def __init__(self, qgraph: QuantisedGraph, name: str = "fake-quant",
                 about: dict[str, Any] | None = None) -> None:
        self.qgraph, self.name = qgraph, name
        self.int32_bias = qgraph.quantiser == "tflite"
        self.radius = receptive_radius(qgraph.graph)
        self.about = {"quantiser": qgraph.quantiser,
                      "bias": "int32" if self.int32_bias else "float32", **(about or {})}

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        return _pixels(run_quantised(self.qgraph, image_batch(lr), int32_bias=self.int32_bias),
                       self.name)


def load_network(path: Path) -> TorchUpscaler | QuantisedUpscaler:
    """The network of a checkpoint, see `read_network`, as an upscaler."""
    network = read_network(path)
    about: dict[str, Any] = {"file": str(path), "sha256": sha256_file(path)}
    if path.suffix != ".pt":
        metadata = models.read_weights(path)[1]
        about["checkpoint"] = {key: value for key, value in metadata.items() if key != "nodes"}
    quantised = isinstance(network, QuantisedGraph)
    return (QuantisedUpscaler if quantised else TorchUpscaler)(network, path.name, about)
