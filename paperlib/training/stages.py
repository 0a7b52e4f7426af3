"""The steps as the notebooks call them: stage 1, teacher, stage 2, QAT (paper sections 1–4).

Each trains through the one `fit` and leaves its weights under `checkpoints/<stage>/`, so that any
notebook can be run again, or alone.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.data.dataset import Data, calibration, lr_batches, open_data, patches_of
from paperlib.data.photographs import Pair
from paperlib.environment import keep_freed_memory, log_stderr
from paperlib.evaluation.scoring import mean_psnr
from paperlib.evaluation.torch_upscalers import TorchUpscaler
from paperlib.files import atomic_path, sha256_file
from paperlib.quantisation.qat import freeze_observers, prepare_qat, save_qat
from paperlib.run import Run
from paperlib.settings import Settings, StageSettings, TeacherSettings, settings_hash
from paperlib.student import models
from paperlib.student.dead_channels import can_reinitialise, reinitialise
from paperlib.student.network import Student, with_form
from paperlib.teacher import distillation
from paperlib.teacher.distillation import Targets, TeacherSource, on_the_fly
from paperlib.teacher.network import MambaIRv2Light, start_bilinear
from paperlib.training.loop import Fit, fit, processes, recalibrate_bn
from paperlib.training.losses import gradient_shares
from paperlib.weights import start_file


@dataclass
class Trained:
    """A finished training: the weights, where they lie, and how it went."""

    model: nn.Module
    path: Path
    fit: Fit


def psnr_scorer(pairs: Sequence[Pair]) -> Callable[[nn.Module], dict[str, float]]:
    """A score for `fit`: mean PSNR (dB, RGB, no crop, clipped float output) of the fused form."""

    def score(model: nn.Module) -> dict[str, float]:
        deployed = models.fuse_model(model) if getattr(model, "form", "qat") != "qat" else model
        return {"psnr_rgb": mean_psnr(pairs, TorchUpscaler(deployed, "validation"))}

    return score


def train(
    run: Run, data: Data, name: str, model: nn.Module, stage: StageSettings, settings: Settings, *,
    stream: str, targets: Targets | None = None, events: dict[int, Any] | None = None,
    start: str = "",
) -> Fit:
    """Train `model` as `stage` says, in `checkpoints/<name>/`; continues a stopped training.

    Args:
        settings: the run's, or an ablation's.
        stream: names the sequence of patches; trainings that are compared share it.
        targets: where distillation targets come from; needed where the stage distils.
        start: hash of the weights the training starts from.
    """
    patches = patches_of(data, settings, stream, stage)
    if targets is None or stage.loss.kd == 0:
        targets = Targets("none")
    draw = lambda step, rank, world: patches.batch(
        step, stage.batch, rank, world, teacher=targets.key)
    identity = {"seed": settings.seed, "data": data.store.key, "valid": data.valid_key,
                "start": start, "sampling": settings.data.sampling,
                "student": settings_hash(settings.student), "teacher": targets.name}
    return fit(model, stage, draw, run.stage_folder(name), name=name, events=events,
               score=psnr_scorer(data.valid), teacher=targets.compute, identity=identity)


def stage1(run: Run, data: Data, name: str = "stage1", settings: Settings | None = None) -> Trained:
    """Stage 1: from random weights, L1 (section 4). Leaves `student.safetensors`, EMA weights.

    Weights are not clipped here, as in the released run (`clip_body`, `clip_ends`).
    """
    settings = settings or run.settings
    torch.manual_seed(settings.seed)
    model = _in_form(models.build_model(settings.student), data, settings, "stage1")
    result = train(run, data, name, model, settings.stage1, settings, stream="stage1")
    return _keep(run, name, result, settings)


def stage2(run: Run, data: Data, targets: Targets | None, name: str = "stage2",
           settings: Settings | None = None, start: str = "stage1") -> Trained:
    """Stage 2: Charbonnier + DCT + distillation, from the weights that stage `start` left.

    Paper sections 3 and 4. After a collapsed stage 1 it begins at that very function.
    """
    settings = settings or run.settings
    first = models.load_model(run.stage_folder(start) / "student.safetensors")
    stays = settings.stage1.form == settings.stage2.form == "collapsed"
    model = _in_form(_without_dead_channels(first, data, settings), data, settings, "stage2",
                     recalibrate=not stays)
    result = train(run, data, name, model, settings.stage2, settings, stream="stage2",
                   targets=targets, start=models.weights_hash(first))
    return _keep(run, name, result, settings)


def _in_form(model: nn.Module, data: Data, settings: Settings, name: str,
             recalibrate: bool = True) -> nn.Module:
    """The model in the form that stage `name` trains; collapsing first estimates BN statistics."""
    if not isinstance(model, Student) or model.form == "fused":
        return model
    stage: StageSettings = getattr(settings, name)
    if stage.form == "collapsed" and recalibrate:
        model = recalibrate_bn(model, lr_batches(data, settings, f"{name}/statistics", stage))
    return with_form(model, stage.form)


def dead_channel_patches(data: Data, settings: Settings) -> Tensor:
    """Training patches (128, 3, p, p) in 0..255 on which stage 2 finds dead channels."""
    return patches_of(data, settings, "stage2/revival", settings.stage2).batch(0, 128).lr.float()


def _without_dead_channels(model: nn.Module, data: Data, settings: Settings) -> nn.Module:
    """Stage 1's student as stage 2 takes it: dead channels start anew where the settings say so."""
    if not settings.stage2.revive:
        return model
    if not can_reinitialise(model):
        log_stderr("stage2: revive is for MobileOne blocks; this network goes on as it is")
        return model
    model, counts = reinitialise(model, dead_channel_patches(data, settings), settings.seed)
    log_stderr(f"stage2: {sum(counts)} dead channels get fresh kernels (by block: "
               f"{', '.join(map(str, counts))})")
    return model


