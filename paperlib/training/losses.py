"""Losses of the three stages (paper section 3), all on images scaled to 0..1.

Tensors are (B, 3, H, W); every function returns a scalar mean unless it says otherwise.
"""

import copy
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.data.dataset import Batch
from paperlib.errors import UserError
from paperlib.settings import LossSettings


def l1(sr_01: Tensor, hr_01: Tensor) -> Tensor:
    """Mean |ŷ − y|."""
    return (sr_01 - hr_01).abs().mean()


def mse(sr_01: Tensor, hr_01: Tensor) -> Tensor:
    """Mean (ŷ − y)²."""
    return (sr_01 - hr_01).square().mean()


def charbonnier(sr_01: Tensor, hr_01: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean √((ŷ − y)² + ε²); its smallest value is ε."""
    return torch.sqrt((sr_01 - hr_01).square() + epsilon**2).mean()


@lru_cache(maxsize=8)
def _dct_matrix(length: int, norm: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    n = torch.arange(length, dtype=torch.float64)
    # row k: frequency k
    matrix = 2 * torch.cos(torch.pi * (2 * n[None] + 1) * n[:, None] / (2 * length))
    if norm == "ortho":
        matrix /= (2 * length) ** 0.5
        matrix[0] /= 2**0.5
    return matrix.to(device, dtype)


def dct2(image: Tensor, norm: str = "none") -> Tensor:
    """Two-dimensional DCT-II over the last two axes, same shape.

    Args:
        norm: "none", unnormalised (scipy.fft.dctn with norm=None), as published; "ortho",
            orthonormal: divided by 2·√(N·M), and by √2 more for each frequency 0.
    """
    rows, columns = (_dct_matrix(length, norm, image.device, image.dtype)
                     for length in image.shape[-2:])
    return rows @ image @ columns.T


def dct_l1(sr_01: Tensor, hr_01: Tensor, norm: str = "none") -> Tensor:
    """Mean |D(ŷ) − D(y)| over the whole patch; D is linear, so applied once, to the difference."""
    return dct2(sr_01 - hr_01, norm).abs().mean()


@torch.no_grad()
def confidence(teacher_01: Tensor, hr_01: Tensor, settings: LossSettings) -> Tensor:
    """Confidence map w(p) = clip(exp(−γ e(p)), w_min, w_max), (B, 1, H, W), without gradient.

    e(p) is the teacher's mean |error| over the channels.
    """
    error = (teacher_01 - hr_01).abs().mean(dim=1, keepdim=True)
    return torch.exp(-settings.gamma * error).clamp(settings.w_min, settings.w_max)


def distillation(sr_01: Tensor, teacher_01: Tensor, hr_01: Tensor,
                 settings: LossSettings) -> Tensor:
    """Mean w·|ŷ − t|, or w·(ŷ − t)² for `kd_error` l2; t the teacher's output, without gradient."""
    target = teacher_01.detach().clamp(0, 1)
    difference = (sr_01 - target).square() if settings.kd_error == "l2" else (sr_01 - target).abs()
    if settings.confidence:
        difference = confidence(target, hr_01, settings) * difference
    return difference.mean()


def kd_weight(settings: LossSettings, progress: float) -> float:
    """λ(t): `kd` until p1 of the stage, then linear to `kd_mid` until p2, then `kd_low`.

    Constant without `kd_mid`. `progress` is the fraction of the stage that is done, 0..1.
    """
    if settings.kd_mid is None or progress < settings.kd_p1:
        return settings.kd
    if progress < settings.kd_p2:
        part = (progress - settings.kd_p1) / (settings.kd_p2 - settings.kd_p1)
        return settings.kd + part * (settings.kd_mid - settings.kd)
    return settings.kd_low


def weighted_terms(settings: LossSettings, sr_255: Tensor, hr_255: Tensor,
                   teacher_01: Tensor | None, progress: float) -> dict[str, tuple[float, Tensor]]:
    """The terms of a stage's loss: name → weight now, value before weighting.

    A term whose weight is 0 for now has no gradient.

    Args:
        sr_255: the student's output in 0..255 (not clamped); hr_255: the target in 0..255.
        teacher_01: the teacher's output, or None where `kd` is 0.
        progress: fraction of the stage that is done, 0..1.
    """
    sr_01, hr_01 = sr_255 / 255, hr_255 / 255
    terms: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "l1": (settings.l1, lambda: l1(sr_01, hr_01)),
        "charbonnier": (settings.charbonnier, lambda: charbonnier(sr_01, hr_01)),
        "mse": (settings.mse, lambda: mse(sr_01, hr_01)),
        "dct": (settings.dct, lambda: dct_l1(sr_01, hr_01, settings.dct_norm)),
    }
    terms = {name: term for name, term in terms.items() if term[0] > 0}
    if settings.kd > 0:
        if teacher_01 is None:
            raise UserError("this stage distils (loss.kd > 0) but has no teacher. Run 03_teacher, "
                            "or set loss.kd=0.")
        terms["kd"] = (kd_weight(settings, progress),
                       lambda: distillation(sr_01, teacher_01, hr_01, settings))
    found = {}
    for name, (weight, term) in terms.items():
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
            found[name] = weight, term()
    return found


