"""Tables B, C and D as experiments: every row a short training of its own, all on one schedule (paper section 7).

Tables C and D are the paper's experiments, so they follow its method whatever the run's own: C the
whole pipeline with each block, D stage 3 with teachers of several weights. An INT8 number of theirs
is measured twice: on the file of post-training quantisation, which the paper reports (`mobileone`),
and on the one that keeps the learnt grids (`mobileone_learnt`). A training is idempotent and
resumable: it lies in `checkpoints/ablation/`, has a record of its own,
`records/07/<name>-<seed>.json`, and is not repeated when it is done. To join the trainings of two
runs, copy the records of one into the other's folder. Every variant is a change of settings;
nothing here trains in a way that a user could not ask for with `--set`.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from paperlib.files import sha256_file
from paperlib.profiles import EXCEPTIONS, METHODS, STAGE3_LOSS
from paperlib.quantisation.diagnostics import layer_sqnr
from paperlib.quantisation.int8 import post_training_graph
from paperlib.quantisation.qat import prepare_qat, quantised_graph
from paperlib.run import Run, rows_over_seeds
from paperlib.settings import LossSettings, Settings, StudentSettings, nearest, override, settings_hash
from paperlib.student.graph import macs_per_lr_pixel, parameters
from paperlib.student.models import build_model, deployment_graph, fuse_model
from paperlib.training.stages import (
    distillation_targets,
    open_teacher,
    recalibrated,
    stage1,
    stage2,
    stage3,
    stage_shares,
    start_path,
)

Rows = list[dict[str, Any]]
ROWS = {"mobileone": ("C", "mobileone"), "repconv": ("C", "repconv"), "repdw": ("C", "repdw"),
        "fsrcnn": ("B", "fsrcnn"), "abpn": ("B", "abpn")}
"""Table and row of each network."""
NO_TEACHER = {"stage3.loss.kd": 0.0, "stage3.loss.kd_mid": None, "stage3.loss.kd_low": 0.0}
NO_CLIPPING = {f"{stage}.clip_{part}": 0.0 for stage in ("stage2", "stage3")
               for part in ("body", "ends")}
NO_RECALIBRATION = {"stage2.recalibrate_batches": 0}
ORTHO = {"stage3.loss.dct_norm": "ortho"}
PUBLISHED = {field: value for field, value in METHODS["paper"].items()
             if field.startswith(("data.", "teacher.", "quant.", "stage3."))}
"""Stage 3 as published, from whatever weights it starts: quantiser, loss, teacher, clipping, EMA and sampling."""


def _teacher_times(factor: float) -> dict[str, Any]:
    """The published λ(t) as a whole so many times larger."""
    return {f"stage3.loss.{name}": factor * STAGE3_LOSS[name]
            for name in ("kd", "kd_mid", "kd_low")}


CONDITIONS: dict[str, dict[str, Any]] = {
    "kd_1": {}, "kd_0": NO_TEACHER, "kd_10": _teacher_times(10), "kd_100": _teacher_times(100),
    "ortho_kd_1": ORTHO, "ortho_kd_0": ORTHO | NO_TEACHER,
}
"""Table D: changes of stage 3 as published. The teacher's weight 0, published, 10 and 100 times as large; and with an
orthonormal DCT, 0 and published. Paired by seed: the same patches, the same start."""
REPORTED = {"kd_1": "qat_teacher", "kd_0": "qat_direct"}
"""The conditions that the paper's Table D compares, by its names."""
PAPER_QUANTISER = {field: METHODS["paper"][field] for field in PUBLISHED
                   if field.startswith("quant.")}
