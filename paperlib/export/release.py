"""The trained student in the box: the weights that `upscale` and `evaluate` use when no model is named.

`paperlib/weights/` holds the fused float student (.safetensors), the dynamic INT8 file (.tflite), their hashes, the
scores they were shipped with, and a model card. `python -m paperlib.export.release RUN` fills it from a finished run.
"""

import math
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import safe_open

from paperlib.errors import UserError
from paperlib.export.tflite import tflite_values
from paperlib.files import atomic_path, read_json, sha256_file, write_json, write_text
from paperlib.profiles import note
from paperlib.settings import Settings
from paperlib.weights import FILES, FOLDER

SCORES = {("export", "float_before_qat"): "float", ("export", "float_in_8_bits"): "float, result in 8 bits",
          ("export", "fakequant"): "fake-quantised",
          ("export", "tflite_dynamic"): "INT8 TFLite"}
"""Rows of 06_tflite_eval that stand on the model card."""


def _scores(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """PSNR RGB, PSNR Y (dB) and SSIM RGB of the shipped files on every image set."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    names = {"psnr": "PSNR RGB (dB)", "psnr_y": "PSNR Y (dB)", "ssim": "SSIM RGB"}
    for row in rows:
        label = SCORES.get((row["table"], row["row"]))
        if label and row["metric"] in names:
            line = lines.setdefault((row["dataset"], label), {"images": row["dataset"], "precision": label})
            line[names[row["metric"]]] = f"{row['value']:.{4 if row['metric'] == 'ssim' else 3}f}"
    order = list(SCORES.values())
    return sorted(lines.values(), key=lambda line: (line["images"], order.index(line["precision"])))


STAGES = ("02_stage1", "04_stage2", "05_fuse_qat")
"""Notebooks that train the student."""
OPTIMISERS = {"adam": "Adam", "soap": "SOAP"}
SOURCES = {
    "bsds400": "BSDS500 (its photographs outside B100; for research and education)",
    "t91": "T91 (for research)", "cid22": "CID22 (CC BY-SA 4.0)",
    "open": "51 photographs of open licences (each named, with licence and source, in paperlib/data/open.csv)",
    "embedded": "those in scikit-image and scikit-learn",
    "div2k": "DIV2K (for academic research)"}
"""Training photographs by the name of their folder, or the setting `data.source`, and what they may be used for."""


def _facts(run: Any) -> dict[str, Any]:
    """What the card says of a run, all of it from the run's records.

    Raises:
        UserError: something that the card must say is in no record; all that is missing is named.
    """
    records = run.records()
    last, second, third = (records.get(name, {}) for name in ("06_tflite_eval", "04_stage2", "05_fuse_qat"))
    minutes = {name: records[name]["history"][-1]["seconds"] / 60 for name in STAGES
               if records.get(name, {}).get("history")}
    try:
        settings = Settings.model_validate(last["settings"])
    except (KeyError, ValidationError):
        raise UserError(f"the settings in {run.out}/records/06_tflite_eval.json are those of another version of this "
                        "kit. Run the notebooks again.") from None
    data = settings.data
    photographs = data.train if data.source == "folders" else (data.source,)
    trained = {name: record.get("device") if record.get("cuda") else (record.get("cpu") or {}).get("model")
               for name, record in (("04_stage2", second), ("05_fuse_qat", third))}
    missing = [f"{name}: the {fact}" for name, fact, found in (
        ("06_tflite_eval", "commit", last.get("commit")),
        *((name, "device (cpu model or GPU)", device) for name, device in trained.items()),
        *((name, "history of the training", minutes.get(name)) for name in STAGES),
        ("04_stage2", "teacher", second.get("teacher")), ("05_fuse_qat", "targets of stage 3", third.get("targets")))
        if not found]
    if "overlaps" not in last:
        missing.append("06_tflite_eval: whether a training photograph shows what a reported image shows")
    missing += [f"SOURCES in paperlib/export/release.py: the data set {name}" for name in photographs
                if name not in SOURCES]
    if missing:
        raise UserError(f"the model card of {run.out} would lack facts: {'; '.join(missing)}. Run those notebooks "
                        "again, or write down what is missing.")
    return {"settings": settings, "commit": last["commit"], "device": ", ".join(dict.fromkeys(trained.values())),
            "teacher": second["teacher"], "targets": third["targets"], "photographs": photographs,
            "overlaps": last["overlaps"], "minutes": [minutes[name] for name in STAGES]}


def _float_values(path: Path) -> int:
    """Number of weights and biases in a .safetensors file."""
    with safe_open(path, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)


def _table(lines: Sequence[dict[str, str]]) -> str:
    """Lines of equal keys as a table of Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (
        lines[0].keys(), ["---"] * len(lines[0]), *(line.values() for line in lines)))


