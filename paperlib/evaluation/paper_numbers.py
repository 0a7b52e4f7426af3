"""The paper's own numbers, and the challenge's score, which is arithmetic on them (section 7)."""

import csv
from functools import cache
from pathlib import Path

Key = tuple[str, str, str, str]  # (table, row, precision, metric)
DATASET = "validation"
"""The image set of measured rows that the tables read; rows on other sets stay in the records."""


@cache
def reported() -> dict[Key, float]:
    """Every number of the paper, in the paper's order."""
    with Path(__file__).with_name("reported.csv").open(encoding="utf-8", newline="") as file:
        next(file)
        return {tuple(key): float(value) for *key, value, _, _ in csv.reader(file)}


@cache
def fitted_constant() -> float:
    """C of the challenge's score = 2^(2·PSNR_INT8) / (C·t), t in ms, by least squares on the
    leaderboard's scores."""
    scores = [reported()["A", row, "int8", "score"] for row in entries()]
    raw = [2 ** (2 * psnr) / latency for psnr, latency in entries().values()]
    return sum(x * x for x in raw) / sum(y * x for y, x in zip(scores, raw, strict=True))


def score(psnr_int8: float, latency_ms: float) -> float:
    """The challenge's score of an INT8 model: PSNR in dB, NPU time in ms, C fitted."""
    return 2 ** (2 * psnr_int8) / (fitted_constant() * latency_ms)


OURS = "AIO_MAI"  # the paper's entry in Table A


def entries() -> dict[str, tuple[float, float]]:
    """PSNR (dB) and NPU time (ms) of every INT8 entry of the leaderboard, in its order."""
    return {row: (value, reported()["A", row, "int8", "npu_latency"])
            for (table, row, precision, metric), value in reported().items()
            if (table, precision, metric) == ("A", "int8", "psnr")}
