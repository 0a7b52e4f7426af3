"""The audit: what the authors' own log, report and files say beside the paper's figures (paper section 7).

Two kinds of evidence. Recomputed: means of the per-image values in their published report, and the best epochs of their
log. Measured: their checkpoints and TFLite files run by this kit on image sets at hand. Nothing of theirs is shipped
here; see `paperlib.evaluation.authors` for where the files come from.
"""

import csv
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paperlib.data.div2k import ARCHIVES, div2k_folder, find_folder
from paperlib.data.photographs import Pair, read_pairs
from paperlib.data.sources import named_folder, validation_pairs
from paperlib.environment import data_dir, provenance
from paperlib.errors import UserError
from paperlib.evaluation.authors import FILES, LOG, REPORT, authors_folder, fetch_authors
from paperlib.evaluation.scoring import evaluate
from paperlib.evaluation.torch_upscalers import QuantisedUpscaler, TorchUpscaler
from paperlib.evaluation.upscalers import Upscaler
from paperlib.export.convert import export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import sha256_file
from paperlib.quantisation.fx_qat import read_published_qat
from paperlib.settings import DataSettings
from paperlib.student.models import load_pickle, read_published

DIV2K_VALIDATION = "DIV2K validation"


def _best(log: list[dict[str, str]], stage: str) -> tuple[float, float, int]:
    """PSNR, SSIM and epoch of a stage's best validation."""
    best = max((row for row in log if row["stage"] == stage), key=lambda row: float(row["psnr_sr_rgb_sh0"]))
    return float(best["psnr_sr_rgb_sh0"]), float(best["ssim_sr_rgb_sh0"]), int(best["epoch"])


def authors_report() -> list[dict[str, Any]]:
    """Audit rows recomputed from the authors' log and per-image report; empty where these are not at hand."""
    folder = authors_folder()
    if folder is None:
        return []
    with (folder / LOG).open(encoding="utf-8", newline="") as file:
        log = list(csv.DictReader(file))
    images = [image["metrics"] for image in json.loads((folder / REPORT).read_text(encoding="utf-8"))["per_image"]]
    mean = lambda key: float(np.mean([image[f"{key}_rgb_sh0"] for image in images]))
    one, two, three = (_best(log, stage) for stage in ("s1_fp32", "s2_fp32", "s3_qat"))
    count = f"{REPORT}: mean of {len(images)} images"
    lines = [
        ("stage1", "fp32", (None, None), one[:2], f"{LOG}: best epoch {one[2]}"),
        ("student_stage2 (Table B)", "fp32", (30.28, 0.863), two[:2], f"{LOG}: best epoch {two[2]}"),
        ("student_deploy (Table B, called INT8)", "fake-quant", (30.13, 0.858), three[:2],
         f"{LOG}: best epoch {three[2]}; this is the fake-quant score in PyTorch, not a TFLite file's"),
        ("mobileone (Table C, called FP32)", "fake-quant", (30.1350, 0.859), three[:2],
         f"{LOG}: best epoch {three[2]}; the same number under another label"),
        ("stage-3 weights as float graph", "fp32", (None, None), (mean("psnr_pt"), mean("ssim_pt")), count),
        ("dynamic TFLite (abstract, Tables C and D)", "int8", (30.0003, 0.856),
         (mean("psnr_model_none_int8"), mean("ssim_model_none_int8")), count),
        ("fixed TFLite (abstract)", "int8", (30.006, 0.857),
         (mean("psnr_model_fixed_int8"), mean("ssim_model_fixed_int8")), count),
        ("bicubic (Table B)", "fp32", (28.26, 0.828),
         (float(log[0]["psnr_bi_rgb_sh0"]), float(log[0]["ssim_bi_rgb_sh0"])), f"{LOG}: torch's bicubic, a = −0.75"),
    ]
    return [{"table": "audit", "row": row, "precision": precision, "metric": metric, "reported": paper,
             "reproduced": value, "verdict": "recomputed", "evidence": evidence}
            for row, precision, papers, values, evidence in lines
            for metric, paper, value in zip(("psnr", "ssim"), papers, values, strict=True)]


MEASURED_AS = {"student_stage2 (Table B)": "stage2_fp32", "student_deploy (Table B, called INT8)": "stage3_fakequant",
               "mobileone (Table C, called FP32)": "stage3_fakequant",
               "stage-3 weights as float graph": "stage3_weights_fp32",
               "dynamic TFLite (abstract, Tables C and D)": "dynamic_int8", "fixed TFLite (abstract)": "fixed_int8"}
"""Rows of `authors_report` → the published file behind each, by its name in `FILES`."""


def side_by_side(recomputed: Sequence[Mapping[str, Any]], measured: pd.DataFrame) -> list[dict[str, Any]]:
    """What the paper reports, what the authors' log and report say, and what their files score here, on one line each.

    Args:
        recomputed: rows of `authors_report`.
        measured: of `measured_authors`; only DIV2K's validation images, on which the paper reports, are compared.

    Returns:
        row, precision, metric, `paper`, `their report`, `here`, `here - report`; None where there is none.
    """
    found = {line["as"]: line for line in measured.to_dict("records") if line["dataset"] == DIV2K_VALIDATION}
    lines = []
    for row in recomputed:
        here = found.get(MEASURED_AS.get(row["row"], ""), {}).get(f"{row['metric']}_rgb")
        lines.append({name: row[name] for name in ("row", "precision", "metric")} | {
            "paper": row["reported"], "their report": row["reproduced"], "here": here,
            "here - report": None if here is None else here - row["reproduced"]})
    return lines


