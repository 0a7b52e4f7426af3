"""Whatever can be scored: LR pixels, uint8 (h, w, 3), to SR pixels, float32 (3h, 3w, 3), clipped to
0..255 (section 6).

A torch network, a TFLite file, bicubic and the teacher are all called, and so scored, in the same
way; each has a `name` for tables and `about` for provenance. Nothing here loads torch before a
torch network is asked for.
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
    """What can be scored: lr uint8 (h, w, 3) → sr float32 (3h, 3w, 3) in 0..255."""

    name: str

    @property
    def radius(self) -> int | None:
        """How many LR pixels away a pixel can still change the result; None where that is unknown
        or unbounded."""

    @property
    def about(self) -> dict[str, Any]:
        """Provenance: file, hash, precision."""

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        """Upscale one image ×3."""


class Bicubic:
    """Bicubic enlargement as an upscaler; see `paperlib.data.resize.bicubic_upscale` for the two
    kernels."""

    radius = 3

    def __init__(self, kernel: str = "torch") -> None:
        self.kernel, self.name = kernel, "bicubic" if kernel == "torch" else f"bicubic-{kernel}"
        self.about = {"kernel": kernel, "precision": "float32"}

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        return bicubic_upscale(lr, kernel=self.kernel)


def load_upscaler(spec: str | Path) -> Upscaler:
    """The upscaler that a user names.

    Args:
        spec: `pretrained` (the shipped INT8 student), `pretrained-float`, `bicubic` (PyTorch's
            kernel, as the authors' log), `bicubic-matlab`, `teacher` (the published weights), a
            .safetensors checkpoint of this kit, one of the authors' `*_deploy.pt`, or a .tflite
            file.

    Raises:
        UserError: nothing of that name, or a file that holds something else.
    """
    path = pretrained(str(spec)) if str(spec) in FILES else user_path(spec)
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
        return TFLiteUpscaler(path)
    from paperlib.evaluation.torch_upscalers import load_network

    return load_network(path)
