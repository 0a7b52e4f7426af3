"""Every setting of a run with its limits, and single ones changed by name (paper sections 3–6).

`paperlib.profiles.load_settings("demo", {"stage1.steps": 500})` gives the one `Settings` object that
every notebook, command and record uses. A default is the paper's value where it has one.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from paperlib.errors import UserError

SCALE = 3


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False,
                              use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        flags = [part for part in (value if isinstance(value, list | tuple) else [value])
                 if isinstance(part, bool)]
        if flags and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("true and false are no numbers")
        return value


class DataSettings(_Section):
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


class StudentSettings(_Section):
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
    """default: PyTorch's random start, as published; bilinear: stem and head enlarge bilinearly at first (ours)."""


class TeacherSettings(_Section):
    """Where the distillation targets come from (paper section 2)."""

    kind: Literal["auto", "published", "small"] = "auto"
    """published: MambaIRv2-light; small: one trained here; auto: published where it can be had, else small."""
    outputs: Literal["cached", "on_the_fly"] = "cached"
    """cached: each training photograph is upscaled once, whole, and kept as 8-bit pixels; on_the_fly: each patch."""
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
    """same: stage 2's, as the paper says; student: the float student itself, as in the authors' released run."""


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
    """Scaling of the DCT. none: unnormalised, as published; ortho: orthonormal, 2·√(N·M) times smaller (Table D)."""
    kd: float = Field(0.0, ge=0)
    """Weight of the confidence-weighted output distillation; the high value where a schedule is set."""
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
    """l1: |student − teacher| as published; l2: its square (ours, where INT8 is to stay close to its float network)."""
    gamma: float = Field(10.0, ge=0)
    """Confidence: how fast the weight falls with the teacher's error."""
    w_min: float = Field(0.10, ge=0, le=1)
    """Confidence: least weight of a pixel."""
    w_max: float = Field(0.75, ge=0, le=1)
    """Confidence: largest weight of a pixel."""


class StageSettings(_Section):
    """One training stage as data for the one `fit` (paper section 4). One published epoch is 50 steps."""

    steps: int = Field(ge=1)
    """Steps of the optimiser."""
    optimizer: Literal["adam", "soap"] = "adam"
    """adam: as published; soap: Adam in the eigenbases of Shampoo's preconditioner (ours; arXiv 2409.11321)."""
    batch: int = Field(16, ge=1)
    """Patches in a step."""
    patch: int = Field(128, ge=8)
    """LR pixels a side; HR patches are three times as large."""
    permute_colours: bool = False
    """True: red, green and blue change places at random, alike in LR, HR and the teacher's output (ours)."""
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
    """Largest |weight| of the body's convolutions after each step; 0: no clipping, as in the released run's stage 1."""
    clip_ends: float = Field(2.0, ge=0)
    """Largest |weight| of stem and head, applied after each step; 0 is no clipping."""
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what is validated and kept; 0 is none."""
    ema_warmup: bool = False
    """True: the decay grows from 0 to `ema` (for runs shorter than a few thousand steps)."""
    keep: Literal["best", "last"] = "best"
    """Which EMA weights the stage leaves. best: of all validations, as published; last: chosen on nothing."""
    validate_every: int = Field(50, ge=1)
    """Steps between two validations."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between two states from which a killed run continues."""
    recalibrate_batches: int = Field(64, ge=0)
    """Batches for re-estimating the BN statistics before fusing; 0 keeps the running ones."""
    form: Literal["expanded", "collapsed"] = "expanded"
    """collapsed: BN statistics frozen and every block trained as one convolution (ours; off in `paper`)."""
    revive: bool = False
    """stage 2 only: MobileOne channels that stage 1 left dead get fresh kernels first (ours)."""
    loss: LossSettings
    expect: str = ""
    """What the source reports for this stage, and where; shown in the notebook."""


class QuantSettings(_Section):
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
    """Where kernels start. data (tflite only): rounded by what they do to photographs (`quantisation.rounding`)."""
    skip: Literal["add", "exact"] = "add"
    """The global skip. add: as published; exact (tflite only): by convolutions, unrounded (`quantisation.skip`)."""
    start: str = ""
    """A student checkpoint that stage 3 starts from: an absolute path, one under PAPERLIB_ASSETS (the authors' stage 2,
    say), or pretrained-float, the shipped float student; empty: this run's own stage 2."""

    @model_validator(mode="after")
    def _quantiser_can(self) -> Self:
        ours = {"equalise": (self.equalise, False), "rounding": (self.rounding, "nearest"), "skip": (self.skip, "add")}
        wrong = [f"quant.{name}={json.dumps(needed)}" for name, (value, needed) in ours.items() if value != needed]
        if self.quantiser == "paper" and wrong:
            raise ValueError("the paper's quantiser goes only with its own forms: set method=paper, which switches "
                             f"everything to the paper's method, or {', '.join(wrong)} as well")
        return self


