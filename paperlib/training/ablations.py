"""Tables B, C and D as experiments: every row a short training of its own, all on one schedule (paper section 7).

A training is idempotent and resumable: it lies in `checkpoints/ablation/` and is not repeated when it is done. Every
variant is a change of settings; nothing here trains in a way that a user could not ask for with `--set`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib
import pandas as pd

from paperlib.data.dataset import Data, calibration
from paperlib.errors import UserError
from paperlib.evaluation.networks import TorchUpscaler
from paperlib.evaluation.scoring import measure
from paperlib.export.convert import export_ptq, export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.overrides import override
from paperlib.profiles import STAGE3_LOSS
from paperlib.quantisation.branch_qat import BranchQat, fuse_branches
from paperlib.quantisation.fx_qat import calibrate_paper
from paperlib.quantisation.qat import freeze_observers, quantised_graph
from paperlib.run import Run, measured_row
from paperlib.settings import LossSettings, Settings, StudentSettings, settings_hash
from paperlib.student.graph import image_batch, macs_per_lr_pixel, parameters
from paperlib.student.models import build_model, deployment_graph, fuse_model, weights_hash
from paperlib.teacher.distillation import Targets
from paperlib.training.stages import recalibrated, stage1, stage3, stage3_targets, train

ROWS = {"mobileone": ("C", "mobileone"), "repconv": ("C", "repconv"), "repdw": ("C", "repdw"),
        "fsrcnn": ("B", "fsrcnn"), "abpn": ("B", "abpn")}
"""Table and row of each network."""
PAPER_QUANTISER = {"quant.quantiser": "paper", "quant.skip": "add", "quant.equalise": False,
                   "quant.rounding": "nearest"}
SWITCHES: dict[str, dict[str, Any]] = {
    "teacher_none": {"stage3.loss.kd": 0.0, "stage3.loss.kd_mid": None, "stage3.loss.kd_low": 0.0},
    "teacher_student": {"teacher.stage3": "student"},
    "loss_published": {"teacher.stage3": "same"} | {
        f"stage3.loss.{name}": value for name, value in LossSettings(**STAGE3_LOSS).model_dump().items()},
    "dct_off": {"stage3.loss.dct": 0.0},
    "confidence_off": {"stage3.loss.confidence": False},
    "weight_clip_off": {"stage3.clip_body": 0.0, "stage3.clip_ends": 0.0},
    "ema_off": {"stage3.ema": 0.0},
    "quantiser_paper": PAPER_QUANTISER,
    "quantiser_tflite": {"quant.quantiser": "tflite"},
    "equalise": {"quant.quantiser": "tflite", "quant.equalise": True},
    "skip_exact": {"quant.quantiser": "tflite", "quant.skip": "exact"},
    "skip_add": {"quant.skip": "add"},
    "rounding_data": {"quant.quantiser": "tflite", "quant.rounding": "data"},
    "rounding_nearest": {"quant.rounding": "nearest"},
    "branches_qat": PAPER_QUANTISER,
    "bn_recalibration_off": {"stage2.recalibrate_batches": 0},
    "post_training": {},
}
"""One-change variants of stage 3, each from the weights that stage 3 starts from; several at once are joined by "+".
`teacher_student` distils from those weights; `loss_published` is the paper's loss where a profile has another;
`branches_qat` trains the branches under quantisation and fuses afterwards (`paperlib.quantisation.branch_qat`; beside
`quantiser_paper`); `bn_recalibration_off` fuses with stage 2's running statistics (a collapsed stage has no others);
`post_training` leaves stage 3 out: the converter takes its grids from photographs, as the authors' did."""


def sizes(archs: Sequence[str]) -> pd.DataFrame:
    """Parameters and multiply–accumulates per LR pixel of deployed networks, by one counter."""
    lines = []
    for arch in archs:
        graph = deployment_graph(fuse_model(build_model(StudentSettings(arch=arch))))
        lines.append({"network": arch, "parameters": parameters(graph), "MACs / LR pixel": macs_per_lr_pixel(graph)})
    return pd.DataFrame(lines)


