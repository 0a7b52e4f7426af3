"""Whatever can be scored, and the score of a set of images (paper section 6).

An upscaler is one callable: LR pixels, uint8 (h, w, 3), to SR pixels, float32 (3h, 3w, 3), clipped to 0..255; with a
`name` for tables and `about` for provenance. A torch network, a TFLite file, bicubic and the teacher are all scored by
the same code.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from paperlib.baselines import fuse_model, load_model
from paperlib.config import ExportSettings
from paperlib.data import Pair, Progress
from paperlib.errors import UserError
from paperlib.files import sha256_file
from paperlib.metrics import METRICS, mean_scores, scores
from paperlib.pretrained import FILES, pretrained
from paperlib.resize import bicubic_upscale
from paperlib.student import read_checkpoint, read_published

PROTOCOL = {
    "scale": 3,
    "psnr_rgb, ssim_rgb": "RGB, no border crop, output clipped to 0..255 and not rounded (INT8: de-quantised values)",
    "psnr_y, ssim_y": "output rounded to 8 bits, BT.601 studio-range Y not rounded, 3-pixel border crop",
    "ssim": "Gaussian window 11, sigma 1.5, data range 255, population covariance, only windows inside the image",
    "mean": "of per-image values; images without a finite value are left out and named in notes",
}


class Upscaler(Protocol):
    """What can be scored: lr uint8 (h, w, 3) → sr float32 (3h, 3w, 3) in 0..255."""

    name: str

    @property
    def about(self) -> dict[str, Any]:
        """Provenance: file, hash, precision."""

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        """Upscale one image ×3."""


class StudentUpscaler:
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
    """Bicubic enlargement as an upscaler; see `paperlib.resize.bicubic_upscale` for the two kernels."""

    def __init__(self, kernel: str = "torch") -> None:
        self.kernel, self.name = kernel, "bicubic" if kernel == "torch" else f"bicubic-{kernel}"
        self.about = {"kernel": kernel, "precision": "float32"}

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        return bicubic_upscale(lr, kernel=self.kernel)


def _checkpoint(path: Path) -> StudentUpscaler:
    """A student, baseline or fake-quant model from one of our checkpoints; networks are fused first."""
    _, metadata = read_checkpoint(path)
    if metadata["form"] == "qat":
        from paperlib.quantise import load_qat

        model = load_qat(path)
    else:
        model = fuse_model(load_model(path))
    about = {"file": str(path), "sha256": sha256_file(path), "checkpoint": metadata}
    return StudentUpscaler(model, path.name, about)


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
        from paperlib.distill import published_upscaler

        return published_upscaler()
    if path.suffix not in (".safetensors", ".pt", ".tflite"):
        raise UserError(f"unknown model {str(spec)!r}. Name pretrained, pretrained-float, bicubic, bicubic-matlab, "
                        "teacher, or a .safetensors, *_deploy.pt or .tflite file.")
    if not path.is_file():
        raise UserError(f"no model file at {path}. Name an existing file, or train one with `paperlib reproduce`.")
    if path.suffix == ".tflite":
        from paperlib.tflite import TFLiteModel

        return TFLiteModel(path, threads=export.threads, overlap=export.overlap)
    if path.suffix == ".pt":
        return StudentUpscaler(read_published(path), path.name, {"file": str(path), "sha256": sha256_file(path)})
    return _checkpoint(path)


def score_pairs(upscaler: Callable[[np.ndarray], np.ndarray], pairs: Sequence[Pair]) -> dict[str, float]:
    """Mean of the four metrics (`paperlib.metrics.METRICS`) over pairs; an unreadable image is an error."""
    return mean_scores(scores(upscaler(pair.lr), pair.hr) for pair in pairs)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows neither inf nor nan: such values are null, and `notes` says which images had them."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()}


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    equal = [row["name"] for row in rows if math.inf in (row["psnr_rgb"], row["psnr_y"])]
    small = [row["name"] for row in rows if any(math.isnan(row[metric]) for metric in METRICS)]
    notes = ((equal, "equal to the original, PSNR infinite and not in the mean"),
             (small, "too small for a metric (SSIM's window is 11 pixels), not in its mean"))
    return [f"{text}: {', '.join(names)}" for names, text in notes if names]


def evaluate(upscaler: Upscaler, pairs: Sequence[Pair], progress: Progress | None = None) -> dict[str, Any]:
    """Score an upscaler on pairs of LR and HR images.

    Args:
        upscaler: see `Upscaler`.
        pairs: read one by one; one that cannot be read is listed under `failed` and the others are scored.
        progress: called with (done, total) after each image.

    Returns:
        Values for JSON: `model`, `images` (name and four metrics each), `mean`, `failed` (messages), `notes`,
        `protocol`, `provenance` (the model's, the hash of all pixels that went in, versions, device, threads).
    """
    from paperlib.records import provenance  # needs pandas and matplotlib, upscaling does not

    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    digest = hashlib.sha256()
    for index in range(len(pairs)):
        try:
            pair = pairs[index]
        except UserError as error:
            failed.append(str(error))
        else:
            rows.append({"name": pair.name, **scores(upscaler(pair.lr), pair.hr)})
            for pixels in (pair.lr, pair.hr):
                digest.update(f"{pair.name} {pixels.shape}".encode() + pixels.tobytes())
        if progress:
            progress(index + 1, len(pairs))
    return {
        "model": upscaler.name, "images": [_plain(row) for row in rows], "mean": _plain(mean_scores(rows)),
        "failed": failed, "notes": _notes(rows), "protocol": PROTOCOL,
        "provenance": {"model": upscaler.about, "inputs_sha256": digest.hexdigest()} | provenance()}


def score_lines(result: dict[str, Any]) -> str:
    """The result of `evaluate` as aligned text: one image a line, the mean last."""
    rows = [*result["images"], {"name": "mean", **result["mean"]}]
    width = max(len(row["name"]) for row in rows)
    lines = [" " * width + "".join(f"  {metric:>8}" for metric in METRICS)]
    for row in rows:
        digits = ((row[metric], 3 if metric.startswith("psnr") else 4) for metric in METRICS)
        cells = ("–" if value is None else f"{value:.{places}f}" for value, places in digits)
        lines.append(f"{row['name']:<{width}}" + "".join(f"  {cell:>8}" for cell in cells))
    return "\n".join(lines)
