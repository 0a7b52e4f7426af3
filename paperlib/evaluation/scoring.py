"""The scores of an upscaler on a set of images (paper section 6)."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paperlib.data.photographs import Pair
from paperlib.data.tiles import run_tiled
from paperlib.environment import provenance
from paperlib.errors import UserError
from paperlib.evaluation.metrics import METRICS, mean_scores, psnr_rgb, scores
from paperlib.evaluation.upscalers import Upscaler
from paperlib.files import Progress, shown

if TYPE_CHECKING:  # loads torch, which scoring a TFLite file does not need
    from paperlib.data.dataset import Data

PROTOCOL = {
    "scale": 3,
    "psnr_rgb, ssim_rgb": "RGB, no border crop, clipped to 0..255, not rounded; INT8: de-quantised",
    "psnr_y, ssim_y": "output rounded to 8 bits, BT.601 studio-range Y, 3-pixel border crop",
    "ssim": "Gaussian window 11, sigma 1.5, range 255, population covariance, inside the image",
    "mean": "of per-image values; images without a finite value are left out and named in notes",
}

MOST_AT_ONCE = 600_000
"""Most LR pixels that a network gets at once (DIV2K's have at most 462,400); larger ones are cut
into tiles, which for INT8 files changes nothing and for float networks the rounding of sums."""
TILE = 512


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no inf and no nan: such values are null, and `notes` says which images had them."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()}


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    equal = [row["name"] for row in rows if math.inf in (row["psnr_rgb"], row["psnr_y"])]
    small = [row["name"] for row in rows if any(math.isnan(row[metric]) for metric in METRICS)]
    notes = ((equal, "equal to the original, PSNR infinite and not in the mean"),
             (small, "too small for a metric (SSIM's window is 11 pixels), not in its mean"))
    return [f"{text}: {', '.join(names)}" for names, text in notes if names]


def evaluate(upscaler: Upscaler, pairs: Sequence[Pair],
             progress: Progress | None = None) -> dict[str, Any]:
    """Score an upscaler on pairs of LR and HR images; one that cannot be read, or that the upscaler
    refuses, is listed under `failed` and the others are scored.

    Returns:
        Values for JSON: `model`, `images` (name and four metrics each), `mean`, `failed`
        (messages), `notes`, `protocol`, `provenance` (with the hash of all pixels that went in).
    """
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    digest = hashlib.sha256()
    for index in range(len(pairs)):
        try:
            pair = pairs[index]
            rows.append({"name": pair.name, **scores(_enlarged(upscaler, pair.lr), pair.hr)})
            pair.add_to(digest)
        except UserError as error:
            failed.append(str(error))
        if progress:
            progress(index + 1, len(pairs))
    seams = getattr(upscaler, "seams", None)
    return {
        "model": upscaler.name, "images": [_plain(row) for row in rows],
        "mean": _plain(mean_scores(rows)), "failed": failed,
        "notes": _notes(rows) + ([seams] if seams else []), "protocol": PROTOCOL,
        "provenance": {"model": upscaler.about, "inputs_sha256": digest.hexdigest(),
                       **provenance()}}


def _enlarged(upscaler: Upscaler, lr: np.ndarray) -> np.ndarray:
    """The upscaler's output; of a large picture from tiles, where the upscaler's reach allows it
    and it cuts none itself."""
    height, width = lr.shape[:2]
    radius = upscaler.radius if height * width > MOST_AT_ONCE else None
    own = getattr(upscaler, "fixed", None) or getattr(upscaler, "stride", 1) > 1
    if radius is None or own or 2 * radius >= min(height, width, TILE):
        return upscaler(lr)
    return run_tiled(upscaler, lr, min(height, TILE), min(width, TILE), 2 * radius)


def score_lines(result: dict[str, Any]) -> str:
    """The result of `evaluate` as aligned text: one image a line, the mean last."""
    rows = [row | {"name": shown(row["name"])}
            for row in (*result["images"], {"name": "mean", **result["mean"]})]
    width = max(len(row["name"]) for row in rows)
    lines = [" " * width + "".join(f"  {metric:>8}" for metric in METRICS)]
    for row in rows:
        digits = ((row[metric], 3 if metric.startswith("psnr") else 4) for metric in METRICS)
        cells = ("–" if value is None else f"{value:.{places}f}" for value, places in digits)
        lines.append(f"{row['name']:<{width}}" + "".join(f"  {cell:>8}" for cell in cells))
    return "\n".join(lines)


def mean_psnr(pairs: Sequence[Pair], upscale: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean PSNR in dB (RGB, no crop, clipped float output) of an upscaler over pairs."""
    return float(np.mean([psnr_rgb(upscale(pair.lr), pair.hr) for pair in pairs]))


def measure(data: "Data", upscaler: Upscaler, table: str, row: str, precision: str,
            **more: Any) -> list[dict[str, Any]]:
    """Four rows for `Run.record` on the validation photographs and on every test set; an image that
    cannot be read is an error.

    Each keeps the values of its images (`images`, in the set's order, to five decimals), so that
    differences can be paired. The paper's PSNR and SSIM (`psnr`, `ssim`) are those in RGB. `more`
    stands beside each number, such as the `steps` of the training behind it.
    """
    from paperlib.run import measured_row  # loads pandas and matplotlib

    rows = []
    for dataset, pairs in {"validation": data.valid, **data.tests}.items():
        result = evaluate(upscaler, pairs)
        if result["failed"]:
            raise UserError(f"{dataset}: {result['failed'][0]}")
        for metric in METRICS:
            images = [image[metric] for image in result["images"]]
            rows.append(measured_row(
                table, row, precision, metric.removesuffix("_rgb"), result["mean"][metric], dataset,
                images=[None if value is None else round(value, 5) for value in images], **more))
    return rows
