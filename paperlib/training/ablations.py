"""Tables B, C and D and the abstract's sentences as short trainings on one schedule (section 7).

Tables C and D follow the paper's method whatever the run's own. Every variant is a change of
settings that a user could ask for with `--set`. A training lies in `checkpoints/ablation/`,
resumes, and has a record of its own, `records/07/<name>-<seed>.json`; with that it is not repeated.
To join the trainings of two runs, copy the records of one into the other's folder.
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import joblib
import pandas as pd
import torch

from paperlib.data.dataset import Data, calibration
from paperlib.data.images import free_memory
from paperlib.errors import UserError
from paperlib.evaluation.scoring import measure
from paperlib.evaluation.torch_upscalers import TorchUpscaler
from paperlib.evaluation.upscalers import Bicubic
from paperlib.export.convert import export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import sha256_file
from paperlib.profiles import EXCEPTIONS, METHODS, STAGE3_LOSS
from paperlib.quantisation.diagnostics import layer_sqnr
from paperlib.quantisation.int8 import post_training_graph
from paperlib.quantisation.qat import prepare_qat, quantised_graph
from paperlib.run import Run, rows_over_seeds
from paperlib.settings import Settings, StudentSettings, nearest, override, settings_hash
from paperlib.student.graph import macs_per_lr_pixel, parameters
from paperlib.student.models import build_model, deployment_graph, fuse_model
from paperlib.training import stages
from paperlib.training.loop import one_thread

Rows = list[dict[str, Any]]
TABLES = {"mobileone": "C", "repconv": "C", "repdw": "C", "fsrcnn": "B", "abpn": "B"}
"""The table in which each network is a row."""
NO_TEACHER = {"stage3.loss.kd": 0.0, "stage3.loss.kd_mid": None, "stage3.loss.kd_low": 0.0}
NO_CLIPPING = {f"{stage}.clip_{part}": 0.0 for stage in ("stage2", "stage3")
               for part in ("body", "ends")}
NO_RECALIBRATION = {"stage2.recalibrate_batches": 0}
ORTHO = {"stage3.loss.dct_norm": "ortho"}
PUBLISHED = {field: value for field, value in METHODS["paper"].items()
             if field.startswith(("data.", "teacher.", "quant.", "stage3."))}
"""Stage 3 as published, whatever its start: quantiser, loss, teacher, sampling, EMA."""


CONDITIONS: dict[str, dict[str, Any]] = {
    "kd_1": {}, "kd_0": NO_TEACHER,
    **{f"kd_{factor}": {f"stage3.loss.{name}": factor * STAGE3_LOSS[name]
                        for name in ("kd", "kd_mid", "kd_low")} for factor in (10, 100)},
    "ortho_kd_1": ORTHO, "ortho_kd_0": ORTHO | NO_TEACHER}
"""Table D: stage 3 as published with the teacher's weight 0, published, 10 and 100 times as large;
and with an orthonormal DCT, 0 and published. Paired by seed: the same patches, the same start."""
REPORTED = {"kd_1": "qat_teacher", "kd_0": "qat_direct"}
"""The conditions that the paper's Table D compares, by its names."""
SWITCHES: dict[str, dict[str, Any]] = {
    "teacher_none": NO_TEACHER,
    "teacher_student": {"teacher.stage3": "student"},
    "loss_published": {"teacher.stage3": "same"} | {
        field: value for field, value in PUBLISHED.items() if field.startswith("stage3.loss.")},
    "dct_off": {"stage3.loss.dct": 0.0},
    "confidence_off": {"stage3.loss.confidence": False},
    "quantiser_paper": {field: value for field, value in PUBLISHED.items()
                        if field.startswith("quant.")},
    "skip_add": {"quant.skip": "add"},
    "post_training": {},
}
"""One-change variants of stage 3, from the weights that it starts from; "+" joins several.

`teacher_student` distils from those weights; `loss_published` is the paper's loss where a profile
has another; `post_training` leaves stage 3 out: the converter takes its grids from photographs."""
CLAIMS: dict[str, dict[str, Any]] = {
    "published": {}, "post_training": {},
    "stage1_longer": {"stage2.loss.l1": 1.0, "stage2.loss.charbonnier": 0.0,
                      "stage2.loss.dct": 0.0, "stage2.loss.kd": 0.0},
    "dct_off": {"stage2.loss.dct": 0.0}, "confidence_off": {"stage2.loss.confidence": False},
    "kd_off": {"stage2.loss.kd": 0.0},
    "clip_off": NO_CLIPPING, "recalibration_off": NO_RECALIBRATION,
    "clip_off+recalibration_off": NO_CLIPPING | NO_RECALIBRATION,
}
"""What the abstract says, as changes of stages 2 and 3 after one stage 1, paired by seed.

`stage1_longer` goes on with L1 for stage 2's steps; `post_training` leaves stage 3 out."""
WORKER_BYTES = 3 * 10**9
"""Memory of one training beside others, at most."""
FLOAT_CLAIMS = ("stage1_longer", "dct_off", "confidence_off", "kd_off")
"""Those that end with stage 2, in float."""


