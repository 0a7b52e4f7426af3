"""Settings of one reproduction: every choice of the paper (sections 3–6) as validated data, and the four profiles.

A profile is data, not code: `load_settings("demo", {"stage1.steps": 500})` gives one `Settings` object that every
notebook, command and record uses. The published values live in `profiles.py`; here are the fields and their limits.
Every field's default is the paper's value where the paper has one.
"""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from paperlib.stage_settings import LossSettings, Section, StageSettings

__all__ = [
    "SCALE", "AblationSettings", "DataSettings", "ExportSettings", "LossSettings", "QuantSettings",
    "Settings", "StageSettings", "StudentSettings", "TeacherSettings", "flatten", "settings_hash"]


class DataSettings(Section):
    """Which photographs are used, and how patches are drawn (paper section 4)."""

    source: Literal["embedded", "folders", "div2k"] = "embedded"
    """embedded: photographs from the scikit-image and scikit-learn wheels; folders: any folders; div2k: DIV2K."""
    train: tuple[str, ...] = ()
    """source=folders: training folders, absolute or under PAPERLIB_DATA."""
    valid: tuple[str, ...] = ()
    """source=folders: validation folders."""
    tests: tuple[str, ...] = ()
    """Test sets, each a folder with HR/ and LR_bicubic/X3/, absolute or under PAPERLIB_DATA."""
    div2k: str = ""
    """source=div2k: a folder or a folder of zip files with DIV2K; empty: the cache, filled by `data prepare`."""
    train_crop: int = Field(0, ge=0)
    """Centre crop of each training photograph, HR pixels a side; 0 keeps it whole."""
    valid_crop: int = Field(0, ge=0)
    """Centre crop of each validation photograph, HR pixels a side; 0 keeps it whole."""
    max_train: int = Field(0, ge=0)
    """Use at most this many training photographs; 0 is all."""
    max_valid: int = Field(0, ge=0)
    """Use at most this many validation photographs; 0 is all."""
    sampling: Literal["image", "area"] = "image"
    """image: every photograph equally often, as published; area: in proportion to its pixels."""


class StudentSettings(Section):
    """The network that is trained (paper section 1; `fsrcnn` and `abpn` are Table B's baselines)."""

    arch: Literal["mobileone", "repconv", "repdw", "fsrcnn", "abpn"] = "mobileone"
    """The block of the body (Table C: mobileone, repconv, repdw), or another network of Table B."""
    channels: int = Field(32, ge=4, le=256)
    """Channels of stem and body."""
    blocks: int = Field(8, ge=1, le=64)
    """Blocks of the body, each one 3×3 convolution once fused."""
    branches: int = Field(5, ge=1, le=16)
    """Parallel 3×3 convolutions in a MobileOne block (5 in the released run, 4 in the paper's figure)."""
    init: Literal["default", "bilinear"] = "default"
    """default: PyTorch's random start, as published; bilinear: stem and head start as bilinear upscaling, which
    spares short runs the first thousands of steps (ours, not the paper's)."""


class TeacherSettings(Section):
    """Where the distillation targets come from (paper section 2)."""

    kind: Literal["auto", "published", "small"] = "auto"
    """published: MambaIRv2-light's weights; small: the same architecture, small, trained here; auto: published where
    found or downloadable, else small."""
    outputs: Literal["cached", "on_the_fly"] = "cached"
    """cached: each training photograph is upscaled once, whole, and kept as 8-bit pixels; on_the_fly: each patch."""
    small_dim: int = Field(24, ge=8, multiple_of=4)
    """Channels of the small teacher."""
    small_groups: int = Field(1, ge=1)
    """Groups of layers in the small teacher."""
    small_layers: int = Field(2, ge=1)
    """Layers in a group of the small teacher."""
    small_steps: int = Field(200, ge=1)
    """Training steps of the small teacher (L1)."""
    small_batch: int = Field(8, ge=1)
    """Patches in a step of the small teacher."""
    small_patch: int = Field(32, ge=16)
    """LR pixels a side of these patches."""
    small_lr: float = Field(1e-3, gt=0)
    """The small teacher's learning rate (Adam)."""
    stage3: Literal["same", "student"] = "same"
    """Who teaches stage 3. same: the teacher of stage 2, as the paper says; student: the float student that stage 3
    starts from, as in the authors' released run."""


