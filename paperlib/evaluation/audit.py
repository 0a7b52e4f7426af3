"""The authors' published files, and what their own log and report say beside the paper (section 7).

Nothing of theirs is in this kit. Their files are found under PAPERLIB_ASSETS or in the cache, in a
folder `aio_mai/`, or fetched from their repository at one commit, each checked against its pinned
SHA-256. `paperlib.evaluation.verify` measures them.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.data.download import download
from paperlib.environment import assets_dir, cache_dir

URL = ("https://raw.githubusercontent.com/NguyenPhamPhuongNam/AIO_MAI/"
       "d6c2cc23886aa2607cdb4693ded60121e2813e16/student")
"""The repository's folder at the commit that the hashes are of."""
_RUN, _EXPORT = "runs_mobileone_32_8_ver2_debug_branch_5/balanced", "exports_moi/s3_auto_train"


@dataclass(frozen=True)
class Published:
    """One file of the authors': folder in their repository, bytes, SHA-256."""

    folder: str
    bytes: int
    sha256: str


PUBLISHED = {
    "ckpt_best_s2_deploy.pt": Published(
        _RUN, 339_359, "9de4de69b393fef321f9c4b97a2d4c3504ab44bb777ccc2ad8326de60e9561d4"),
    "ckpt_best_s3_qat_deploy.pt": Published(
        _RUN, 339_271, "7c10609bc430faf14168ac77a7d954d8280103f96e671a2e719e4838eb225c59"),
    "ckpt_best_s3_qat.pt": Published(
        _RUN, 1_437_031, "ef3247d77ebac7835ecfc9ee0e39e923b28c2cfe7331d600069a3dbac9334994"),
    "model_none.tflite": Published(
        f"{_EXPORT}/TFLite", 102_592, "a5d80778c3dc9f6a1759dfce4ff68af5d548e69ef638b037e19b28c8802c53e3"),
    "model.tflite": Published(
        f"{_EXPORT}/TFLite", 98_416, "4b1204193bf6764c548794431ffeb5f8bfb6f6a32b2f8d70d54e3aebed84d7c5"),
    "eval_div2k_full_report.json": Published(
        _EXPORT, 311_150, "f9b96ec46ae4c8b5b89a3bb78e9668bd02da51eb60e75462551b2f3060ab04de"),
    "metrics.csv": Published(
        _RUN, 209_925, "a1f34f6c66b922e273c4718880c22b29f0cdf151877bea9c74701b46b7b977e4"),
}
FILES = {
    "stage2_fp32": "ckpt_best_s2_deploy.pt", "stage3_weights_fp32": "ckpt_best_s3_qat_deploy.pt",
    "stage3_fakequant": "ckpt_best_s3_qat.pt", "dynamic_int8": "model_none.tflite", "fixed_int8": "model.tflite",
}
"""What is measured: name in the audit → file."""
REPORT, LOG = "eval_div2k_full_report.json", "metrics.csv"
REPORTED_AS = {"stage3_weights_fp32": "pt", "dynamic_int8": "model_none_int8", "fixed_int8": "model_fixed_int8"}
"""Name in the audit → part of the keys under which their report has it."""


def authors_folder() -> Path | None:
    """Where the authors' files are at hand: under PAPERLIB_ASSETS, else all of them in the cache;
    or None."""
    assets, cached = assets_dir(), cache_dir() / "aio_mai"
    if assets and (assets / "aio_mai").is_dir():
        return assets / "aio_mai"
    return cached if all((cached / name).is_file() for name in PUBLISHED) else None


def fetch_authors() -> Path:
    """The authors' files, downloaded into the cache (3 MB) where they are not at hand; gives their
    folder.

    Raises:
        UserError: a host cannot be reached, or gave other bytes than the pinned ones.
    """
    if found := authors_folder():
        return found
    folder = cache_dir() / "aio_mai"
    for name, file in PUBLISHED.items():
        if not (folder / name).is_file():
            download(f"{URL}/{file.folder}/{name}", folder / name, file.bytes, file.sha256)
    return folder


def report_images() -> dict[str, dict[str, float]]:
    """The authors' report: DIV2K number of an image → its metrics; empty where it is not at
    hand."""
    folder = authors_folder()
    if folder is None:
        return {}
    images = json.loads((folder / REPORT).read_text(encoding="utf-8"))["per_image"]
    return {Path(image["hr_file"]).stem: image["metrics"] for image in images}


