"""What choosing the best epoch is worth: the scatter of the authors' own published log (paper section 7, audit).

Each epoch of their log scores the EMA weights on the 100 images that are reported. Past the point where the grids are
frozen nothing but noise and a slow drift moves that score, so the best of so many epochs is the mean plus luck.
"""

import csv
from dataclasses import dataclass

import numpy as np

from paperlib.evaluation.authors import LOG, authors_folder

SETTLED, LAST = 30, 60
"""Epoch from which stage 3's grids are frozen; and how many of the last epochs stand for where it ended."""


@dataclass(frozen=True)
class SelectionNoise:
    """Stage 3 of the released run, validation PSNR (dB, RGB, no border) by epoch."""

    epochs: np.ndarray
    psnr: np.ndarray

    @property
    def scatter(self) -> float:
        """Standard deviation between epochs once the grids are frozen, in dB."""
        return float(self.psnr[self.epochs >= SETTLED].std(ddof=1))

    @property
    def settled(self) -> float:
        """Mean of the last epochs, in dB."""
        return float(self.psnr[-LAST:].mean())

    @property
    def best(self) -> float:
        """The best epoch, which is the one reported, in dB."""
        return float(self.psnr.max())

    def sentences(self, reported_effect: float) -> str:
        """Two sentences for a notebook; `reported_effect` is a difference (dB) of two such maxima."""
        return (f"From epoch {SETTLED} on, the score of the released run's stage 3 scatters by {self.scatter:.3f} dB "
                f"between epochs; the best of {len(self.psnr)}, chosen on the images that are reported, is "
                f"{self.best - self.settled:.3f} dB above the mean of the last {LAST} ({self.best:.3f} and "
                f"{self.settled:.3f} dB). Table D's {reported_effect:.3f} dB is a difference of two such maxima, of "
                "one run each.")


def selection_noise() -> SelectionNoise | None:
    """Stage 3 of the authors' log; None where it is not at hand (PAPERLIB_ASSETS)."""
    folder = authors_folder()
    if folder is None:
        return None
    with (folder / LOG).open(encoding="utf-8", newline="") as file:
        rows = [(int(row["epoch"]), float(row["psnr_sr_rgb_sh0"])) for row in csv.DictReader(file)
                if row["stage"] == "s3_qat"]
    epochs, psnr = zip(*rows, strict=True)
    return SelectionNoise(np.array(epochs), np.array(psnr))