def _short(settings: Settings, seed: int, changes: dict[str, Any]) -> Settings:
    """Settings of an ablation training: the short schedule, validated once, at the end.

    A warm-up becomes a tenth at least: a fiftieth of 1,500 steps let a RepConv network's last block die.
    """
    size = settings.ablation
    short = {"seed": seed}
    if settings.stage1.warmup:
        short["stage1.warmup"] = max(settings.stage1.warmup, 0.1)
    for stage, steps in (("stage1", size.stage1_steps), ("stage3", size.stage3_steps)):
        if steps < getattr(settings, stage).steps:  # an average over the last thousand steps would still hold the start
            short[f"{stage}.ema_warmup"] = True
        halving = max(1, round(getattr(settings, stage).halve_every * steps / getattr(settings, stage).steps))
        short |= {f"{stage}.steps": steps, f"{stage}.validate_every": steps, f"{stage}.halve_every": halving}
    return override(settings, short | changes)


def _int8_rows(run: Run, data: Data, model: Any, name: str, table: str, row: str, steps: int) -> list[dict[str, Any]]:
    """Export a fake-quantised network as dynamic INT8 TFLite and measure the file."""
    path = export_tflite(quantised_graph(model), run.stage_folder(name) / "dynamic_int8.tflite")
    return measure(data, TFLiteUpscaler(path), table, row, "int8", steps=steps)


def _backbone(run: Run, data: Data, arch: str, seed: int) -> list[dict[str, Any]]:
    # without a teacher, and with an ADD: the baselines have no other form of the skip
    settings = _short(run.settings, seed, SWITCHES["teacher_none"] | {"student.arch": arch, "quant.skip": "add"})
    name, (table, row) = f"ablation/{arch}-{seed}", ROWS[arch]
    stage1(run, data, f"{name}/stage1", settings)
    fused = fuse_model(recalibrated(run, data, f"{name}/stage1", settings), clamp=True)
    steps = settings.stage1.steps
    rows = measure(data, TorchUpscaler(fused, arch), table, row, "fp32", steps=steps)
    trained = stage3(run, data, fused, None, f"{name}/stage3", settings)
    return rows + _int8_rows(run, data, trained.model, f"{name}/stage3", table, row, steps + settings.stage3.steps)


def _on_branches(run: Run, data: Data, start: Any, targets: Targets | None, name: str,
                 settings: Settings) -> Any:
    """Stage 3 on the branches of a student in expanded form, fused afterwards; a model for `quantised_graph`."""
    model, stage = BranchQat(start), settings.stage3
    calibrate_paper(model, [image_batch(image) for image in calibration(data, settings)])
    events = {round(settings.quant.observe_until * stage.steps): freeze_observers}
    result = train(run, data, name, model, stage, stream="stage3", settings=settings, targets=targets, events=events,
                   start=f"{weights_hash(start)[:16]} branches {settings_hash(settings.quant)}")
    return fuse_branches(result.model)


def _changes(switch: str) -> dict[str, Any]:
    return {field: value for part in switch.split("+") if part for field, value in SWITCHES[part].items()}


def _table_d(settings: Settings) -> dict[str, str]:
    """Variant → row of Table D, whose loss is the paper's whatever the profile's own is; "" is the profile's own."""
    own = settings.teacher.stage3 == "same" and not settings.stage3.loss.mse
    published = "" if own else "loss_published"
    return {published: "qat_teacher", "+".join(filter(None, (published, "teacher_none"))): "qat_direct"}


def _variant(run: Run, data: Data, switch: str, seed: int) -> list[dict[str, Any]]:
    changes = _changes(switch)
    settings = _short(run.settings, seed, changes)
    name = f"ablation/{switch or 'as_set'}-{seed}/stage3"
    known = _table_d(run.settings)
    table, row = ("D", known[switch]) if switch in known else ("switches", switch or "as_set")
    steps = settings.stage1.steps + settings.stage2.steps
    start = recalibrated(run, data, "stage2", override(run.settings, changes))
    fused = fuse_model(start, clamp=True)
    if switch == "post_training":
        path = export_ptq(deployment_graph(fused), calibration(data, settings),
                          run.stage_folder(name) / "dynamic_int8.tflite")
        return measure(data, TFLiteUpscaler(path), table, row, "int8", steps=steps)
    targets = stage3_targets(run, data, settings) if settings.stage3.loss.kd > 0 else None
    if switch == "branches_qat":
        model = _on_branches(run, data, start, targets, name, settings)
    else:
        model = stage3(run, data, fused, targets, name, settings).model
    return _int8_rows(run, data, model, name, table, row, steps + settings.stage3.steps)


