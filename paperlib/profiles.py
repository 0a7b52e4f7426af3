"""The four profiles as data. `paper` is the published schedule (paper sections 3–5), nothing changed.

The smaller ones run the same code on less: they show that the method works, never the paper's numbers. Each stage says
what its source reports (`expect`).
"""

import json
import os
from collections.abc import Sequence
from typing import Any

from paperlib.errors import UserError
from paperlib.settings import Settings, _nearest, override

STAGE2_LOSS = {"charbonnier": 1.0, "dct": 0.02, "kd": 0.03}
# λ(t) of the published command line that names the Mamba teacher in stage 3.
STAGE3_LOSS = {
    "charbonnier": 1.0, "dct": 0.015, "kd": 0.010, "kd_mid": 0.005, "kd_low": 0.01, "kd_p1": 0.25, "kd_p2": 0.60}
# Ours: INT8 is to compute what the float student computes; the photograph itself only breaks ties.
CLOSE_TO_FLOAT = {"mse": 0.1, "kd": 1.0, "kd_error": "l2", "confidence": False}
PAPER: dict[str, Any] = {
    "data": {"source": "div2k"},
    "teacher": {"kind": "published", "outputs": "on_the_fly"},
    "stage1": {
        "steps": 30_000, "batch": 16, "patch": 128, "lr": 1e-3, "warmup": 0.10, "decay": "cosine",
        "loss": {"l1": 1.0},
        "expect": "30.2618 dB / 0.8624 on DIV2K validation, best epoch 588 of 600 (authors' log); 18 GPU hours in all"},
    "stage2": {
        "steps": 10_000, "batch": 16, "patch": 160, "lr": 1.5e-5, "decay": "halve", "halve_every": 2000,
        "loss": STAGE2_LOSS, "expect": "30.28 dB / 0.863 (Table B); 30.2765 / 0.8628 (authors' log, epoch 198)"},
    "stage3": {
        "steps": 7_500, "batch": 16, "patch": 144, "lr": 2e-6, "decay": "halve", "halve_every": 2000,
        "loss": STAGE3_LOSS, "expect": "30.13 dB / 0.858 fake-quant; 30.0003 / 0.856 as dynamic INT8 TFLite"},
    "ablation": {
        "stage1_steps": 30_000, "stage3_steps": 7_500,
        "switches": ("teacher_none", "teacher_student", "dct_off", "confidence_off")},
}
SMOKE: dict[str, Any] = {
    "data": {"source": "embedded", "train_crop": 144, "valid_crop": 96, "max_train": 4, "max_valid": 2},
    "student": {"init": "bilinear"},
    "teacher": {"kind": "small", "small_dim": 8, "small_layers": 1, "small_steps": 2, "small_batch": 2,
                "small_patch": 16},
    "stage1": {"steps": 6, "batch": 2, "patch": 16, "lr": 1e-4, "warmup": 0.1, "ema_warmup": True, "validate_every": 3,
               "checkpoint_every": 3, "recalibrate_batches": 2, "loss": {"l1": 1.0}, "expect": "no meaningful score"},
    "stage2": {"steps": 4, "batch": 2, "patch": 16, "lr": 1e-5, "decay": "halve", "ema_warmup": True,
               "validate_every": 2, "checkpoint_every": 2, "recalibrate_batches": 2, "loss": STAGE2_LOSS,
               "expect": "no meaningful score"},
    "stage3": {"steps": 5, "batch": 2, "patch": 16, "lr": 1e-6, "decay": "halve", "ema_warmup": True,
               "validate_every": 5, "checkpoint_every": 5, "loss": STAGE3_LOSS, "expect": "no meaningful score"},
    "quant": {"calibration_images": 2},
    "export": {"height": 32, "width": 48},
    "ablation": {"archs": ("mobileone", "repdw", "abpn"), "stage1_steps": 2, "stage3_steps": 2},
}
DEMO: dict[str, Any] = {
    "data": {"source": "embedded", "valid_crop": 384, "sampling": "area"},
    "student": {"init": "bilinear"},
    "teacher": {"kind": "auto", "small_dim": 24, "small_layers": 2, "small_steps": 250, "small_batch": 4,
                "small_patch": 32},
    "stage1": {"steps": 900, "batch": 8, "patch": 40, "lr": 1e-3, "warmup": 0.10, "decay": "cosine",
               "ema": 0.99, "ema_warmup": True, "validate_every": 150, "checkpoint_every": 50,
               "recalibrate_batches": 32, "loss": {"l1": 1.0},
               "expect": "about 1 dB above bicubic after minutes; the paper trains 30,000 steps of 16 × 128²"},
    "stage2": {"steps": 300, "batch": 8, "patch": 48, "lr": 1e-4, "decay": "halve", "halve_every": 100,
               "ema": 0.99, "ema_warmup": True, "validate_every": 100, "checkpoint_every": 50,
               "recalibrate_batches": 32, "loss": STAGE2_LOSS, "expect": "a small gain over stage 1, as in the paper"},
    "stage3": {"steps": 400, "batch": 8, "patch": 48, "lr": 2e-5, "decay": "halve", "halve_every": 130,
               "ema": 0.99, "ema_warmup": True, "validate_every": 100, "checkpoint_every": 50, "loss": STAGE3_LOSS,
               "expect": "a loss of some hundredths of a dB against float"},
    "quant": {"calibration_images": 8, "quantiser": "tflite"},
    "export": {"height": 128, "width": 128},
    "ablation": {"stage1_steps": 300, "stage3_steps": 60, "switches": ("teacher_none",)},
}
BENCHMARK: dict[str, Any] = {
    "data": {"source": "folders", "train": ("bsds400", "t91", "cid22"), "valid": ("clic_val",),
             "tests": ("benchmark/Set5", "benchmark/Set14", "benchmark/B100"), "sampling": "area"},
    "student": {"init": "bilinear"},
    "teacher": {"kind": "published", "outputs": "cached", "stage3": "student"},
    "stage1": {"steps": 24_000, "batch": 16, "patch": 42, "lr": 2e-3, "warmup": 0.02, "decay": "cosine",
               "form": "collapsed", "validate_every": 3000, "checkpoint_every": 500, "loss": {"l1": 1.0},
               "expect": "FP32 Y on Set5 ≥ 33.2 dB; the authors' weights give 33.54 after 18 GPU hours on DIV2K"},
    "stage2": {"steps": 8_000, "batch": 16, "patch": 48, "lr": 5e-4, "decay": "cosine", "form": "collapsed",
               "validate_every": 2000, "checkpoint_every": 500, "loss": STAGE2_LOSS,
               "expect": "the authors' own stage 2 gained 0.015 dB over stage 1"},
    "stage3": {"steps": 500, "batch": 8, "patch": 48, "lr": 1e-5, "decay": "cosine", "ema": 0.99, "ema_warmup": True,
               "clip_body": 0, "clip_ends": 0, "validate_every": 250, "checkpoint_every": 250, "loss": CLOSE_TO_FLOAT,
               "expect": "INT8 TFLite at most 0.08 dB RGB below float"},
    "quant": {"quantiser": "tflite", "skip": "exact", "equalise": True, "rounding": "data"},
    "ablation": {"stage1_steps": 1500, "stage3_steps": 300, "seeds": (1234, 1235),
                 "switches": ("teacher_none",)},
}
PROFILE_VALUES: dict[str, dict[str, Any]] = {
    "smoke": SMOKE, "demo": DEMO, "benchmark": BENCHMARK, "paper": PAPER}
