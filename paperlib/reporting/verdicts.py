"""What may be said about a reported number: the eight verdicts, and the rules that lead to them (paper section 7).

`reproduced` and `missed` exist only where data, schedule and method are the paper's. Smaller runs can say no more than
whether the paper's comparisons point the same way, and that only from several seeds (`paperlib.reporting.effects`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from paperlib.evaluation.paper_numbers import Key
from paperlib.reporting.effects import EQUAL, Effect, judged, paired_effect

Model = tuple[str, str, str]
"""(table, row, precision)."""


class Verdict(StrEnum):
    """What may be said about a row; there are no other words."""

    REPRODUCED = "reproduced"
    MISSED = "missed"
    HOLDS = "trend holds"
    FAILS = "trend fails"
    UNDECIDED = "undecided"
    RECOMPUTED = "recomputed"
    NOT_PUBLIC = "not public"
    NOT_RUN = "not run"


def tolerance(key: Key) -> tuple[float | None, str]:
    """Tolerance of a row and the reason for it; None where nothing can be reproduced (NPU times)."""
    return TOLERANCES.get(key) or TOLERANCES.get((key[3],)) or (None, "")


@dataclass(frozen=True)
class Row:
    """One line of a table, in the contract's columns.

    Args:
        evidence: the record's file, and for a trend what was compared.
        profile: of the run; `reproduced` and `missed` cannot be constructed outside `paper`.

    Raises:
        ValueError: a verdict that is none, or one that this profile or an unmeasured row cannot have.
    """

    table: str
    row: str
    precision: str
    metric: str
    reported: float | None
    reproduced: float | None
    tolerance: float | None
    verdict: Verdict
    evidence: str
    profile: InitVar[str]
    comparison: "Comparison | None" = None
    """The first difference that the verdict rests on."""

    def __post_init__(self, profile: str) -> None:
        object.__setattr__(self, "_same_data", profile == "paper")
        object.__setattr__(self, "verdict", Verdict(self.verdict))
        if self.verdict in (Verdict.REPRODUCED, Verdict.MISSED) and profile != "paper":
            raise ValueError(f"verdict {self.verdict.value!r} is for the paper profile alone, not for {profile!r}")
        if self.reproduced is None and self.verdict not in (Verdict.NOT_PUBLIC, Verdict.NOT_RUN):
            raise ValueError(f"verdict {self.verdict.value!r} needs a measured value: {self.table} {self.row}")

    @property
    def delta(self) -> float | None:
        """Reproduced minus reported; None where the data are not the paper's, so that the two cannot be subtracted."""
        comparable = self._same_data or self.verdict is Verdict.RECOMPUTED
        if not comparable or self.reproduced is None or self.reported is None:
            return None
        return self.reproduced - self.reported


TOLERANCES: dict[tuple[str, ...], tuple[float, str]] = {
    ("psnr",): (0.05, "our choice: about half of the 0.09 dB that Table D credits to the teacher"),
    ("ssim",): (0.002, "reported to three digits; two definitions of SSIM are in use"),
    ("score",): (0.05, "printed to one decimal"),
    ("B", "bicubic", "fp32", "psnr"): (0.01, "nothing is trained: only the kernel can differ"),
    ("B", "fsrcnn", "fp32", "psnr"): (0.15, "the paper does not say how its baseline was trained"),
    ("B", "abpn", "int8", "psnr"): (0.10, "the paper quotes it; published INT8 figures run from 30.09 to 30.15"),
    ("C", "repdw", "int8", "psnr"): (0.20, "0.66 dB are lost to rounding, which depends on where the grids fall"),
    ("B", "student_stage2", "fp32", "ssim"): (0.004, "from the authors' log, which has an SSIM of its own"),
    ("B", "student_deploy", "int8", "ssim"): (0.004, "from the authors' log, which has an SSIM of its own"),
} | {("C", row, "fp32", "ssim"): (0.008, "MobileOne's is a fake-quant score under the authors' own SSIM, and its float "
                                  "graph has 0.8652 under the usual one; assumed of all three")
     for row in ("mobileone", "repconv", "repdw")}
"""Largest |reproduced − reported| of a reproduced row and its reason, by metric, or by row where it has its own."""
UNTRAINED = ("bicubic", "bicubic_matlab", "post_training")
"""Rows in which nothing is drawn at random: their one value stands beside every seed of another row."""

