"""What a profile's trainings cost: steps measured on this machine, turned into hours here and, estimated, on GPUs.

A training step's work is counted in floating-point operations: forward, and backward to inputs and to weights, three
times the multiply–adds of the form that is trained. The measured step gives this machine's rate; for a GPU it is a
third of the vendor's dense FP32 (or TF32) peak, which small convolutions seldom exceed. Estimates, not promises.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import nn

from paperlib.profiles import PROFILES, load_settings
from paperlib.settings import Settings, StageSettings
from paperlib.student.models import build_model, fuse_model

GPUS = {"T4": 8.1e12, "RTX 3060": 12.7e12, "A100 (TF32)": 156e12, "RTX 4090": 82.6e12}
"""Vendors' peak, floating-point operations per second."""
UTILISATION = 1 / 3


def macs_of_form(model: nn.Module) -> int:
    """Multiply–accumulates per LR pixel of a network whose convolutions all run at LR size."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))


def step_flops(settings: Settings, stage: StageSettings, form: str) -> float:
    """Floating-point operations of one training step.

    Args:
        form: "expanded" (all branches), "collapsed" or "fused" (one convolution a block).
    """
    model = build_model(settings.student)
    macs = macs_of_form(model if form == "expanded" else fuse_model(model))
    return 6.0 * macs * stage.batch * stage.patch**2


def rates(bench_step: Mapping[str, Any]) -> dict[str, float]:
    """Floating-point operations per second of this machine by form, from the result of `paperlib bench --only step`."""
    settings = load_settings("paper")
    measured = settings.stage1.model_copy(update={"batch": bench_step["batch"], "patch": bench_step["patch"]})
    return {form: step_flops(settings, measured, form) / bench_step[f"s_{form}"] for form in ("expanded", "collapsed")}


def cost_table(bench_step: Mapping[str, Any], profiles: tuple[str, ...] = PROFILES) -> pd.DataFrame:
    """Hours of each profile's student trainings, without teacher, validation and start-up.

    Args:
        bench_step: the "step" part of `paperlib bench`.

    Returns:
        One line a profile and stage: steps, operations of a step (GFLOP), hours here, estimated hours on each GPU.
    """
    here, lines = rates(bench_step), []
    for profile in profiles:
        settings = load_settings(profile)
        for name in ("stage1", "stage2", "stage3"):
            stage: StageSettings = getattr(settings, name)
            form = "collapsed" if name == "stage3" else stage.form  # stage 3 trains the fused network
            flops = step_flops(settings, stage, form)
            line = {"profile": profile, "stage": name, "steps": stage.steps, "GFLOP / step": round(flops / 1e9, 1),
                    "h here": flops * stage.steps / here[form] / 3600}
            lines.append(line | {f"h {gpu}": flops * stage.steps / (UTILISATION * peak) / 3600
                                 for gpu, peak in GPUS.items()})
    return pd.DataFrame(lines).round(3)
