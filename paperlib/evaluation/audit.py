"""The authors' published files, and what their own log and report say beside the paper (section 7).

Their files are found under PAPERLIB_ASSETS or in the cache, in a folder `aio_mai/`, or fetched from
their repository at one commit, where each is checked against its pinned SHA-256.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paperlib.data.download import download
from paperlib.environment import assets_dir, cache_dir
from paperlib.evaluation.paper_numbers import reported
from paperlib.files import reading

URL = ("https://raw.githubusercontent.com/NguyenPhamPhuongNam/AIO_MAI/"
       "d6c2cc23886aa2607cdb4693ded60121e2813e16/student")
"""The repository's folder at the commit that the hashes are of."""
PUBLISHED = pd.read_csv(Path(__file__).with_name("authors.csv"), index_col="file")
"""Their files by name: `folder` in the repository, `bytes`, `sha256`."""
FILES = {
    "stage2_fp32": "ckpt_best_s2_deploy.pt", "stage3_weights_fp32": "ckpt_best_s3_qat_deploy.pt",
    "stage3_fakequant": "ckpt_best_s3_qat.pt", "dynamic_int8": "model_none.tflite",
    "fixed_int8": "model.tflite"}
"""What is measured: name in the audit → file."""
REPORT, LOG = "eval_div2k_full_report.json", "metrics.csv"
REPORTED_AS = {"stage3_weights_fp32": "pt", "dynamic_int8": "model_none_int8",
               "fixed_int8": "model_fixed_int8", "int8_against_float": "model_none_int8_vs_pt"}
"""Name in the audit → part of the keys under which their report has it."""
REPORT_KEYS = {"psnr": "psnr_{}_rgb_sh0", "ssim_tensorflow": "ssim_{}_rgb_sh0",
               "psnr_y_full_range": "psnr_{}_y_sh0"}
"""What the audit takes of their report for an image: metric → key."""


def authors_folder() -> Path | None:
    """Where the authors' files are: under PAPERLIB_ASSETS, else all in the cache, else None."""
    assets, cached = assets_dir(), cache_dir() / "aio_mai"
    if assets and (assets / "aio_mai").is_dir():
        return assets / "aio_mai"
    return cached if all((cached / name).is_file() for name in PUBLISHED.index) else None


def fetch_authors() -> Path:
    """The folder of the authors' files, downloaded to the cache (3 MB) if not at hand."""
    if found := authors_folder():
        return found
    folder = cache_dir() / "aio_mai"
    for name, place, size, sha256 in PUBLISHED.itertuples():
        if not (folder / name).is_file():
            download(f"{URL}/{place}/{name}", folder / name, size, sha256)
    return folder


def report_of(name: str) -> pd.DataFrame:
    """The authors' report of one file (a key of `REPORTED_AS`) on DIV2K: a line an image, by its
    number, and a column a metric (`REPORT_KEYS`); no lines where it is not at hand."""
    keys = {metric: key.format(REPORTED_AS[name]) for metric, key in REPORT_KEYS.items()}
    if (folder := authors_folder()) is None:
        return pd.DataFrame(columns=list(keys))
    with reading(folder / REPORT, "the authors' report"):
        images = json.loads((folder / REPORT).read_text(encoding="utf-8"))["per_image"]
    return pd.DataFrame(
        [{metric: image["metrics"][key] for metric, key in keys.items()} for image in images],
        index=[Path(image["hr_file"]).stem for image in images])


def _log() -> pd.DataFrame:
    """The authors' log, an epoch a line; no lines where it is not at hand."""
    if (folder := authors_folder()) is None:
        return pd.DataFrame(columns=["stage", "epoch", "psnr_sr_rgb_sh0"])
    with reading(folder / LOG, "the authors' log"):
        return pd.read_csv(folder / LOG, engine="python")  # which reads numbers to the last bit


def authors_report() -> list[dict[str, Any]]:
    """Audit rows from the authors' log and per-image report; empty where these are not at hand.

    SSIM is the log's in rows of the log, and `tf.image.ssim` in rows of the report.
    """
    if (log := _log()).empty:
        return []

    def best(stage: str) -> tuple[float, float, str]:
        line = log[log["stage"] == stage].nlargest(1, "psnr_sr_rgb_sh0").iloc[0]
        return (line["psnr_sr_rgb_sh0"], line["ssim_sr_rgb_sh0"],
                f"{LOG}: best epoch {line['epoch']}")

    def mean(name: str) -> tuple[float, float, str]:
        images = report_of(name)[["psnr", "ssim_tensorflow"]]
        psnr, ssim = np.mean([*images.itertuples(index=False)], axis=0)
        return psnr, ssim, f"{REPORT}: mean of {len(images)} images"

    bicubic = log.iloc[0][["psnr_bi_rgb_sh0", "ssim_bi_rgb_sh0"]]
    lines = [
        ("stage1", "fp32", None, best("s1_fp32"), ""),
        ("student_stage2", "fp32", ("B", "student_stage2", "fp32"), best("s2_fp32"), "Table B"),
        ("student_deploy", "fake-quant", ("B", "student_deploy", "int8"), best("s3_qat"),
         "Table B calls it INT8; it is the fake-quant score in PyTorch, not a TFLite file's"),
        ("mobileone", "fake-quant", ("C", "mobileone", "fp32"), best("s3_qat"),
         "Table C calls it FP32; it is Table B's student_deploy"),
        ("stage3_float", "fp32", None, mean("stage3_weights_fp32"),
         "stage 3's weights as a float graph"),
        ("dynamic_tflite", "int8", ("C", "mobileone", "int8"), mean("dynamic_int8"),
         "abstract, Tables C and D"),
        ("fixed_tflite", "int8", ("abstract", "student_fixed_tflite", "int8"), mean("fixed_int8"),
         "abstract"),
        ("bicubic", "fp32", ("B", "bicubic", "fp32"),
         (*bicubic, f"{LOG}: torch's bicubic, a = −0.75"), "Table B"),
    ]
    return [{"table": "audit", "row": row, "precision": precision, "metric": metric,
             "reported": reported()[*paper, metric] if paper else None,
             "reproduced": float(value), "verdict": "recomputed",
             "evidence": f"{evidence}; {said}".removesuffix("; ")}
            for row, precision, paper, (*values, evidence), said in lines
            for metric, value in zip(("psnr", "ssim"), values, strict=True)]


def stage3_epochs() -> pd.Series:
    """Stage 3 of the released run: epoch → PSNR (dB, RGB) on the 100 images that are reported;
    empty where the log is not at hand."""
    return _log().query("stage == 's3_qat'").set_index("epoch")["psnr_sr_rgb_sh0"]