def stage_loss(settings: LossSettings, sr_255: Tensor, hr_255: Tensor, teacher_01: Tensor | None,
               progress: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of `weighted_terms`, and each term before weighting, detached."""
    total, parts = sr_255.new_zeros(()), {}
    terms = weighted_terms(settings, sr_255, hr_255, teacher_01, progress)
    for name, (weight, value) in terms.items():
        parts[name] = value.detach()
        if weight > 0:
            total = total + weight * value
    return total, parts


def target_01(settings: LossSettings, batch: Batch, lr_255: Tensor,
              teacher: Callable[[Tensor], Tensor] | None) -> Tensor | None:
    """What distillation learns from, in 0..1: the cached output, else the teacher asked now."""
    if settings.kd > 0 and batch.teacher is not None:
        return batch.teacher.to(lr_255.device).float() / 255
    return teacher(lr_255) if settings.kd > 0 and teacher is not None else None


def gradient_shares(
    model: nn.Module, batch: Batch, settings: LossSettings,
    teacher: Callable[[Tensor], Tensor] | None = None, progress: float = 0.0,
) -> pd.DataFrame:
    """What each term of the loss has to say on one batch, in training mode.

    Args:
        model: (B, 3, p, p) in 0..255 → (B, 3, 3p, 3p) in 0..255; left as it was.
        teacher: computes targets in 0..1 from LR patches in 0..255, where the batch has none.

    Returns:
        One line a term: `term`, `weight`, `value` (before weighting), `value share` (of the
        weighted sum), `gradient norm` (of the weighted term, over all weights of the model) and
        `gradient share` (of the norms' sum).
    """
    model, lr = copy.deepcopy(model).train(), batch.lr.float()
    weights = [value for value in model.parameters() if value.requires_grad]
    target = target_01(settings, batch, lr, teacher)
    terms = weighted_terms(settings, model(lr), batch.hr.float(), target, progress)
    lines = []
    for name, (weight, value) in terms.items():
        norm = 0.0
        if weight > 0:
            found = torch.autograd.grad(weight * value, weights, retain_graph=True,
                                        allow_unused=True)
            norm = float(torch.stack([part.norm() for part in found if part is not None]).norm())
        lines.append({"term": name, "weight": weight, "value": float(value.detach()),
                      "gradient norm": norm})
    table = pd.DataFrame(lines)
    parts = table["weight"] * table["value"]
    table.insert(3, "value share", parts / parts.sum())
    return table.assign(**{"gradient share": table["gradient norm"] / table["gradient norm"].sum()})


def confidence_map(teacher_255: np.ndarray, hr_255: np.ndarray,
                   settings: LossSettings) -> np.ndarray:
    """The distillation weights w(p) of one photograph, (H, W), from images (H, W, 3) in 0..255."""
    one, other = (torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] / 255
                  for image in (teacher_255, hr_255))
    return confidence(one, other, settings)[0, 0].numpy()
