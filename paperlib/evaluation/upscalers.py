"""Whatever can be scored: a torch network, a TFLite file, bicubic, the teacher (section 6).

Nothing here loads torch before a torch network is asked for.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paperlib.data.resize import bicubic_upscale
from paperlib.errors import UserError
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import user_path
from paperlib.weights import FILES, pretrained


class Upscaler(Protocol):
    """LR pixels, uint8 (h, w, 3) → SR pixels, float32 (3h, 3w, 3) clipped to 0..255."""

    name: str
    radius: int | None  # how many LR pixels away a pixel can change the result; None: not known
    about: dict[str, Any]  # provenance: file, hash, precision

    def __call__(self, lr: np.ndarray) -> np.ndarray: ...


class Bicubic:
    """Bicubic enlargement; `paperlib.data.resize.bicubic_upscale` has the two kernels."""

    radius = 3

    def __init__(self, kernel: str = "torch") -> None:
        self.kernel, self.name = kernel, "bicubic" if kernel == "torch" else f"bicubic-{kernel}"
        self.about = {"kernel": kernel, "precision": "float32"}

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        return bicubic_upscale(lr, kernel=self.kernel)


def load_upscaler(spec: str | Path) -> Upscaler:
    """The upscaler that a user names: `pretrained` (the shipped INT8 student), `pretrained-float`,
    `bicubic` (PyTorch's kernel, as the authors' log), `bicubic-matlab`, `teacher` (the published
    weights), a .safetensors checkpoint, one of the authors' .pt files, or a .tflite file."""
    name = str(spec)
    path = pretrained(name) if name in FILES else user_path(spec)
    if name in ("bicubic", "bicubic-matlab"):
        return Bicubic("matlab" if name == "bicubic-matlab" else "torch")
    if name == "teacher":
        from paperlib.teacher.distillation import published_upscaler

        return published_upscaler()
    if path.suffix not in (".safetensors", ".pt", ".tflite"):
        raise UserError(
            f"unknown model {name!r}. Name pretrained, pretrained-float, bicubic, bicubic-matlab, "
            "teacher, or a .safetensors, *_deploy.pt or .tflite file.")
    if not path.is_file():
        raise UserError(f"no model file at {path}. Name an existing file, or train one with "
                        "`paperlib reproduce`.")
    if path.suffix == ".tflite":
        return TFLiteUpscaler(path)
    from paperlib.evaluation.torch_upscalers import load_network

    return load_network(path)