SWITCHES: dict[str, dict[str, Any]] = {
    "teacher_none": NO_TEACHER,
    "teacher_student": {"teacher.stage3": "student"},
    "loss_published": {"teacher.stage3": "same"} | {
        f"stage3.loss.{name}": value
        for name, value in LossSettings(**STAGE3_LOSS).model_dump().items()},
    "dct_off": {"stage3.loss.dct": 0.0},
    "confidence_off": {"stage3.loss.confidence": False},
    "weight_clip_off": {"stage3.clip_body": 0.0, "stage3.clip_ends": 0.0},
    "quantiser_paper": PAPER_QUANTISER,
    "skip_add": {"quant.skip": "add"},
    "bn_recalibration_off": NO_RECALIBRATION,
    "post_training": {},
}
"""One-change variants of stage 3, each from the weights that stage 3 starts from; several at once are joined by "+".
`teacher_student` distils from those weights; `loss_published` is the paper's loss where a profile has another;
`bn_recalibration_off` fuses with stage 2's running statistics (a collapsed stage has no others); `post_training`
leaves stage 3 out: the converter takes its grids from photographs, as the authors' did."""


CLAIMS: dict[str, dict[str, Any]] = {
    "published": {}, "post_training": {},
    "stage1_longer": {"stage2.loss.l1": 1.0, "stage2.loss.charbonnier": 0.0, "stage2.loss.dct": 0.0,
                      "stage2.loss.kd": 0.0},
    "dct_off": {"stage2.loss.dct": 0.0}, "confidence_off": {"stage2.loss.confidence": False},
    "kd_off": {"stage2.loss.kd": 0.0},
    "clip_off": NO_CLIPPING, "recalibration_off": NO_RECALIBRATION,
    "clip_off+recalibration_off": NO_CLIPPING | NO_RECALIBRATION,
}
"""What the abstract says of the method, as changes of stages 2 and 3 after one stage 1, paired by seed.

`stage1_longer` goes on with L1 for as many steps as stage 2 has; `post_training` leaves stage 3 out."""
FLOAT_CLAIMS = ("stage1_longer", "dct_off", "confidence_off", "kd_off")
"""Those that end with stage 2, in float."""


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
            ("stage1", size.stage1_steps), ("stage2", size.stage2_steps),
            ("stage3", size.stage3_steps)):
        # EMA 0.999 would still contain the initial weights
        if steps < getattr(settings, stage).steps:
            short[f"{stage}.ema_warmup"] = True
        halving = max(1,
                      round(getattr(settings, stage).halve_every * steps / getattr(settings, stage).steps))
        every = steps if size.keep == "last" else getattr(settings, stage).validate_every
        short |= {f"{stage}.steps": steps, f"{stage}.validate_every": every,
                  f"{stage}.halve_every": halving,
                  f"{stage}.keep": size.keep}
    return override(settings, short | changes)


def _settings(run: Run, name: str, seed: int) -> Settings:
    """How a training of 07 is set: a network of B and C, a condition of D, a claim, or switches joined by "+"."""
    papers = METHODS["paper"] | EXCEPTIONS.get(run.settings.profile, {})
    if name.startswith("claim_"):
        changes = papers | {"student.arch": "mobileone"} | CLAIMS[name.removeprefix("claim_")]
    elif name in ROWS and ROWS[name][0] == "B":
        changes = NO_TEACHER | {"student.arch": name, "student.init": "bilinear",
                                "quant.skip": "add"}
    elif name in ROWS:
        changes = papers | {"student.arch": name}
    elif name in CONDITIONS:
        changes = PUBLISHED | CONDITIONS[name]
    else:
        parts = [] if name == "as_set" else name.split("+")
        changes = {field: value for part in parts for field, value in SWITCHES[part].items()}
    return _short(run.settings, seed, changes)


def _folder(run: Run, settings: Settings, name: str) -> str:
    """Where a training's stages lie: its own folder, or the run's where the run has trained just that."""
    return "" if settings == run.settings else f"ablation/{name}-{settings.seed}/"