def _log() -> list[dict[str, str]]:
    folder = authors_folder()
    if folder is None:
        return []
    with (folder / LOG).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def authors_report() -> list[dict[str, Any]]:
    """Audit rows recomputed from the authors' log and per-image report; empty where these are not
    at hand.

    SSIM is their log's in rows of the log, and `tf.image.ssim` (`ssim_tensorflow`) in rows of the
    report.
    """
    log, images = _log(), report_images()
    if not log:
        return []

    def best(stage: str) -> tuple[float, float, str]:
        line = max((line for line in log if line["stage"] == stage),
                   key=lambda line: float(line["psnr_sr_rgb_sh0"]))
        return (float(line["psnr_sr_rgb_sh0"]), float(line["ssim_sr_rgb_sh0"]),
                f"{LOG}: best epoch {line['epoch']}")

    def mean(name: str) -> tuple[float, float, str]:
        values = [[image[f"{metric}_{REPORTED_AS[name]}_rgb_sh0"] for metric in ("psnr", "ssim")]
                  for image in images.values()]
        psnr, ssim = np.mean(values, axis=0)
        return float(psnr), float(ssim), f"{REPORT}: mean of {len(images)} images"

    bicubic = float(log[0]["psnr_bi_rgb_sh0"]), float(log[0]["ssim_bi_rgb_sh0"])
    lines = [
        ("stage1", "fp32", (None, None), best("s1_fp32"), ""),
        ("student_stage2", "fp32", (30.28, 0.863), best("s2_fp32"), "Table B"),
        ("student_deploy", "fake-quant", (30.13, 0.858), best("s3_qat"),
         "Table B calls it INT8; it is the fake-quant score in PyTorch, not a TFLite file's"),
        ("mobileone", "fake-quant", (30.1350, 0.859), best("s3_qat"),
         "Table C calls it FP32; it is Table B's student_deploy"),
        ("stage3_float", "fp32", (None, None), mean("stage3_weights_fp32"), "stage 3's weights as a float graph"),
        ("dynamic_tflite", "int8", (30.0003, 0.856), mean("dynamic_int8"), "abstract, Tables C and D"),
        ("fixed_tflite", "int8", (30.006, 0.857), mean("fixed_int8"), "abstract"),
        ("bicubic", "fp32", (28.26, 0.828), (*bicubic, f"{LOG}: torch's bicubic, a = −0.75"), "Table B"),
    ]
    return [{"table": "audit", "row": row, "precision": precision, "metric": metric, "reported": paper,
             "reproduced": value, "verdict": "recomputed", "evidence": f"{evidence}; {said}".removesuffix("; ")}
            for row, precision, papers, (*values, evidence), said in lines
            for metric, paper, value in zip(("psnr", "ssim"), papers, values, strict=True)]


SETTLED, LAST = 30, 60
"""Epoch from which stage 3's qparams are frozen; and how many of the last epochs stand for where it
ended."""


@dataclass(frozen=True)
class SelectionNoise:
    """Stage 3 of the released run by epoch: PSNR (dB, RGB) on the 100 images that are reported.

    Once the qparams are frozen only noise and a slow drift move it, so the best epoch is the mean
    plus luck.
    """

    epochs: np.ndarray
    psnr: np.ndarray

    @property
    def scatter(self) -> float:
        """Standard deviation between epochs once the qparams are frozen, in dB."""
        return float(self.psnr[self.epochs >= SETTLED].std(ddof=1))

    @property
    def settled(self) -> float:
        """Mean of the last epochs, in dB."""
        return float(self.psnr[-LAST:].mean())

    @property
    def best(self) -> float:
        """The best epoch, which is the one reported, in dB."""
        return float(self.psnr.max())


def selection_noise() -> SelectionNoise | None:
    """Stage 3 of the authors' log; None where it is not at hand (PAPERLIB_ASSETS)."""
    lines = [line for line in _log() if line["stage"] == "s3_qat"]
    return SelectionNoise(np.array([int(line["epoch"]) for line in lines]),
                          np.array([float(line["psnr_sr_rgb_sh0"]) for line in lines])) if lines else None
