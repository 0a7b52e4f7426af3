"""The same loop under torchrun: two processes with half a batch each train what one process trains (gloo, CPU).

Sums of floating-point numbers depend on their order, so the comparison is to a tolerance: one process adds up the
gradients of a whole batch, two add up halves and then the two sums.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paperlib.data.dataset import Batch
from paperlib.run import open_run
from paperlib.settings import StageSettings, StudentSettings
from paperlib.student.models import build_model, save_student
from paperlib.student.network import with_form
from paperlib.training.loop import fit

SETTINGS = StudentSettings(channels=4, blocks=2, branches=2, init="bilinear")
STAGE = StageSettings(steps=6, batch=4, patch=8, lr=1e-3, warmup=0.2, clip_grad=1.0, validate_every=1,
                      checkpoint_every=2, ema_warmup=True, loss={"l1": 1.0})


def start() -> torch.nn.Module:
    torch.manual_seed(0)
    return with_form(build_model(SETTINGS), "collapsed")


def draw(step: int, rank: int, world: int) -> Batch:
    """This process's part of a batch that depends on the step alone."""
    if step == int(os.environ.get("STOP_AT", -1)):
        sys.exit(3)
    generator = torch.Generator().manual_seed(step)
    lr = torch.randint(0, 256, (STAGE.batch, 3, 8, 8), generator=generator, dtype=torch.uint8)
    hr = torch.randint(0, 256, (STAGE.batch, 3, 24, 24), generator=generator, dtype=torch.uint8)
    return Batch(lr[rank::world], hr[rank::world], None, [])


def score(model: torch.nn.Module) -> dict[str, float]:
    return {"psnr_rgb": float(sum(value.double().sum() for value in model.state_dict().values()))}


def train(folder: Path):
    return fit(start(), STAGE, draw, folder, name="test", score=score)


def torchrun(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """Two processes of a script, or of `-m module`, with its arguments."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *words]
    # two processes cannot share a GPU; without one there is nothing to ask for
    cpu = {"ACCELERATE_USE_CPU": "true"} if torch.cuda.is_available() else {}
    return subprocess.run(command, capture_output=True, text=True, timeout=240,
                          env=os.environ | {"OMP_NUM_THREADS": "1"} | cpu | environment)


def both(folder: Path, **environment: str) -> tuple[int, list[dict]]:
    """`train` of a collapsed student in two processes: exit code, and what each of them found."""
    done = torchrun(__file__, str(folder), **environment)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("rank?.json"))]
    return done.returncode, found


def test_two_processes_train_what_one_trains_and_continue_when_stopped(tmp_path):
    alone = train(tmp_path / "one")
    code, (together, other) = both(tmp_path / "two")
    losses = [row["loss"] for row in alone.history]
    assert (code, len(losses)) == (0, STAGE.steps)
    assert together["losses"] == pytest.approx(losses, rel=1e-5)
    assert together["losses"] == other["losses"]
    weights = alone.model.state_dict().values()
    for mine, theirs, first in zip(together["weights"], weights, start().state_dict().values(), strict=True):
        torch.testing.assert_close(torch.tensor(mine), theirs, rtol=1e-4, atol=1e-6, check_dtype=False)
        assert first.ndim < 4 or not torch.allclose(first, torch.tensor(mine), atol=1e-5)  # it has moved
    assert len(list((tmp_path / "two").glob("state-*.pt"))) == 2
    assert both(tmp_path / "parts", STOP_AT="5")[0] != 0
    code, (again, _) = both(tmp_path / "parts")
    assert (code, together["resumed_from"], again["resumed_from"]) == (0, 0, 4)
    assert again["weights"] == together["weights"]


def test_stage_2_and_its_small_teacher_train_on_two_processes(tmp_path):
    changes = {"student.blocks": 1, "student.channels": 4, "student.branches": 2, "data.train_crop": 60,
               "data.valid_crop": 24, "data.max_train": 2, "data.max_valid": 1, "stage2.patch": 8, "stage2.steps": 3,
               "stage2.form": "collapsed", "teacher.kind": "small", "teacher.outputs": "cached",
               "teacher.small_batch": 2, "teacher.small_steps": 3, "teacher.small_patch": 16}
    run = open_run("smoke", tmp_path / "run", changes)
    save_student(build_model(run.settings.student), run.stage_folder("stage1") / "student.safetensors")
    words = ["-m", "paperlib", "train", "stage2", "--profile", "smoke", "--out", str(run.out), "--set",
             *(f"{name}={value}" for name, value in changes.items())]
    done = torchrun(*words, PAPERLIB_CACHE=str(tmp_path / "cache"), PAPERLIB_PROGRESS="plain")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained: ") == 2
    assert done.stdout.count("teacher: step 3/3") == done.stdout.count("stage2: step 3/3") == 1  # together, not twice
    assert (run.stage_folder("teacher") / "teacher.pth").is_file()
    steps = {name: torch.load(max(run.stage_folder(name).glob("state-*.pt")), weights_only=True)["step"]
             for name in ("teacher", "stage2")}
    assert steps == {"teacher": 3, "stage2": 3}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    result = train(folder)
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps({
        "losses": [row["loss"] for row in result.history], "resumed_from": result.resumed_from,
        "weights": [value.tolist() for value in result.model.state_dict().values()]}))