def check_switches(settings: Settings) -> None:
    """Refuse unknown `ablation.switches` before anything is trained."""
    for name in settings.ablation.switches:
        parts = name.split("+")
        if "post_training" in parts and len(parts) > 1:
            raise UserError(f"ablation.switches {name!r}: post_training trains no stage 3 that another "
                            "switch could change. Name it alone.")
        for part in parts:
            if part not in SWITCHES:
                raise UserError(f"unknown ablation.switches {part!r}. Nearest: "
                                f"{nearest(part, list(SWITCHES))}. Known: {', '.join(SWITCHES)}.")


def sizes(archs: Sequence[str]) -> pd.DataFrame:
    """Parameters and multiply–accumulates per LR pixel of deployed networks, by one counter."""
    graphs = {arch: deployment_graph(fuse_model(build_model(StudentSettings(arch=arch))))
              for arch in archs}
    return pd.DataFrame([{"network": arch, "parameters": parameters(graph),
                          "MACs / LR pixel": macs_per_lr_pixel(graph)}
                         for arch, graph in graphs.items()])


def _short(settings: Settings, seed: int, changes: dict[str, Any]) -> Settings:
    """Settings of an ablation training: the short schedule, validated once, at the end.

    A warm-up becomes a tenth at least: in a fiftieth of 1,500 steps a RepConv network's last block
    died. EMA 0.999 would still contain the initial weights of a shorter stage.
    """
    size, short = settings.ablation, {"seed": seed}
    if settings.stage1.warmup:
        short["stage1.warmup"] = max(settings.stage1.warmup, 0.1)
    for name in ("stage1", "stage2", "stage3"):
        stage, steps = getattr(settings, name), getattr(size, f"{name}_steps")
        if steps < stage.steps:
            short[f"{name}.ema_warmup"] = True
        short |= {f"{name}.steps": steps, f"{name}.keep": size.keep,
                  f"{name}.validate_every": steps if size.keep == "last" else stage.validate_every,
                  f"{name}.halve_every": max(1, round(stage.halve_every * steps / stage.steps))}
    return override(settings, short | changes)


def _settings(run: Run, name: str, seed: int) -> Settings:
    """How a training of 07 is set, by its name (see `train_one`)."""
    papers = METHODS["paper"] | EXCEPTIONS.get(run.settings.profile, {})
    if name.startswith("claim_"):
        changes = papers | {"student.arch": "mobileone"} | CLAIMS[name.removeprefix("claim_")]
    elif TABLES.get(name) == "B":
        changes = NO_TEACHER | {"student.arch": name, "student.init": "bilinear",
                                "quant.skip": "add"}
    elif name in TABLES:
        changes = papers | {"student.arch": name}
    elif name in CONDITIONS:
        changes = PUBLISHED | CONDITIONS[name]
    else:
        parts = [] if name == "as_set" else name.split("+")
        changes = {field: value for part in parts for field, value in SWITCHES[part].items()}
    return _short(run.settings, seed, changes)


def _folder(run: Run, settings: Settings, name: str) -> str:
    """Where a training's stages lie: its own folder, or the run's where that has trained just that.

    With `quant.start` the run's own stage 3 is another than that of a network.
    """
    if settings == run.settings and not (name in TABLES and settings.quant.start):
        return ""
    return f"ablation/{name}-{settings.seed}/"


