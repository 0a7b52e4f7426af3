"""What may be said of a difference that the paper reports (paper section 7).

A claim is a difference of reported numbers, its effect that of measured ones, paired by seed and
image, with a 95 % interval over both, since both are samples. The verdict compares the two.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from paperlib.evaluation.paper_numbers import reported

Model = tuple[str, str, str]
"""(table, row, precision)."""
EQUAL = {"psnr": 0.02, "ssim": 0.0015}
"""An interval inside ± this is no difference (equivalence)."""
SEEDS = 3
"""Fewest trainings from which an effect can be called reproduced or missed."""
UNTRAINED = ("bicubic", "bicubic_matlab", "post_training")
"""Rows in which nothing is random: their one value stands beside every seed of another row."""


class Verdict(StrEnum):
    """What may be said, each with its meaning; there are no other words."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> "Verdict":
        verdict = str.__new__(cls, word)
        verdict._value_, verdict.meaning = word, meaning
        return verdict

    REPRODUCED = "reproduced", ("with the paper's data, schedule and method; the interval holds "
                                "the paper's difference and excludes zero")
    EVALUATION = "reproduced (evaluation)", (
        "the authors' own file gives their own values on the paper's photographs")
    MISSED = "missed", ("with the paper's data, schedule and method; the interval excludes the "
                        "paper's difference")
    HOLDS = "trend holds", "a smaller experiment; the interval lies on the paper's side of zero"
    FAILS = "trend fails", ("a smaller experiment; the interval lies on the other side of zero, or "
                            "within ±0.02 dB of nothing where the paper reports more")
    UNDECIDED = "undecided", "several seeds, and the interval allows both"
    ONE_SEED = "one seed", "a single training decides nothing"
    RECOMPUTED = "recomputed", "arithmetic on reported or published values"
    NOT_PUBLIC = "not public", "needs the challenge's test images or its device"
    NOT_RUN = "not run", "nothing measured, or nothing that can be compared"


@dataclass(frozen=True)
class Effect:
    """A mean paired difference (dB or SSIM) with its 95 % interval, None for one seed.

    `images` is 0 where only the set's mean is known, `seeds` is where other seeds were measured.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    images: int

    def __str__(self) -> str:
        mean, *ends = (f"{value:+.{3 if abs(value) >= 0.0005 else 4}f}"  # the side of zero shows
                       for value in (self.mean, self.low, self.high) if value is not None)
        if not ends:
            return mean
        images = f"{self.images} images" if self.images else "means of the set"
        return f"{mean} [{', '.join(ends)}] ({self.seeds} seeds, {images})"


def effect_of(differences: np.ndarray) -> Effect:
    """Mean and interval of paired differences by seed and image, S × I.

    Crossed design: with d[s, i] the difference for seed s on image i, SE² = V(seed means)/S +
    V(image means)/I − V(rest)/(S·I), not below either of the first two, with Satterthwaite's
    degrees of freedom.
    """
    from scipy.stats import t  # slow to load, and only needed where something is judged

    seeds, images = differences.shape
    mean = float(differences.mean())
    if seeds < 2:
        return Effect(mean, None, None, seeds, images)
    by_seed, by_image = differences.mean(1), differences.mean(0)
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    of_images = float(by_image.var(ddof=1)) / images if images > 1 else 0.0
    rest = differences - by_seed[:, None] - by_image[None] + mean
    of_rest = float((rest**2).sum()) / max(1, (seeds - 1) * (images - 1)) / (seeds * images)
    squared = max(of_seeds, of_images, of_seeds + of_images - of_rest)
    if squared == 0:
        return Effect(mean, mean, mean, seeds, images)
    below = of_seeds**2 / (seeds - 1) + of_images**2 / max(1, images - 1)
    half = float(t.ppf(0.975, max(1.0, squared**2 / below))) * math.sqrt(squared)
    return Effect(mean, mean - half, mean + half, seeds, images)


def verdict_of(
    reported: float, effect: Effect, metric: str = "psnr", papers: bool = False
) -> Verdict:
    """What an effect says of a reported difference; `papers`: by its data, schedule and method."""
    if effect.low is None or effect.high is None:
        return Verdict.ONE_SEED
    side = math.copysign(1.0, reported)
    near, far = sorted((side * effect.low, side * effect.high))
    if papers and effect.seeds >= SEEDS:
        if not effect.low <= reported <= effect.high:
            return Verdict.MISSED
        return Verdict.REPRODUCED if near > 0 else Verdict.UNDECIDED
    if far < 0 or max(-near, far) <= EQUAL[metric] < abs(reported):
        return Verdict.FAILS
    return Verdict.HOLDS if near > 0 else Verdict.UNDECIDED


def change_word(effect: Effect) -> str:
    """One word for a difference in PSNR that the paper does not report."""
    if effect.low is None or effect.high is None:
        return Verdict.ONE_SEED.value
    if max(-effect.low, effect.high) <= EQUAL["psnr"]:
        return "no difference"
    if effect.low > 0:
        return "better"
    return "worse" if effect.high < 0 else Verdict.UNDECIDED.value


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper: the sum of some reported numbers less that of others."""

    text: str
    plus: tuple[Model, ...]
    minus: tuple[Model, ...]
    measured_as: Mapping[Model, Model] = field(default_factory=dict)
    """Rows of ours that stand beside a reported number in this claim alone."""

    @property
    def judges(self) -> tuple[Model, ...]:
        """The rows of the paper's tables that it decides; of mixed precisions, those in INT8."""
        models = *self.plus, *self.minus
        if self.measured_as:
            return ()
        return tuple(model for model in models if model[2] == "int8") or models

    def reported(self, metric: str = "psnr") -> float:
        """The paper's difference in dB or SSIM."""
        return (sum(reported()[*model, metric] for model in self.plus)
                - sum(reported()[*model, metric] for model in self.minus))


