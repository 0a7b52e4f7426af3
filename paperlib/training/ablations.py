"""Tables B, C and D as experiments: every row a short training of its own, all on one schedule (paper section 7).

Tables C and D are the paper's experiments, so they follow its method whatever the run's own: C the whole pipeline with
each block, D stage 3 with teachers of several weights. An INT8 number of theirs is measured twice: on the file of
post-training quantisation, which the paper reports (`mobileone`), and on the one that keeps the learnt grids
(`mobileone_learnt`). A training is idempotent and resumable: it lies in `checkpoints/ablation/` and is not repeated
when it is done. Every variant is a change of settings; nothing here trains in a way that a user could not ask for with
`--set`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import joblib
import pandas as pd

from paperlib.data.dataset import Data, calibration
from paperlib.errors import UserError
from paperlib.evaluation.scoring import measure
from paperlib.evaluation.torch_upscalers import TorchUpscaler
from paperlib.evaluation.upscalers import Bicubic
from paperlib.export.convert import export_ptq, export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.profiles import METHODS, STAGE3_LOSS
from paperlib.quantisation.int8 import post_training_graph
from paperlib.quantisation.qat import quantised_graph
from paperlib.run import Run, measured_row
from paperlib.settings import LossSettings, Settings, StudentSettings, nearest, override
from paperlib.student.graph import macs_per_lr_pixel, parameters
from paperlib.student.models import build_model, deployment_graph, fuse_model
from paperlib.training.stages import (
    distillation_targets,
    recalibrated,
    stage1,
    stage2,
    stage3,
    stage_shares,
)

ROWS = {"mobileone": ("C", "mobileone"), "repconv": ("C", "repconv"), "repdw": ("C", "repdw"),
        "fsrcnn": ("B", "fsrcnn"), "abpn": ("B", "abpn")}
"""Table and row of each network."""


NO_TEACHER = {"stage3.loss.kd": 0.0, "stage3.loss.kd_mid": None, "stage3.loss.kd_low": 0.0}
ORTHO = {"stage3.loss.dct_norm": "ortho"}
PUBLISHED = {field: value for field, value in METHODS["paper"].items()
             if field.startswith(("data.", "teacher.", "quant.", "stage3."))}
"""Stage 3 as published, from whatever weights it starts: quantiser, loss, teacher, clipping, EMA and sampling."""


def _teacher_times(factor: float) -> dict[str, Any]:
    """The published λ(t) as a whole so many times larger."""
    return {f"stage3.loss.{name}": factor * STAGE3_LOSS[name] for name in ("kd", "kd_mid", "kd_low")}


CONDITIONS: dict[str, dict[str, Any]] = {
    "kd_1": {}, "kd_0": NO_TEACHER, "kd_10": _teacher_times(10), "kd_100": _teacher_times(100),
    "ortho_kd_1": ORTHO, "ortho_kd_0": ORTHO | NO_TEACHER,
}
"""Table D: changes of stage 3 as published. The teacher's weight 0, published, 10 and 100 times as large; and with an
orthonormal DCT, 0 and published. Paired by seed: the same patches, the same start."""
REPORTED = {"kd_1": "qat_teacher", "kd_0": "qat_direct"}
"""The conditions that the paper's Table D compares, by its names."""
PAPER_QUANTISER = {field: METHODS["paper"][field] for field in PUBLISHED if field.startswith("quant.")}
SWITCHES: dict[str, dict[str, Any]] = {
    "teacher_none": NO_TEACHER,
    "teacher_student": {"teacher.stage3": "student"},
    "loss_published": {"teacher.stage3": "same"} | {
        f"stage3.loss.{name}": value for name, value in LossSettings(**STAGE3_LOSS).model_dump().items()},
    "dct_off": {"stage3.loss.dct": 0.0},
    "confidence_off": {"stage3.loss.confidence": False},
    "weight_clip_off": {"stage3.clip_body": 0.0, "stage3.clip_ends": 0.0},
    "quantiser_paper": PAPER_QUANTISER,
    "skip_add": {"quant.skip": "add"},
    "bn_recalibration_off": {"stage2.recalibrate_batches": 0},
    "post_training": {},
}
"""One-change variants of stage 3, each from the weights that stage 3 starts from; several at once are joined by "+".
`teacher_student` distils from those weights; `loss_published` is the paper's loss where a profile has another;
`bn_recalibration_off` fuses with stage 2's running statistics (a collapsed stage has no others); `post_training`
leaves stage 3 out: the converter takes its grids from photographs, as the authors' did."""


@dataclass(frozen=True)
class Variant:
    """A stage 3 beside the run's own, from the weights that stage 3 starts from, as data."""

    table: str
    row: str
    changes: dict[str, Any]
    both_files: bool
    """Whether the file of post-training quantisation is measured too: the paper's way."""


