"""Tables B, C and D as experiments: every row a short training of its own, all on one schedule (paper section 7).

Tables C and D are the paper's experiments, so they follow its method whatever the run's own: C the whole pipeline with
each block, D stage 3 with teachers of several weights. An INT8 number of theirs is measured twice: on the file of
post-training quantisation, which the paper reports (`mobileone`), and on the one that keeps the learnt grids
(`mobileone_learnt`). A training is idempotent and resumable: it lies in `checkpoints/ablation/` and is not repeated
when it is done. Every variant is a change of settings; nothing here trains in a way that a user could not ask for with
`--set`.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from paperlib.data.dataset import Data, calibration, drawn_calibration, patches_of
from paperlib.evaluation.networks import TorchUpscaler
from paperlib.evaluation.scoring import measure
from paperlib.evaluation.upscalers import Bicubic
from paperlib.export.convert import export_ptq, export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.overrides import override
from paperlib.profiles import METHODS
from paperlib.quantisation.branch_qat import BranchQat, fuse_branches
from paperlib.quantisation.fx_qat import calibrate_paper
from paperlib.quantisation.int8 import post_training_graph
from paperlib.quantisation.qat import freeze_observers, quantised_graph
from paperlib.rows import measured_row
from paperlib.run import Run
from paperlib.settings import Settings, StudentSettings, settings_hash
from paperlib.student.graph import image_batch, macs_per_lr_pixel, parameters
from paperlib.student.models import build_model, deployment_graph, fuse_model, weights_hash
from paperlib.teacher.distillation import Targets
from paperlib.training.jobs import run_jobs
from paperlib.training.shares import loss_shares
from paperlib.training.stages import (
    open_teacher,
    recalibrated,
    stage1,
    stage2,
    stage3,
    stage3_targets,
    teacher_targets,
    train,
)
from paperlib.training.variants import CONDITIONS, NO_TEACHER, PUBLISHED, REPORTED, check_switches, variant

ROWS = {"mobileone": ("C", "mobileone"), "repconv": ("C", "repconv"), "repdw": ("C", "repdw"),
        "fsrcnn": ("B", "fsrcnn"), "abpn": ("B", "abpn")}
"""Table and row of each network."""


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
        if steps < getattr(settings, stage).steps:  # an average over the last thousand steps would still hold the start
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
    """The paper's way, post-training quantisation, as `row` (dynamic) and `row`_fixed (the authors' padding and tiles),
    and the dynamic file with the learnt grids as `row`_learnt. The seed draws the calibration photographs."""
    graph, images = post_training_graph(quantised_graph(model)), drawn_calibration(data, settings)
    return (_ptq_rows(run, data, graph, images, name, table, row, steps, settings)
            + _int8_rows(run, data, model, name, table, f"{row}_learnt", steps))


def _ptq_rows(run: Run, data: Data, graph: Any, images: Any, name: str, table: str, row: str, steps: int,
              settings: Settings) -> list[dict[str, Any]]:
    """Both files of post-training quantisation, measured."""
    folder, size = run.stage_folder(name), settings.export
    path = export_ptq(graph, images, folder / "ptq_int8.tflite")
    fixed = export_ptq(graph, images, folder / "ptq_fixed_int8.tflite", size.height, size.width)
    return (measure(data, TFLiteUpscaler(path), table, row, "int8", steps=steps)
            + measure(data, TFLiteUpscaler(fixed, borders="reflected"), table, f"{row}_fixed", "int8", steps=steps))


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
    steps += settings.stage3.steps
    rows += measure(data, TorchUpscaler(trained.model, arch), table, f"{row}_fakequant", "fp32", steps=steps)
    return rows + _both_files(run, data, trained.model, f"{name}/stage3", table, row, steps, settings)


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
    stage2(run, data, teacher_targets(run, data, open_teacher(run, data)), f"{name}/stage2", settings,
           start=f"{name}/stage1")
    fused = fuse_model(recalibrated(run, data, f"{name}/stage2", settings), clamp=True)
    steps = settings.stage1.steps + settings.stage2.steps
    rows = measure(data, TorchUpscaler(fused, arch), table, f"{row}_float", "fp32", steps=steps)
    trained = stage3(run, data, fused, stage3_targets(run, data, settings), f"{name}/stage3", settings)
    steps += settings.stage3.steps
    rows += measure(data, TorchUpscaler(trained.model, arch), table, row, "fp32", steps=steps)
    return rows + _both_files(run, data, trained.model, f"{name}/stage3", table, row, steps, settings)


def _on_branches(run: Run, data: Data, start: Any, targets: Targets | None, name: str,
                 settings: Settings) -> Any:
    """Stage 3 on the branches of a student in expanded form, fused afterwards; a model for `quantised_graph`."""
    model, stage = BranchQat(start), settings.stage3
    calibrate_paper(model, [image_batch(image) for image in calibration(data, settings)])
    events = {round(settings.quant.observe_until * stage.steps): freeze_observers}
    result = train(run, data, name, model, stage, stream="stage3", settings=settings, targets=targets, events=events,
                   start=f"{weights_hash(start)[:16]} branches {settings_hash(settings.quant)}")
    return fuse_branches(result.model)


def teacher_shares(run: Run, data: Data) -> pd.DataFrame:
    """What the teacher has to say in Table D's conditions before any of their trainings: shares of the gradient.

    On one batch of stage 3, by the float network that it starts from, at the first, largest λ(t).

    Returns:
        One line a condition: `condition`, then for each term (`charbonnier`, `dct`, `kd`) its share of the summed loss
        (`<term> value`) and of the sum of the terms' gradient norms (`<term> gradient`), 0..1.
    """
    lines, model = [], fuse_model(recalibrated(run, data), clamp=True)
    targets = stage3_targets(run, data, override(run.settings, PUBLISHED))
    for condition in run.settings.ablation.conditions:
        settings = _short(run.settings, run.settings.seed, PUBLISHED | CONDITIONS[condition])
        stage = settings.stage3
        batch = patches_of(data, settings, "stage3", stage).batch(0, stage.batch, teacher=targets.key)
        found = loss_shares(model, batch, stage.loss, targets.compute).set_index("term")
        shares = {f"{term} {what}": found[f"{what} share"].get(term, 0.0)
                  for term in ("charbonnier", "dct", "kd") for what in ("value", "gradient")}
        lines.append({"condition": REPORTED.get(condition, condition)} | shares)
    return pd.DataFrame(lines)


def _variant(run: Run, data: Data, name: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a variant: trained, unless it is left untrained, exported and measured."""
    what = variant(name)
    table, row, settings = what.table, what.row, _short(run.settings, seed, what.changes)
    name, steps = f"ablation/{name or 'as_set'}-{seed}/stage3", settings.stage1.steps + settings.stage2.steps
    before = {field: value for field, value in what.changes.items() if field.startswith("stage2.")}
    start = recalibrated(run, data, settings=override(run.settings, before))
    fused = fuse_model(start, clamp=True)
    if what.network == "untrained":
        path = export_ptq(deployment_graph(fused), calibration(data, settings),
                          run.stage_folder(name) / "dynamic_int8.tflite")
        return measure(data, TFLiteUpscaler(path), table, row, "int8", steps=steps)
    targets = stage3_targets(run, data, settings) if settings.stage3.loss.kd > 0 else None
    if what.network == "branches":
        model = _on_branches(run, data, start, targets, name, settings)
    else:
        model = stage3(run, data, fused, targets, name, settings).model
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
        teacher_targets(run, data, open_teacher(run, data))  # once for all jobs
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
