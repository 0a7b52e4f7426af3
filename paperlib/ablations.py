"""Tables B, C and D as experiments: every row a short training of its own, all on one schedule (paper section 7).

A training is idempotent and resumable: it lies in `checkpoints/ablation/` and is not repeated when it is done. Every
variant is a change of settings; nothing here trains in a way that a user could not ask for with `--set`.
"""

from collections.abc import Sequence
from typing import Any

import joblib
import pandas as pd

from paperlib.baselines import build_model, fuse_model
from paperlib.config import Settings, StudentSettings, override
from paperlib.errors import UserError
from paperlib.evaluate import StudentUpscaler
from paperlib.export import export_tflite
from paperlib.graph import deployment_graph, macs_per_lr_pixel, parameters
from paperlib.measure import Data, measure
from paperlib.quantise import quantised_graph
from paperlib.records import Run, measured_row
from paperlib.stages import Targets, recalibrated, self_targets, stage1, stage3
from paperlib.tflite import TFLiteModel

ROWS = {"mobileone": ("C", "mobileone"), "repconv": ("C", "repconv"), "repdw": ("C", "repdw"),
        "fsrcnn": ("B", "fsrcnn"), "abpn": ("B", "abpn")}
"""Table and row of each network."""

SWITCHES: dict[str, dict[str, Any]] = {
    "teacher_none": {"stage3.loss.kd": 0.0, "stage3.loss.kd_mid": None, "stage3.loss.kd_low": 0.0},
    "teacher_student": {},
    "dct_off": {"stage3.loss.dct": 0.0},
    "confidence_off": {"stage3.loss.confidence": False},
    "weight_clip_off": {"stage3.clip_body": 0.0, "stage3.clip_ends": 0.0},
    "ema_off": {"stage3.ema": 0.0},
    "quantiser_paper": {"quant.quantiser": "paper"},
    "quantiser_tflite": {"quant.quantiser": "tflite"},
    "equalise": {"quant.quantiser": "tflite", "quant.equalise": True},
}
"""One-change variants of stage 3, each from the run's own stage-2 weights; `teacher_student` distils from those."""


def sizes(archs: Sequence[str]) -> pd.DataFrame:
    """Parameters and multiply–accumulates per LR pixel of deployed networks, by one counter."""
    lines = []
    for arch in archs:
        graph = deployment_graph(fuse_model(build_model(StudentSettings(arch=arch))))
        lines.append({"network": arch, "parameters": parameters(graph), "MACs / LR pixel": macs_per_lr_pixel(graph)})
    return pd.DataFrame(lines)


def _short(settings: Settings, seed: int, changes: dict[str, Any]) -> Settings:
    """Settings of an ablation training: the short schedule, validated once, at the end."""
    size = settings.ablation
    short = {"seed": seed}
    for stage, steps in (("stage1", size.stage1_steps), ("stage3", size.stage3_steps)):
        halving = max(1, round(getattr(settings, stage).halve_every * steps / getattr(settings, stage).steps))
        short |= {f"{stage}.steps": steps, f"{stage}.validate_every": steps, f"{stage}.halve_every": halving}
    return override(settings, short | changes)


def _int8_rows(run: Run, data: Data, model: Any, name: str, table: str, row: str, steps: int) -> list[dict[str, Any]]:
    """Export a fake-quantised network as dynamic INT8 TFLite and measure the file."""
    path = export_tflite(quantised_graph(model), run.checkpoint(name) / "dynamic_int8.tflite")
    return measure(data, TFLiteModel(path), table, row, "int8", steps=steps)


def _backbone(run: Run, data: Data, arch: str, seed: int) -> list[dict[str, Any]]:
    settings = _short(run.settings, seed, {"student.arch": arch, "stage3.loss.kd": 0.0, "stage3.loss.kd_mid": None,
                                           "stage3.loss.kd_low": 0.0})
    name, (table, row) = f"ablation/{arch}-{seed}", ROWS[arch]
    stage1(run, data, f"{name}/stage1", settings)
    fused = fuse_model(recalibrated(run, data, f"{name}/stage1", settings), clamp=True)
    steps = settings.stage1.steps
    rows = measure(data, StudentUpscaler(fused, arch), table, row, "fp32", steps=steps)
    trained = stage3(run, data, fused, None, f"{name}/stage3", settings)
    return rows + _int8_rows(run, data, trained.model, f"{name}/stage3", table, row, steps + settings.stage3.steps)


def _variant(run: Run, data: Data, targets: Targets, switch: str | None, seed: int) -> list[dict[str, Any]]:
    settings = _short(run.settings, seed, SWITCHES[switch] if switch else {})
    name = f"ablation/{switch or 'as_published'}-{seed}"
    fused = fuse_model(recalibrated(run, data, "stage2"), clamp=True)
    chosen = self_targets(run) if switch == "teacher_student" else targets
    trained = stage3(run, data, fused, chosen, f"{name}/stage3", settings)
    table, row = {None: ("D", "qat_teacher"), "teacher_none": ("D", "qat_direct")}.get(switch, ("switches", switch))
    steps = settings.stage1.steps + settings.stage2.steps + settings.stage3.steps
    return _int8_rows(run, data, trained.model, f"{name}/stage3", table, row, steps)


def over_seeds(results: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of several seeds, the same rows in the same order, as one: mean, standard deviation, every value."""
    if len(results) == 1:
        return list(results[0])
    return [measured_row(first["table"], first["row"], first["precision"], first["metric"],
                         [row["value"] for row in (first, *others)], first["dataset"], steps=first["steps"])
            for first, *others in zip(*results, strict=True)]


def _each(function: Any, jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run trainings one after the other, or on whatever `joblib.parallel_config` names (a dask cluster, say)."""
    return joblib.Parallel()(joblib.delayed(function)(*job) for job in jobs)


def backbones(run: Run, data: Data) -> list[dict[str, Any]]:
    """Tables B and C: each network trained (stage 1's loss), fused, trained for INT8, exported and measured."""
    size = run.settings.ablation
    rows = []
    for arch in size.archs:
        rows += over_seeds(_each(_backbone, [(run, data, arch, seed) for seed in size.seeds]))
    return rows


def stage3_variants(run: Run, data: Data, targets: Targets) -> list[dict[str, Any]]:
    """Table D and the switches: stage 3 as published, without its teacher, and with the changes of the settings.

    Raises:
        UserError: an unknown switch.
    """
    size = run.settings.ablation
    unknown = set(size.switches) - set(SWITCHES)
    if unknown:
        raise UserError(f"unknown ablation.switches {sorted(unknown)}. Known: {', '.join(SWITCHES)}.")
    rows = []
    for switch in dict.fromkeys((None, "teacher_none", *size.switches)):
        rows += over_seeds(_each(_variant, [(run, data, targets, switch, seed) for seed in size.seeds]))
    return rows