def variant(name: str) -> Variant:
    """A condition of Table D, switches joined by "+", or "" for stage 3 as the run has it."""
    if name in CONDITIONS:
        return Variant("D", REPORTED.get(name, name), PUBLISHED | CONDITIONS[name], both_files=True)
    changes = {field: value for part in name.split("+") if part for field, value in SWITCHES[part].items()}
    return Variant("switches", name or "as_set", changes, both_files=False)


def check_switches(settings: Settings) -> None:
    """Refuse switches that are unknown before anything is trained.

    Raises:
        UserError: there is one; the nearest and all known names are said.
    """
    for name in settings.ablation.switches:
        for part in filter(None, name.split("+")):
            if part not in SWITCHES:
                raise UserError(f"unknown ablation.switches {part!r}. Nearest: {nearest(part, list(SWITCHES))}. "
                                f"Known: {', '.join(SWITCHES)}.")


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
    for stage, steps in (
            ("stage1", size.stage1_steps), ("stage2", size.stage2_steps), ("stage3", size.stage3_steps)):
        if steps < getattr(settings, stage).steps:  # EMA 0.999 would still contain the initial weights
            short[f"{stage}.ema_warmup"] = True
        halving = max(1, round(getattr(settings, stage).halve_every * steps / getattr(settings, stage).steps))
        every = steps if size.keep == "last" else getattr(settings, stage).validate_every
        short |= {f"{stage}.steps": steps, f"{stage}.validate_every": every, f"{stage}.halve_every": halving,
                  f"{stage}.keep": size.keep}
    return override(settings, short | changes)


def _int8_rows(run: Run, data: Data, model: Any, name: str, table: str, row: str, steps: int) -> list[dict[str, Any]]:
    """Export a fake-quantised network as dynamic INT8 TFLite with its learnt grids and measure the file."""
    path = export_tflite(quantised_graph(model), run.stage_folder(name) / "dynamic_int8.tflite")
    return measure(data, TFLiteUpscaler(path), table, row, "int8", steps=steps)


def _both_files(run: Run, data: Data, model: Any, name: str, table: str, row: str, steps: int,
                settings: Settings) -> list[dict[str, Any]]:
    """The paper's way, post-training quantisation, as `row`, and the file with the learnt grids as `row`_learnt."""
    graph = post_training_graph(quantised_graph(model))
    path = export_ptq(graph, calibration(data, settings), run.stage_folder(name) / "ptq_int8.tflite")
    return (measure(data, TFLiteUpscaler(path), table, row, "int8", steps=steps)
            + _int8_rows(run, data, model, name, table, f"{row}_learnt", steps))


def _baseline(run: Run, data: Data, arch: str, seed: int) -> list[dict[str, Any]]:
    """Table B's networks: stage 1, and stage 3 without a teacher and with an ADD, since they have no other skip.

    The paper does not say how it trained them, so FSRCNN begins at bilinear enlargement whatever the run's start: from
    PyTorch's it is still behind bicubic after 3,000 steps, and to beat that would be no merit.
    """
    settings = _short(run.settings, seed, NO_TEACHER | {
        "student.arch": arch, "student.init": "bilinear", "quant.skip": "add"})
    name, (table, row) = f"ablation/{arch}-{seed}", ROWS[arch]
    stage1(run, data, f"{name}/stage1", settings)
    fused = fuse_model(recalibrated(run, data, f"{name}/stage1", settings), clamp=True)
    steps = settings.stage1.steps
    rows = measure(data, TorchUpscaler(fused, arch), table, row, "fp32", steps=steps)
    trained = stage3(run, data, fused, None, f"{name}/stage3", settings)
    return rows + _int8_rows(run, data, trained.model, f"{name}/stage3", table, row, steps + settings.stage3.steps)


def _backbone(run: Run, data: Data, arch: str, seed: int) -> list[dict[str, Any]]:
    """A network of Tables B and C. C: the paper's whole pipeline with that block, from PyTorch's random start.

    The table's "FP32" column is the fake-quantised network's score in PyTorch; the float network's after stage 2,
    before any rounding, stands beside it as `arch`_float.
    """
    table, row = ROWS[arch]
    if table == "B":
        return _baseline(run, data, arch, seed)
    settings = _short(run.settings, seed, METHODS["paper"] | {"student.arch": arch})
    name = f"ablation/{arch}-{seed}"
    stage1(run, data, f"{name}/stage1", settings)
    stage2(run, data, distillation_targets(run, data, 2, settings), f"{name}/stage2", settings,
           start=f"{name}/stage1")
    fused = fuse_model(recalibrated(run, data, f"{name}/stage2", settings), clamp=True)
    steps = settings.stage1.steps + settings.stage2.steps
    rows = measure(data, TorchUpscaler(fused, arch), table, f"{row}_float", "fp32", steps=steps)
    trained = stage3(run, data, fused, distillation_targets(run, data, 3, settings), f"{name}/stage3", settings)
    steps += settings.stage3.steps
    rows += measure(data, TorchUpscaler(trained.model, arch), table, row, "fp32", steps=steps)
    return rows + _both_files(run, data, trained.model, f"{name}/stage3", table, row, steps, settings)


