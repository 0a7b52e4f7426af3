"""The steps of the method as the notebooks call them: data, stage 1, teacher, stage 2, fuse, QAT (paper sections 1–5).

Each step reads its settings from the run, trains through the one `fit`, and leaves its weights under
`checkpoints/<stage>/`, so that any notebook can be run again, or alone, from what the ones before it left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.baselines import build_model, fuse_model, load_model
from paperlib.config import Settings, StageSettings, settings_hash
from paperlib.data import Pair, PixelStore, open_store, test_sets, validation_pairs
from paperlib.distill import OnTheFlyTeacher, TeacherSource, find_teacher, outputs_key, teacher_outputs
from paperlib.evaluate import StudentUpscaler
from paperlib.files import sha256_file
from paperlib.metrics import psnr_rgb
from paperlib.patches import TrainSet
from paperlib.quantise import freeze_observers, prepare_qat, save_qat
from paperlib.records import Run
from paperlib.student import Student, save_student, with_form
from paperlib.train import Fit, fit, recalibrate_bn


@dataclass
class Data:
    """What a run trains and is measured on."""

    store: PixelStore
    """Training photographs, decoded."""
    valid: list[Pair]
    """Validation photographs; they decide which weights are best."""
    tests: dict[str, Sequence[Pair]]
    """Test sets by name; never seen in training or selection. Empty in the offline profiles."""


@dataclass
class Trained:
    """A finished training: the weights, where they lie, and how it went."""

    model: nn.Module
    path: Path
    fit: Fit


def open_data(run: Run) -> Data:
    """The training pixels (decoded once, cached), validation pairs and test sets of a run."""
    settings = run.settings.data
    return Data(open_store(settings), validation_pairs(settings), test_sets(settings))


def psnr_scorer(pairs: Sequence[Pair]) -> Callable[[nn.Module], dict[str, float]]:
    """A validation score for `fit`: mean PSNR (dB, RGB, no crop, clipped float output) of the fused model."""

    def score(model: nn.Module) -> dict[str, float]:
        upscale = StudentUpscaler(fuse_model(model), "validation")
        return {"psnr_rgb": float(np.mean([psnr_rgb(upscale(pair.lr), pair.hr) for pair in pairs]))}

    return score


def train_set(data: Data, settings: Settings, name: str, patch: int) -> TrainSet:
    """The patches of one training; `name` decides the order in which they are drawn."""
    return TrainSet(data.store, settings.data, settings.seed, name, patch)


def lr_batches(patches: TrainSet, stage: StageSettings, count: int) -> list[Tensor]:
    """The LR patches of the first `count` steps, float (B, 3, p, p) in 0..255, for statistics and calibration."""
    return [patches.batch(step, stage.batch, stage.patch).lr.float() for step in range(count)]


def train(
    run: Run, data: Data, name: str, model: nn.Module, stage: StageSettings, *,
    settings: Settings | None = None, targets: "Targets | None" = None, events: dict[int, Any] | None = None,
    start: str = "",
) -> Fit:
    """Train `model` as `stage` says, in `checkpoints/<name>/`; continues a stopped training.

    Args:
        settings: the settings to use for data order and seed where they differ from the run's (ablations).
        targets: where distillation targets come from; needed where the stage distils.
        start: hash of the weights the training starts from.
    """
    settings = settings or run.settings
    patches = train_set(data, settings, name.split("/")[-1], stage.patch)
    key = targets.key if targets and stage.loss.kd > 0 else None
    draw = lambda step, rank, world: patches.batch(step, stage.batch, stage.patch, rank, world, teacher=key)
    compute = targets.compute if targets and stage.loss.kd > 0 else None
    identity = {"seed": settings.seed, "data": data.store.key, "start": start,
                "student": settings_hash(settings.student), "teacher": targets.name if targets else "none"}
    return fit(model, stage, draw, run.checkpoint(name), name=name, score=psnr_scorer(data.valid), teacher=compute,
               events=events, identity=identity)


def stage1(run: Run, data: Data, name: str = "stage1", settings: Settings | None = None) -> Trained:
    """Stage 1: from random weights, L1 (paper section 4). Leaves `student.safetensors` in training form."""
    settings = settings or run.settings
    torch.manual_seed(settings.seed)
    model = prepare_form(build_model(settings.student), data, settings, settings.stage1, name)
    result = train(run, data, name, model, settings.stage1, settings=settings)
    return _keep(run, name, result, settings)


def stage2(run: Run, data: Data, targets: "Targets", name: str = "stage2", start: str = "stage1",
           settings: Settings | None = None) -> Trained:
    """Stage 2: Charbonnier + DCT + distillation, from stage 1's best weights (paper sections 3 and 4)."""
    settings = settings or run.settings
    path = run.checkpoint(start) / "student.safetensors"
    model = prepare_form(load_model(path), data, settings, settings.stage2, name)
    result = train(run, data, name, model, settings.stage2, settings=settings, targets=targets,
                   start=sha256_file(path))
    return _keep(run, name, result, settings)


