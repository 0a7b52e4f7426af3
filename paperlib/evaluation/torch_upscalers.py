"""PyTorch networks as upscalers: students and baselines in float, fake-quantised ones, checkpoints
(section 6)."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paperlib.errors import UserError
from paperlib.files import sha256_file
from paperlib.quantisation.int8 import QuantisedGraph, run_quantised
from paperlib.quantisation.qat import read_quantised
from paperlib.student.graph import image_batch, receptive_radius
from paperlib.student.models import (
    build_model,
    deployment_graph,
    fuse_model,
    load_model,
    load_pickle,
    read_published,
    read_weights,
)


def _check_finite(sr: torch.Tensor, name: str) -> None:
    if not sr.isfinite().all():
        raise UserError(f"{name} gave values that are no numbers. Train that stage again, or name another file.")


class TorchUpscaler:
    """A torch network (student, baseline, fake-quant model) as an upscaler; whole images, on the
    network's device.

    Args:
        model: NCHW RGB 0..255 → 0..255, ×3; put into evaluation mode.
        name: for tables.
        about: provenance to add.
    """

    def __init__(self, model: nn.Module, name: str, about: dict[str, Any] | None = None) -> None:
        self.model, self.name = model.eval(), name
        self.about = {"precision": "float32", **(about or {})}

    @cached_property
    def radius(self) -> int | None:
        """See `Upscaler.radius`; None for a network that does not say how it is built."""
        settings = getattr(self.model, "settings", None)
        if settings is None:
            return None
        with torch.device("meta"):  # shapes alone, and no random numbers drawn
            return receptive_radius(deployment_graph(build_model(settings, "fused")))

    @torch.inference_mode()
    def __call__(self, lr: np.ndarray) -> np.ndarray:
        device = next(self.model.parameters()).device
        x = torch.from_numpy(lr.astype(np.float32)).to(device).permute(2, 0, 1)[None]  # (1, 3, h, w)
        sr = self.model(x)[0]
        _check_finite(sr, self.name)
        return sr.clamp(0, 255).permute(1, 2, 0).contiguous().cpu().numpy()


class RoundedUpscaler:
    """An upscaler whose result is rounded to 8-bit pixels: what a float network could give at best
    in an INT8 file.

    Args:
        upscaler: gives float32 (3h, 3w, 3) in 0..255.
    """

    def __init__(self, upscaler: TorchUpscaler) -> None:
        self.inner, self.name, self.radius = upscaler, f"{upscaler.name}, in 8 bits", upscaler.radius
        self.about = upscaler.about | {"result": "rounded to 8 bits"}

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        return np.rint(self.inner(lr))


class QuantisedUpscaler:
    """A quantised graph as an upscaler: uint8 (h, w, 3) → float32 (3h, 3w, 3) in 0..255, by
    fake-quant in PyTorch.

    As it was trained: the paper's quantiser (FX) leaves biases in float, `tflite` rounds them.
    """

    def __init__(self, qgraph: QuantisedGraph, name: str = "fake-quant") -> None:
        self.qgraph, self.name = qgraph, name
        self.int32_bias = qgraph.quantiser == "tflite"
        self.about = {"quantiser": qgraph.quantiser, "bias": "int32" if self.int32_bias else "float32"}

    @property
    def radius(self) -> int:
        """See `Upscaler.radius`."""
        return receptive_radius(self.qgraph.graph)

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        sr = run_quantised(self.qgraph, image_batch(lr), int32_bias=self.int32_bias)[0]
        _check_finite(sr, self.name)
        return sr.permute(1, 2, 0).contiguous().numpy()


def load_network(path: Path) -> TorchUpscaler | QuantisedUpscaler:
    """The network of a .safetensors checkpoint of this kit, or of one of the authors' .pt files;
    fused first.

    Their quantisation-aware state (`ckpt_best_s3_qat.pt`) gives its fake-quantised graph, with
    their float biases.

    Raises:
        UserError: missing or damaged, or a file that holds something else.
    """
    about: dict[str, Any] = {"file": str(path), "sha256": sha256_file(path)}
    if path.suffix == ".pt" and _is_qat(path):
        return _with(about, QuantisedUpscaler(read_quantised(path), path.name))
    if path.suffix == ".pt":
        return TorchUpscaler(read_published(path), path.name, about)
    _, metadata = read_weights(path)
    about["checkpoint"] = {name: value for name, value in metadata.items() if name != "nodes"}
    if metadata["form"] == "qat":
        return _with(about, QuantisedUpscaler(read_quantised(path), path.name))
    return TorchUpscaler(fuse_model(load_model(path)), path.name, about)


def _with(about: dict[str, Any], upscaler: QuantisedUpscaler) -> QuantisedUpscaler:
    upscaler.about |= about
    return upscaler


def _is_qat(path: Path) -> bool:
    """Whether a .pt file has the authors' EMA weights under quantisation; what it is else, its
    reader says."""
    published = load_pickle(path, "a checkpoint of the authors")
    return isinstance(published, dict) and "model_ema" in published and "cfg" not in published