def teacher_shares(run: Run, data: Data) -> pd.DataFrame:
    """What the teacher has to say in Table D's conditions before any of their trainings: shares of the gradient.

    On one batch of stage 3, by the float network that it starts from, at the first, largest λ(t).

    Returns:
        One line a condition: `condition`, then for each term (`charbonnier`, `dct`, `kd`) its share of the summed loss
        (`<term> value`) and of the sum of the terms' gradient norms (`<term> gradient`), 0..1.
    """
    lines, model = [], fuse_model(recalibrated(run, data), clamp=True)
    targets = distillation_targets(run, data, 3, override(run.settings, PUBLISHED))
    for condition in run.settings.ablation.conditions:
        settings = _short(run.settings, run.settings.seed, PUBLISHED | CONDITIONS[condition])
        found = stage_shares(data, settings, 3, model, targets).set_index("term")
        shares = {f"{term} {what}": found[f"{what} share"].get(term, 0.0)
                  for term in ("charbonnier", "dct", "kd") for what in ("value", "gradient")}
        lines.append({"condition": REPORTED.get(condition, condition)} | shares)
    return pd.DataFrame(lines)


def _variant(run: Run, data: Data, name: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a variant: trained, unless it is left untrained, exported and measured."""
    what = variant(name)
    table, row, settings = what.table, what.row, _short(run.settings, seed, what.changes)
    untrained, name = name == "post_training", f"ablation/{name or 'as_set'}-{seed}/stage3"
    steps = settings.stage1.steps + settings.stage2.steps
    before = {field: value for field, value in what.changes.items() if field.startswith("stage2.")}
    start = recalibrated(run, data, settings=override(run.settings, before))
    fused = fuse_model(start, clamp=True)
    if untrained:
        path = export_ptq(deployment_graph(fused), calibration(data, settings),
                          run.stage_folder(name) / "dynamic_int8.tflite")
        return measure(data, TFLiteUpscaler(path), table, row, "int8", steps=steps)
    model = stage3(run, data, fused, distillation_targets(run, data, 3, settings), name, settings).model
    steps += settings.stage3.steps
    if what.both_files:
        return _both_files(run, data, model, name, table, row, steps, settings)
    return _int8_rows(run, data, model, name, table, row, steps)


def over_seeds(results: Sequence[Sequence[dict[str, Any]]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of several seeds, the same rows in the same order, as one: mean, standard deviation, every value."""
    if len(results) == 1:
        return list(results[0])
    return [measured_row(first["table"], first["row"], first["precision"], first["metric"],
                         [row["value"] for row in (first, *others)], first["dataset"], steps=first["steps"],
                         seed_ids=list(seeds), images=[row["images"] for row in (first, *others)])
            for first, *others in zip(*results, strict=True)]


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
    """Tables B and C: each network trained, fused, trained for INT8, exported and measured.

    Beside Table B's networks stands bicubic enlargement, unless notebook 01 of this run has measured it.

    Raises:
        UserError: a switch of `stage3_variants`, which come afterwards, is unknown.
    """
    check_switches(run.settings)  # of `stage3_variants`, hours later
    tables = {ROWS[arch][0] for arch in run.settings.ablation.archs}
    if "C" in tables:
        distillation_targets(run, data, 2)  # once for all jobs
    known = run.rows()
    measured = ((known["record"] == "01_data") & (known["row"] == "bicubic")).any()
    rows = [] if measured or "B" not in tables else measure(data, Bicubic(), "B", "bicubic", "fp32")
    return rows + _grid(_backbone, run, [data], run.settings.ablation.archs)


def stage3_variants(run: Run, data: Data) -> list[dict[str, Any]]:
    """Table D's conditions, and the switches beside stage 3 as the run's settings have it (row `as_set`).

    Raises:
        UserError: an unknown switch.
    """
    size = run.settings.ablation
    check_switches(run.settings)
    published = "kd_1" in size.conditions and _short(run.settings, 0, PUBLISHED) == _short(run.settings, 0, {})
    own = [] if published or not size.switches else [""]
    rows = _grid(_variant, run, [data], list(dict.fromkeys((*size.conditions, *own, *size.switches))))
    if published and size.switches:  # one training, two names
        rows += [row | {"table": "switches", "row": "as_set"} for row in rows if row["row"] == "qat_teacher_learnt"]
    return rows