BICUBIC, FSRCNN, ABPN = ("B", "bicubic", "fp32"), ("B", "fsrcnn", "fp32"), ("B", "abpn", "int8")
STAGE2, DEPLOY = ("B", "student_stage2", "fp32"), ("B", "student_deploy", "int8")
MOBILEONE, MOBILEONE_INT8 = ("C", "mobileone", "fp32"), ("C", "mobileone", "int8")
REPCONV, REPCONV_INT8 = ("C", "repconv", "fp32"), ("C", "repconv", "int8")
REPDW, REPDW_INT8 = ("C", "repdw", "fp32"), ("C", "repdw", "int8")
TEACHER, DIRECT = ("D", "qat_teacher", "int8"), ("D", "qat_direct", "int8")
DYNAMIC = ("abstract", "student_dynamic_tflite", "int8")
FIXED = ("abstract", "student_fixed_tflite", "int8")
DROP = ((MOBILEONE_INT8, REPCONV), (MOBILEONE, REPCONV_INT8))

CLAIMS = (
    Claim("Table B: the student beats bicubic, FP32", (STAGE2,), (BICUBIC,)),
    Claim("Table B: the student beats FSRCNN, FP32", (STAGE2,), (FSRCNN,)),
    Claim("Table B: FSRCNN beats bicubic, FP32", (FSRCNN,), (BICUBIC,)),
    Claim("Table B: ABPN in INT8 beats FSRCNN in FP32", (ABPN,), (FSRCNN,)),
    Claim("Table B: what FP32 to INT8 costs the student", (DEPLOY,), (STAGE2,)),
    Claim("Table C: MobileOne beats RepConv, FP32", (MOBILEONE,), (REPCONV,)),
    Claim("Table C: MobileOne beats RepConv, INT8", (MOBILEONE_INT8,), (REPCONV_INT8,)),
    Claim("Table C: INT8 costs MobileOne less than RepConv", *DROP),
    Claim("Table C: the same, from the float networks", *DROP,
          {MOBILEONE: ("C", "mobileone_float", "fp32"), REPCONV: ("C", "repconv_float", "fp32")}),
    Claim("Table C: MobileOne beats RepDW, FP32", (MOBILEONE,), (REPDW,)),
    Claim("Table C: MobileOne beats RepDW, INT8", (MOBILEONE_INT8,), (REPDW_INT8,)),
    Claim("Table C: INT8 costs MobileOne less than RepDW",
          (MOBILEONE_INT8, REPDW), (MOBILEONE, REPDW_INT8)),
    Claim("Table D: the Mamba teacher helps stage 3, INT8", (TEACHER,), (DIRECT,)),
    Claim("Abstract: what INT8 costs the dynamic file", (DYNAMIC,), (STAGE2,)),
    Claim("Abstract: the fixed file beats the dynamic one", (FIXED,), (DYNAMIC,)),
)
"""The paper's comparisons, in the order of its tables. Table C's FP32 is fake-quantised."""

OTHER_SSIM = dict.fromkeys(
    (MOBILEONE_INT8, REPCONV_INT8, REPDW_INT8, TEACHER, DIRECT, DYNAMIC, FIXED),
    "another SSIM: the paper's is tf.image.ssim on whole pictures, which comes out too high",
) | dict.fromkeys((STAGE2, DEPLOY, MOBILEONE, REPCONV, REPDW),
                  "another SSIM: the paper's is a variant of the authors' training log")
"""Reported rows whose SSIM is not the one that this kit measures; it is never compared."""


def paired(rows: Sequence[Mapping[str, Any]], signs: Sequence[int] = (1, -1)) -> Effect:
    """Effect of a signed sum of measured rows, over the seeds that all of them have.

    Rows without values of every image are compared by their means, those whose seeds differ by
    their values alone: `seeds` is 0.
    """
    parts = [np.atleast_2d(np.asarray(row["images"], np.float64)) if row.get("images")
             else np.asarray(row.get("values") or [row["value"]], np.float64)[:, None]
             for row in rows]  # (S, I), or (S, 1) where images are not known
    by_image = all(row.get("images") for row in rows) and len({len(part[0]) for part in parts}) == 1
    if not by_image:
        parts = [part.mean(1, keepdims=True) for part in parts]
    trained = [index for index, row in enumerate(rows) if row.get("row") not in UNTRAINED]
    named = [rows[index].get("seed_ids") for index in trained]
    differ = False
    if named and all(named):
        common = [seed for seed in dict.fromkeys(named[0]) if all(seed in ids for ids in named)]
        for index, ids in zip(trained, named, strict=True):
            parts[index] = parts[index][[ids.index(seed) for seed in common]]
    else:
        differ = len({tuple(ids) for ids in named if ids}) > 1
    # what was not trained stands beside every seed
    seeds = {len(part) for index, part in enumerate(parts) if index in trained or len(part) > 1}
    if differ or len(seeds) > 1 or 0 in seeds:
        mean = sum(sign * row["value"] for sign, row in zip(signs, rows, strict=True))
        return Effect(mean, None, None, 0, 0)
    effect = effect_of(sum(sign * part for sign, part in zip(signs, parts, strict=True)))
    return effect if by_image else replace(effect, images=0)