def released_run() -> dict[str, Any]:
    """What the released stage-3 checkpoint says of its own loss; the paper's method has `kd_w` and `dct_w` alone."""
    folder = authors_folder()
    if folder is None:
        return {}
    state = load_pickle(folder / FILES["stage3_fakequant"], "the authors' QAT checkpoint")
    keys = ("epoch", "loss_mode", "dct_w", "kd_w", "kd_res_w", "wav_w", "ms_w", "kd_freq_w", "fqkd_w", "has_ema")
    return {key: state[key] for key in keys if key in state}


def authors_upscalers(folder: Path) -> dict[str, Upscaler]:
    """The authors' checkpoints and files as upscalers, by the names of `FILES`."""
    readers: dict[str, Callable[[Path], Upscaler]] = {
        ".tflite": TFLiteUpscaler, ".pt": lambda path: TorchUpscaler(
            read_published(path), path.name, {"file": str(path), "sha256": sha256_file(path)})}
    upscalers = {}
    for name, file in FILES.items():
        path = folder / file
        if name == "stage3_fakequant":
            # as the authors scored it: FX leaves biases in float, a TFLite file cannot
            upscalers[name] = QuantisedUpscaler(read_published_qat(path), path.name)
        else:
            upscalers[name] = readers[path.suffix](path)
    return upscalers


def re_exported(folder: Path, target: Path) -> TFLiteUpscaler:
    """Their stage-3 weights as a TFLite file that keeps the learnt grids, written to `target`."""
    return TFLiteUpscaler(export_tflite(read_published_qat(folder / FILES["stage3_fakequant"]), target))


def measured_authors(sets: Mapping[str, Sequence[Pair]]) -> pd.DataFrame:
    """The authors' files on image sets, and their stage-3 weights exported with the grids that they learnt.

    Returns:
        One line a file and set, four scores, and the RGB PSNR of each image; empty where the files are not at hand.
    """
    folder, lines = authors_folder(), []
    with tempfile.TemporaryDirectory() as place:
        upscalers = authors_upscalers(folder) if folder else {}
        if folder:
            upscalers["re_exported_int8"] = re_exported(folder, Path(place) / "re_exported.tflite")
        for name, upscaler in upscalers.items():
            for dataset, pairs in sets.items():
                found = evaluate(upscaler, pairs)
                lines.append({"authors' file": FILES.get(name, FILES["stage3_fakequant"]), "as": name,
                              "dataset": dataset} | found["mean"]
                             | {"images": {image["name"]: image["psnr_rgb"] for image in found["images"]}})
    return pd.DataFrame(lines, columns=None if lines else ["authors' file", "as", "dataset"])


def sets_at_hand() -> dict[str, Sequence[Pair]]:
    """Image sets for the audit, those under PAPERLIB_DATA where it is set, else embedded photographs.

    Set5, Set14 and B100, and `clic_val`, large photographs with bright skies, whose LR is made by MATLAB's bicubic;
    and DIV2K's validation images with their own LR where `data prepare --profile paper` or a user has put them.
    """
    names = [name for name in ("Set5", "Set14", "B100") if data_dir() and (data_dir() / "benchmark" / name).is_dir()]
    if names:
        folders = {name: named_folder(f"benchmark/{name}") for name in names}
        sets = {name: read_pairs(path / "HR", path / "LR_bicubic" / "X3") for name, path in folders.items()}
        bright = data_dir() / "clic_val"
        sets |= {"clic_val": read_pairs(bright)} if bright.is_dir() else {}
    else:
        sets = {"embedded": validation_pairs(DataSettings(source="embedded"))}
    div2k = DataSettings(source="div2k")
    if all(find_folder(div2k_folder(div2k), archive) for archive in ARCHIVES if archive.split == "valid"):
        sets[DIV2K_VALIDATION] = validation_pairs(div2k)  # what the paper reports on
    return sets


def verify() -> dict[str, Any]:
    """The whole audit for `paperlib verify`: recomputed rows, measured rows, the released run's loss, hashes.

    Raises:
        UserError: the authors' files are neither at hand nor can be downloaded.
    """
    try:
        folder = fetch_authors()
    except UserError as error:
        raise UserError(f"the audit needs the authors' files: set PAPERLIB_ASSETS to a folder that holds aio_mai/ with "
                        f"{', '.join([*FILES.values(), REPORT, LOG])}. They are not at hand, and {error}") from error
    input_grid = read_published_qat(folder / FILES["stage3_fakequant"]).grid("input")
    recomputed, measured = authors_report(), measured_authors(sets_at_hand())
    return {"side_by_side": side_by_side(recomputed, measured), "recomputed": recomputed,
            "measured": measured.to_dict("records"),
            "released_run": released_run(), "input_grid": [input_grid.low, input_grid.high],
            "provenance": provenance(),
            "sha256": {file: sha256_file(folder / file) for file in [*FILES.values(), REPORT, LOG]}}
