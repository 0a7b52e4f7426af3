"""Notebook 07's trainings for the paper's Tables B, C and D and the abstract, one at a time.

    python results/reference/experiments/train.py OUT [WORD ...]

Trains what OUT/<kind>/records/07 has no record of yet, in the order and with the seeds of `PLAN`: five
seeds everywhere; MobileOne and RepConv go on to twenty at the end, for one claim (what INT8 costs). A
stopped call continues. Words, such as `published kd_0 1234`, take only the trainings that have all of
them, so that several processes or machines share the plan. PAPERLIB_DATA holds the sets that
`SETTINGS` names: DIV2K_train_49 are 49 of DIV2K's training photographs, DIV2K_36 the 36 validation
photographs at hand (HR, and the official LR).
"""

import sys
from pathlib import Path

import torch

from paperlib.data.dataset import open_data
from paperlib.run import open_run
from paperlib.training.ablations import CLAIMS, shared_by_all, train_one

SEEDS = (1234, 1235, 1236, 1237, 1238)
CLAIM_ORDER = ["published", *(name for name in CLAIMS if name != "published")]
PLAN = [
    *(("backbone", arch, seed) for seed in SEEDS for arch in ("mobileone", "repconv", "repdw")),
    *(("published", condition, seed) for seed in SEEDS for condition in ("kd_1", "kd_0")),
    *(("own", condition, seed) for seed in SEEDS for condition in ("kd_1", "kd_0")),
    *(("backbone", f"claim_{claim}", seed) for seed in SEEDS for claim in CLAIM_ORDER),
    *(("backbone", arch, seed) for seed in SEEDS for arch in ("fsrcnn", "abpn")),
    *(("backbone", arch, seed) for seed in range(1239, 1254) for arch in ("mobileone", "repconv")),
]
SETTINGS = {
    "method": "paper", "data.train": ["bsds400", "t91", "cid22", "open", "DIV2K_train_49"],
    "data.valid": ["clic_val"],
    "data.tests": ["DIV2K_36", "benchmark/Set5", "benchmark/Set14", "benchmark/B100"],
    "stage1.lr": 1e-3, "stage1.patch": 42, "stage1.hold": 0.0, "stage1.warmup": 0.02,
    "stage2.lr": 5e-4, "stage2.hold": 0.0, "stage2.warmup": 0.0, "stage2.steps": 8000,
    "ablation.stage1_steps": 3000, "ablation.stage2_steps": 300, "ablation.stage3_steps": 500}
TABLE_D = {"ablation.stage3_steps": 3000, "stage3.batch": 16, "stage3.patch": 48}
STARTS = {"backbone": {}, "own": TABLE_D | {"quant.start": "pretrained-float"},
          "published": TABLE_D | {"quant.start": "aio_mai/ckpt_best_s2_deploy.pt"}}


def main() -> None:
    torch.set_num_threads(1)
    data = None
    for kind, name, seed in PLAN:
        if not set(sys.argv[2:]) <= {kind, name, str(seed)}:
            continue
        run = open_run("benchmark", Path(sys.argv[1]) / kind, SETTINGS | STARTS[kind])
        data = data or open_data(run.settings.data)
        train_one(run, data, shared_by_all(run, data, [name]), name, seed)
        print(f"{kind} {name} {seed}: done", flush=True)


if __name__ == "__main__":
    main()
