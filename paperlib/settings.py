"""Every setting of a run with its limits, and single ones changed by name (paper sections 3–6).

`paperlib.profiles.load_settings("demo", {"stage1.steps": 500})` gives the one `Settings` object of
every notebook, command and record. A default is the paper's value where it has one.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, Literal, Self, get_args

import pydantic
from pydantic import BaseModel, Field, field_validator, model_validator

from paperlib.errors import UserError

SCALE = 3
_Arch = Literal["mobileone", "repconv", "repdw", "fsrcnn", "abpn"]
_Claim = Literal[
    "published", "post_training", "stage1_longer", "dct_off", "confidence_off", "kd_off",
    "clip_off", "recalibration_off", "clip_off+recalibration_off"]


class _Section(BaseModel):
    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_is_a_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        parts = value if isinstance(value, list | tuple) else [value]
        may = cls.model_fields[info.field_name].annotation is bool
        if not may and any(isinstance(part, bool) for part in parts):
            raise ValueError("true and false are no numbers")
        return value


class DataSettings(_Section):
    """Which photographs are used, and how patches are drawn (paper section 4)."""

    source: Literal["embedded", "folders", "div2k"] = "embedded"
    """embedded: photographs in scikit-image and scikit-learn; folders: any; div2k: DIV2K."""
    train: tuple[str, ...] = ()
    """source=folders: training folders, absolute or under PAPERLIB_DATA."""
    valid: tuple[str, ...] = ()
    """source=folders: validation folders."""
    tests: tuple[str, ...] = ()
    """Test sets, each a folder with HR/ and LR_bicubic/X3/, absolute or under PAPERLIB_DATA."""
    div2k: str = ""
    """source=div2k: a folder of it, or of its zip files; empty: the cache (`data prepare`)."""
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

    @field_validator("train_crop", "valid_crop")
    @classmethod
    def _crops_hold_a_pixel(cls, side: int) -> int:
        if 0 < side < SCALE:
            raise ValueError(f"0, or at least {SCALE} pixels")
        return side


class StudentSettings(_Section):
    """The network that is trained (paper section 1; `fsrcnn` and `abpn`: Table B)."""

    arch: _Arch = "mobileone"
    """The block of the body (Table C: mobileone, repconv, repdw), or another network of Table B."""
    channels: int = Field(32, ge=4, le=256)
    """Channels of stem and body."""
    blocks: int = Field(8, ge=1, le=64)
    """Blocks of the body, each one 3×3 convolution once fused."""
    branches: int = Field(5, ge=1, le=16)
    """Parallel 3×3 convolutions in a MobileOne block (released run: 5, paper's figure: 4)."""
    init: Literal["default", "bilinear"] = "default"
    """default: PyTorch's, as published; bilinear: stem and head enlarge bilinearly (ours)."""


class TeacherSettings(_Section):
    """Where the distillation targets come from (paper section 2)."""

    kind: Literal["auto", "published", "small"] = "auto"
    """published: MambaIRv2-light; small: trained here; auto: published if at hand, else small."""
    outputs: Literal["cached", "on_the_fly"] = "cached"
    """cached: each photograph is upscaled once and kept as 8-bit pixels; on_the_fly: each patch."""
    small_dim: int = Field(24, ge=8, multiple_of=4)
    """Channels of the small teacher."""
    small_layers: int = Field(2, ge=1)
    """Layers of the small teacher."""
    small_steps: int = Field(200, ge=1)
    """Training steps of the small teacher (L1)."""
    small_batch: int = Field(8, ge=1)
    """Patches in a step of the small teacher."""
    small_patch: int = Field(32, ge=16)
    """LR pixels a side of these patches."""
    stage3: Literal["same", "student"] = "same"
    """same: stage 2's, as the paper says; student: the float student, as in the released run."""


class LossSettings(_Section):
    """Weights of the loss terms, all on images scaled to 0..1 (paper section 3)."""

    l1: float = Field(0.0, ge=0)
    """Weight of the absolute error (stage 1)."""
    charbonnier: float = Field(0.0, ge=0)
    """Weight of the Charbonnier error."""
    mse: float = Field(0.0, ge=0)
    """Squared error, which is what PSNR measures (ours, not the paper's)."""
    dct: float = Field(0.0, ge=0)
    """Weight of the absolute error between the DCTs of whole patches."""
    dct_norm: Literal["none", "ortho"] = "none"
    """none: unnormalised, as published; ortho: 2·√(N·M) times smaller (Table D)."""
    kd: float = Field(0.0, ge=0)
    """Weight of the confidence-weighted distillation; the high value of a schedule."""
    kd_mid: float | None = Field(None, ge=0)
    """λ(t): weight at the end of the linear phase; None keeps `kd` constant."""
    kd_low: float = Field(0.0, ge=0)
    """λ(t): constant weight of the last phase."""
    kd_p1: float = Field(0.25, ge=0, le=1)
    """λ(t): fraction of the stage at which the linear phase begins."""
    kd_p2: float = Field(0.60, ge=0, le=1)
    """λ(t): fraction of the stage at which it ends."""
    confidence: bool = True
    """False: distil with weight 1 everywhere (ablation)."""
    kd_error: Literal["l1", "l2"] = "l1"
    """l1: |student − teacher|, as published; l2: its square (ours)."""
    gamma: float = Field(10.0, ge=0)
    """Confidence: how fast the weight falls with the teacher's error."""
    w_min: float = Field(0.10, ge=0, le=1)
    """Confidence: least weight of a pixel."""
    w_max: float = Field(0.75, ge=0, le=1)
    """Confidence: largest weight of a pixel."""


class StageSettings(_Section):
    """One training stage as data for the one `fit` (paper section 4); an epoch is 50 steps."""

    steps: int = Field(ge=1)
    """Steps of the optimiser."""
    optimizer: Literal["adam", "soap"] = "adam"
    """adam: as published; soap: Adam in Shampoo's eigenbases (ours; arXiv 2409.11321)."""
    batch: int = Field(16, ge=1)
    """Patches in a step."""
    patch: int = Field(128, ge=8)
    """LR pixels a side; HR patches are three times as large."""
    permute_colours: bool = False
    """Red, green and blue change places at random, alike in LR, HR and teacher (ours)."""
    text: float = Field(0.0, ge=0, le=1)
    """Share of the patches that are rendered text instead of photographs (ours; `data.text`)."""
    text_until: float = Field(1.0, ge=0, le=1)
    """Fraction of the steps after which there is no more text (ours)."""
    lr: float = Field(gt=0)
    """Largest learning rate."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises linearly from 0."""
    decay: Literal["cosine", "halve", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    halve_every: int = Field(2000, ge=1)
    """decay=halve: steps between two halvings."""
    hold: float = Field(0.0, ge=0, lt=1)
    """decay=cosine: fraction of the steps after the warm-up at the full rate (ours)."""
    clip_grad: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 is no clipping."""
    clip_body: float = Field(3.0, ge=0)
    """Largest |weight| of the body after each step; 0: none, as in the released run's stage 1."""
    clip_ends: float = Field(2.0, ge=0)
    """Largest |weight| of stem and head after each step; 0 is no clipping."""
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay of the weights' moving average, which is validated and kept; 0 is none."""
    ema_warmup: bool = False
    """True: the decay grows from 0 to `ema` (for runs shorter than a few thousand steps)."""
    keep: Literal["best", "last"] = "best"
    """best: EMA weights of all validations, as published; last: chosen on nothing."""
    validate_every: int = Field(50, ge=1)
    """Steps between two validations."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between two states from which a killed run continues."""
    recalibrate_batches: int = Field(64, ge=0)
    """Batches for re-estimating the BN statistics before fusing; 0 keeps the running ones."""
    form: Literal["expanded", "collapsed"] = "expanded"
    """collapsed: BN statistics frozen, every block trained as one convolution (ours)."""
    revive: bool = False
    """stage 2 only: MobileOne channels that stage 1 left dead get fresh kernels first (ours)."""
    loss: LossSettings
    expect: str = ""
    """What the source reports for this stage, and where; shown in the notebook."""


class QuantSettings(_Section):
    """Quantisation-aware training and export (paper sections 4 and 5)."""

    quantiser: Literal["paper", "tflite"] = "paper"
    """paper: FX graph mode, QNNPACK defaults, as published; tflite: TFLite's arithmetic (ours)."""
    observe_until: float = Field(0.2, ge=0, le=1)
    """Fraction of stage 3 after which the grids are frozen (epoch 30 of 150)."""
    calibration_images: int = Field(32, ge=1)
    """Training photographs that set the grids before stage 3 and after training alone."""
    equalise: bool = False
    """tflite only: exact cross-layer re-scaling before QAT."""
    rounding: Literal["nearest", "data"] = "nearest"
    """data (tflite only): kernels start rounded by what they do to photographs (ours)."""
    skip: Literal["add", "exact"] = "add"
    """The global skip. add: as published; exact (tflite only): by convolutions, unrounded."""
    start: str = ""
    """Checkpoint that stage 3 starts from: absolute, under PAPERLIB_ASSETS (the authors' stage 2,
    say), or pretrained-float, the shipped float student; empty: this run's stage 2."""

    @model_validator(mode="after")
    def _quantiser_can(self) -> Self:
        papers = {"equalise": False, "rounding": "nearest", "skip": "add"}
        wrong = [f"quant.{name}={json.dumps(value)}" for name, value in papers.items()
                 if getattr(self, name) != value]
        if self.quantiser == "paper" and wrong:
            raise ValueError(
                "the paper's quantiser goes only with its own forms: set method=paper, which "
                f"switches everything to the paper's method, or {', '.join(wrong)} as well")
        return self


class ExportSettings(_Section):
    """The exported files (paper section 5)."""

    height: int = Field(720, ge=3, le=16384)
    """LR rows of the fixed file."""
    width: int = Field(1280, ge=3, le=16384)
    """LR columns of the fixed file."""
    overlap: int = Field(24, ge=0)
    """LR pixels shared by neighbouring tiles of the fixed file; exact from 20 on."""
    upsample: Literal["depth_to_space", "rows"] = "depth_to_space"
    """rows: PixelShuffle by operators that stay on an NPU, same values."""


class AblationSettings(_Section):
    """Size of 07's trainings: Tables B, C and D with short, equal schedules (paper section 7)."""

    archs: tuple[_Arch, ...] = get_args(_Arch)
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
    conditions: tuple[Literal[
        "kd_0", "kd_1", "kd_10", "kd_100", "ortho_kd_0", "ortho_kd_1"], ...] = ("kd_1", "kd_0")
    """Table D: weights of the teacher, scalings of the DCT; the paper reports kd_1 and kd_0."""
    switches: tuple[str, ...] = ()
    """Further changes of stage 3, by name; see `paperlib.training.ablations`."""
    claims: tuple[_Claim, ...] = get_args(_Claim)
    """What the abstract says, as trainings; see `paperlib.training.ablations`."""

    @field_validator("seeds")
    @classmethod
    def _are_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
            raise ValueError("at least one seed is needed, from 0 to 2⁶³ − 1, none twice")
        return seeds


class Settings(_Section):
    """All settings of one run; `profile` names where the values came from."""

    profile: Literal["smoke", "demo", "benchmark", "paper"]
    """Data and schedule; chosen by `--profile`."""
    method: Literal["paper", "released", "ours"] = "paper"
    """Whose way of training and quantising; single settings may differ from it."""
    seed: int = Field(1234, ge=0, lt=2**63)
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
    def _go_together(self) -> Self:
        if self.stage1.revive or self.stage3.revive:
            raise ValueError("only stage 2 can revive channels: set stage2.revive")
        if self.quant.skip == "exact" and self.student.arch in ("repdw", "fsrcnn", "abpn"):
            raise ValueError(f"student.arch={self.student.arch} has no block that quant.skip=exact "
                             "could use (method ours sets it): set quant.skip=add, or another "
                             "student.arch")
        return self


def settings_hash(*sections: BaseModel | str | int) -> str:
    """Short SHA-256 of settings sections and plain values, the same in any Python process."""
    parts = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part
             for part in sections]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def flatten(prefix: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as one flat dict of plain values, for `identity`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else key
        flat |= flatten(name, value) if isinstance(value, dict) else {name: value}
    return flat


def nearest(word: str, names: Iterable[str]) -> str:
    """The three names most like a word, for an error's remedy."""
    return ", ".join(difflib.get_close_matches(word, list(names), cutoff=0))


def override(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with single fields changed (`{"stage3.loss.kd": 0}`), validated as a whole.

    Not `method`, which is many settings (`paperlib.profiles.load_settings`).
    """
    if "method" in changes:
        raise ValueError("a method is chosen when settings are loaded")
    if "profile" in changes:
        raise UserError("a profile is chosen by --profile, not by --set.")
    tree = settings.model_dump()
    known = flatten("", tree)
    for field, value in changes.items():
        if field not in known:
            raise UserError(f"unknown setting {field!r}. Nearest: {nearest(field, known)}.")
        *sections, last = field.split(".")
        reduce(dict.__getitem__, sections, tree)[last] = value
    try:
        return Settings.model_validate(tree)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "combination"
        value = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"setting {place}{value}: {reason}.") from error


def parse_overrides(overrides: str | dict[str, Any] | None) -> dict[str, Any]:
    """Overrides as a dict of dotted fields, from a dict or a JSON object in a string."""
    example = 'Write for instance {"stage1.steps": 500}.'
    if isinstance(overrides, str):
        try:
            overrides = json.loads(overrides or "{}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"overrides is not JSON ({error}). {example}") from error
    if not isinstance(overrides, dict | None):
        raise UserError(f"overrides is no JSON object. {example}")
    return dict(overrides or {})


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`--set` arguments as overrides: "stage1.steps=500" → {"stage1.steps": 500}, else text."""
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals or not field:
            raise UserError(f"--set {assignment}: expected field=value, for instance "
                            "--set stage1.steps=500.")
        try:
            overrides[field] = json.loads(text)
        except json.JSONDecodeError:
            overrides[field] = text
        except (ValueError, RecursionError) as error:  # nested very deep, thousands of digits
            raise UserError(f"--set {field}: no setting can have that value ({error}).") from error
    return overrides