def _files(run: Run, data: Data, model: Any, name: str, table: str, row: str, steps: int,
           settings: Settings) -> Rows:
    """The files of a network under quantisation, measured.

    By post-training quantisation, the paper's way, dynamic as `row` and fixed (the authors' padding
    and tiles) as `row`_fixed; the seed draws their calibration photographs. With the learnt grids,
    dynamic, as `row`_learnt.
    """
    qgraph, folder, size = quantised_graph(model), run.stage_folder(name), settings.export
    graph, images = post_training_graph(qgraph), calibration(data, settings, drawn=True)
    dynamic = export_tflite(graph, folder / "ptq_int8.tflite", images=images)
    fixed = export_tflite(graph, folder / "ptq_fixed_int8.tflite", size.height, size.width,
                          images=images)
    learnt = export_tflite(qgraph, folder / "dynamic_int8.tflite")
    files = ((row, TFLiteUpscaler(dynamic)),
             (f"{row}_fixed", TFLiteUpscaler(fixed, borders="reflected")),
             (f"{row}_learnt", TFLiteUpscaler(learnt)))
    return [line for label, upscaler in files
            for line in measure(data, upscaler, table, label, "int8", steps=steps)]


def _stage3(run: Run, data: Data, fused: Any, folder: str, settings: Settings) -> Any:
    targets = stages.distillation_targets(run, data, 3, settings)
    return stages.stage3(run, data, fused, targets, folder, settings).model


def _network(run: Run, data: Data, arch: str, settings: Settings) -> Rows:
    """A row of Table C, the paper's pipeline with a block, or of B, without stage 2 and teacher.

    In float, fake-quantised in PyTorch (C's "FP32" column) and as files. B's networks begin at
    bilinear enlargement: with PyTorch's start FSRCNN stays below bicubic after 3,000 steps.
    """
    table, folder = TABLES[arch], _folder(run, settings, arch)
    stages.stage1(run, data, f"{folder}stage1", settings)
    last, steps, labels = "stage1", settings.stage1.steps, (arch, f"{arch}_fakequant")
    if table == "C":
        last, steps, labels = "stage2", steps + settings.stage2.steps, (f"{arch}_float", arch)
        targets = stages.distillation_targets(run, data, 2, settings)
        stages.stage2(run, data, targets, f"{folder}stage2", settings, start=f"{folder}stage1")
    fused = fuse_model(stages.recalibrated(run, data, f"{folder}{last}", settings), clamp=True)
    rows = measure(data, TorchUpscaler(fused, arch), table, labels[0], "fp32", steps=steps)
    model = _stage3(run, data, fused, f"{folder}stage3", settings)
    steps += settings.stage3.steps
    rows += measure(data, TorchUpscaler(model, arch), table, labels[1], "fp32", steps=steps)
    return rows + _files(run, data, model, f"{folder}stage3", table, arch, steps, settings)


def _variant(run: Run, data: Data, name: str, settings: Settings) -> Rows:
    """A stage 3 beside the run's own, from the same weights: a condition of D, or switches."""
    folder = f"{_folder(run, settings, name)}stage3"
    steps = settings.stage1.steps + settings.stage2.steps
    fused = fuse_model(stages.recalibrated(run, data), clamp=True)
    if name == "post_training":
        path = run.stage_folder(f"ablation/{name}-{settings.seed}") / "dynamic_int8.tflite"
        images = calibration(data, settings, drawn=True)
        export_tflite(deployment_graph(fused), path, images=images)
    else:
        model = _stage3(run, data, fused, folder, settings)
        steps += settings.stage3.steps
        if name in CONDITIONS:
            return _files(run, data, model, folder, "D", REPORTED.get(name, name), steps, settings)
        path = run.stage_folder(folder) / "dynamic_int8.tflite"
        export_tflite(quantised_graph(model), path)
    return measure(data, TFLiteUpscaler(path), "switches", name, "int8", steps=steps)


