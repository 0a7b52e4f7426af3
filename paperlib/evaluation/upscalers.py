"""Whatever can be scored: LR pixels, uint8 (h, w, 3), to SR pixels, float32 (3h, 3w, 3), clipped to 0..255 (section 6).

A torch network, a TFLite file, bicubic and the teacher are all called, and so scored, in the same way; each has a
`name` for tables and `about` for provenance.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from paperlib.data.resize import bicubic_upscale
from paperlib.errors import UserError
from paperlib.files import sha256_file
from paperlib.quantisation.int8 import QuantisedGraph, run_quantised
from paperlib.settings import ExportSettings
from paperlib.student.graph import image_batch
from paperlib.student.models import fuse_model, load_model, read_published, read_weights
from paperlib.weights import FILES, pretrained


class Upscaler(Protocol):
    """What can be scored: lr uint8 (h, w, 3) → sr float32 (3h, 3w, 3) in 0..255."""

    name: str

    @property
    def about(self) -> dict[str, Any]:
        """Provenance: file, hash, precision."""

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        """Upscale one image ×3."""


class TorchUpscaler:
    """A torch network (student, baseline, fake-quant model) as an upscaler; whole images, on the network's device.

    Args:
        model: NCHW RGB 0..255 → 0..255, ×3; put into evaluation mode.
        name: for tables.
        about: provenance to add.
    """

    def __init__(self, model: nn.Module, name: str, about: dict[str, Any] | None = None) -> None:
        self.model, self.name, self.about = model.eval(), name, {"precision": "float32", **(about or {})}

    @torch.inference_mode()
    def __call__(self, lr: np.ndarray) -> np.ndarray:
        device = next(self.model.parameters()).device
        x = torch.from_numpy(lr.astype(np.float32)).to(device).permute(2, 0, 1)[None]  # (1, 3, h, w)
        sr = self.model(x)[0].clamp(0, 255).permute(1, 2, 0)
        return sr.contiguous().cpu().numpy()


class Bicubic:
    """Bicubic enlargement as an upscaler; see `paperlib.data.resize.bicubic_upscale` for the two kernels."""

    def __init__(self, kernel: str = "torch") -> None:
        self.kernel, self.name = kernel, "bicubic" if kernel == "torch" else f"bicubic-{kernel}"
        self.about = {"kernel": kernel, "precision": "float32"}

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        return bicubic_upscale(lr, kernel=self.kernel)


def _checkpoint(path: Path) -> TorchUpscaler:
    """A student, baseline or fake-quant model from one of our checkpoints; networks are fused first."""
    _, metadata = read_weights(path)
    if metadata["form"] == "qat":
        from paperlib.quantisation.qat import load_qat

        model = load_qat(path)
    else:
        model = fuse_model(load_model(path))
    about = {"file": str(path), "sha256": sha256_file(path), "checkpoint": metadata}
    return TorchUpscaler(model, path.name, about)


def load_upscaler(spec: str | Path, export: ExportSettings | None = None) -> Upscaler:
    """The upscaler that a user names.

    Args:
        spec: `pretrained` (the INT8 student in the box), `pretrained-float`, `bicubic` (PyTorch's kernel, as the
            authors' log), `bicubic-matlab`, `teacher` (the published weights), a .safetensors checkpoint of this kit,
            one of the authors' `*_deploy.pt`, or a .tflite file.
        export: threads, and overlap of tiles, for a .tflite file.

    Raises:
        UserError: nothing of that name, or a file that holds something else.
    """
    export = export or ExportSettings()
    path = pretrained(str(spec)) if str(spec) in FILES else Path(spec).expanduser()
    if str(spec) in ("bicubic", "bicubic-matlab"):
        return Bicubic("matlab" if str(spec).endswith("matlab") else "torch")
    if str(spec) == "teacher":
        from paperlib.teacher.distillation import published_upscaler

        return published_upscaler()
    if path.suffix not in (".safetensors", ".pt", ".tflite"):
        raise UserError(f"unknown model {str(spec)!r}. Name pretrained, pretrained-float, bicubic, bicubic-matlab, "
                        "teacher, or a .safetensors, *_deploy.pt or .tflite file.")
    if not path.is_file():
        raise UserError(f"no model file at {path}. Name an existing file, or train one with `paperlib reproduce`.")
    if path.suffix == ".tflite":
        from paperlib.export.tflite import TFLiteUpscaler

        return TFLiteUpscaler(path, threads=export.threads, overlap=export.overlap)
    if path.suffix == ".pt":
        return TorchUpscaler(read_published(path), path.name, {"file": str(path), "sha256": sha256_file(path)})
    return _checkpoint(path)


class QuantisedUpscaler:
    """A quantised graph as an upscaler: uint8 (h, w, 3) → float32 (3h, 3w, 3) in 0..255, by fake-quant in PyTorch.

    Args:
        int32_bias: see `run_quantised`; False for the authors' own fake-quant score.
    """

    def __init__(self, qgraph: QuantisedGraph, name: str = "fake-quant", int32_bias: bool = True) -> None:
        self.qgraph, self.name, self.int32_bias = qgraph, name, int32_bias
        self.about = {"quantiser": qgraph.quantiser, "bias": "int32" if int32_bias else "float32"}

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        sr = run_quantised(self.qgraph, image_batch(lr), int32_bias=self.int32_bias)[0]
        return sr.permute(1, 2, 0).contiguous().numpy()
