"""The trained student in the box: the weights that `upscale` and `evaluate` use when no model is named.

`paperlib/weights/` holds the fused float student (.safetensors), the dynamic INT8 file (.tflite), their hashes, the
scores they were shipped with, and a model card. `python -m paperlib.export.release RUN` fills it from a finished run.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from paperlib.errors import UserError
from paperlib.files import atomic_path, sha256_file, write_json, write_text
from paperlib.settings import Settings
from paperlib.weights import FILES, FOLDER

SCORES = {("export", "float_before_qat"): "float", ("export", "fakequant"): "fake-quantised",
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


def _card(record: dict[str, Any], scores: list[dict[str, str]]) -> str:
    """The model card: what it is, what it learnt from, what it scores, what it cannot do."""
    settings = Settings.model_validate(record["settings"])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (
        scores[0].keys(), ["---"] * len(scores[0]), *(line.values() for line in scores)))
    stages = "\n".join(
        f"- stage {number}: {stage.steps} steps of {stage.batch} patches of {stage.patch}² LR pixels, Adam, learning "
        f"rate {stage.lr:g} ({stage.decay}), form {stage.form}, loss {_terms(stage.loss)}"
        for number, stage in enumerate((settings.stage1, settings.stage2, settings.stage3), 1))
    return f"""# Model card: ×3 student, 82,683 parameters

Trained by this kit, profile `{settings.profile}`, commit `{record['commit'][:12]}`, seed {settings.seed}, on CPU.
**These are not the paper's numbers**: the paper trains on DIV2K for 18 GPU hours.

- `{FILES['pretrained-float']}`: fused float network, RGB 0..255 in and out, clamped.
- `{FILES['pretrained']}`: the same after quantisation-aware training; every tensor INT8, any input size.

## Training

- photographs: {', '.join(settings.data.train)}; validation: {', '.join(settings.data.valid)}
{stages}
- teacher of stage 2: MambaIRv2-light, published weights; of stage 3: {
    'the stage-2 student' if settings.teacher.stage3 == 'student' else 'the same'}
- quantiser `{settings.quant.quantiser}`, skip `{settings.quant.skip}`, equalised: {settings.quant.equalise}
- kernels rounded to {settings.quant.rounding} before stage 3

## Scores

LR by MATLAB's bicubic; RGB without border crop, Y with a 3-pixel border.

{table}

## Licence and limits

The weights are Apache-2.0, as the kit. The training photographs are not included: BSDS500 (400 photographs, none of
them in B100; for research and education), T91 (for research), CID22 (CC BY-SA 4.0).

Made for photographs that were reduced by bicubic interpolation without noise. Noise and JPEG blocks are enlarged as
they are. It invents no detail, and knows no scale but ×3.
"""


def _terms(loss: Any) -> str:
    weights = loss.model_dump(include={"l1", "charbonnier", "mse", "dct", "kd"})
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight)


def ship_pretrained(run: Any, folder: Path = FOLDER) -> Path:
    """Copy a run's student into the package, with hashes, scores and card; returns the folder.

    Args:
        run: a finished run (`paperlib.run.Run`): 05 and 06 have written their records.

    Raises:
        UserError: the run has not come that far, or a file is not the one that was measured.
    """
    record = run.records().get("06_tflite_eval")
    if record is None:
        raise UserError(f"{run.out} has no record of 06_tflite_eval. Run it to the end first.")
    sources = {"pretrained": run.stage_folder("export") / "student_dynamic_int8.tflite",
               "pretrained-float": run.stage_folder("stage3") / "fused.safetensors"}
    measured = {file["sha256"] for file in record["inputs"].values()}
    folder.mkdir(exist_ok=True)
    for name, source in sources.items():
        if name == "pretrained" and sha256_file(source) not in measured:
            raise UserError(f"{source} is not the file that 06_tflite_eval measured. Run 06 again.")
        with atomic_path(folder / FILES[name]) as temporary:
            shutil.copyfile(source, temporary)
    scores = _scores(record["rows"])
    write_json(folder / "weights.json", {
        "files": {file: sha256_file(folder / file) for file in FILES.values()}, "commit": record["commit"],
        "scores": scores})
    write_text(folder / "MODEL_CARD.md", _card(record, scores))
    return folder


if __name__ == "__main__":
    from paperlib.run import open_run

    print(ship_pretrained(open_run("benchmark", sys.argv[1] if len(sys.argv) > 1 else None)))
