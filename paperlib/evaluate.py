"""Scoring anything that upscales (paper section 6): bicubic, teacher, student checkpoints, TFLite files.

An upscaler is a callable, LR uint8 (h, w, 3) → SR float32 (3h, 3w, 3) clipped to 0..255, with a `name` and an `about`
for provenance.
"""

import math
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from paperlib.baselines import fuse_model, load_model
from paperlib.config import TeacherSettings
from paperlib.data import Pair
from paperlib.errors import UserError
from paperlib.files import sha256_file
from paperlib.metrics import scores
from paperlib.resize import bicubic_upscale
from paperlib.student import read_published

PROTOCOL = {
    "psnr_rgb": "RGB, no border crop, float output clipped to 0..255 (INT8: de-quantised)",
    "ssim_rgb": "as psnr_rgb; Gaussian window 11, sigma 1.5, data range 255, mean of the channels",
    "psnr_y": "output rounded to 8 bits, BT.601 Y in studio range, 3-pixel border crop",
    "ssim_y": "as psnr_y; Gaussian window 11, sigma 1.5, data range 255",
    "mean": "arithmetic mean of per-image values",
}


class Upscaler(Protocol):
    """What can be scored."""

    name: str

    @property
    def about(self) -> dict[str, Any]:
        """What ran: weights' hash, precision, threads."""

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) → float32 (3h, 3w, 3) in 0..255."""


class Bicubic:
    """Bicubic enlargement; kernel "torch" (a = −0.75) or "matlab" (a = −0.5)."""

    def __init__(self, kernel: str = "torch") -> None:
        self.kernel, self.name = kernel, f"bicubic ({kernel})"

    @property
    def about(self) -> dict[str, Any]:
        return {"model": self.name, "precision": "float32"}

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        return bicubic_upscale(lr, kernel=self.kernel)


class StudentUpscaler:
    """A torch network on (B, 3, H, W) in 0..255 as an upscaler; training forms are fused first.

    Args:
        model: student, baseline or fake-quantised network; copied.
        path: the file it came from, for provenance.
    """

    def __init__(self, model: nn.Module, name: str, path: Path | None = None) -> None:
        self.model = fuse_model(model).eval()
        self.name, self.path = name, path

    @property
    def about(self) -> dict[str, Any]:
        where = {"file": str(self.path), "sha256": sha256_file(self.path)} if self.path else {}
        return where | {"model": self.name, "form": getattr(self.model, "form", "?"), "precision": "float32",
                        "threads": torch.get_num_threads()}

    @torch.inference_mode()
    def __call__(self, lr: np.ndarray) -> np.ndarray:
        device = next(self.model.parameters()).device
        x = torch.from_numpy(lr.astype(np.float32)).permute(2, 0, 1)[None].to(device)
        sr = self.model(x).clamp(0, 255)
        return sr[0].permute(1, 2, 0).contiguous().cpu().numpy()


def load_upscaler(spec: str | Path) -> Upscaler:
    """An upscaler by name or file.

    Args:
        spec: "bicubic", "bicubic-matlab", "teacher" (the published weights), a student or baseline .safetensors, one of
            the authors' *_deploy.pt files, or a .tflite file.

    Raises:
        UserError: neither a known name nor a usable file.
    """
    names = {"bicubic": "torch", "bicubic-matlab": "matlab"}
    path = Path(spec)
    if str(spec) in names:
        return Bicubic(names[str(spec)])
    if str(spec) == "teacher":
        from paperlib.distill import find_teacher
        from paperlib.teacher import TeacherUpscaler

        source = find_teacher(TeacherSettings(kind="published"))
        return TeacherUpscaler(source.model, source.name)
    if path.suffix == ".tflite":
        from paperlib.tflite import TFLiteModel

        return TFLiteModel(path)
    if path.suffix == ".safetensors":
        return StudentUpscaler(load_model(path), path.stem, path)
    if path.suffix == ".pt":
        return StudentUpscaler(read_published(path), path.stem, path)
    raise UserError(f"no model {str(spec)!r}. Give bicubic, bicubic-matlab, teacher, or a .safetensors, .pt or .tflite "
                    "file.")


def finite(value: float) -> float | None:
    """A score for JSON: infinite (equal images) and undefined (image too small) become null."""
    return value if math.isfinite(value) else None


def mean_scores(rows: list[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean of each score over the images that have it; null where none has."""
    means = {}
    for name in ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y"):
        values = [row[name] for row in rows if row[name] is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def evaluate(
    upscaler: Upscaler, pairs: Iterable[Pair], progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Score an upscaler on pairs.

    Returns:
        {"model", "images": [{"name", four scores}], "mean": {four scores}, "protocol", "provenance"}; a score is null
        where it is infinite or undefined.

    Raises:
        UserError: there is no pair.
    """
    rows = []
    for pair in pairs:
        values = scores(upscaler(pair.lr), pair.hr)
        rows.append({"name": pair.name} | {name: finite(value) for name, value in values.items()})
        if progress:
            progress(pair.name)
    if not rows:
        raise UserError("no image to evaluate. Name a folder with images.")
    provenance = dict(upscaler.about) | {
        "python": platform.python_version(), "torch": torch.__version__, "paperlib": version("paperlib"),
        "numpy": np.__version__, "machine": platform.machine()}
    return {"model": upscaler.name, "images": rows, "mean": mean_scores(rows), "protocol": PROTOCOL,
            "provenance": provenance}