def _files(run: Run, data: Data, model: Any, name: str, table: str, row: str, steps: int,
           settings: Settings) -> Rows:
    """The files of a network under quantisation, measured.

    By post-training quantisation, the paper's way, dynamic as `row` and fixed (the authors' padding
    and tiles) as `row`_fixed; the seed draws their calibration photographs. With the learnt grids,
    dynamic, as `row`_learnt.
    """
    qgraph, folder, size = quantised_graph(model), run.stage_folder(name), settings.export
    graph, images = post_training_graph(qgraph), calibration(data, settings, drawn=True)
    dynamic = export_ptq(graph, images, folder / "ptq_int8.tflite")
    fixed = export_ptq(graph, images, folder / "ptq_fixed_int8.tflite", size.height, size.width)
    learnt = export_tflite(qgraph, folder / "dynamic_int8.tflite")
    files = ((row, TFLiteUpscaler(dynamic)),
             (f"{row}_fixed", TFLiteUpscaler(fixed, borders="reflected")),
             (f"{row}_learnt", TFLiteUpscaler(learnt)))
    return [line for label, upscaler in files
            for line in measure(data, upscaler, table, label, "int8", steps=steps)]


def _baseline(run: Run, data: Data, arch: str, settings: Settings) -> Rows:
    """Table B's networks: stage 1, and stage 3 without a teacher and with an ADD, since they have no other skip.

    The paper does not say how it trained them, so FSRCNN begins at bilinear enlargement: with PyTorch's
    default initialisation it stays below bicubic after 3,000 steps, too weak a baseline to beat.
    """
    folder, (table, row) = _folder(run, settings, arch), ROWS[arch]
    stage1(run, data, f"{folder}stage1", settings)
    fused = fuse_model(recalibrated(run, data, f"{folder}stage1", settings), clamp=True)
    steps = settings.stage1.steps
    rows = measure(data, TorchUpscaler(fused, arch), table, row, "fp32", steps=steps)
    model = stage3(run, data, fused, None, f"{folder}stage3", settings).model
    steps += settings.stage3.steps
    rows += measure(data, TorchUpscaler(model, arch), table, f"{row}_fakequant",
                    "fp32", steps=steps)
    return rows + _files(run, data, model, f"{folder}stage3", table, row, steps, settings)


def _backbone(run: Run, data: Data, arch: str, settings: Settings) -> Rows:
    """Table C: the paper's whole pipeline with a block, from PyTorch's random start (demo: bilinear).

    The table's "FP32" column is the fake-quantised network's score in PyTorch; the float network's
    after stage 2, before any rounding, stands beside it as `arch`_float.
    """
    table, row = ROWS[arch]
    folder = f"ablation/{arch}-{settings.seed}/" if settings.quant.start else _folder(run, settings, arch)
    stage1(run, data, f"{folder}stage1", settings)
    stage2(run, data, distillation_targets(run, data, 2, settings), f"{folder}stage2", settings,
           start=f"{folder}stage1")
    fused = fuse_model(recalibrated(run, data, f"{folder}stage2", settings), clamp=True)
    steps = settings.stage1.steps + settings.stage2.steps
    rows = measure(data, TorchUpscaler(fused, arch), table, f"{row}_float", "fp32", steps=steps)
    targets = distillation_targets(run, data, 3, settings)
    model = stage3(run, data, fused, targets, f"{folder}stage3", settings).model
    steps += settings.stage3.steps
    rows += measure(data, TorchUpscaler(model, arch), table, row, "fp32", steps=steps)
    return rows + _files(run, data, model, f"{folder}stage3", table, row, steps, settings)


