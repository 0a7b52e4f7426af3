"""Measured rows for records: an upscaler on a run's validation photographs and test sets (paper section 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from paperlib.config import DataSettings, LossSettings
from paperlib.data import Pair, test_sets, validation_pairs
from paperlib.errors import UserError
from paperlib.evaluate import Upscaler, evaluate
from paperlib.losses import confidence
from paperlib.records import Run, measured_row
from paperlib.store import PixelStore, open_store

METRIC_NAMES = {"psnr_rgb": "psnr", "ssim_rgb": "ssim", "psnr_y": "psnr_y", "ssim_y": "ssim_y"}
"""Names in tables: the paper's PSNR and SSIM are those in RGB."""


@dataclass
class Data:
    """What a run trains on and is measured on."""

    store: PixelStore
    """Training photographs, decoded."""
    valid: list[Pair]
    """Validation photographs; they decide which weights are best."""
    tests: dict[str, Sequence[Pair]]
    """Test sets by name, never seen in training or selection; none in the offline profiles."""
    shown: list[Pair]
    """Photographs for figures: embedded ones, which may be passed on with the results, whatever is measured."""
    settings: DataSettings
    """Where they came from: another process opens them again instead of being sent the pixels."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.settings,)

    def inventory(self) -> pd.DataFrame:
        """One line a split: photographs and megapixels (HR)."""
        lines = [("training", [self.store.hr(index).shape for index in range(len(self.store))])]
        lines += [("validation", [pair.hr.shape for pair in self.valid])]
        lines += [(f"test: {name}", [pair.hr.shape for pair in pairs]) for name, pairs in self.tests.items()]
        return pd.DataFrame([{"split": split, "photographs": len(shapes),
                              "megapixels": round(sum(h * w for h, w, _ in shapes) / 1e6, 2)}
                             for split, shapes in lines])


def open_data(run: Run) -> Data:
    """The training pixels (decoded once, cached), validation pairs and test sets of a run."""
    return _open(run.settings.data)


def _open(settings: DataSettings) -> Data:
    valid = validation_pairs(settings)
    shown = valid if settings.source == "embedded" else validation_pairs(DataSettings(source="embedded"))
    return Data(open_store(settings), valid, test_sets(settings), shown, settings)


@lru_cache(maxsize=1)
def _reopen(settings: DataSettings) -> Data:
    """For the jobs of a worker process, which share one grid's data."""
    return _open(settings)


def measure(
    data: Data, upscaler: Upscaler, table: str, row: str, precision: str, **more: Any,
) -> list[dict[str, Any]]:
    """Score an upscaler on the validation photographs and every test set: four rows each, for `Run.record`.

    Args:
        more: what belongs beside each number, such as the `steps` of the training behind it.

    Raises:
        UserError: an image of a set cannot be read; a mean over the others would be another number.
    """
    rows = []
    for dataset, pairs in {"validation": data.valid, **data.tests}.items():
        result = evaluate(upscaler, pairs)
        if result["failed"]:
            raise UserError(f"{dataset}: {result['failed'][0]}")
        means = result["mean"]
        rows += [measured_row(table, row, precision, name, means[key], dataset, **more)
                 for key, name in METRIC_NAMES.items()]
    return rows


def confidence_map(teacher_255: np.ndarray, hr_255: np.ndarray, settings: LossSettings) -> np.ndarray:
    """The distillation weights w(p) of one photograph, (H, W), from images (H, W, 3) in 0..255."""
    one, other = (torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] / 255
                  for image in (teacher_255, hr_255))
    return confidence(one, other, settings)[0, 0].numpy()