COMPARED: dict[Model, tuple[Model, ...]] = {
    ("B", "bicubic", "fp32"): (("B", "fsrcnn", "fp32"), ("B", "student_stage2", "fp32")),
    ("B", "fsrcnn", "fp32"): (("B", "bicubic", "fp32"), ("B", "student_stage2", "fp32")),
    ("B", "abpn", "int8"): (("B", "bicubic", "fp32"), ("B", "fsrcnn", "fp32")),
    ("B", "student_stage2", "fp32"): (("B", "bicubic", "fp32"), ("B", "fsrcnn", "fp32")),
    ("B", "student_deploy", "int8"): (("B", "student_stage2", "fp32"), ("B", "bicubic", "fp32")),
    ("C", "repconv", "fp32"): (("C", "mobileone", "fp32"), ("C", "repdw", "fp32")),
    ("C", "repconv", "int8"): (("C", "mobileone", "int8"), ("C", "repdw", "int8")),
    ("C", "repdw", "fp32"): (("C", "mobileone", "fp32"), ("C", "repconv", "fp32")),
    ("C", "repdw", "int8"): (("C", "mobileone", "int8"), ("C", "repconv", "int8")),
    ("C", "mobileone", "fp32"): (("C", "repconv", "fp32"), ("C", "repdw", "fp32")),
    ("C", "mobileone", "int8"): (("C", "repconv", "int8"), ("C", "repdw", "int8"), ("C", "mobileone", "fp32")),
    ("D", "qat_direct", "int8"): (("D", "qat_teacher", "int8"),),
    ("D", "qat_teacher", "int8"): (("D", "qat_direct", "int8"),),
    ("abstract", "student_dynamic_tflite", "int8"): (("B", "student_stage2", "fp32"),),
    ("abstract", "student_fixed_tflite", "int8"): (("B", "student_stage2", "fp32"),),
}
"""Smaller runs: the rows whose reported differences to this one are looked for. What a run does not measure is left
out; a row with nothing to compare it with is `not run`. The fixed file is not compared with the dynamic one:
what differs between them is the padding (`paperlib.data.tiles.run_padded`), not the training."""
DROPS: dict[Model, tuple[Model, ...]] = {
    ("C", "mobileone", "int8"): (("C", "repconv", "int8"), ("C", "repdw", "int8")),
    ("C", "repconv", "int8"): (("C", "mobileone", "int8"), ("C", "repdw", "int8")),
    ("C", "repdw", "int8"): (("C", "mobileone", "int8"), ("C", "repconv", "int8")),
}
"""Smaller runs: INT8 rows whose loss against their own float row is compared too (Table C's Δ)."""


@dataclass(frozen=True)
class Comparison:
    """One reported difference of two or four numbers, and ours."""

    label: str
    reported: float
    effect: Effect
    word: Verdict
    """HOLDS, FAILS or UNDECIDED."""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.label}: paper {self.reported:+.4g}, here {self.effect}, {self.word.value}{self.note}"


def values_of(row: Mapping[str, Any]) -> np.ndarray:
    """A measured row's values by seed and image, (S, I): `images` where they were kept, else one value a seed."""
    if row.get("images"):
        return np.atleast_2d(np.asarray(row["images"], np.float64))
    return np.asarray([[value] for value in row.get("values") or [row["value"]]], np.float64)


def _effect(rows: Sequence[Mapping[str, Any]], signs: Sequence[float]) -> Effect | None:
    """Effect of a signed sum of measured rows over the seeds that all have; None where they cannot be paired.

    Rows without per-image values are compared by their means.
    """
    parts = [values_of(row) for row in rows]
    by_image = len({part.shape[1] for part in parts}) == 1 and all(row.get("images") for row in rows)
    parts = parts if by_image else [part.mean(1, keepdims=True) for part in parts]
    trained = [row.get("row") not in UNTRAINED for row in rows]
    named = [row.get("seed_ids") for row, is_trained in zip(rows, trained, strict=True) if is_trained]
    if named and all(named):
        common = [seed for seed in dict.fromkeys(named[0]) if all(seed in others for others in named)]
        if not common:
            return None
        parts = [part[[row["seed_ids"].index(seed) for seed in common]] if is_trained else part
                 for part, row, is_trained in zip(parts, rows, trained, strict=True)]
    elif len({tuple(seeds) for seeds in named if seeds}) > 1:
        return None
    most = max(len(part) for part in parts)
    parts = [part if is_trained or len(part) > 1 else np.repeat(part, most, 0)
             for part, is_trained in zip(parts, trained, strict=True)]
    if len({part.shape for part in parts}) > 1:
        return None
    total = sum(sign * part for sign, part in zip(signs, parts, strict=True))
    effect = paired_effect(total, np.zeros_like(total))
    return effect if by_image else replace(effect, images=0)