def _claim(run: Run, data: Data, name: str, settings: Settings) -> tuple[Rows, dict[str, Any]]:
    """A claim of the abstract, from Table C's stage 1 of that seed: float, fake-quantised, files.

    Returns:
        Rows, and for the record: `layers`, of the quantised network each layer's largest |weight|
        and SQNR (dB), and with `published` the `shares` of stage 2's terms at its start.
    """
    claim, base = name.removeprefix("claim_"), _settings(run, "mobileone", settings.seed)
    first = second = _folder(run, base, "mobileone")
    # statistics are re-estimated after stage 2, so that with and without share its training
    learnt = override(settings, {"stage2.recalibrate_batches": base.stage2.recalibrate_batches})
    if learnt.stage2 == base.stage2:
        learnt = base
    else:
        second = f"ablation/claim_{claim.partition('+')[0]}-{settings.seed}/"
    start = stages.stage1(run, data, f"{first}stage1", base).model
    targets = stages.distillation_targets(run, data, 2, learnt)
    stages.stage2(run, data, targets, f"{second}stage2", learnt, start=f"{first}stage1")
    fused = fuse_model(stages.recalibrated(run, data, f"{second}stage2", settings), clamp=True)
    table, steps, extra = "abstract_claims", settings.stage1.steps + settings.stage2.steps, {}
    rows = measure(data, TorchUpscaler(fused, claim), table, claim, "fp32", steps=steps)
    if claim in FLOAT_CLAIMS:
        return rows, extra
    folder = f"{first}stage3" if claim == "published" else f"ablation/{name}-{settings.seed}/stage3"
    if claim == "post_training":
        model = prepare_qat(fused, settings.quant, calibration(data, settings)).eval()
    else:
        model = _stage3(run, data, fused, folder, settings)
        steps += settings.stage3.steps
    if claim == "published":
        extra["shares"] = stages.stage_shares(data, base, 2, start, targets)
    qgraph = quantised_graph(model)
    noise = {line["name"]: line["sqnr_db"]
             for line in layer_sqnr(qgraph, [pair.lr for pair in data.valid[:4]])}
    extra["layers"] = [{"name": node.name, "weight": float(node.weight.abs().max()),
                        "sqnr_db": noise[node.name]}
                       for node in qgraph.graph.nodes if node.weight is not None]
    rows += measure(data, TorchUpscaler(model, claim), table, claim, "fake-quant", steps=steps)
    return rows + _files(run, data, model, folder, table, claim, steps, settings), extra


def shared_by_all(run: Run, data: Data, names: Sequence[str]) -> dict[str, Any]:
    """What trainings share: hashes of the images, and the teacher's name if one needs it."""
    every = [_settings(run, name, 0) for name in names]
    needs = any(one.stage2.loss.kd > 0 or (one.stage3.loss.kd > 0 and one.teacher.stage3 == "same")
                for one in every)
    teacher = stages.open_teacher(run, data).name if needs else "none"
    return {"data": data.keys(), "teacher": teacher}


def train_one(run: Run, data: Data, shared: dict[str, Any], name: str, seed: int) -> None:
    """One training of 07, measured, with its record records/07/<name>-<seed>.json.

    One whose record is of this run and has the same identity (settings but for the seed, images,
    start, teacher) is not repeated.

    Args:
        name: of a network, a condition, switches joined by "+", or "claim_" and a claim.
    """
    settings, inputs = _settings(run, name, seed), dict(shared["data"])
    claim = name.startswith("claim_")
    if name not in TABLES and not claim:
        inputs["stage 3's start"] = sha256_file(stages.start_path(run))
    tree = settings.model_dump(mode="json", exclude={"seed", "ablation"})
    identity = settings_hash(json.dumps([tree, inputs, shared["teacher"]], sort_keys=True))
    stem = f"07/{name}-{seed}"
    if (run.out / "records" / f"{stem}.json").is_file():
        there = run.read_record(stem)
        if there.get("run") == run.id and there.get("training", {}).get("identity") == identity:
            return
    run = Run(run.settings, run.out)  # its clock is this training's
    extra: dict[str, Any] = {}
    if claim:
        rows, extra = _claim(run, data, name, settings)
    else:
        rows = (_network if name in TABLES else _variant)(run, data, name, settings)
    run.record(stem, rows, inputs, teacher=shared["teacher"],
               training={"name": name, "seed": seed, "identity": identity}, **extra)


