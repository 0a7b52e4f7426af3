"""What an NPU would make of a fixed-shape INT8 file: Arm's Vela compiler, which anyone can run (issue of Table A).

Vela compiles for Ethos-U NPUs, says which operators it leaves to the CPU and estimates cycles and memory traffic. That
is an estimate on another device than the challenge's phone; it ranks graph forms, it does not predict 41.1 ms.
"""

import csv
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paperlib.errors import UserError

ACCELERATORS = ("ethos-u55-256", "ethos-u65-512", "ethos-u85-2048")
NOTE = "estimate by Arm's Vela for an Ethos-U NPU; not the challenge's device"


def vela_available() -> bool:
    """Whether the extra `npu` (ethos-u-vela) is installed."""
    return find_spec("ethosu") is not None


def _run_vela(path: Path, accelerator: str, folder: Path) -> str:
    command = [sys.executable, "-m", "ethosu.vela", str(path), "--accelerator-config", accelerator,
               "--output-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"Vela cannot compile {path} for {accelerator}: {last[0]}. Give it a fixed-shape INT8 file.")
    return done.stdout


def estimate_npu(path: str | Path, accelerator: str = "ethos-u65-512") -> dict[str, Any]:
    """Vela's estimate for one fixed-shape INT8 file.

    Args:
        path: `student_fixed_int8.tflite` or the authors' `model.tflite`.
        accelerator: one of `ACCELERATORS`.

    Returns:
        `operators_npu`, `operators_cpu` (counts), `cpu_operators` (names), `cycles_npu` (NPU part alone),
        `cycles_total` (with memory stalls), `sram_bytes`, `dram_bytes` (traffic of one inference), `sram_used_bytes`,
        `clock_hz`, `ms` (NPU part; CPU operators come on top and have no estimate), `note`.

    Raises:
        UserError: the extra is missing, or Vela does not accept the file.
    """
    path = Path(path)
    if not vela_available():
        raise UserError("the NPU estimate needs ethos-u-vela, which is not installed. Run: pip install "
                        "'.[npu]' in a clone.")
    if accelerator not in ACCELERATORS:
        raise UserError(f"unknown accelerator {accelerator!r}. Choose one of {', '.join(ACCELERATORS)}.")
    if not path.is_file():
        raise UserError(f"no TFLite file at {path}. Name an existing file.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = _run_vela(path, accelerator, folder)
        summaries = sorted(folder.glob("*_summary_*.csv"))
        if not summaries:
            raise UserError(f"Vela left no summary for {path}: nothing of it runs on the NPU. Give it an INT8 file.")
        with summaries[0].open(newline="", encoding="utf-8") as file:
            row = list(csv.DictReader(file))[-1]
    counts = {kind: int(found[1]) if (found := re.search(rf"^{kind} operators = (\d+)", text, re.M)) else 0
              for kind in ("NPU", "CPU")}
    left = re.findall(r"^Warning \(supported operators\) operator: (\w+)", text, re.M)
    clock = float(row["core_clock"])
    cycles = int(float(row["cycles_total"]))
    return {
        "accelerator": accelerator, "memory": row["memory_mode"], "system": row["system_config"],
        "operators_npu": counts["NPU"], "operators_cpu": counts["CPU"], "cpu_operators": left,
        "cycles_npu": int(float(row["cycles_npu"])), "cycles_total": cycles,
        "sram_bytes": int(float(row["sram_total_bytes"])), "dram_bytes": int(float(row["dram_total_bytes"])),
        "sram_used_bytes": round(1024 * float(row["sram_memory_used"])),
        "clock_hz": clock, "ms": 1e3 * cycles / clock, "note": NOTE}


def estimate_if_available(path: str | Path, accelerators: tuple[str, ...] = ACCELERATORS) -> list[dict[str, Any]]:
    """`estimate_npu` for each accelerator; an empty list where the extra `npu` is not installed."""
    if not vela_available():
        return []
    return [estimate_npu(path, accelerator) for accelerator in accelerators]