def prepare_form(model: nn.Module, data: Data, settings: Settings, stage: StageSettings, name: str) -> nn.Module:
    """The model in the form the stage trains; collapsing first estimates the BN statistics on training patches."""
    if not isinstance(model, Student) or model.form == "fused":
        return model
    if stage.form == "collapsed":
        patches = train_set(data, settings, f"{name}/statistics", stage.patch)
        model = recalibrate_bn(model, lr_batches(patches, stage, stage.recalibrate_batches))
    return with_form(model, "collapsed" if stage.form == "collapsed" else "training")


def _keep(run: Run, name: str, result: Fit, settings: Settings) -> Trained:
    model = result.model
    if isinstance(model, Student) and model.form == "collapsed":
        model = with_form(model, "training").eval()
    path = save_student(model, run.checkpoint(name) / "student.safetensors", stage=name,
                        settings=settings_hash(settings), step=result.best_step)
    return Trained(model, path, result)


@dataclass
class Targets:
    """Distillation targets of a run: cached whole-photograph outputs, or a network asked for each patch."""

    name: str
    """Which teacher, for tables and identity."""
    key: str | None = None
    """Key of the cached outputs beside the training pixels."""
    compute: Callable[[Tensor], Tensor] | None = None


def teacher_targets(run: Run, data: Data, source: TeacherSource) -> Targets:
    """Targets from a teacher network, cached once or computed for each patch, as the settings say."""
    if run.settings.teacher.outputs == "on_the_fly":
        return Targets(source.name, compute=OnTheFlyTeacher(source.model))
    key = outputs_key(source)
    teacher_outputs(data.store, source.model, key)
    return Targets(source.name, key=key)


def open_teacher(run: Run, data: Data) -> TeacherSource:
    """The run's teacher network: the published weights, or a small one trained here (checkpoints/teacher/)."""
    return find_teacher(run.settings.teacher, partial(small_teacher, run, data))


def small_teacher(run: Run, data: Data, model: nn.Module) -> Fit:
    """Train the small teacher from scratch with L1 on the run's photographs; the offline stand-in."""
    small = run.settings.teacher
    stage = StageSettings(
        steps=small.small_steps, batch=small.small_batch, patch=small.small_patch, lr=small.small_lr, warmup=0.05,
        clip_body=0, clip_ends=0, ema=0.99, ema_warmup=True, validate_every=small.small_steps,
        checkpoint_every=50, loss={"l1": 1.0})
    return train(run, data, "teacher", model, stage)


def recalibrated(run: Run, data: Data, name: str = "stage2", settings: Settings | None = None) -> Student:
    """The best weights of a stage with BN statistics re-estimated on training patches (paper section 4)."""
    settings = settings or run.settings
    stage = settings.stage2
    model = load_model(run.checkpoint(name) / "student.safetensors")
    if stage.form == "collapsed":
        return model  # its statistics were estimated before training and frozen since
    patches = train_set(data, settings, f"{name}/recalibration", stage.patch)
    return recalibrate_bn(model, lr_batches(patches, stage, stage.recalibrate_batches))


def calibration(run: Run, data: Data) -> list[np.ndarray]:
    """LR training photographs (uint8, (h, w, 3)) shown to observers and to post-training quantisation."""
    count = min(run.settings.quant.calibration_images, len(data.store))
    chosen = np.linspace(0, len(data.store) - 1, count).round().astype(int)
    return [np.asarray(data.store.lr(int(index))) for index in chosen]


def stage3(run: Run, data: Data, fused: nn.Module, targets: Targets | None, name: str = "stage3",
           settings: Settings | None = None) -> Trained:
    """Stage 3: quantisation-aware training of the fused student (paper section 4). Leaves `qat.safetensors`.

    The observers run for the fraction `quant.observe_until` of the steps; then the grids are frozen.
    """
    settings = settings or run.settings
    stage = settings.stage3
    model = prepare_qat(fused, settings.quant, calibration(run, data))
    start = save_student(fused, run.checkpoint(name) / "fused.safetensors", stage=name)
    events = {round(settings.quant.observe_until * stage.steps): freeze_observers}
    result = train(run, data, name, model, stage, settings=settings, targets=targets, events=events,
                   start=sha256_file(start) + settings_hash(settings.quant))
    path = save_qat(result.model, run.checkpoint(name) / "qat.safetensors", stage=name,
                    settings=settings_hash(settings), step=result.best_step)
    return Trained(result.model, path, result)
