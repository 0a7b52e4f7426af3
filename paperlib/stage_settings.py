"""Settings of the training stages and their losses (paper sections 3 and 4); `paperlib.settings` has all of them.

Every field's default is the paper's value where the paper has one.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Part of the settings: unknown fields are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LossSettings(Section):
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


class StageSettings(Section):
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
    lr: float = Field(gt=0)
    """Largest learning rate."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises linearly from 0."""
    decay: Literal["cosine", "halve", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    halve_every: int = Field(2000, ge=1)
    """decay=halve: steps between two halvings."""
    hold: float = Field(0.0, ge=0, lt=1)
    """decay=cosine: fraction of a cycle at the full rate before the cosine begins (ours)."""
    cycles: int = Field(1, ge=1)
    """decay=cosine: how often the rate goes from full to 0, the restarts at full rate (ours; RLFN's warm restarts)."""
    clip_grad: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 is no clipping."""
    clip_body: float = Field(3.0, ge=0)
    """Largest |weight| of the body's convolutions, applied after each step; 0 is no clipping, as in stage 1 of the
    released run."""
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
    """stage 2 only: MobileOne channels that stage 1 left silent get fresh kernels first (ours; `student.revival`)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward pass in bfloat16 but for the head."""
    accumulate: int = Field(1, ge=1)
    """Gradient accumulation: forward passes a step, each of batch/accumulate samples."""
    loss: LossSettings
    expect: str = ""
    """What the source reports for this stage, and where; shown in the notebook."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} cannot be split into {self.accumulate} equal parts: set "
                             "accumulate to a divisor of batch")
        return self
