"""Freed memory is kept in every process that trains or asks a teacher, however it was started, and in no other."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

RUN = """
    import ctypes, os, sys, torch
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_loop import SMALL, draw, score, stage
    from paperlib.data.dataset import open_data
    from paperlib.run import open_run
    from paperlib.student.network import Student
    from paperlib.teacher.distillation import TeacherSource, teacher_outputs
    from paperlib.teacher.network import MambaIRv2Light, TeacherShape, TeacherUpscaler
    from paperlib.training.loop import fit
    from paperlib.training.stages import open_teacher

    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in
                    "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

    def mapped_anew():
        mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
        mallinfo.restype = Info
        before = mallinfo().hblkhd
        large = torch.empty(80_000_000, dtype=torch.uint8)
        return mallinfo().hblkhd - before >= large.numel()

    def model():
        return MambaIRv2Light(TeacherShape(dim=8, groups=1, layers=1, states=3, tokens=6, rank=4)).eval()

    folder = Path({folder!r})
    settings = {{"data.train_crop": 48, "data.valid_crop": 24, "data.max_train": 1, "data.max_valid": 1,
                "teacher.small_steps": 1, "teacher.small_patch": 16, "teacher.small_batch": 1}}
    run = open_run("smoke", folder / "run", settings)
    data = open_data(run.settings.data)
    jobs = {{"nothing": lambda: TeacherUpscaler(model()),
            "fit": lambda: fit(Student(SMALL), stage(steps=1), draw, folder / "fit", name="t", score=score),
            "teacher": lambda: open_teacher(run, data),
            "outputs": lambda: teacher_outputs(data.store, TeacherSource(model(), "small", "0" * 64, ""))}}
    for name, job in jobs.items():
        child = os.fork()
        if not child:
            torch.set_num_threads(1)
            job()
            os._exit(10 + mapped_anew())
        print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_every_training_and_every_teacher_keeps_freed_memory(tmp_path):
    code = textwrap.dedent(RUN.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env=environment | {"PAPERLIB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"})
    found = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    # 10: a large tensor came from kept memory, 11: it was mapped anew
    assert found == {"nothing": "11", "fit": "10", "teacher": "10", "outputs": "10"}, done.stdout + done.stderr