def _variant(run: Run, data: Data, name: str, settings: Settings) -> Rows:
    """A stage 3 beside the run's own, from the weights that that starts from; `post_training` leaves it out."""
    condition = name in CONDITIONS
    table, row = ("D", REPORTED.get(name, name)) if condition else ("switches", name)
    folder = f"{_folder(run, settings, name)}stage3"
    steps = settings.stage1.steps + settings.stage2.steps
    before = {"stage2.recalibrate_batches": settings.stage2.recalibrate_batches}
    fused = fuse_model(recalibrated(run, data, settings=override(run.settings, before)), clamp=True)
    if name == "post_training":
        path = run.stage_folder(f"ablation/{name}-{settings.seed}") / "dynamic_int8.tflite"
        export_ptq(deployment_graph(fused), calibration(data, settings, drawn=True), path)
        return measure(data, TFLiteUpscaler(path), table, row, "int8", steps=steps)
    model = stage3(run, data, fused, distillation_targets(run, data, 3, settings),
                   folder, settings).model
    steps += settings.stage3.steps
    if condition:
        return _files(run, data, model, folder, table, row, steps, settings)
    path = export_tflite(quantised_graph(model), run.stage_folder(folder) / "dynamic_int8.tflite")
    return measure(data, TFLiteUpscaler(path), table, row, "int8", steps=steps)


def _claim(run: Run, data: Data, name: str, settings: Settings) -> tuple[Rows, dict[str, Any]]:
    """A claim of the abstract, from Table C's stage 1 of that seed: float, fake-quantised, and the files.

    Returns:
        Rows, and for the record: `layers`, of the quantised network each layer's largest |weight| and
        SQNR (dB), and with `published` the `shares` of stage 2's terms at its start.
    """
    claim, base = name.removeprefix("claim_"), _settings(run, "mobileone", settings.seed)
    first = second = f"ablation/mobileone-{settings.seed}/" if settings.quant.start else _folder(
        run, base, "mobileone")
    # statistics are re-estimated after stage 2, so that with and without share its training
    learnt = override(settings, {"stage2.recalibrate_batches": base.stage2.recalibrate_batches})
    if learnt.stage2 == base.stage2:
        learnt = base
    else:
        second = f"ablation/claim_{claim.partition('+')[0]}-{settings.seed}/"
    start = stage1(run, data, f"{first}stage1", base).model
    targets = distillation_targets(run, data, 2, learnt)
    stage2(run, data, targets, f"{second}stage2", learnt, start=f"{first}stage1")
    fused = fuse_model(recalibrated(run, data, f"{second}stage2", settings), clamp=True)
    steps, extra = settings.stage1.steps + settings.stage2.steps, {}
    rows = measure(data, TorchUpscaler(fused, claim), "abstract_claims", claim, "fp32", steps=steps)
    if claim in FLOAT_CLAIMS:
        return rows, extra
    folder = f"ablation/{name}-{settings.seed}/stage3" if claim != "published" else f"{first}stage3"
    if claim == "post_training":
        model = prepare_qat(fused, settings.quant, calibration(data, settings)).eval()
    else:
        model = stage3(run, data, fused, distillation_targets(run, data, 3, settings),
                       folder, settings).model
        steps += settings.stage3.steps
    if claim == "published":
        extra["shares"] = stage_shares(data, base, 2, start, targets)
    qgraph = quantised_graph(model)
    noise = {line["name"]: line["sqnr_db"]
             for line in layer_sqnr(qgraph, [pair.lr for pair in data.valid[:4]])}
    extra["layers"] = [{"name": node.name, "weight": float(node.weight.abs().max()), "sqnr_db": noise[node.name]}
                       for node in qgraph.graph.nodes if node.weight is not None]
    rows += measure(data, TorchUpscaler(model, claim), "abstract_claims", claim,
                    "fake-quant", steps=steps)
    return rows + _files(run, data, model, folder, "abstract_claims", claim, steps, settings), extra


def shared_by_all(run: Run, data: Data, names: Sequence[str]) -> dict[str, Any]:
    """What the trainings of `names` have in common: hashes of the images, and the teacher's name if any needs one."""
    needs = False
    for settings in (_settings(run, name, 0) for name in names):
        needs |= settings.stage2.loss.kd > 0 or (settings.stage3.loss.kd > 0
                                                 and settings.teacher.stage3 == "same")
    return {"data": data.keys(), "teacher": open_teacher(run, data).name if needs else "none"}


