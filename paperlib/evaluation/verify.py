"""The audit of the authors' files, on image sets at hand and on DIV2K image by image (section 7).

On DIV2K their report has a value for every image. Where only a part of the 100 images is at hand,
means are compared with the report's over the same part, and are never called DIV2K's.
"""

import datetime
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paperlib.data.div2k import blob_id, div2k_folder, validation_at_hand
from paperlib.data.images import read_rgb
from paperlib.data.photographs import Pair, Source, make_pair, read_pairs
from paperlib.data.sources import validation_pairs
from paperlib.environment import assets_dir, data_dir, log_stderr, provenance, root
from paperlib.errors import UserError
from paperlib.evaluation import audit, metrics
from paperlib.evaluation.audit import FILES, REPORTED_AS, authors_folder, report_of
from paperlib.evaluation.scoring import evaluate
from paperlib.evaluation.torch_upscalers import load_network
from paperlib.evaluation.upscalers import Bicubic, Upscaler
from paperlib.export.convert import export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import sha256_file
from paperlib.quantisation.fx_qat import read_published_qat
from paperlib.settings import DataSettings
from paperlib.student.models import load_pickle
from paperlib.weights import pretrained

PSNR_LIMIT, SSIM_LIMIT = 1e-4, 1e-5
"""How far a value may be from the authors' for the same image and file, in dB and SSIM."""
REPRODUCED, DIFFERS = "reproduced (evaluation)", "differs"
COLUMNS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "psnr": metrics.psnr_rgb, "ssim_tensorflow": metrics.ssim_tensorflow, "ssim": metrics.ssim_rgb,
    "psnr_y_full_range": metrics.psnr_full_range_y}
"""What each image of DIV2K is given, by name."""
COMMITTED = Path("results/reference/div2k/verify.json")
GET_DIV2K = ("no image of DIV2K's validation set is at hand: get it with `paperlib data fetch "
             "div2k-valid` (504 MB), or name its folder with --div2k")


def released_run(folder: Path) -> dict[str, Any]:
    """What the released stage-3 checkpoint says of its loss, of which the paper has `kd_w` and
    `dct_w`, and how many `steps` its optimiser had made."""
    state = load_pickle(folder / FILES["stage3_fakequant"], "the authors' QAT checkpoint")
    keys = ("epoch", "loss_mode", "dct_w", "kd_w", "kd_res_w", "wav_w", "ms_w", "kd_freq_w",
            "fqkd_w", "has_ema")
    steps = {int(part["step"]) for part in state["opt"]["state"].values()}
    return {key: state[key] for key in keys if key in state} | {"steps": max(steps)}


def peers() -> list[Path]:
    """Other people's ×3 TFLite files, where PAPERLIB_ASSETS has them in a folder `peers/`."""
    assets = assets_dir()
    return sorted((assets / "peers").glob("*.tflite")) if assets else []


@contextmanager
def audited(folder: Path | None) -> Iterator[dict[str, Upscaler]]:
    """What is measured: the authors' files in a folder, by the names of `FILES`, run as the authors
    scored them (the fixed file with their padding and tiles); `re_exported_int8`, their stage 3 as
    a TFLite file that keeps the learned qparams; and `peer …`, see `peers`."""
    paths = {name: folder / file for name, file in FILES.items()} if folder else {}
    upscalers: dict[str, Upscaler] = {
        name: load_network(path) if path.suffix == ".pt"
        else TFLiteUpscaler(path, borders="reflected") for name, path in paths.items()}
    with tempfile.TemporaryDirectory() as place:
        if folder:
            kept = TFLiteUpscaler(export_tflite(
                read_published_qat(paths["stage3_fakequant"]), Path(place) / "kept.tflite"))
            kept.name, upscalers["re_exported_int8"] = FILES["stage3_fakequant"], kept
        yield upscalers | {f"peer {path.stem}": TFLiteUpscaler(path) for path in peers()}


def measured_sets(upscalers: Mapping[str, Upscaler],
                  sets: Mapping[str, Sequence[Pair]]) -> list[dict[str, Any]]:
    """Upscalers on image sets: a line each with four mean scores and the PSNR of every image."""
    lines = []
    for name, upscaler in upscalers.items():
        for dataset, pairs in sets.items():
            log_stderr(f"{name} on {dataset}")
            found = evaluate(upscaler, pairs)
            images = {image["name"]: image["psnr_rgb"] for image in found["images"]}
            lines.append({"file": upscaler.name, "as": name, "dataset": dataset, **found["mean"],
                          "images": images})
    return lines


