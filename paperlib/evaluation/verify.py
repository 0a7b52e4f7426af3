"""The audit of the authors' files, on image sets at hand and on DIV2K image by image (section 7).

On DIV2K their report has a value for every image, so agreement can be said to the last digit: PSNR
within `PSNR_LIMIT`, their SSIM within `SSIM_LIMIT`. Where only a part of the 100 images is at hand,
means are compared with the report's over the same part, and are never called DIV2K's.
"""

import datetime
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paperlib.data.div2k import blob_id, div2k_folder, validation_at_hand
from paperlib.data.images import read_rgb
from paperlib.data.photographs import Pair, Source, make_pair, read_pairs
from paperlib.data.sources import named_folder, validation_pairs
from paperlib.environment import assets_dir, data_dir, log_stderr, provenance, root
from paperlib.errors import UserError
from paperlib.evaluation import metrics
from paperlib.evaluation.audit import (
    FILES,
    LOG,
    REPORT,
    REPORTED_AS,
    authors_folder,
    authors_report,
    fetch_authors,
    report_images,
)
from paperlib.evaluation.scoring import evaluate
from paperlib.evaluation.torch_upscalers import QuantisedUpscaler, TorchUpscaler
from paperlib.evaluation.upscalers import Bicubic, Upscaler
from paperlib.export.convert import export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import sha256_file
from paperlib.quantisation.fx_qat import read_published_qat
from paperlib.settings import DataSettings
from paperlib.student.models import load_pickle, read_published
from paperlib.weights import pretrained

PSNR_LIMIT, SSIM_LIMIT = 1e-4, 1e-5
"""How far a value may be from the authors' for the same image and file, in dB and SSIM."""
REPRODUCED, DIFFERS = "reproduced (evaluation)", "differs"
COLUMNS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "psnr": metrics.psnr_rgb, "ssim_tensorflow": metrics.ssim_tensorflow, "ssim": metrics.ssim_rgb,
    "psnr_y_full_range": metrics.psnr_full_range_y}
"""What each image of DIV2K is given, by name."""
REPORT_KEYS = {"psnr": "psnr_{}_rgb_sh0", "ssim_tensorflow": "ssim_{}_rgb_sh0", "psnr_y_full_range": "psnr_{}_y_sh0"}
"""Those of them that the authors' report has."""
COMMITTED = Path("results/reference/div2k/verify.json")
GET_DIV2K = ("no image of DIV2K's validation set is at hand: get it with `paperlib data fetch div2k-valid` "
             "(504 MB), or name its folder with --div2k")


def released_run() -> dict[str, Any]:
    """What the released stage-3 checkpoint says of its own loss; the paper's method has `kd_w` and
    `dct_w`."""
    folder = authors_folder()
    if folder is None:
        return {}
    state = load_pickle(folder / FILES["stage3_fakequant"], "the authors' QAT checkpoint")
    keys = ("epoch", "loss_mode", "dct_w", "kd_w", "kd_res_w", "wav_w", "ms_w", "kd_freq_w", "fqkd_w", "has_ema")
    return {key: state[key] for key in keys if key in state}


def authors_upscalers(folder: Path) -> dict[str, Upscaler]:
    """The authors' files as they scored them, by the names of `FILES`.

    The fixed file has their padding and tiles; the fake-quantised network its float biases, which a
    TFLite file cannot have.
    """
    upscalers: dict[str, Upscaler] = {}
    for name, file in FILES.items():
        path = folder / file
        if name == "stage3_fakequant":
            upscalers[name] = QuantisedUpscaler(read_published_qat(path), path.name)
        elif path.suffix == ".pt":
            about = {"file": str(path), "sha256": sha256_file(path)}
            upscalers[name] = TorchUpscaler(read_published(path), path.name, about)
        else:
            upscalers[name] = TFLiteUpscaler(path, borders="reflected")
    return upscalers


def peers() -> dict[str, Upscaler]:
    """Other people's ×3 TFLite files, where PAPERLIB_ASSETS has them in a folder `peers/`."""
    place = assets_dir()
    paths = sorted((place / "peers").glob("*.tflite")) if place else []
    return {f"peer {path.stem}": TFLiteUpscaler(path) for path in paths}


def re_exported(folder: Path, target: Path) -> TFLiteUpscaler:
    """Their stage-3 weights as a TFLite file that keeps the learned qparams, written to
    `target`."""
    return TFLiteUpscaler(export_tflite(read_published_qat(folder / FILES["stage3_fakequant"]), target))


