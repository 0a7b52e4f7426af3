"""What may be said about a reported number: the seven verdicts, and the rules that lead to them (paper section 7).

`reproduced` and `missed` exist only in the paper profile, where data and schedule are the paper's. Smaller profiles can
say no more than whether the paper's comparisons point the same way.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass
from enum import StrEnum
from typing import Any

from paperlib.evaluation.reported import Key

Model = tuple[str, str, str]
"""(table, row, precision)."""


class Verdict(StrEnum):
    """What may be said about a row; there are no other words."""

    REPRODUCED = "reproduced"
    MISSED = "missed"
    HOLDS = "trend holds"
    FAILS = "trend fails"
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

    def __post_init__(self, profile: str) -> None:
        object.__setattr__(self, "verdict", Verdict(self.verdict))
        if self.verdict in (Verdict.REPRODUCED, Verdict.MISSED) and profile != "paper":
            raise ValueError(f"verdict {self.verdict.value!r} is for the paper profile alone, not for {profile!r}")
        if self.reproduced is None and self.verdict not in (Verdict.NOT_PUBLIC, Verdict.NOT_RUN):
            raise ValueError(f"verdict {self.verdict.value!r} needs a measured value: {self.table} {self.row}")

    @property
    def delta(self) -> float | None:
        """Reproduced minus reported."""
        return None if self.reproduced is None or self.reported is None else self.reproduced - self.reported


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
TIE = {"psnr": 0.02, "ssim": 0.0015}
"""Reported differences below this are no order but a tie; ours must then stay within twice as much."""
LEAST = {"psnr": 0.005, "ssim": 0.0002}
"""Measured differences below this show no order, nor do those below the seeds' noise where it is known."""
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
    ("abstract", "student_dynamic_tflite", "int8"): (("abstract", "student_fixed_tflite", "int8"),),
    ("abstract", "student_fixed_tflite", "int8"): (("abstract", "student_dynamic_tflite", "int8"),),
}
"""Smaller profiles: the rows whose reported differences to this one must be found again, in sign. What a run does not
measure is left out; a row with nothing to compare it with is `not run`."""
DROPS: dict[Model, tuple[Model, ...]] = {
    ("C", "mobileone", "int8"): (("C", "repconv", "int8"), ("C", "repdw", "int8")),
    ("C", "repconv", "int8"): (("C", "mobileone", "int8"), ("C", "repdw", "int8")),
    ("C", "repdw", "int8"): (("C", "mobileone", "int8"), ("C", "repconv", "int8")),
}
"""Smaller profiles: INT8 rows whose loss against their own float row is compared too (Table C's Δ)."""


def noise(rows: Iterable[Mapping[str, Any]]) -> float | None:
    """Standard deviation of a sum or difference of measured rows, from the `sd` over each one's seeds.

    None where a row has one seed only: then nothing is known of the noise.
    """
    spreads = [row.get("sd") for row in rows]
    return None if None in spreads else math.hypot(*spreads)


def _difference(paper: Mapping[Key, float], ours: Mapping[Key, Mapping[str, Any]], plus: list[Key], minus: list[Key],
                label: str) -> tuple[bool, str] | None:
    """Compare one difference of reported numbers with ours: whether ours shows the same order, and a sentence."""
    keys = plus + minus
    if any(key not in paper or ours.get(key, {}).get("value") is None for key in keys):
        return None
    theirs = sum(paper[key] for key in plus) - sum(paper[key] for key in minus)
    here = sum(ours[key]["value"] for key in plus) - sum(ours[key]["value"] for key in minus)
    tie = TIE[keys[0][3]]
    text = f"{label}: paper {theirs:+.4g}, here {here:+.4g}"
    spread, least = noise([ours[key] for key in keys]), LEAST[keys[0][3]]
    if spread is not None and abs(here) < spread:
        text += f" (below the seeds' noise of {spread:.2g})"
    elif abs(here) < least:
        text += " (no difference)"
    shown = theirs * here > 0 and abs(here) >= max(spread or 0.0, least)
    holds = abs(here) <= 2 * tie if abs(theirs) < tie else shown
    steps = [ours[key].get("steps") for key in keys]
    if None not in steps and len(set(steps)) > 1:
        text += f" (trained for {' and '.join(f'{count:,}' for count in dict.fromkeys(steps))} steps)"
    return holds, text


def trend(key: Key, paper: Mapping[Key, float], ours: Mapping[Key, Mapping[str, Any]]) -> tuple[Verdict, str]:
    """Verdict of a measured row in a smaller profile, and the comparisons behind it.

    Args:
        paper: reported numbers.
        ours: measured rows (`value`; `sd` where there are seeds; `steps` of the training where the row says so).
    """
    model, metric = key[:3], key[3]
    found = [_difference(paper, ours, [key], [(*other, metric)], f"against {other[1]} {other[2]}")
             for other in COMPARED[model]]
    mine = (model[0], model[1], "fp32", metric)
    found += [_difference(paper, ours, [key, (other[0], other[1], "fp32", metric)], [mine, (*other, metric)],
                          f"change by INT8 against that of {other[1]}") for other in DROPS.get(model, ())]
    results = [result for result in found if result]
    if not results:
        return Verdict.NOT_RUN, f"nothing to compare with: {', '.join(other[1] for other in COMPARED[model])} not run"
    verdict = Verdict.HOLDS if all(holds for holds, _ in results) else Verdict.FAILS
    marked = [text if holds or verdict is Verdict.HOLDS else f"{text} (not so)" for holds, text in results]
    return verdict, "; ".join(marked)