def train_one(run: Run, data: Data, shared: dict[str, Any], name: str, seed: int) -> None:
    """One training of 07, measured, with its record records/07/<name>-<seed>.json.

    One whose record has the same identity (settings but for the seed, images, start, teacher) is
    not repeated, wherever the record was made.

    Args:
        shared: of `shared_by_all`.
        name: of a network, a condition, switches joined by "+", or "claim_" and a claim.
    """
    settings, inputs = _settings(run, name, seed), dict(shared["data"])
    if name not in ROWS and not name.startswith("claim_"):
        inputs["stage 3's start"] = sha256_file(start_path(run))
    tree = settings.model_dump(mode="json", exclude={"seed", "ablation"})
    identity = settings_hash(json.dumps([tree, inputs, shared["teacher"]], sort_keys=True))
    path = run.out / "records" / "07" / f"{name}-{seed}.json"
    if path.is_file() and run.read_record(f"07/{path.stem}").get("training",
            {}).get("identity") == identity:
        return
    run, extra = Run(run.settings, run.out), {}  # its clock is this training's
    if name.startswith("claim_"):
        rows, extra = _claim(run, data, name, settings)
    elif name in ROWS:
        rows = (_baseline if ROWS[name][0] == "B" else _backbone)(run, data, name, settings)
    else:
        rows = _variant(run, data, name, settings)
    run.record(f"07/{path.stem}", rows, inputs, teacher=shared["teacher"],
               training={"name": name, "seed": seed, "identity": identity}, **extra)


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


def _grid(run: Run, data: Data, names: Sequence[str]) -> Rows:
    """Rows of every name over the seeds that there are records of; what has none yet is trained, as one set of jobs."""
    if names:
        shared = shared_by_all(run, data, names)
        run_jobs(train_one, [(run, data, shared, name, seed)
                             for name in names for seed in run.settings.ablation.seeds])
    return rows_over_seeds(run.trainings(), names)


def backbones(run: Run, data: Data) -> Rows:
    """Tables B and C: each network trained, fused, trained for INT8, exported and measured.

    Beside Table B's networks stands bicubic enlargement, unless notebook 01 of this run has measured it.

    Raises:
        UserError: a switch of `stage3_variants`, which come afterwards, is unknown.
    """
    check_switches(run.settings)  # of `stage3_variants`, hours later
    archs = run.settings.ablation.archs
    known = run.rows()
    measured = ((known["record"] == "01_data") & (known["row"] == "bicubic")).any()
    bicubic = not measured and any(ROWS[arch][0] == "B" for arch in archs)
    return (measure(data, Bicubic(), "B", "bicubic", "fp32") if bicubic
            else []) + _grid(run, data, archs)


def stage3_variants(run: Run, data: Data) -> Rows:
    """Table D's conditions, and the switches beside stage 3 as the run's settings have it (row `as_set`).

    A switch that only says again what a condition is takes that one's file with the learnt grids.

    Raises:
        UserError: an unknown switch.
    """
    size = run.settings.ablation
    check_switches(run.settings)
    switches = list(dict.fromkeys(("as_set", *size.switches))) if size.switches else []
    conditions = {name: _settings(run, name, 0) for name in size.conditions}
    same = {switch: name for switch in switches if switch != "post_training"
            for name, settings in conditions.items() if settings == _settings(run, switch, 0)}
    rows = _grid(run, data, [*size.conditions, *(name for name in switches if name not in same)])
    for switch, name in same.items():
        label = f"{REPORTED.get(name, name)}_learnt"
        rows += [row | {"table": "switches", "row": switch} for row in rows if row["row"] == label]
    return rows


def abstract_claims(run: Run, data: Data) -> Rows:
    """What the abstract says of the method, each claim against `published` (table `abstract_claims`).

    In three rounds, for a claim goes on from the stages of the ones before it.
    """
    names = [f"claim_{name}" for name in run.settings.ablation.claims]
    first, both = ["claim_published"], ["claim_clip_off+recalibration_off"]
    between = [name for name in names if name not in first + both]
    return [row for part in (first, between, both)
            for row in _grid(run, data, [name for name in part if name in names])]
