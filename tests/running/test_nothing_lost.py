"""Killed at any moment, a training continues to the same weights, bit for bit: real SIGKILL.
States are written after every step, so that many kills fall into the writing of a file."""

import random
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from forked import child as forked
from networks import TINY

from paperlib.data.dataset import open_data
from paperlib.run import Run
from paperlib.student.models import fuse_model, read_weights, save_student
from paperlib.student.network import Student
from paperlib.teacher.distillation import Targets
from paperlib.training.stages import distillation_targets, open_teacher, recalibrated, stage1, stage2, stage3

SHORT = TINY | {"quant.quantiser": "tflite", "teacher.stage3": "student"}
for stage in ("stage1", "stage2", "stage3"):
    SHORT |= {f"{stage}.patch": 8, f"{stage}.steps": 30, f"{stage}.validate_every": 7, f"{stage}.checkpoint_every": 1}
SHORT |= {"stage3.loss.kd": 0.1, "stage3.loss.kd_mid": None}
KILLS = 5
"""In each of the four trainings, 20 in all, counted when the training is on its way; others come on top."""


def first(run: Run) -> None:
    stage1(run, open_data(run.settings.data))


def second(run: Run) -> None:
    save_student(student(run), run.stage_folder("stage1") / "student.safetensors")
    targets = Targets("nearest", compute=lambda lr: torch.nn.functional.interpolate(lr / 255, scale_factor=3))
    stage2(run, open_data(run.settings.data), targets)


def third(run: Run) -> None:
    save_student(fuse_model(student(run)), run.stage_folder("stage2") / "student.safetensors")
    data = open_data(run.settings.data)
    stage3(run, data, recalibrated(run, data), distillation_targets(run, data, 3))


def student(run: Run) -> Student:
    torch.manual_seed(5)
    return Student(run.settings.student)


CASES = {"stage1": ("first", {}), "stage1, collapsed": ("first", {"stage1.form": "collapsed",
         "stage1.optimizer": "soap"}), "stage2": ("second", {"stage2.form": "collapsed", "stage2.checkpoint_every": 4}),
         "stage3": ("third", {})}


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    do = lambda work, folder, changes, *how, **more: forked(Path(__file__), work, folder, SHORT | changes, *how, **more)
    do("first", tmp_path_factory.mktemp("warm") / "run", {})  # fills the caches of this machine
    return do


def trained(out: Path) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """Weights and log of a run's one training."""
    (log,) = out.glob("checkpoints/*/history.csv")
    (path,) = (path for path in log.parent.glob("[!.]*.safetensors") if path.stem != "fused")
    return read_weights(path)[0], pd.read_csv(log)


@pytest.mark.parametrize("name", CASES)
def test_twenty_kills_change_nothing(name, tmp_path, child):
    work, changes = CASES[name]
    began = time.monotonic()
    assert not child(work, tmp_path / "whole", changes)
    whole = time.monotonic() - began
    moments, kills = random.Random(name), 0
    for _ in range(20 * KILLS):
        child(work, tmp_path / "killed", changes, moments.uniform(0.02, 0.6) * whole)
        states = sorted((tmp_path / "killed").glob("checkpoints/*/state-*"))
        kills += bool(states) and "state-000030" not in states[-1].name  # on its way, neither starting nor done
        if kills == KILLS:
            break
        if states and "state-000030" in states[-1].name:
            for path in sorted((tmp_path / "killed").glob("checkpoints/*/*")):
                path.unlink()
    assert kills == KILLS
    assert not child(work, tmp_path / "killed", changes)
    (expected, log), (found, other) = (trained(tmp_path / name) for name in ("whole", "killed"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    seconds = [history.pop("seconds") for history in (log, other)]
    assert log.equals(other)  # a mean since the last validation counts the steps before a kill too
    assert len(log) > 3
    assert all(times.is_monotonic_increasing for times in seconds)  # it adds up over the parts
    left = [path.name for path in (tmp_path / "killed").rglob(".*") if path.is_file() and "checkpoints" in path.parts]
    assert len(left) <= KILLS  # at most the temporary file of each kill


def small_teacher(run: Run) -> None:
    open_teacher(run, open_data(run.settings.data))


def test_a_killed_small_teacher_goes_on_to_the_same_weights(tmp_path, child):
    changes = {"teacher.kind": "small", "teacher.small_dim": 8, "teacher.small_layers": 1, "teacher.small_patch": 16,
               "teacher.small_batch": 1, "teacher.small_steps": 150}
    assert not child("small_teacher", tmp_path / "whole", changes)
    assert child("small_teacher", tmp_path / "killed", changes, file="checkpoints/teacher/state-000050-*.pt")
    assert not any(tmp_path.glob("killed/checkpoints/teacher/state-000150-*"))
    assert not child("small_teacher", tmp_path / "killed", changes)
    whole, killed = (torch.load(tmp_path / name / "checkpoints/teacher/teacher.pth", weights_only=True)["params"]
                     for name in ("whole", "killed"))
    assert all(torch.equal(value, killed[key]) for key, value in whole.items())
