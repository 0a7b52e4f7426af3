"""The paper's own numbers, and the challenge's score, which is arithmetic on them (paper section
7)."""

import csv
import math
from functools import cache
from pathlib import Path

Key = tuple[str, str, str, str]
"""(table, row, precision, metric)."""
DATASET = "validation"
"""The image set of measured rows that the tables read; rows on other sets stay in the records."""


@cache
def reported() -> dict[Key, float]:
    """Every number of the paper, in the paper's order."""
    with Path(__file__).with_name("reported.csv").open(encoding="utf-8", newline="") as file:
        return {(line["table"], line["row"], line["precision"], line["metric"]): float(line["value"])
                for line in csv.DictReader(file)}


@cache
def fitted_constant() -> float:
    """C of the challenge's score = 2^(2·PSNR_INT8) / (C·t), t in ms: least squares over the
    leaderboard's rows.

    Fitted on the scores themselves, so that 1.7 and 1.8, which carry the coarsest rounding, count
    least.
    """
    pairs = [(value, 2 ** (2 * psnr) / latency) for (table, row, _, metric), value in reported().items()
             if table == "A" and metric == "score" for psnr, latency in [entries()[row]]]
    return sum(x * x for _, x in pairs) / sum(value * x for value, x in pairs)


def score(psnr_int8: float, latency_ms: float) -> float:
    """The challenge's score of an INT8 model: PSNR in dB, NPU time in ms (C fitted, see
    `fitted_constant`)."""
    return 2 ** (2 * psnr_int8) / (fitted_constant() * latency_ms)


OURS = "AIO_MAI"
"""The paper's entry in Table A."""


def entries() -> dict[str, tuple[float, float]]:
    """PSNR (dB) and NPU time (ms) of every INT8 entry of the leaderboard, in its order."""
    rows = {key[1]: None for key in reported() if key[0] == "A"}
    return {row: (reported()["A", row, "int8", "psnr"], reported()["A", row, "int8", "npu_latency"]) for row in rows}


def score_gap(entry: tuple[float, float], other: tuple[float, float]) -> dict[str, float]:
    """How far `other` is ahead of `entry` ((dB, ms) each) in log2 of the score, and the parts of
    PSNR and time."""
    quality, time = 2 * (other[0] - entry[0]), math.log2(entry[1] / other[1])
    return {"psnr": quality, "time": time, "total": quality + time}


def ms_per_db(decibels: float, milliseconds: float) -> float:
    """Time that could be spent on top of `milliseconds` for `decibels` more PSNR at an unchanged
    score."""
    return milliseconds * (2 ** (2 * decibels) - 1)
