"""Workloads in processes forked from a server that has imported everything and computed nothing.
A process that has computed has threads and locks that a fork takes over for ever, so the test's own is never forked."""

import importlib.util
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from paperlib.run import open_run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "torch", "paperlib.run", "paperlib.training.stages"])
LONGEST = 300.0
"""Seconds after which a child that does not end is taken for hung."""


def _do(module: Path, work: str, folder: Path, changes: dict[str, Any], log: Path) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("trainings", module)
    trainings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trainings)
    getattr(trainings, work)(open_run("smoke", folder, changes))


def child(module: Path, work: str, folder: Path, changes: dict[str, Any],
          after: float | None = None, file: str = "") -> bool:
    """Do `work`, a function of `module` that takes an open run; whether it was killed.

    That is `after` so many seconds, or once a `file` is there.
    """
    log = folder.parent / "child.log"
    process = SERVER.Process(target=_do, args=(module, work, folder, changes, log))
    process.start()
    if after is not None:
        process.join(after)
    while file and not any(folder.glob(file)):
        time.sleep(0.002)
        assert process.is_alive(), log.read_text()
    if after is not None or file:
        process.kill()
    process.join(LONGEST)
    assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
    return process.exitcode != 0