def teacher_shares(run: Run, data: Data) -> pd.DataFrame:
    """The teacher's share in Table D's conditions before their trainings, by the float network that
    stage 3 starts from, at the first, largest λ(t).

    One line a `condition`, for each term (`charbonnier`, `dct`, `kd`) its share of the summed loss
    (`<term> value`) and of the sum of the terms' gradient norms (`<term> gradient`), 0..1.
    """
    lines, model = [], fuse_model(stages.recalibrated(run, data), clamp=True)
    targets = stages.distillation_targets(run, data, 3, override(run.settings, PUBLISHED))
    for condition in run.settings.ablation.conditions:
        settings = _settings(run, condition, run.settings.seed)
        found = stages.stage_shares(data, settings, 3, model, targets).set_index("term")
        shares = {f"{term} {what}": found[f"{what} share"].get(term, 0.0)
                  for term in ("charbonnier", "dct", "kd") for what in ("value", "gradient")}
        lines.append({"condition": REPORTED.get(condition, condition)} | shares)
    return pd.DataFrame(lines)


def _end_with_parent() -> None:
    """Lets a worker end when the process that it works for is killed, as kernels do."""
    from ipykernel.parentpoller import ParentPollerUnix

    ParentPollerUnix(os.getppid()).start()


def _alone(function: Callable[..., Any], *job: Any) -> Any:
    with one_thread():
        try:
            return function(*job)
        except UserError as error:
            return error


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Results of function(*job), in the jobs' order.

    Side by side on the cores of this machine, or on the cluster at PAPERLIB_DASK; on a GPU one after
    the other. Each in one thread, so that its bits do not depend on the machine's cores.

    Raises:
        UserError: that of a job, after all the others are finished; dask is not installed, or
            nobody answers at the address.
    """
    if address := os.environ.get("PAPERLIB_DASK", "").strip():
        results = _run_on_cluster(address, function, jobs)
    else:
        workers = 1 if torch.cuda.is_available() else max(1, min(
            joblib.cpu_count(), len(jobs), free_memory() // WORKER_BYTES))
        with joblib.parallel_config("loky", n_jobs=workers, initializer=_end_with_parent):
            results = joblib.Parallel(mmap_mode=None)(
                joblib.delayed(_alone)(function, *job) for job in jobs)
    for error in (result for result in results if isinstance(result, UserError)):
        raise error
    return results


def _run_on_cluster(address: str, function: Callable[..., Any], jobs: Sequence[Any]) -> list[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("PAPERLIB_DASK is set, but dask is not installed. Run: pip install "
                        "'.[cluster]' in a clone, or unset the variable.") from error
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise UserError(f"no dask scheduler at PAPERLIB_DASK={address} ({error}). Start one with "
                        "`dask scheduler` and `dask worker`, or unset it.") from error
    with client:
        return client.gather([client.submit(_alone, function, *job, pure=False) for job in jobs])


def _grid(run: Run, data: Data, names: Sequence[str]) -> Rows:
    """Rows of every name over the seeds with records; what has none is trained before."""
    if names:
        shared = shared_by_all(run, data, names)
        run_jobs(train_one, [(run, data, shared, name, seed)
                             for name in names for seed in run.settings.ablation.seeds])
    return rows_over_seeds(run.trainings(), names)


def backbones(run: Run, data: Data) -> Rows:
    """Tables B and C: each network trained, fused, trained for INT8, exported and measured.

    Beside Table B's networks stands bicubic enlargement, unless notebook 01 has measured it.
    """
    check_switches(run.settings)  # of `stage3_variants`, hours later
    archs, known = run.settings.ablation.archs, run.records().get("01_data", {"rows": []})["rows"]
    rows = []
    if "B" in map(TABLES.get, archs) and not any(row["row"] == "bicubic" for row in known):
        rows = measure(data, Bicubic(), "B", "bicubic", "fp32")
    return rows + _grid(run, data, archs)


def stage3_variants(run: Run, data: Data) -> Rows:
    """Table D's conditions, and the switches beside stage 3 as the run sets it (row `as_set`).

    A switch that only says again what a condition is takes that one's file with the learnt grids.
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
    """What the abstract says, each claim against `published` (table `abstract_claims`).

    In three rounds, for claims go on from stages that another has trained.
    """
    names = [f"claim_{name}" for name in run.settings.ablation.claims]
    alike = ("claim_published", "claim_post_training", "claim_recalibration_off")  # in stage 2
    first = ([name for name in alike if name in names] or names)[:1]
    both = "claim_clip_off+recalibration_off"
    rounds = (first, [name for name in names if name not in (*first, both)],
              [both] if both not in first else [])
    return [row for part in rounds
            for row in _grid(run, data, [name for name in part if name in names])]