class ExportSettings(_Section):
    """The shipped files (paper section 5)."""

    height: int = Field(720, ge=3)
    """LR rows of the fixed file."""
    width: int = Field(1280, ge=3)
    """LR columns of the fixed file."""
    overlap: int = Field(24, ge=0)
    """LR pixels two neighbouring tiles share where an image is larger than the fixed input; exact from 20 on."""
    upsample: Literal["depth_to_space", "rows"] = "depth_to_space"
    """rows: PixelShuffle of the fixed file by operators that stay on an NPU, same values."""


class AblationSettings(_Section):
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
    """One training each of every row; comparisons are paired by seed. At least one, none negative, none twice."""
    conditions: tuple[Literal["kd_0", "kd_1", "kd_10", "kd_100", "ortho_kd_0", "ortho_kd_1"], ...] = ("kd_1", "kd_0")
    """Table D: weights of the teacher and scalings of the DCT; kd_1 and kd_0 are the two that the paper reports."""
    switches: tuple[str, ...] = ()
    """Further one-change ablations of stage 3, by name; see `paperlib.training.ablations`."""
    claims: tuple[Literal[
        "published", "post_training", "stage1_longer", "dct_off", "confidence_off", "kd_off", "clip_off",
        "recalibration_off", "clip_off+recalibration_off"], ...] = (
        "published", "post_training", "stage1_longer", "dct_off", "confidence_off", "kd_off", "clip_off",
        "recalibration_off", "clip_off+recalibration_off")
    """What the abstract says, as trainings beside the published one; see `paperlib.training.ablations`."""

    @field_validator("seeds")
    @classmethod
    def _are_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError("at least one seed is needed, none negative, none twice: equal trainings are one")
        return seeds


class Settings(_Section):
    """All settings of one run; `profile` names where the values came from."""

    profile: Literal["smoke", "demo", "benchmark", "paper"]
    """Data and schedule; chosen by `--profile`."""
    method: Literal["paper", "released", "ours"] = "paper"
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
                raise ValueError(f"{name} cannot revive channels, having none or no branches: set stage2.revive")
        return self

    @model_validator(mode="after")
    def _skip_can(self) -> Self:
        if self.quant.skip == "exact" and self.student.arch in ("repdw", "fsrcnn", "abpn"):
            raise ValueError(f"student.arch={self.student.arch} has no block that quant.skip=exact could "
                             "use (method ours sets it): set quant.skip=add, or another student.arch")
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


def nearest(word: str, names: Sequence[str]) -> str:
    """The names most like a word, for an error's remedy."""
    return ", ".join(difflib.get_close_matches(word, names, n=3, cutoff=0.4) or sorted(names))


def _insert(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `tree["a"]["b"]` for the field `a.b`; unknown fields are an error that names the nearest."""
    *sections, last = dotted.split(".")
    branch, place = tree, "the settings"
    for name in (*sections, last):
        if not isinstance(branch, dict):
            raise UserError(f"unknown setting {dotted!r}: {place} has no fields.")
        if name not in branch:
            raise UserError(f"unknown setting {dotted!r}: {place} has no field {name!r}. "
                            f"Nearest: {nearest(name, list(branch))}.")
        owner, branch, place = branch, branch[name], name
    if isinstance(branch, dict):
        raise UserError(f"{dotted!r} is a section, not a field. Its fields: {', '.join(branch)}.")
    owner[last] = value


def override(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with single fields changed, validated as a whole.

    Args:
        changes: dotted field names and values, for instance {"stage3.loss.kd": 0}; not `method`,
            which is many settings (`paperlib.profiles.load_settings`).

    Raises:
        UserError: an unknown field (the nearest names are given), or a value of the wrong kind.
    """
    if "method" in changes:
        raise ValueError("a method is chosen when settings are loaded")
    if "profile" in changes:
        raise UserError("a profile is chosen by --profile, not by --set.")
    tree = settings.model_dump()
    for field, value in changes.items():
        _insert(tree, field, value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "combination"
        value = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"setting {place}{value}: {reason}.") from error


def parse_overrides(overrides: str | dict[str, Any] | None) -> dict[str, Any]:
    """Overrides as a dict of dotted fields, from a dict or a JSON object in a string."""
    example = 'Write for instance {"stage1.steps": 500}.'
    if isinstance(overrides, str) and overrides:
        try:
            overrides = json.loads(overrides)
        except (ValueError, RecursionError) as error:
            raise UserError(f"overrides is not JSON ({error}). {example}") from error
    if not isinstance(overrides, dict | None) and overrides != "":
        raise UserError(f"overrides is no JSON object. {example}")
    return dict(overrides or {})


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`--set` arguments as overrides: "stage1.steps=500" → {"stage1.steps": 500}; JSON, else plain text."""
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