PROFILES = ("smoke", "demo", "benchmark", "paper")


def load_settings(profile: str | None = None, overrides: str | dict[str, Any] | None = None) -> Settings:
    """The settings of a profile with single fields overridden.

    Args:
        profile: one of `PROFILES`; None or "" takes the environment variable PAPERLIB_PROFILE, else "smoke".
        overrides: dotted field names and values, as a dict or a JSON object in a string.

    Raises:
        UserError: unknown profile or field (the nearest names are given), or a value of the wrong kind or range.
    """
    from paperlib.profiles import PROFILE_VALUES

    profile = profile or os.environ.get("PAPERLIB_PROFILE") or "smoke"
    if profile not in PROFILES:
        raise UserError(f"unknown profile {profile!r}. Nearest: {_nearest(profile, list(PROFILES))}.")
    return override(Settings(profile=profile, **PROFILE_VALUES[profile]), parse_overrides(overrides))


def parse_overrides(overrides: str | dict[str, Any] | None) -> dict[str, Any]:
    """Overrides as a dict of dotted fields, from a dict or a JSON object in a string.

    Raises:
        UserError: the string is not a JSON object.
    """
    if isinstance(overrides, dict) or not overrides:
        return dict(overrides or {})
    try:
        value = json.loads(overrides)
    except json.JSONDecodeError as error:
        raise UserError(f"overrides is not JSON ({error}). Write for instance {{\"stage1.steps\": 500}}.") from error
    if not isinstance(value, dict):
        raise UserError("overrides must be a JSON object, for instance {\"stage1.steps\": 500}.")
    return value


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`--set` arguments as overrides: "stage1.steps=500" → {"stage1.steps": 500}; values are JSON, else plain text.

    Raises:
        UserError: an argument without "=".
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals or not field:
            raise UserError(f"--set {assignment}: expected field=value, for instance --set stage1.steps=500.")
        try:
            overrides[field] = json.loads(text)
        except json.JSONDecodeError:
            overrides[field] = text
    return overrides
