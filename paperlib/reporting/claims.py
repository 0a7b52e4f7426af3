"""The paper's claims as differences: what it reports, what a run measured, and one word (paper section 7)."""

from dataclasses import dataclass

import pandas as pd

from paperlib.evaluation.paper_numbers import Key, reported
from paperlib.reporting.tables import measured_values
from paperlib.reporting.verdicts import Comparison, compare
from paperlib.run import Run


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, as the sum of some reported numbers less that of others (PSNR RGB, dB)."""

    text: str
    plus: tuple[Key, ...]
    minus: tuple[Key, ...]

    @property
    def reported(self) -> float:
        """The paper's difference in dB."""
        return sum(reported()[key] for key in self.plus) - sum(reported()[key] for key in self.minus)


def _psnr(table: str, row: str, precision: str) -> Key:
    return table, row, precision, "psnr"


CLAIMS = (
    Claim("Table B: the student beats bicubic, FP32", (_psnr("B", "student_stage2", "fp32"),),
          (_psnr("B", "bicubic", "fp32"),)),
    Claim("Table B: the student beats FSRCNN, FP32", (_psnr("B", "student_stage2", "fp32"),),
          (_psnr("B", "fsrcnn", "fp32"),)),
    Claim("Table B: what FP32 to INT8 costs the student", (_psnr("B", "student_deploy", "int8"),),
          (_psnr("B", "student_stage2", "fp32"),)),
    Claim("Table C: MobileOne beats RepConv, FP32", (_psnr("C", "mobileone", "fp32"),),
          (_psnr("C", "repconv", "fp32"),)),
    Claim("Table C: MobileOne beats RepConv, INT8", (_psnr("C", "mobileone", "int8"),),
          (_psnr("C", "repconv", "int8"),)),
    Claim("Table C: INT8 costs MobileOne less than RepConv",
          (_psnr("C", "mobileone", "int8"), _psnr("C", "repconv", "fp32")),
          (_psnr("C", "mobileone", "fp32"), _psnr("C", "repconv", "int8"))),
    Claim("Table C: MobileOne beats RepDW, FP32", (_psnr("C", "mobileone", "fp32"),), (_psnr("C", "repdw", "fp32"),)),
    Claim("Table C: INT8 costs MobileOne less than RepDW",
          (_psnr("C", "mobileone", "int8"), _psnr("C", "repdw", "fp32")),
          (_psnr("C", "mobileone", "fp32"), _psnr("C", "repdw", "int8"))),
    Claim("Table D: the Mamba teacher helps stage 3, INT8", (_psnr("D", "qat_teacher", "int8"),),
          (_psnr("D", "qat_direct", "int8"),)),
)
"""In the order of the paper's tables."""


def judged_claims(run: Run) -> list[tuple[Claim, Comparison | None]]:
    """Every claim with its comparison on the run's validation photographs; None where something was not measured."""
    values = measured_values(run)
    return [(claim, compare(reported(), values, claim.plus, claim.minus, claim.text)) for claim in CLAIMS]


def claims_table(run: Run) -> pd.DataFrame:
    """The claims for the eye: the paper's difference, ours with its interval, and the word."""
    return pd.DataFrame([
        {"claim": claim.text,
         "the paper (dB)": f"{claim.reported:+.3f}",
         "here (dB)": f"{found.effect}{found.note}" if found else "",
         "verdict": found.word.value if found else "not run"}
        for claim, found in judged_claims(run)])