def _keep(run: Run, name: str, result: Fit, settings: Settings) -> Trained:
    model = result.model
    if isinstance(model, Student) and model.form == "collapsed":
        model = with_form(model, "expanded").eval()
    path = models.save_student(model, run.stage_folder(name) / "student.safetensors", stage=name,
                        settings=settings_hash(settings), step=result.kept_step)
    return Trained(model, path, result)


def recalibrated(run: Run, data: Data, name: str = "stage2",
                 settings: Settings | None = None) -> nn.Module:
    """A stage's weights with BN statistics estimated anew on training patches (paper section 4).

    Those of a collapsed stage, frozen before training, are kept. What `quant.start` names takes the
    place of stage 2 as it is.
    """
    settings = settings or run.settings
    if name == "stage2" and settings.quant.start:
        return _start(run)
    stage = settings.stage1 if name.endswith("stage1") else settings.stage2
    model = models.load_model(run.stage_folder(name) / "student.safetensors")
    if stage.form == "collapsed":
        return model
    return recalibrate_bn(model, lr_batches(data, settings, "recalibration", stage)).eval()


def stage3(run: Run, data: Data, fused: nn.Module, targets: Targets | None, name: str = "stage3",
           settings: Settings | None = None) -> Trained:
    """Stage 3: quantisation-aware training of the fused student (section 4): `qat.safetensors`.

    The activation grids are learned for the part `quant.observe_until` of the steps, then frozen.
    """
    settings = settings or run.settings
    stage, quant, folder = settings.stage3, settings.quant, run.stage_folder(name)
    with TemporaryDirectory() as place:  # the folder may hold another training, which is refused
        start = sha256_file(models.save_student(fused, Path(place, "start.safetensors"), stage=name))
    images = calibration(data, settings)
    rounds = quant.rounding == "data" and quant.quantiser == "tflite"
    log_stderr(f"{name}: {len(images)} calibration images: "
               f"{'rounding the kernels to them, then ' if rounds else ''}calibrating on them")
    model = prepare_qat(fused, quant, images)
    events = {round(quant.observe_until * stage.steps): freeze_observers}
    result = train(run, data, name, model, stage, settings, stream="stage3", targets=targets,
                   events=events, start=f"{start[:16]} {settings_hash(quant)}")
    models.save_student(fused, folder / "fused.safetensors", stage=name)
    path = save_qat(result.model, folder / "qat.safetensors", stage=name,
                    settings=settings_hash(settings), step=result.kept_step)
    return Trained(result.model, path, result)


class _TeacherIn255(nn.Module):
    """A teacher, which works on 0..1, for a loop on 0..255; its routing noise has a seed a step."""

    def __init__(self, model: MambaIRv2Light, seed: int) -> None:
        super().__init__()
        self.inner, self.seed = model, seed

    def before_step(self, step: int, rank: int) -> None:
        seeds = np.random.SeedSequence([self.seed, step, rank])
        self.inner.set_noise(int(seeds.generate_state(1, np.uint64)[0]))

    def forward(self, x_255: Tensor) -> Tensor:
        return self.inner(x_255 / 255) * 255