def measured_authors(
    sets: Mapping[str, Sequence[Pair]], tell: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """The authors' files on image sets, their stage-3 weights exported with the learned qparams,
    and peers at hand.

    Returns:
        One line a file and set, four scores, and the RGB PSNR of each image; empty where the files
        are not at hand.
    """
    folder, lines = authors_folder(), []
    with tempfile.TemporaryDirectory() as place:
        upscalers = authors_upscalers(folder) if folder else {}
        if folder:
            upscalers["re_exported_int8"] = re_exported(folder, Path(place) / "re_exported.tflite")
        upscalers |= peers()
        files = FILES | {"re_exported_int8": FILES["stage3_fakequant"]}
        for name, upscaler in upscalers.items():
            for dataset, pairs in sets.items():
                tell(f"{name} on {dataset}")
                found = evaluate(upscaler, pairs)
                lines.append({"file": files.get(name, f"{name.removeprefix('peer ')}.tflite"), "as": name,
                              "dataset": dataset} | found["mean"]
                             | {"images": {image["name"]: image["psnr_rgb"] for image in found["images"]}})
    return pd.DataFrame(lines, columns=None if lines else ["file", "as", "dataset"])


def sets_at_hand() -> dict[str, Sequence[Pair]]:
    """Image sets for the audit: Set5, Set14, B100 and `clic_val` (large images with bright skies,
    LR by MATLAB's bicubic) under PAPERLIB_DATA; where none is there, the embedded photographs."""
    place = data_dir()
    sets: dict[str, Sequence[Pair]] = {}
    for name in ("Set5", "Set14", "B100"):
        if place and (place / "benchmark" / name).is_dir():
            path = named_folder(f"benchmark/{name}")
            sets[name] = read_pairs(path / "HR", path / "LR_bicubic" / "X3")
    if sets and (place / "clic_val").is_dir():
        sets["clic_val"] = read_pairs(place / "clic_val")
    return sets or {"embedded": validation_pairs(DataSettings(source="embedded"))}


def measured_div2k(
    sources: Iterable[Source], upscalers: Mapping[str, Upscaler], tell: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, float]]:
    """Every upscaler on every image of DIV2K, and how far INT8 is from float on every LR image.

    Args:
        sources: of `validation_at_hand`; one without HR serves the second result alone, and one
            without LR has its LR made by MATLAB's bicubic, which gives the official files bit for
            bit.

    Returns:
        Upscaler → image → values (`COLUMNS`); and image → PSNR in dB of the authors' dynamic INT8
        file against their float weights, where both are among the upscalers.
    """
    rows: dict[str, dict[str, dict[str, float]]] = {name: {} for name in upscalers}
    rounding: dict[str, float] = {}
    pair_of_files = {"dynamic_int8", "stage3_weights_fp32"}
    for source in sources:
        lr = read_rgb(source.lr) if source.lr else None
        pair = make_pair(source.name, read_rgb(source.hr), lr) if source.hr else None
        outputs = {}
        for name, upscaler in upscalers.items():
            if not pair and name not in pair_of_files:
                continue
            sr = upscaler(pair.lr if pair else lr)
            if pair:
                rows[name][source.name] = {key: metric(sr, pair.hr) for key, metric in COLUMNS.items()}
            if name in pair_of_files:
                outputs[name] = sr
        if len(outputs) == 2:
            rounding[source.name] = metrics.psnr_rgb(outputs["dynamic_int8"], outputs["stage3_weights_fp32"])
        tell(f"DIV2K {source.name}{'' if pair else ', LR alone: INT8 against float'}")
    return rows, rounding


def div2k_images(measured: Mapping[str, Mapping[str, float]], name: str = "dynamic_int8") -> list[dict[str, Any]]:
    """Each image of one row of `measured_div2k` beside the authors' report, with a verdict."""
    lines, key = [], REPORTED_AS[name]
    for image, reported in report_images().items():
        if values := measured.get(image):
            psnr, ssim = (reported[REPORT_KEYS[column].format(key)] for column in ("psnr", "ssim_tensorflow"))
            agrees = (abs(values["psnr"] - psnr) <= PSNR_LIMIT
                      and abs(values["ssim_tensorflow"] - ssim) <= SSIM_LIMIT)
            lines.append({"name": image, "psnr_reported": psnr, "psnr": values["psnr"], "ssim_reported": ssim,
                          "ssim_tensorflow": values["ssim_tensorflow"], "ssim": values["ssim"],
                          "verdict": REPRODUCED if agrees else DIFFERS})
    return lines