def measured_authors(sets: Mapping[str, Sequence[Pair]]) -> pd.DataFrame:
    """`measured_sets` of what is at hand of the authors' files and peers'."""
    with audited(authors_folder()) as upscalers:
        return pd.DataFrame(measured_sets(upscalers, sets))


def sets_at_hand() -> dict[str, Sequence[Pair]]:
    """Image sets for the audit: Set5, Set14, B100 and `clic_val` (large images with bright skies,
    LR by MATLAB's bicubic) under PAPERLIB_DATA; where none is there, the embedded photographs."""
    place = data_dir() or Path()
    folders = [place / "benchmark" / name for name in ("Set5", "Set14", "B100")]
    sets: dict[str, Sequence[Pair]] = {
        folder.name: read_pairs(folder / "HR", folder / "LR_bicubic" / "X3")
        for folder in folders if data_dir() and folder.is_dir()}
    if sets and (place / "clic_val").is_dir():
        sets["clic_val"] = read_pairs(place / "clic_val")
    return sets or {"embedded": validation_pairs(DataSettings(source="embedded"))}


def measured_div2k(sources: Iterable[Source], upscalers: Mapping[str, Upscaler],
                   ) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Every upscaler on every image of DIV2K, and how far INT8 is from float on every LR image.

    Args:
        sources: of `validation_at_hand`; one without HR serves the second result alone, and one
            without LR has it made by MATLAB's bicubic, which gives the official files bit for bit.

    Returns:
        Upscaler → a line an image and a column a metric (`COLUMNS`); and image → PSNR in dB of the
        authors' dynamic INT8 file against their float weights, where both are among the upscalers.
    """
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in upscalers}
    rounding: dict[str, float] = {}
    compared = ("dynamic_int8", "stage3_weights_fp32")
    for source in sources:
        lr = read_rgb(source.lr) if source.lr else None
        pair = make_pair(source.name, read_rgb(source.hr), lr) if source.hr else None
        outputs = {name: upscaler(pair.lr if pair else lr) for name, upscaler in upscalers.items()
                   if pair or name in compared}
        if pair:
            for name, sr in outputs.items():
                rows[name][source.name] = [metric(sr, pair.hr) for metric in COLUMNS.values()]
        if outputs.keys() >= set(compared):
            rounding[source.name] = metrics.psnr_rgb(*(outputs[name] for name in compared))
        log_stderr(f"DIV2K {source.name}{'' if pair else ', LR alone: INT8 against float'}")
    return {name: pd.DataFrame.from_dict(values, orient="index", columns=list(COLUMNS))
            for name, values in rows.items()}, rounding


def div2k_images(measured: pd.DataFrame, name: str = "dynamic_int8") -> list[dict[str, Any]]:
    """Each image of one row of `measured_div2k` beside the authors' report, with a verdict."""
    report = report_of(name)
    report = report.rename(columns={"psnr": "psnr_reported", "ssim_tensorflow": "ssim_reported"})
    both = measured.join(report[["psnr_reported", "ssim_reported"]], how="inner")
    agrees = (((both["psnr"] - both["psnr_reported"]).abs() <= PSNR_LIMIT)
              & ((both["ssim_tensorflow"] - both["ssim_reported"]).abs() <= SSIM_LIMIT))
    both["verdict"] = np.where(agrees, REPRODUCED, DIFFERS)
    return both.reset_index(names="name")[[
        "name", "psnr_reported", "psnr", "ssim_reported", "ssim_tensorflow", "ssim", "verdict",
    ]].to_dict("records")


