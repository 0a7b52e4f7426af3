"""What an NPU would make of a fixed-shape INT8 file: Arm's Vela compiler (paper, Table A).

Vela compiles for Ethos-U NPUs, not for the challenge's phone: it ranks graph forms, it does not
predict 41.1 ms.
"""

import csv
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paperlib.errors import UserError

ACCELERATORS = ("ethos-u55-256", "ethos-u65-512", "ethos-u85-2048")
NOTE = "estimate by Arm's Vela for an Ethos-U NPU; not the challenge's device"


def estimate_npu(path: str | Path,
                 accelerators: Sequence[str] = ACCELERATORS) -> list[dict[str, Any]]:
    """Vela's estimates for one fixed-shape INT8 file; none where the extra `npu` is not installed.

    Returns:
        One dict an accelerator: `operators_npu`, `operators_cpu` (counts), `cpu_operators` (names),
        `cycles_npu`, `cycles_total` (with memory stalls), `sram_bytes`, `dram_bytes` (traffic of
        one inference), `sram_used_bytes`, `clock_hz`, `ms` (without CPU operators), `note`.
    """
    if find_spec("ethosu") is None:
        return []
    return [_estimate(path, accelerator) for accelerator in accelerators]


def _estimate(path: str | Path, accelerator: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ethosu.vela", str(path), "--accelerator-config",
                   accelerator, "--output-dir", folder]
        done = subprocess.run(command, capture_output=True, text=True,
                              env=os.environ | {"PYTHONUNBUFFERED": "1"})
        summaries = sorted(Path(folder).glob("*_summary_*.csv"))
        if done.returncode or not summaries:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"Vela cannot compile {path} for {accelerator}: {last[0]}. Give it a "
                            "fixed-shape INT8 file.")
        with summaries[0].open(newline="", encoding="utf-8") as file:
            row = list(csv.DictReader(file))[-1]
    counts = dict(re.findall(r"^(NPU|CPU) operators = (\d+)", done.stdout, re.M))
    left = re.findall(r"^Warning \(supported operators\) operator: (\w+)", done.stdout, re.M)
    clock, cycles = float(row["core_clock"]), int(float(row["cycles_total"]))
    return {
        "accelerator": accelerator, "memory": row["memory_mode"], "system": row["system_config"],
        "operators_npu": int(counts.get("NPU", 0)), "operators_cpu": int(counts.get("CPU", 0)),
        "cpu_operators": left, "cycles_npu": int(float(row["cycles_npu"])), "cycles_total": cycles,
        "sram_bytes": int(float(row["sram_total_bytes"])),
        "dram_bytes": int(float(row["dram_total_bytes"])),
        "sram_used_bytes": round(1024 * float(row["sram_memory_used"])),
        "clock_hz": clock, "ms": 1e3 * cycles / clock, "note": NOTE}
