"""Freed memory is kept in every process that trains or asks a teacher, and in no other."""

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import child
from networks import TINY, small_teacher

from paperlib.data.dataset import open_data
from paperlib.run import Run
from paperlib.teacher.distillation import TeacherSource, teacher_outputs
from paperlib.teacher.network import TeacherUpscaler
from paperlib.training.stages import open_teacher, stage1

SHORT = {"stage1.steps": 1, "stage1.patch": 8, "teacher.small_steps": 1, "teacher.small_patch": 16,
         "teacher.small_batch": 1}


class Info(ctypes.Structure):
    """What glibc's mallinfo2 gives."""

    _fields_ = [("first", ctypes.c_size_t * 4), ("hblkhd", ctypes.c_size_t), ("last", ctypes.c_size_t * 5)]


def mapped_anew() -> bool:
    mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo.restype = Info
    before = mallinfo().hblkhd
    large = torch.empty(80_000_000, dtype=torch.uint8)
    return mallinfo().hblkhd - before >= large.numel()


def nothing(run: Run) -> None:
    TeacherUpscaler(small_teacher())(np.zeros((9, 9, 3), np.uint8))
    assert mapped_anew()


def training(run: Run) -> None:
    stage1(run, open_data(run.settings.data))
    assert not mapped_anew()


def teacher(run: Run) -> None:
    open_teacher(run, open_data(run.settings.data))
    assert not mapped_anew()


def outputs(run: Run) -> None:
    teacher_outputs(open_data(run.settings.data).store, TeacherSource(small_teacher(), "small", "0" * 64, ""))
    assert not mapped_anew()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize("job", ["nothing", "training", "teacher", "outputs"])
def test_every_training_and_every_teacher_keeps_freed_memory(tmp_path, job):
    child(Path(__file__), job, tmp_path / "run", TINY | SHORT)