class QuantSettings(Section):
    """Quantisation-aware training and export (paper sections 4 and 5)."""

    quantiser: Literal["paper", "tflite"] = "paper"
    """paper: FX graph mode with QNNPACK defaults, as published; tflite: TFLite's own INT8 arithmetic."""
    observe_until: float = Field(0.2, ge=0, le=1)
    """Fraction of stage 3 after which the observers stop and the grids are frozen (epoch 30 of 150)."""
    calibration_images: int = Field(32, ge=1)
    """Training photographs shown to the observers before stage 3, and to post-training quantisation."""
    equalise: bool = False
    """tflite only: exact cross-layer re-scaling before QAT."""
    rounding: Literal["nearest", "data"] = "nearest"
    """tflite only: where the kernels start. data: on their int8 grids, rounded by what they do to the calibration
    photographs (`paperlib.quantisation.rounding`)."""
    skip: Literal["add", "exact"] = "add"
    """How the global skip is computed. add: as published; exact: without an ADD, carried by convolutions, so that INT8
    does not round it (`paperlib.quantisation.skip`; tflite only)."""
    start: str = ""
    """A student checkpoint that stage 3 starts from: an absolute path, one under PAPERLIB_ASSETS (the authors' stage 2,
    say), or pretrained-float, the float student in the box; empty: this run's own stage 2."""

    @model_validator(mode="after")
    def _quantiser_can(self) -> Self:
        ours = {"equalise": (self.equalise, False), "rounding": (self.rounding, "nearest"), "skip": (self.skip, "add")}
        wrong = [f"quant.{name}={json.dumps(needed)}" for name, (value, needed) in ours.items() if value != needed]
        if self.quantiser == "paper" and wrong:
            raise ValueError("the paper's quantiser goes only with its own forms: set method=paper, which switches "
                             f"everything to the paper's method, or {', '.join(wrong)} as well")
        return self


class ExportSettings(Section):
    """The shipped files (paper section 5)."""

    height: int = Field(720, ge=3)
    """LR rows of the fixed file."""
    width: int = Field(1280, ge=3)
    """LR columns of the fixed file."""
    overlap: int = Field(24, ge=0)
    """LR pixels two neighbouring tiles share where an image is larger than the fixed input; exact from 20 on."""
    threads: int = Field(2, ge=1)
    """Threads of the interpreter where files are measured."""
    upsample: Literal["depth_to_space", "rows"] = "depth_to_space"
    """rows: PixelShuffle of the fixed file by operators that stay on an NPU, same values."""


class AblationSettings(Section):
    """Size of 07's trainings: Tables B, C and D with short, equal schedules (paper section 7)."""

    archs: tuple[Literal["mobileone", "repconv", "repdw", "fsrcnn", "abpn"], ...] = (
        "mobileone", "repconv", "repdw", "fsrcnn", "abpn")
    """Networks of Tables B and C that are trained."""
    stage1_steps: int = Field(ge=1)
    """Steps of stage 1 in each of these trainings."""
    stage2_steps: int = Field(100, ge=1)
    """Steps of stage 2 (Table C)."""
    stage3_steps: int = Field(ge=1)
    """Steps of stage 3."""
    keep: Literal["best", "last"] = "last"
    """Which EMA weights a training leaves; the paper's numbers are those of the best epoch."""
    seeds: tuple[int, ...] = (1234,)
    """One training each of every row; comparisons are paired by seed."""
    conditions: tuple[Literal["kd_0", "kd_1", "kd_10", "kd_100", "ortho_kd_0", "ortho_kd_1"], ...] = ("kd_1", "kd_0")
    """Table D: weights of the teacher and scalings of the DCT; kd_1 and kd_0 are the two that the paper reports."""
    switches: tuple[str, ...] = ()
    """Further one-change ablations of stage 3, by name; see `paperlib.training.variants`."""


class Settings(Section):
    """All settings of one run; `profile` names where the values came from."""

    profile: Literal["smoke", "demo", "benchmark", "paper"]
    """Data and schedule; chosen by `--profile`."""
    method: Literal["paper", "ours"] = "paper"
    """Whose way of training and quantising (`paperlib.profiles.METHODS`); single settings may differ from it."""
    seed: int = Field(1234, ge=0)
    """Start of the weights, patches, turns and the noise of the small teacher are drawn from it."""
    data: DataSettings
    student: StudentSettings = StudentSettings()
    teacher: TeacherSettings = TeacherSettings()
    stage1: StageSettings
    stage2: StageSettings
    stage3: StageSettings
    quant: QuantSettings = QuantSettings()
    export: ExportSettings = ExportSettings()
    ablation: AblationSettings

    @model_validator(mode="after")
    def _stage_can(self) -> Self:
        for name in ("stage1", "stage3"):
            if getattr(self, name).revive:
                raise ValueError(f"{name} cannot revive channels (stage 1 has none to revive, stage 3 no branches): "
                                 "set stage2.revive instead")
        return self


def settings_hash(*sections: BaseModel | str | int) -> str:
    """Short SHA-256 of settings sections (and plain values), equal for equal values in any Python process."""
    parts = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in sections]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def flatten(prefix: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as one flat dict of plain values, for `identity`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else key
        flat |= flatten(name, value) if isinstance(value, dict) else {name: value}
    return flat


SCALE = 3
