"""What SOAP gives over Adam in a short stage 1, over seeds: `python -m paperlib.benchmarks.optimisers`.

The same start, the same patches, equal steps; last weights without averaging, float network, PSNR of every validation
photograph. Each optimiser has its own learning rate. The record lies in `results/reference/optimisers.json`.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paperlib.data.dataset import open_data
from paperlib.environment import provenance, root
from paperlib.evaluation.scoring import measure
from paperlib.evaluation.torch_upscalers import TorchUpscaler
from paperlib.files import write_json
from paperlib.reporting.effects import paired_effect
from paperlib.run import open_run
from paperlib.student.models import fuse_model
from paperlib.training.stages import stage1

RATES = {"adam": 2e-3, "soap": 1.5e-3}
"""Learning rates: Adam's is the benchmark's; SOAP's is the best of three that were tried on one seed (`tried.md`)."""


def short_stage(steps: int, optimizer: str, seed: int) -> dict[str, Any]:
    """The settings of one training, on top of the profile's."""
    return {"seed": seed, "stage1.steps": steps, "stage1.validate_every": steps, "stage1.warmup": 0.05,
            "stage1.ema": 0.0, "stage1.optimizer": optimizer, "stage1.lr": RATES[optimizer], "data.tests": []}


def trained(profile: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One training, nothing kept: {"images": PSNR RGB in dB of each validation photograph, "seconds"}."""
    with tempfile.TemporaryDirectory(prefix="paperlib-optimisers-") as folder:
        run = open_run(profile, Path(folder), dict(settings))
        data = open_data(run.settings.data)
        done = stage1(run, data)
        rows = measure(data, TorchUpscaler(fuse_model(done.model), "stage 1"), "stages", "stage1", "fp32")
        return {"images": rows[0]["images"], "seconds": round(done.fit.seconds, 1)}


def compare(path: Path, steps: int, seeds: Sequence[int], profile: str = "benchmark",
            more: Mapping[str, Any] | None = None) -> Path:
    """Train by each optimiser with every seed and write the record; returns its path."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in RATES}
    for seed in seeds:
        for name in RATES:
            runs[name].append(trained(profile, short_stage(steps, name, seed) | dict(more or {})))
            print(f"{name}, seed {seed}: {sum(runs[name][-1]['images']) / len(runs[name][-1]['images']):.3f} dB",
                  flush=True)
    effect = paired_effect(*([run["images"] for run in runs[name]] for name in ("soap", "adam")))
    return write_json(path, provenance() | {
        "what": "stage 1, SOAP minus Adam, PSNR RGB in dB on the validation photographs", "profile": profile,
        "steps": steps, "rates": RATES, "seeds": list(seeds), "effect": asdict(effect), "runs": runs})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=root() / "results" / "reference" / "optimisers.json")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1235, 1236])
    given = parser.parse_args()
    print(compare(given.out, given.steps, given.seeds))
