"""Fill this folder from a finished run: `python -m paperlib.weights.release RUN`.

It holds the dynamic INT8 file, its quantised graph, the float student before it, their hashes,
the scores of the run that made them, and a model card. Nothing imports this script.
"""

import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

from paperlib.errors import UserError
from paperlib.files import atomic_path, read_json, sha256_file, write_json, write_text
from paperlib.profiles import TRAINED_BY, note
from paperlib.quantisation.qat import read_quantised
from paperlib.reporting.tables import markdown
from paperlib.run import Run, open_run
from paperlib.student.graph import parameters
from paperlib.student.models import read_weights
from paperlib.weights import FILES, FOLDER

SCORES = {"float_before_qat": "float", "float_in_8_bits": "float, result in 8 bits",
          "fakequant": "fake-quantised", "tflite_dynamic": "INT8 TFLite"}
"""Rows of table `export` in 06_tflite_eval that stand on the model card."""
METRICS = {"psnr": ("PSNR RGB (dB)", 3), "psnr_y": ("PSNR Y (dB)", 3), "ssim": ("SSIM RGB", 4)}
SOURCES = {
    "bsds400": "BSDS500 (its photographs outside B100; for research and education)",
    "t91": "T91 (for research)", "cid22": "CID22 (CC BY-SA 4.0)",
    "open": "51 photographs of open licences (each named, with licence and source, in "
            "paperlib/data/open.csv)",
    "open_wallpapers": "385 photographs of open licences (paperlib/data/open_wallpapers.csv)",
    "embedded": "those in scikit-image and scikit-learn",
    "div2k": "DIV2K (for academic research)"}
"""Training photographs by the name of their folder, or `data.source`, and their terms."""


def scores_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """PSNR RGB, PSNR Y (dB) and SSIM RGB of the files on every image set, from 06's rows."""
    lines: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        if row["table"] == "export" and row["row"] in SCORES and row["metric"] in METRICS:
            key = (row["dataset"], list(SCORES).index(row["row"]))
            first = {"images": row["dataset"], "precision": SCORES[row["row"]]}
            name, digits = METRICS[row["metric"]]
            lines.setdefault(key, first)[name] = f"{row['value']:.{digits}f}"
    return [lines[key] for key in sorted(lines)]


def seeds_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Mean ± sample standard deviation over seeds: float network, INT8 file, their difference (dB).

    Args:
        rows: of `seeds.json`, fp32 and int8 of each image set with one value a seed.
    """
    values = {(row["dataset"], row["precision"]): row["values"] for row in rows}
    lines = []
    for name in dict.fromkeys(dataset for dataset, _ in values):
        float_, int8 = values[name, "fp32"], values[name, "int8"]
        cost = [after - before for before, after in zip(float_, int8, strict=True)]
        columns = {"float": float_, "INT8 TFLite": int8, "INT8 minus float": cost}
        lines.append({"images": Path(name).name} | {
            title: f"{statistics.mean(numbers):.3f} ± {statistics.stdev(numbers):.3f}"
            for title, numbers in columns.items()})
    return pd.DataFrame(lines)


def release(run: Run, folder: Path = FOLDER) -> Path:
    """Copy a run's student into `folder`, with hashes, scores and card; returns the folder.

    Args:
        run: a finished run: notebooks 02 to 06 have written their records.
    """
    records = run.records()
    sources = {"pretrained": run.stage_folder("export") / "student_dynamic_int8.tflite",
               "pretrained-qat": run.stage_folder("stage3") / "qat.safetensors",
               "pretrained-float": run.stage_folder("stage3") / "fused.safetensors"}
    if not records:
        raise UserError(f"{run.out} holds no record with the settings of {run.settings.profile}.")
    last, digest = records.get("06_tflite_eval", {"inputs": {}}), sha256_file(sources["pretrained"])
    if digest not in {file["sha256"] for file in last["inputs"].values()}:
        raise UserError(f"06_tflite_eval has not measured {sources['pretrained']}. Run 06 again.")
    path = run.out / "seeds.json"
    seeds = read_json(path) if path.is_file() else None
    if seeds and seeds["files"].get(str(run.settings.seed)) != digest:
        raise UserError(f"{path} is of another student than the one to be released. Remove it.")
    trained = [records[name] for name in ("04_stage2", "05_fuse_qat")]
    weights, scores = read_weights(sources["pretrained-float"])[0], scores_of(last["rows"])
    environment = Environment(
        loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: markdown(value) if isinstance(value, pd.DataFrame) else value)
    try:
        card = environment.get_template("MODEL_CARD.md.jinja").render(
            run=run, records=records, files=FILES, note=note(run.settings), trained_by=TRAINED_BY,
            devices=dict.fromkeys(record["device"] if record.get("cuda") else
                                  record["cpu"]["model"] for record in trained),
            int8=parameters(read_quantised(sources["pretrained-qat"]).graph),
            float=sum(value.numel() for value in weights.values()), sources=SOURCES,
            scores=pd.DataFrame(scores), seeds=seeds, seeds_table=seeds_table)
    except UndefinedError as error:
        raise UserError(f"the model card of {run.out} lacks something ({error}): run the notebook "
                        f"that records it, or add it to SOURCES in {__file__}.") from error
    folder.mkdir(exist_ok=True)
    for name, source in sources.items():
        with atomic_path(folder / FILES[name]) as temporary:
            shutil.copyfile(source, temporary)
    write_json(folder / "weights.json", {
        "files": {file: sha256_file(folder / file) for file in FILES.values()},
        "commit": last["commit"], "scores": scores})
    write_text(folder / "MODEL_CARD.md", card)
    return folder


if __name__ == "__main__":
    print(release(open_run("benchmark", sys.argv[1] if len(sys.argv) > 1 else None)))