def paired(one: Mapping[str, Any], other: Mapping[str, Any]) -> Effect:
    """Effect of one measured row minus another; without interval where their seeds or images differ."""
    return _effect([one, other], [1, -1]) or Effect(float(one["value"]) - float(other["value"]), None, None, 1, 0)


def compare(paper: Mapping[Key, float], ours: Mapping[Key, Mapping[str, Any]], plus: Sequence[Key],
            minus: Sequence[Key], label: str) -> Comparison | None:
    """A reported difference, the sum over `plus` less the sum over `minus`, beside ours, paired by seed and image.

    None where a number of it was not reported or not measured.
    """
    keys = [*plus, *minus]
    if any(key not in paper or ours.get(key, {}).get("value") is None for key in keys):
        return None
    signs = [1.0] * len(plus) + [-1.0] * len(minus)
    theirs = sum(sign * paper[key] for sign, key in zip(signs, keys, strict=True))
    rows = [{"row": key[1]} | dict(ours[key]) for key in keys]
    steps = [row.get("steps") for row in rows]
    unequal = None not in steps and len(set(steps)) > 1
    note = f" (trained for {' and '.join(f'{count:,}' for count in dict.fromkeys(steps))} steps)" if unequal else ""
    effect = _effect(rows, signs)
    if effect is None:
        mean = sum(sign * float(row["value"]) for sign, row in zip(signs, rows, strict=True))
        return Comparison(label, theirs, Effect(mean, None, None, 1, 0), Verdict.UNDECIDED, " (other seeds)" + note)
    return Comparison(label, theirs, effect, Verdict(judged(theirs, effect, keys[0][3])), note)


def comparisons(key: Key, paper: Mapping[Key, float], ours: Mapping[Key, Mapping[str, Any]]) -> list[Comparison]:
    """Everything that the paper's order says of a row and a run has measured.

    Args:
        paper: reported numbers.
        ours: measured rows (`value`; `values` and `seed_ids` where there are several; `images` per seed; `steps`).
    """
    model, metric = key[:3], key[3]
    found = [compare(paper, ours, [key], [(*other, metric)], f"against {other[1]} {other[2]}")
             for other in COMPARED[model]]
    mine = (model[0], model[1], "fp32", metric)
    found += [compare(paper, ours, [key, (other[0], other[1], "fp32", metric)], [mine, (*other, metric)],
                      f"change by INT8 against that of {other[1]}") for other in DROPS.get(model, ())]
    return [comparison for comparison in found if comparison]


def trend(key: Key, paper: Mapping[Key, float], ours: Mapping[Key, Mapping[str, Any]]) -> tuple[Verdict, str]:
    """Verdict of a measured row in a smaller run, and the comparisons behind it.

    One that fails decides; all must hold for the row to hold; else it is undecided. Arguments as `comparisons`.
    """
    found = comparisons(key, paper, ours)
    if not found:
        return Verdict.NOT_RUN, f"nothing to compare with: {', '.join(other[1] for other in COMPARED[key[:3]])} not run"
    words = {comparison.word for comparison in found}
    verdict = (Verdict.FAILS if Verdict.FAILS in words else Verdict.UNDECIDED if Verdict.UNDECIDED in words
               else Verdict.HOLDS)
    return verdict, "; ".join(map(str, found))


def kept_order(key: Key, paper: Mapping[Key, float], ours: Mapping[Key, Mapping[str, Any]]) -> bool:
    """Whether no measured difference points the other way than the reported one: a reversed order is none."""
    return all(comparison.reported * comparison.effect.mean >= 0 or abs(comparison.reported) < EQUAL[key[3]]
               for comparison in comparisons(key, paper, ours))