def _seeds_text(record: dict[str, Any] | None) -> str:
    """The card's part on seeds, from `seeds.json`; empty where there is none."""
    if record is None:
        return ""
    shared = record.get("stage2_shared_steps", 0)
    what = (f"Stage 2 from its step {shared:,} on and stage 3 anew" if shared
            else "Stages 2 and 3 anew from the same stage 1")
    return f"""
{what} with the seeds {', '.join(map(str, record['seeds']))}: mean ± sample standard
deviation over seeds, PSNR RGB in dB (`python -m paperlib.benchmarks.seeds`, commit `{record['commit'][:12]}`):

{_table(seeds_table(record['rows']))}
"""


def _card(facts: dict[str, Any], folder: Path, scores: list[dict[str, str]], seeds: dict[str, Any] | None) -> str:
    """The model card: what it is, what it learnt from, what it scores, what it cannot do."""
    settings, photographs = facts["settings"], facts["photographs"]
    values = tflite_values(folder / FILES["pretrained"]), _float_values(folder / FILES["pretrained-float"])
    stages = "\n".join(
        f"- stage {number}: {stage.steps:,} steps of {stage.batch} patches of {stage.patch}² LR pixels, "
        f"{OPTIMISERS[stage.optimizer]}, learning rate {stage.lr:g} ({stage.decay}"
        f"{f' after {100 * stage.hold:g} % at that rate' if stage.hold else ''}), "
        f"{f'form {stage.form}' if number < 3 else 'fused'}, "
        f"{'silent channels revived, ' if stage.revive else ''}"
        f"{f'{stage.text:.0%} text in the first {stage.text_until:.0%} of the steps, ' if stage.text else ''}"
        f"loss {_terms(stage.loss)}; {minutes:.0f} min"
        for number, stage, minutes in zip((1, 2, 3), (settings.stage1, settings.stage2, settings.stage3),
                                          facts["minutes"], strict=True))
    return f"""# Model card: ×3 student, {values[0]:,} values in INT8

Trained by this kit, profile `{settings.profile}`, measured at commit `{facts['commit'][:12]}`, seed {
    settings.seed}, on {facts['device']}.
**Data and schedule: {note(settings)}**; the paper trains on DIV2K, 18 hours by its authors' log.

- `{FILES['pretrained-float']}`: fused float network, {values[1]:,} weights and biases, RGB 0..255 in and out, clamped.
- `{FILES['pretrained']}`: the same after quantisation-aware training, {values[0]:,} weights and biases{
    ' (more, for its skip is carried by convolutions)' if settings.quant.skip == 'exact' else ''}; no tensor in float,
  any input size.

## Training

- photographs: {', '.join(photographs)}; validation: {', '.join(settings.data.valid or photographs)}
- pictures shared with reported images: {'; '.join(facts['overlaps']) or 'none (searched by the kit, at all scales)'}
{stages}
- teacher of stage 2: {facts['teacher']}; of stage 3: {facts['targets']}
- quantiser `{settings.quant.quantiser}`, skip `{settings.quant.skip}`, equalised: {settings.quant.equalise}
- kernels rounded to {settings.quant.rounding} before stage 3

## Scores

LR by MATLAB's bicubic; RGB without border crop, Y with a 3-pixel border.

{_table(scores)}
{_seeds_text(seeds)}
## Licence and limits

The weights are Apache-2.0, as the kit. The training photographs are not included: {
    ', '.join(SOURCES[name] for name in photographs)}.

Made for photographs that were reduced by bicubic interpolation without noise. Noise and JPEG blocks are enlarged as
they are. It invents no detail, and knows no scale but ×3.
"""


