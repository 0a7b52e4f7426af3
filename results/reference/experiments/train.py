"""Notebook 07's trainings for the paper's Tables B, C and D, one at a time and one record each.

    python results/reference/experiments/train.py OUT [--only PREFIX]

Trains what OUT/records has no record of yet, in the order and with the seeds of `PLAN`, which were fixed before any
value was read (2026-11-30): five seeds everywhere; MobileOne and RepConv go on to twenty at the end, for one claim
(what INT8 costs). A stopped call continues. PAPERLIB_DATA holds the sets that `SETTINGS` names: DIV2K_train_49 are 49
of DIV2K's training photographs, DIV2K_36 the 36 validation photographs under 4 MiB (HR, and the official LR).
"""

import sys
from pathlib import Path

import torch

from paperlib.data.dataset import open_data
from paperlib.run import open_run
from paperlib.training import ablations
from paperlib.training.stages import open_teacher, teacher_targets

SEEDS = (1234, 1235, 1236, 1237, 1238)
PLAN = [
    *[("backbone", arch, seed) for seed in SEEDS for arch in ("mobileone", "repconv", "repdw")],
    *[("published", condition, seed) for seed in SEEDS for condition in ("kd_1", "kd_0")],
    *[("own", condition, seed) for seed in SEEDS for condition in ("kd_1", "kd_0")],
    *[("backbone", arch, seed) for seed in SEEDS for arch in ("fsrcnn", "abpn")],
    *[("backbone", arch, seed) for seed in range(1239, 1254) for arch in ("mobileone", "repconv")],
]
SETTINGS = {
    "method": "paper", "data.train": ["bsds400", "t91", "cid22", "open", "DIV2K_train_49"], "data.valid": ["clic_val"],
    "data.tests": ["DIV2K_36", "benchmark/Set5", "benchmark/Set14", "benchmark/B100"],
    "stage1.lr": 1e-3, "stage1.patch": 42, "stage1.hold": 0.0, "stage1.warmup": 0.02, "stage1.checkpoint_every": 250,
    "stage2.lr": 5e-4, "stage2.hold": 0.0, "stage2.warmup": 0.0, "stage2.steps": 8000, "stage2.checkpoint_every": 250,
    "ablation.stage1_steps": 3000, "ablation.stage2_steps": 300, "ablation.stage3_steps": 500}
TABLE_D = {"ablation.stage3_steps": 3000, "stage3.batch": 16, "stage3.patch": 48}
STARTS = {"backbone": {}, "own": TABLE_D | {"quant.start": "pretrained-float"},
          "published": TABLE_D | {"quant.start": "aio_mai/ckpt_best_s2_deploy.pt"}}


def main() -> None:
    out, only = Path(sys.argv[1]), sys.argv[3] if len(sys.argv) > 3 else ""
    torch.set_num_threads(1)
    data = None
    for kind, name, seed in PLAN:
        label = f"{name if kind == 'backbone' else f'{kind}_{name}'}-{seed}"
        if not label.startswith(only) or (out / kind / "records" / f"{label}.json").exists():
            continue
        run = open_run("benchmark", out / kind, SETTINGS | STARTS[kind])
        data = data or open_data(run.settings.data)
        targets = teacher_targets(run, data, open_teacher(run, data))
        train = ablations._backbone if kind == "backbone" else ablations._variant
        rows = train(run, data, name, seed)
        run.record(label, rows, data.keys(), teacher=targets.name, training={"name": name, "seed": seed})
        print(f"{label}: done", flush=True)


if __name__ == "__main__":
    main()
