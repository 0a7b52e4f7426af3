"""What a stage 3 beside the run's own has otherwise, as data: Table D's conditions and the switches (paper section 7).

A variant is a change of settings that a user could ask for with `--set`; `paperlib.training.ablations` trains it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from paperlib.errors import UserError
from paperlib.profiles import METHODS, STAGE3_LOSS
from paperlib.settings import LossSettings, Settings, nearest

NO_TEACHER = {"stage3.loss.kd": 0.0, "stage3.loss.kd_mid": None, "stage3.loss.kd_low": 0.0}
ORTHO = {"stage3.loss.dct_norm": "ortho"}
PUBLISHED = {field: value for field, value in METHODS["paper"].items()
             if field.startswith(("data.", "teacher.", "quant.", "stage3."))}
"""Stage 3 as published, from whatever weights it starts: quantiser, loss, teacher, clipping, EMA and sampling."""


def _teacher_times(factor: float) -> dict[str, Any]:
    """The published λ(t) as a whole so many times larger."""
    return {f"stage3.loss.{name}": factor * STAGE3_LOSS[name] for name in ("kd", "kd_mid", "kd_low")}


CONDITIONS: dict[str, dict[str, Any]] = {
    "kd_1": {}, "kd_0": NO_TEACHER, "kd_10": _teacher_times(10), "kd_100": _teacher_times(100),
    "ortho_kd_1": ORTHO, "ortho_kd_0": ORTHO | NO_TEACHER,
}
"""Table D: changes of stage 3 as published. The teacher's weight 0, published, 10 and 100 times as large; and with an
orthonormal DCT, 0 and published. Paired by seed: the same patches, the same start."""
REPORTED = {"kd_1": "qat_teacher", "kd_0": "qat_direct"}
"""The conditions that the paper's Table D compares, by its names."""
PAPER_QUANTISER = {field: METHODS["paper"][field] for field in PUBLISHED if field.startswith("quant.")}
SWITCHES: dict[str, dict[str, Any]] = {
    "teacher_none": NO_TEACHER,
    "teacher_student": {"teacher.stage3": "student"},
    "loss_published": {"teacher.stage3": "same"} | {
        f"stage3.loss.{name}": value for name, value in LossSettings(**STAGE3_LOSS).model_dump().items()},
    "dct_off": {"stage3.loss.dct": 0.0},
    "confidence_off": {"stage3.loss.confidence": False},
    "weight_clip_off": {"stage3.clip_body": 0.0, "stage3.clip_ends": 0.0},
    "ema_off": {"stage3.ema": 0.0},
    "quantiser_paper": PAPER_QUANTISER,
    "quantiser_tflite": {"quant.quantiser": "tflite"},
    "equalise": {"quant.quantiser": "tflite", "quant.equalise": True},
    "skip_exact": {"quant.quantiser": "tflite", "quant.skip": "exact"},
    "skip_add": {"quant.skip": "add"},
    "rounding_data": {"quant.quantiser": "tflite", "quant.rounding": "data"},
    "rounding_nearest": {"quant.rounding": "nearest"},
    "branches_qat": PAPER_QUANTISER,
    "bn_recalibration_off": {"stage2.recalibrate_batches": 0},
    "post_training": {},
}
"""One-change variants of stage 3, each from the weights that stage 3 starts from; several at once are joined by "+".
`teacher_student` distils from those weights; `loss_published` is the paper's loss where a profile has another;
`branches_qat` trains the branches under quantisation and fuses afterwards (`paperlib.quantisation.branch_qat`; beside
`quantiser_paper`); `bn_recalibration_off` fuses with stage 2's running statistics (a collapsed stage has no others);
`post_training` leaves stage 3 out: the converter takes its grids from photographs, as the authors' did."""

NETWORKS: dict[str, Literal["branches", "untrained"]] = {"branches_qat": "branches", "post_training": "untrained"}
"""Switches that train something else than the fused network, or nothing."""


@dataclass(frozen=True)
class Variant:
    """A stage 3 beside the run's own, from the weights that stage 3 starts from, as data."""

    table: str
    row: str
    changes: dict[str, Any]
    network: Literal["fused", "branches", "untrained"]
    """What is trained under quantisation."""
    both_files: bool
    """Whether the file of post-training quantisation is measured too: the paper's way."""


def variant(name: str) -> Variant:
    """A condition of Table D, switches joined by "+", or "" for stage 3 as the run has it."""
    if name in CONDITIONS:
        return Variant("D", REPORTED.get(name, name), PUBLISHED | CONDITIONS[name], "fused", both_files=True)
    changes = {field: value for part in name.split("+") if part for field, value in SWITCHES[part].items()}
    return Variant("switches", name or "as_set", changes, NETWORKS.get(name, "fused"), both_files=False)


def check_switches(settings: Settings) -> None:
    """Refuse switches that are unknown before anything is trained.

    Raises:
        UserError: there is one; the nearest and all known names are said.
    """
    for name in settings.ablation.switches:
        for part in filter(None, name.split("+")):
            if part not in SWITCHES:
                raise UserError(f"unknown ablation.switches {part!r}. Nearest: {nearest(part, list(SWITCHES))}. "
                                f"Known: {', '.join(SWITCHES)}.")