def div2k_rows(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Means of `measured_div2k` over the images at hand, the report's over the same, row by row.

    Returns:
        Per row `images`, the mean of each of `COLUMNS`, `…_reported` of those that the report has,
        the largest difference of an image in dB and SSIM, and a verdict where the report has the
        row.
    """
    lines = []
    report = report_images()
    for name, images in measured.items():
        line: dict[str, Any] = {"row": name, "images": len(images)}
        for column in COLUMNS:
            line[column] = float(np.mean([values[column] for values in images.values()]))
        if key := REPORTED_AS.get(name):
            for column, named in REPORT_KEYS.items():
                line[f"{column}_reported"] = float(np.mean([report[image][named.format(key)] for image in images]))
            compared = div2k_images(images, name)
            line["psnr_largest"] = max(abs(one["psnr"] - one["psnr_reported"]) for one in compared)
            line["ssim_largest"] = max(abs(one["ssim_tensorflow"] - one["ssim_reported"]) for one in compared)
            line["verdict"] = (REPRODUCED if all(one["verdict"] == REPRODUCED for one in compared) else DIFFERS)
        lines.append(line)
    return lines


def div2k_summary(result: Mapping[str, Any]) -> str:
    """What the result of `verify` says of DIV2K, in two lines."""
    lines, rounding = result["div2k"], result["div2k_int8_against_float"]
    agree = sum(line["verdict"] == REPRODUCED for line in lines)
    dynamic = next(row for row in result["div2k_rows"] if row["row"] == "dynamic_int8")
    far = max(abs(line["psnr"] - line["psnr_reported"]) for line in rounding)
    return (f"DIV2K validation, {len(lines)} of {result['div2k_of']} images; means over these, the report's too. "
            f"Dynamic INT8: {agree} of {len(lines)} {REPRODUCED}, largest difference "
            f"{dynamic['psnr_largest']:.1e} dB, SSIM {dynamic['ssim_largest']:.1e}\n"
            f"INT8 against float on {len(rounding)} LR images: mean "
            f"{np.mean([line['psnr'] for line in rounding]):.4f} dB, theirs "
            f"{np.mean([line['psnr_reported'] for line in rounding]):.4f}, largest difference {far:.1e}")


def _div2k(sources: Sequence[Source], folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """The parts of `verify` that need DIV2K."""
    report = report_images()
    if not sources:
        return {"div2k": [], "div2k_images": 0, "div2k_of": len(report)}
    with tempfile.TemporaryDirectory() as place:
        upscalers = authors_upscalers(folder) | {
            "re_exported_int8": re_exported(folder, Path(place) / "re_exported.tflite"),
            "bundled_int8": TFLiteUpscaler(pretrained()), "bicubic_torch": Bicubic("torch"),
            "bicubic_matlab": Bicubic("matlab")} | peers()
        measured, rounding = measured_div2k(sources, upscalers, tell)
    files = [path for source in sources for path in (source.hr, source.lr) if path]
    images = div2k_images(measured["dynamic_int8"])
    return {
        "div2k": images, "div2k_images": len(images), "div2k_of": len(report),
        "div2k_rows": div2k_rows(measured) if images else [], "div2k_per_image": measured,
        "div2k_int8_against_float": [
            {"name": name, "psnr_reported": report[name]["psnr_model_none_int8_vs_pt_rgb_sh0"], "psnr": value}
            for name, value in rounding.items()],
        "div2k_files": {path.name: {"git": blob_id(path), "sha256": sha256_file(path)} for path in files}}


def verify(div2k: Path | None = None, tell: Callable[[str], None] = log_stderr) -> dict[str, Any]:
    """The whole audit for `paperlib verify`.

    Args:
        div2k: a folder with DIV2K's validation images, or some of them; default: the one in the
            cache.
        tell: gets a line for each step.

    Returns:
        `recomputed` (rows of `authors_report`), `measured` (of `measured_authors`), `div2k` (of
        `div2k_images`) with `div2k_images`, `div2k_of`, `div2k_rows`, `div2k_per_image`,
        `div2k_int8_against_float` and `div2k_files`; `released_run`, `input_grid`, `date`,
        `provenance`, `sha256`.

    Raises:
        UserError: the authors' files are neither at hand nor can be downloaded, or there is no such
            folder.
    """
    if div2k and not div2k.is_dir():
        raise UserError(f"--div2k {div2k}: there is no such folder.")
    try:
        folder = fetch_authors()
    except UserError as error:
        tell("the authors' files are not at hand and cannot be downloaded")
        raise UserError("the audit needs the authors' files: set PAPERLIB_ASSETS to a folder that holds aio_mai/ "
                        f"with {', '.join([*FILES.values(), REPORT, LOG])}; {error}") from error
    sources = validation_at_hand(div2k or div2k_folder(DataSettings(source="div2k")), tell)
    input_grid = read_published_qat(folder / FILES["stage3_fakequant"]).grid("input")
    return {"recomputed": authors_report(), "measured": measured_authors(sets_at_hand(), tell).to_dict("records"),
            **_div2k(sources, folder, tell), "released_run": released_run(),
            "input_grid": [input_grid.low, input_grid.high], "date": datetime.date.today().isoformat(),
            "provenance": provenance(),
            "sha256": {file: sha256_file(folder / file) for file in [*FILES.values(), REPORT, LOG]}}


def committed_div2k() -> tuple[str, pd.DataFrame]:
    """The audit on DIV2K that is committed with this repository: a dated title, and an image a
    line."""
    path = root() / COMMITTED
    if not path.is_file():
        return "", pd.DataFrame()
    audit = json.loads(path.read_text(encoding="utf-8"))
    title = (f"The authors' dynamic INT8 file on {audit['div2k_images']} of DIV2K's {audit['div2k_of']} "
             f"validation images, {audit['date']}, commit {audit['provenance']['commit'][:8]}")
    return title, pd.DataFrame(audit["div2k"])
