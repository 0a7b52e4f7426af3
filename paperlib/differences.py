"""Stage 3's choices, one changed at a time: what each gave, and whether the seeds' noise is larger (paper Table D)."""

import math
from typing import Any

import pandas as pd

from paperlib.records import Run
from paperlib.tables import DATASET
from paperlib.verdicts import noise

PUBLISHED = ("D", "qat_teacher")
OWN = ("switches", "as_set")
"""Stage 3 as a profile sets it, where that is not the paper's; the switches are then changes of it."""
AGAINST = {"branches_qat": ("switches", "quantiser_paper")}
"""Rows that are one change away from another row than stage 3 as published; where that was not run, both changed."""
SEEDLESS = ("post_training",)
"""Rows in which nothing is drawn at random: their seeds cannot differ."""


def in_words(difference: float, spread: float | None) -> str:
    """What may be said of a difference: two-sided, its size against the noise whatever its sign."""
    if spread is None:
        return "one seed: noise unknown"
    return f"below the seeds' noise of {spread:.2g}" if abs(difference) < spread else f"above the noise of {spread:.2g}"


def differences(run: Run, metric: str = "psnr") -> list[dict[str, Any]]:
    """One line a row of Table D and the switches: value, row it differs from, difference, noise (None: unknown), words.

    Noise is the standard deviation of the difference, √(sd² + sd²) over the seeds of both rows. Empty where stage 3 as
    published was not run.
    """
    rows = {(row["table"], row["row"]): row for record in run.records().values() for row in record["rows"]
            if row["table"] in ("D", "switches") and (row["metric"], row["dataset"]) == (metric, DATASET)
            and row["value"] is not None}
    lines = []
    for key, row in rows.items() if PUBLISHED in rows else ():
        if key == PUBLISHED:
            continue
        own = OWN if OWN in rows and key[0] == "switches" and key != OWN else PUBLISHED
        base = AGAINST.get(key[1], own)
        base = base if base in rows else own
        pair = [row | {"sd": 0.0} if key[1] in SEEDLESS else row, rows[base]]
        difference, spread = row["value"] - rows[base]["value"], noise(pair)
        lines.append({"row": key[1], "value": row["value"], "against": base[1], "difference": difference,
                      "noise": spread, "words": in_words(difference, spread)})
    return lines


def difference_table(run: Run) -> pd.DataFrame:
    """`differences` in PSNR for the eye; empty where 07 has not run."""
    return pd.DataFrame([{"row": line["row"], "INT8 PSNR RGB (dB)": f"{line['value']:.3f}", "against": line["against"],
                          "difference (dB)": f"{line['difference']:+.3f}", "the difference is": line["words"]}
                         for line in differences(run) if math.isfinite(line["value"])])