def _terms(loss: Any) -> str:
    weights = loss.model_dump(include={"l1", "charbonnier", "mse", "dct", "kd"})
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight)


def seeds_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Mean ± sample standard deviation over seeds of float network, INT8 file and their difference, PSNR RGB in dB.

    Args:
        rows: of `seeds.json`, fp32 and int8 of each image set with one value a seed.
    """
    values = {(row["dataset"], row["precision"]): row["values"] for row in rows}
    lines = []
    for name in dict.fromkeys(dataset for dataset, _ in values):
        float_, int8 = values[name, "fp32"], values[name, "int8"]
        cost = [after - before for before, after in zip(float_, int8, strict=True)]
        columns = {"float": (float_, ""), "INT8 TFLite": (int8, ""), "INT8 minus float": (cost, "+")}
        lines.append({"images": Path(name).name} | {
            title: f"{statistics.mean(numbers):{sign}.3f} ± {statistics.stdev(numbers):.3f}"
            for title, (numbers, sign) in columns.items()})
    return lines


def _seeds(run: Any, sha256: str) -> dict[str, Any] | None:
    """The run's `seeds.json` (`paperlib.benchmarks.seeds`), where it has one.

    Raises:
        UserError: it is of another student than the file with this hash.
    """
    path = run.out / "seeds.json"
    if not path.is_file():
        return None
    record = read_json(path)
    if record["files"].get(str(run.settings.seed)) != sha256:
        raise UserError(f"{path} is of another student than the one to be shipped. Run python -m "
                        f"paperlib.benchmarks.seeds --out {run.out} again, or remove it.")
    return record


def ship_pretrained(run: Any, folder: Path = FOLDER) -> Path:
    """Copy a run's student into the package, with hashes, scores and card; returns the folder.

    Args:
        run: a finished run (`paperlib.run.Run`): 05 and 06 have written their records.

    Raises:
        UserError: the run has not come that far, a file is not the one that was measured, a record lacks what the
            card must say, or `seeds.json` is of another student.
    """
    record = run.records().get("06_tflite_eval")
    if record is None:
        raise UserError(f"{run.out} has no record of 06_tflite_eval. Run it to the end first.")
    sources = {"pretrained": run.stage_folder("export") / "student_dynamic_int8.tflite",
               "pretrained-float": run.stage_folder("stage3") / "fused.safetensors"}
    measured = {file["sha256"] for file in record["inputs"].values()}
    if sha256_file(sources["pretrained"]) not in measured:
        raise UserError(f"{sources['pretrained']} is not the file that 06_tflite_eval measured. Run 06 again.")
    facts, seeds = _facts(run), _seeds(run, sha256_file(sources["pretrained"]))
    folder.mkdir(exist_ok=True)
    for name, source in sources.items():
        with atomic_path(folder / FILES[name]) as temporary:
            shutil.copyfile(source, temporary)
    scores = _scores(record["rows"])
    write_json(folder / "weights.json", {
        "files": {file: sha256_file(folder / file) for file in FILES.values()}, "commit": record["commit"],
        "scores": scores})
    write_text(folder / "MODEL_CARD.md", _card(facts, folder, scores, seeds))
    return folder


if __name__ == "__main__":
    from paperlib.run import open_run

    print(ship_pretrained(open_run("benchmark", sys.argv[1] if len(sys.argv) > 1 else None)))