def _train_small(run: Run, data: Data, model: MambaIRv2Light) -> nn.Module:
    """The small teacher, trained with L1 on the run's photographs (or loaded, when done)."""
    small: TeacherSettings = run.settings.teacher
    stage = StageSettings(
        steps=small.small_steps, batch=small.small_batch, patch=small.small_patch,
        lr=1e-3, warmup=0.05,
        clip_body=0, clip_ends=0, ema=0.99, ema_warmup=True, validate_every=small.small_steps,
        checkpoint_every=50, loss={"l1": 1.0})
    start_bilinear(model)
    result = train(run, data, "teacher", _TeacherIn255(model, run.settings.seed), stage,
                   run.settings, stream="teacher", start=settings_hash(small))
    # saved to a file, the file's temporary name would get into the bytes and the hash
    buffer = io.BytesIO()
    torch.save({"params": result.model.inner.state_dict()}, buffer)
    with atomic_path(run.stage_folder("teacher") / "teacher.pth") as temporary:
        temporary.write_bytes(buffer.getvalue())
    return result.model.inner


def open_teacher(run: Run, data: Data) -> TeacherSource:
    """The run's teacher: the published weights, or a small one trained here (checkpoints/teacher/).

    Which one is decided once a run and kept in checkpoints/teacher/teacher.json. Under torchrun all
    processes must call this: they train the small one together.
    """
    keep_freed_memory()
    pin = run.stage_folder("teacher") / "teacher.json"
    with processes().main_process_first():
        settings = distillation.decide_teacher(run.settings.teacher, pin)
    source = distillation.find_teacher(settings, partial(_train_small, run, data))
    with processes().main_process_first():
        return distillation.pin_teacher(source, settings.kind, pin)


def teacher_targets(run: Run, data: Data, source: TeacherSource) -> Targets:
    """Targets from a teacher, cached once or computed for each patch, as the settings say."""
    if run.settings.teacher.outputs == "on_the_fly":
        return Targets(source.name, compute=on_the_fly(source.model, 1), about=source.describe())
    with processes().main_process_first():
        distillation.teacher_outputs(data.store, source)
    key = distillation.outputs_key(source)
    return Targets(f"{source.name} {key}", key=key, about=source.describe())


def start_path(run: Run) -> Path:
    """The float student that stage 3 starts from: what `quant.start` names, else stage 2's."""
    named = run.settings.quant.start
    return start_file(named) if named else run.stage_folder("stage2") / "student.safetensors"


def _start(run: Run) -> nn.Module:
    path = start_path(run)
    return models.read_published(path) if path.suffix == ".pt" else models.load_model(path)


def distillation_targets(run: Run, data: Data, stage: int,
                         settings: Settings | None = None) -> Targets | None:
    """What stage 2 or 3 learns from: the teacher, or in stage 3 the float student that it starts
    from, as in the authors' released run; None, and no teacher opened, where the loss distils
    nothing."""
    settings = settings or run.settings
    if getattr(settings, f"stage{stage}").loss.kd == 0:
        return None
    if stage == 2 or settings.teacher.stage3 == "same":
        return teacher_targets(run, data, open_teacher(run, data))
    model = models.fuse_model(_start(run))
    return Targets(f"the float student itself {models.weights_hash(model)[:16]}",
                   compute=on_the_fly(model, 255))


def stage_shares(data: Data, settings: Settings, stage: int, model: nn.Module,
                 targets: Targets | None) -> pd.DataFrame:
    """`gradient_shares` of a stage's loss for a model, on the first batch of that stage."""
    name, targets = f"stage{stage}", targets or Targets("none")
    values: StageSettings = getattr(settings, name)
    batch = patches_of(data, settings, name, values).batch(0, values.batch, teacher=targets.key)
    return gradient_shares(model, batch, values.loss, targets.compute)


def train_stage(run: Run, name: str) -> Trained:
    """Stage `name` of a run outside its notebook; the one before must have run.

    Under torchrun the first process prepares the data; a training inside `main_process_first` would
    wait for ever for the others, which wait for the first.
    """
    if name != "stage1":
        run.require("stage1" if name == "stage2" else "stage2")
    with processes().main_process_first():
        if processes().is_main_process:
            log_stderr("opening the store of training pixels (built when first used)")
        data = open_data(run.settings.data)
    if name == "stage1":
        return stage1(run, data)
    targets = distillation_targets(run, data, int(name[-1]))
    if name == "stage2":
        return stage2(run, data, targets)
    return stage3(run, data, models.fuse_model(recalibrated(run, data), clamp=True), targets)
