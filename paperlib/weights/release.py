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

from paperlib.errors import UserError
from paperlib.files import atomic_path, read_json, sha256_file, write_json, write_text
from paperlib.profiles import note
from paperlib.quantisation.qat import read_quantised
from paperlib.settings import Settings
from paperlib.student.graph import parameters
from paperlib.student.models import read_weights
from paperlib.weights import FILES, FOLDER

SCORES = {"float_before_qat": "float", "float_in_8_bits": "float, result in 8 bits",
          "fakequant": "fake-quantised", "tflite_dynamic": "INT8 TFLite"}
"""Rows of table `export` in 06_tflite_eval that stand on the model card."""
METRICS = {"psnr": ("PSNR RGB (dB)", 3), "psnr_y": ("PSNR Y (dB)", 3), "ssim": ("SSIM RGB", 4)}
STAGES = {"stage1": "02_stage1", "stage2": "04_stage2", "stage3": "05_fuse_qat"}
OPTIMISERS = {"adam": "Adam", "soap": "SOAP"}
SOURCES = {
    "bsds400": "BSDS500 (its photographs outside B100; for research and education)",
    "t91": "T91 (for research)", "cid22": "CID22 (CC BY-SA 4.0)",
    "open": "51 photographs of open licences (each named, with licence and source, in "
            "paperlib/data/open.csv)",
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


def table(lines: Sequence[dict[str, str]]) -> str:
    """Lines of equal keys as a table of Markdown."""
    cells = (lines[0].keys(), ["---"] * len(lines[0]), *(line.values() for line in lines))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def seeds_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
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
    return lines


def _seeds_text(path: Path, settings: Settings, sha256: str) -> str:
    """The card's part on seeds, from the run's `seeds.json`; empty where there is none."""
    if not path.is_file():
        return ""
    record = read_json(path)
    if record["files"].get(str(settings.seed)) != sha256:
        raise UserError(f"{path} is of another student than the one to be released. Remove it.")
    shared = record.get("stage2_shared_steps", 0)
    what = (f"Stage 2 from its step {shared:,} on and stage 3 anew" if shared
            else "Stages 2 and 3 anew from the same stage 1")
    return f"""
{what} with the seeds {', '.join(map(str, record['seeds']))}: mean ± sample standard
deviation over seeds, PSNR RGB in dB (commit `{record['commit'][:12]}`):

{table(seeds_table(record['rows']))}
"""


def _stage_line(settings: Settings, name: str, minutes: float) -> str:
    stage = getattr(settings, name)
    weights = stage.loss.model_dump(include={"l1", "charbonnier", "mse", "dct", "kd"})
    hold = f" after {100 * stage.hold:g} % at that rate" if stage.hold else ""
    parts = [f"{stage.steps:,} steps of {stage.batch} patches of {stage.patch}² LR pixels",
             OPTIMISERS[stage.optimizer], f"learning rate {stage.lr:g} ({stage.decay}{hold})",
             "fused" if name == "stage3" else f"form {stage.form}"]
    if stage.revive:
        parts.append("silent channels revived")
    if stage.text:
        parts.append(f"{stage.text:.0%} text in the first {stage.text_until:.0%} of the steps")
    loss = " + ".join(f"{weight:g} {term}" for term, weight in weights.items() if weight)
    return f"- stage {name[-1]}: {', '.join(parts)}, loss {loss}; {minutes:.0f} min"


def _card(
    records: dict[str, Any], sources: dict[str, Path], scores: list[dict[str, str]], seeds: str,
) -> str:
    """The model card: what it is, what it learned from, what it scores, what it cannot do."""
    last, second, third = (records[name] for name in ("06_tflite_eval", "04_stage2", "05_fuse_qat"))
    settings = Settings.model_validate(last["settings"])
    data, quant = settings.data, settings.quant
    photographs = data.train if data.source == "folders" else (data.source,)
    int8 = parameters(read_quantised(sources["pretrained-qat"]).graph)
    float_ = sum(value.numel() for value in read_weights(sources["pretrained-float"])[0].values())
    devices = dict.fromkeys(record["device"] if record.get("cuda") else record["cpu"]["model"]
                            for record in (second, third))
    stages = "\n".join(_stage_line(settings, name, records[notebook]["history"][-1]["seconds"] / 60)
                       for name, notebook in STAGES.items())
    more = " (more, for its skip is carried by convolutions)" if quant.skip == "exact" else ""
    shared = "; ".join(last["overlaps"]) or "none (searched by the kit, at all scales)"
    return f"""# Model card: ×3 student, {int8:,} values in INT8

Trained by this kit, profile `{settings.profile}`, measured at commit `{
    last['commit'][:12]}`, seed {settings.seed}, on {', '.join(devices)}.
**Data and schedule: {note(settings)}**; the paper trains on DIV2K, 18 hours by its authors' log.

- `{FILES['pretrained-float']}`: fused float network, {float_:,} weights and biases, RGB 0..255 in
  and out, clamped.
- `{FILES['pretrained']}`: the same after quantisation-aware training, {int8:,} weights and biases{
    more}; no tensor in float, any input size.
- `{FILES['pretrained-qat']}`: the quantised graph that this file was made of, for its other forms.

## Training

- photographs: {', '.join(photographs)}; validation: {', '.join(data.valid or photographs)}
- pictures shared with reported images: {shared}
{stages}
- teacher of stage 2: {second['teacher']}; of stage 3: {third['targets']}
- quantiser `{quant.quantiser}`, skip `{quant.skip}`, equalised: {quant.equalise}
- kernels rounded to {quant.rounding} before stage 3

## Scores

LR by MATLAB's bicubic; RGB without border crop, Y with a 3-pixel border.

{table(scores)}
{seeds}
## Licence and limits

The weights are Apache-2.0, as the kit. The training photographs are not included: {
    ', '.join(SOURCES[name] for name in photographs)}.

Made for photographs that were reduced by bicubic interpolation without noise. Noise and JPEG blocks
are enlarged as they are. It invents no detail, and knows no scale but ×3.
"""


def release(run: Any, folder: Path = FOLDER) -> Path:
    """Copy a run's student into `folder`, with hashes, scores and card; returns the folder.

    Args:
        run: a finished run (`paperlib.run.Run`): notebooks 02 to 06 have written their records.
    """
    records = run.records()
    sources = {"pretrained": run.stage_folder("export") / "student_dynamic_int8.tflite",
               "pretrained-qat": run.stage_folder("stage3") / "qat.safetensors",
               "pretrained-float": run.stage_folder("stage3") / "fused.safetensors"}
    last, digest = records.get("06_tflite_eval", {"inputs": {}}), sha256_file(sources["pretrained"])
    if digest not in {file["sha256"] for file in last["inputs"].values()}:
        raise UserError(f"06_tflite_eval has not measured {sources['pretrained']}. Run 06 again.")
    seeds = _seeds_text(run.out / "seeds.json", run.settings, digest)
    scores = scores_of(last["rows"])
    try:
        card = _card(records, sources, scores, seeds)
    except KeyError as error:
        raise UserError(f"the model card of {run.out} lacks {error}: run the notebook that records "
                        f"it, or add it to SOURCES in {__file__}.") from error
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
    from paperlib.run import open_run

    print(release(open_run("benchmark", sys.argv[1] if len(sys.argv) > 1 else None)))