def over_seeds(results: Sequence[Sequence[dict[str, Any]]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of several seeds, the same rows in the same order, as one: mean, standard deviation, every value."""
    if len(results) == 1:
        return list(results[0])
    return [measured_row(first["table"], first["row"], first["precision"], first["metric"],
                         [row["value"] for row in (first, *others)], first["dataset"], steps=first["steps"],
                         seeds=list(seeds), images=[row["images"] for row in (first, *others)])
            for first, *others in zip(*results, strict=True)]


def _grid(function: Any, run: Run, shared: Sequence[Any], names: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows of every name, over the seeds of the settings; the whole grid is one set of jobs."""
    # nothing is drawn at random in `post_training`: seeds would show a spread of 0
    seeds = {name: run.settings.ablation.seeds[: 1 if name == "post_training" else None] for name in names}
    jobs = [(name, seed) for name in names for seed in seeds[name]]
    results = run_jobs(function, [(run, *shared, name, seed) for name, seed in jobs])
    return [row for name in names
            for row in over_seeds([result for job, result in zip(jobs, results, strict=True) if job[0] == name],
                                  seeds[name])]


def backbones(run: Run, data: Data) -> list[dict[str, Any]]:
    """Tables B and C: each network trained (stage 1's loss), fused, trained for INT8, exported and measured."""
    return _grid(_backbone, run, [data], run.settings.ablation.archs)


def stage3_variants(run: Run, data: Data) -> list[dict[str, Any]]:
    """Table D and the switches: stage 3 as set, as published with and without its teacher, and the settings' changes.

    Raises:
        UserError: an unknown switch.
    """
    size = run.settings.ablation
    unknown = {part for switch in size.switches for part in switch.split("+")} - set(SWITCHES)
    if unknown:
        raise UserError(f"unknown ablation.switches {sorted(unknown)}. Known: {', '.join(SWITCHES)}.")
    return _grid(_variant, run, [data], list(dict.fromkeys(("", *_table_d(run.settings), *size.switches))))


@contextmanager
def cluster() -> Iterator[bool]:
    """Let joblib use the dask cluster that PAPERLIB_DASK names; gives whether there is one.

    Raises:
        UserError: dask is not installed, or nobody answers at the address.
    """
    address = os.environ.get("PAPERLIB_DASK", "").strip()
    if not address:
        yield False
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("PAPERLIB_DASK is set, but dask is not installed. Run: pip install '.[cluster]' in a clone, or "
                        "unset the variable.") from error
    try:
        client = Client(threads_per_worker=1) if address == "local" else Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise UserError(f"no dask scheduler at PAPERLIB_DASK={address} ({error}). Start one with `dask scheduler` and "
                        "`dask worker`, or set the variable to local.") from error
    with client, joblib.parallel_config(backend="dask", client=client):
        yield True


def _attempt(function: Callable[..., Any], job: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    try:
        return function(*job), None
    except Exception as error:
        return None, error


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Results of function(*job), in the jobs' order; on a cluster all at once.

    Raises:
        Exception: the first error of a job; on a cluster after all the others are finished. Or one of sending a job.
    """
    with cluster() as remote:
        if not remote:
            return joblib.Parallel()(joblib.delayed(function)(*job) for job in jobs)
        from distributed.protocol.pickle import dumps

        dumps((function, jobs))  # joblib would wait for ever for a job that cannot be sent
        results = joblib.Parallel()(joblib.delayed(_attempt)(function, job) for job in jobs)
    for _, error in results:
        if error is not None:
            raise error
    return [result for result, _ in results]
