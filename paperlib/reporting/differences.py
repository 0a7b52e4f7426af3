"""Stage 3's choices, one changed at a time: what each gave, with its interval over seeds and images (paper Table D)."""

import math
from dataclasses import dataclass

import pandas as pd

from paperlib.reporting.effects import EQUAL, LEAST, Effect
from paperlib.reporting.tables import measured_values
from paperlib.reporting.verdicts import paired
from paperlib.run import Run

PUBLISHED = ("D", "qat_teacher")
LEARNT = ("D", "qat_teacher_learnt")
"""The same training's file that keeps the learnt grids, where the published way is post-training quantisation."""
OWN = ("switches", "as_set")
"""Stage 3 as a profile sets it, where that is not the paper's; the switches are then changes of it."""
AGAINST = {"branches_qat": ("switches", "quantiser_paper")} | {
    f"{row}{file}": ("D", f"{base}{file}") for file in ("", "_learnt")
    for row, base in (("ortho_kd_0", "ortho_kd_1"), ("kd_10", "qat_direct"), ("kd_100", "qat_direct"))}
"""Rows that are one change away from another row than stage 3 as published, a larger weight of the teacher from none;
where that was not run, beside stage 3 as published."""


@dataclass(frozen=True)
class Change:
    """A row of Table D or of the switches beside the row that it differs from by one setting."""

    row: str
    value: float
    against: str
    effect: Effect

    def words(self, metric: str = "psnr") -> str:
        """What may be said, whichever way the effect points."""
        effect = self.effect
        if effect.low is None or effect.high is None:
            return "undecided (one seed)"
        if effect.low > 0 or effect.high < 0:
            sure = abs(effect.mean) >= LEAST[metric]
            return ("better" if effect.mean > 0 else "worse") if sure else "no difference worth a word"
        return "no difference" if max(-effect.low, effect.high) <= EQUAL[metric] else "undecided"


def differences(run: Run, metric: str = "psnr") -> list[Change]:
    """Every row of Table D and the switches but the first; empty where stage 3 as published was not run."""
    rows = {key[:2]: row for key, row in measured_values(run).items()
            if key[0] in ("D", "switches") and key[3] == metric and row["value"] is not None}
    lines = []
    for key, row in rows.items() if PUBLISHED in rows else ():
        if key == PUBLISHED:
            continue
        own = PUBLISHED
        if key[0] == "switches" or key[1].endswith("_learnt"):  # files with the learnt grids, beside such files
            bases = [OWN] if key[0] == "switches" else []
            own = next((base for base in (*bases, LEARNT) if base in rows and base != key), PUBLISHED)
        base = AGAINST.get(key[1], own)
        base = base if base in rows else own
        lines.append(Change(key[1], row["value"], base[1], paired(row, rows[base])))
    return lines


def changes(run: Run) -> pd.DataFrame:
    """`differences` in PSNR for the eye; empty where 07 has not run."""
    return pd.DataFrame([{"row": line.row, "INT8 PSNR RGB (dB)": f"{line.value:.3f}", "against": line.against,
                          "difference (dB)": str(line.effect), "so it is": line.words()}
                         for line in differences(run) if math.isfinite(line.value)])