def div2k_rows(measured: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Per row of `measured_div2k` the number of `images` and the mean of each of `COLUMNS`; where
    the report has the row also its mean over the same images (`…_reported`), the largest difference
    of an image in dB and SSIM, and a verdict."""
    lines = []
    for name, values in measured.items():
        line = {"row": name, "images": len(values), **values.mean()}
        if name in REPORTED_AS:
            report = report_of(name).loc[values.index]
            far = (values[report.columns] - report).abs().max()
            verdicts = {image["verdict"] for image in div2k_images(values, name)}
            line |= {**report.mean().add_suffix("_reported"), "psnr_largest": far["psnr"],
                     "ssim_largest": far["ssim_tensorflow"],
                     "verdict": DIFFERS if DIFFERS in verdicts else REPRODUCED}
        lines.append(line)
    return lines


def div2k_summary(result: Mapping[str, Any]) -> str:
    """What the result of `verify` says of DIV2K, in two lines."""
    images = pd.DataFrame(result["div2k"])
    rounding = pd.DataFrame(result["div2k_int8_against_float"])
    dynamic = next(row for row in result["div2k_rows"] if row["row"] == "dynamic_int8")
    agree = (images["verdict"] == REPRODUCED).sum()
    far = (rounding["psnr"] - rounding["psnr_reported"]).abs().max()
    return (
        f"DIV2K validation, {len(images)} of {result['div2k_of']} images; means over these, the "
        f"report's too. Dynamic INT8: {agree} of {len(images)} {REPRODUCED}, largest difference "
        f"{dynamic['psnr_largest']:.1e} dB, SSIM {dynamic['ssim_largest']:.1e}\n"
        f"INT8 against float on {len(rounding)} LR images: mean {rounding['psnr'].mean():.4f} dB, "
        f"theirs {rounding['psnr_reported'].mean():.4f}, largest difference {far:.1e}")


def _div2k(sources: Sequence[Source], upscalers: Mapping[str, Upscaler]) -> dict[str, Any]:
    """The parts of `verify` that need DIV2K, each named `div2k…`."""
    report = report_of("int8_against_float")
    if not sources:
        return {"div2k": [], "div2k_images": 0, "div2k_of": len(report)}
    measured, rounding = measured_div2k(sources, {
        **upscalers, "bundled_int8": TFLiteUpscaler(pretrained()),
        "bicubic_torch": Bicubic("torch"), "bicubic_matlab": Bicubic("matlab")})
    images = div2k_images(measured["dynamic_int8"])
    return {
        "div2k": images, "div2k_images": len(images), "div2k_of": len(report),
        "div2k_rows": div2k_rows(measured) if images else [],
        "div2k_per_image": {name: rows.to_dict("index") for name, rows in measured.items()},
        "div2k_int8_against_float": [
            {"name": name, "psnr_reported": report["psnr"][name], "psnr": value}
            for name, value in rounding.items()],
        "div2k_files": {path.name: {"git": blob_id(path), "sha256": sha256_file(path)}
                        for source in sources for path in (source.hr, source.lr) if path}}


def verify(div2k: Path | None = None) -> dict[str, Any]:
    """The whole audit for `paperlib verify`, as values for JSON: `recomputed` (rows of
    `authors_report`), `measured` (`measured_sets`), what `_div2k` gives, and where it all comes
    from.

    `div2k` is a folder with DIV2K's validation images, or some; default: the one in the cache.
    """
    if div2k and not div2k.is_dir():
        raise UserError(f"--div2k {div2k}: there is no such folder.")
    files = [*FILES.values(), audit.REPORT, audit.LOG]
    try:
        folder = audit.fetch_authors()
    except UserError as error:
        raise UserError(
            "the audit needs the authors' files, which are neither at hand nor can be downloaded: "
            f"set PAPERLIB_ASSETS to a folder with aio_mai/{{{','.join(files)}}}; {error}",
        ) from error
    sources = validation_at_hand(div2k or div2k_folder(DataSettings(source="div2k")), log_stderr)
    input_grid = read_published_qat(folder / FILES["stage3_fakequant"]).grid("input")
    with audited(folder) as upscalers:
        measured = measured_sets(upscalers, sets_at_hand())
        on_div2k = _div2k(sources, upscalers)
    return {
        "recomputed": audit.authors_report(), "measured": measured, **on_div2k,
        "released_run": released_run(folder), "input_grid": [input_grid.low, input_grid.high],
        "date": datetime.date.today().isoformat(), "provenance": provenance(),
        "sha256": {path.name: sha256_file(path) for path in [
            *(folder / file for file in files), *peers()]}}


def committed_div2k() -> tuple[str, pd.DataFrame]:
    """The audit on DIV2K committed with this repository: a dated title, and an image a line."""
    path = root() / COMMITTED
    if not path.is_file():
        return "", pd.DataFrame()
    found = json.loads(path.read_text(encoding="utf-8"))
    title = (f"The authors' dynamic INT8 file on {found['div2k_images']} of DIV2K's "
             f"{found['div2k_of']} validation images, {found['date']}, commit "
             f"{found['provenance']['commit'][:8]}")
    return title, pd.DataFrame(found["div2k"])
