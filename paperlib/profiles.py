"""The profiles and the methods as data; `paper` is the published schedule (paper sections 3–5).

A profile is data and schedule, a method is how they are used. Settings are the profile's, then the
method's (but for `EXCEPTIONS`), then single ones.
"""

import os
from typing import Any, NamedTuple

from paperlib.errors import UserError
from paperlib.settings import LossSettings, Settings, flatten, nearest, override, parse_overrides

STAGE2_LOSS = {"charbonnier": 1.0, "dct": 0.02, "kd": 0.03}
# λ(t) of the published command line that names the Mamba teacher in stage 3.
STAGE3_LOSS = {"charbonnier": 1.0, "dct": 0.015, "kd": 0.010, "kd_mid": 0.005, "kd_low": 0.01,
               "kd_p1": 0.25, "kd_p2": 0.60}
# Ours: INT8 is to compute what the float student computes; the photograph itself breaks ties.
CLOSE_TO_FLOAT = {"mse": 0.1, "kd": 1.0, "kd_error": "l2", "confidence": False}
_SWITCHED: dict[str, tuple[Any, Any]] = {  # the paper's way, ours
    "data.sampling": ("image", "area"), "student.init": ("default", "bilinear"),
    "stage1.form": ("expanded", "collapsed"), "stage2.form": ("expanded", "collapsed"),
    "stage1.clip_body": (0.0, 0.0), "stage1.clip_ends": (0.0, 0.0),  # as in the released run
    "stage2.clip_body": (3.0, 3.0), "stage2.clip_ends": (2.0, 2.0),
    "stage3.clip_body": (3.0, 0.0), "stage3.clip_ends": (2.0, 0.0),
    "stage1.ema": (0.999, 0.999), "stage2.ema": (0.999, 0.999), "stage3.ema": (0.999, 0.99),
    "stage1.optimizer": ("adam", "soap"), "stage2.optimizer": ("adam", "soap"),
    "stage3.optimizer": ("adam", "adam"), "stage1.permute_colours": (False, True),
    "stage2.permute_colours": (False, False), "stage3.permute_colours": (False, False),
    "stage2.revive": (False, True), "stage1.text": (0.0, 0.0), "stage2.text": (0.0, 0.05),
    "stage2.text_until": (1.0, 0.5), "stage3.text": (0.0, 0.0),
    "teacher.stage3": ("same", "student"),
    "quant.quantiser": ("paper", "tflite"), "quant.skip": ("add", "exact"),
    "quant.equalise": (False, True), "quant.rounding": ("nearest", "data"),
    # all fields of the loss, so that none of another method stays
    **{f"stage3.loss.{name}": (field, LossSettings(**CLOSE_TO_FLOAT).model_dump()[name])
       for name, field in LossSettings(**STAGE3_LOSS).model_dump().items()}}
METHODS: dict[str, dict[str, Any]] = {
    method: {name: values[column] for name, values in _SWITCHED.items()}
    for column, method in enumerate(("paper", "ours"))}
"""What `method` switches, in every profile. How long an average remembers (`ema_warmup`) belongs to
a schedule's length, so to the profile."""
METHODS["released"] = METHODS["paper"] | {
    "stage2.lr": 3e-5, "stage2.patch": 128,
    "stage3.batch": 1, "stage3.steps": 120_000, "stage3.halve_every": 32_000,
    "teacher.stage3": "student", "stage3.loss.kd": 0.03, "stage3.loss.kd_mid": 0.01,
    "stage3.loss.kd_p2": 0.70}
"""The run that made the reported numbers, as far as this kit has its terms: residual, wavelet and
feature terms are missing. A schedule, so for profile `paper` alone. Stage 2's rate is that of the
authors' `metrics.csv`. Batch 1: Adam had made 88,000 steps in 110 epochs (`released_run`). The
checkpoint's `kd_w` and `kd_res_w` are those of their command line with the stage-2 student as
teacher, not of the one with Mamba. Patches of 128 in stage 2 are noted from a log of theirs that is
not at hand."""
PAPER: dict[str, Any] = {
    "method": "paper",
    "data": {"source": "div2k"},
    "teacher": {"kind": "published", "outputs": "on_the_fly"},
    "stage1": {
        "steps": 30_000, "batch": 16, "patch": 128, "lr": 1e-3, "warmup": 0.10, "decay": "cosine",
        "loss": {"l1": 1.0},
        "expect": "30.2618 dB / 0.8624 on DIV2K validation, best epoch 588 of 600 (authors' log); "
                  "18 GPU hours in all"},
    "stage2": {
        "steps": 10_000, "batch": 16, "patch": 160, "lr": 1.5e-5, "decay": "halve",
        "halve_every": 2000, "loss": STAGE2_LOSS,
        "expect": "30.28 dB / 0.863 (Table B); 30.2765 / 0.8628 (authors' log, epoch 198), "
                  "both by method=released"},
    "stage3": {
        "steps": 7_500, "batch": 16, "patch": 144, "lr": 2e-6, "decay": "halve",
        "halve_every": 2000, "loss": STAGE3_LOSS,
        "expect": "30.13 dB / 0.858 fake-quant; 30.0003 / 0.856 as dynamic INT8 TFLite, "
                  "both by method=released"},
    "ablation": {
        "stage1_steps": 30_000, "stage2_steps": 10_000, "stage3_steps": 7_500, "keep": "best",
        "switches": ("teacher_none", "teacher_student", "dct_off", "confidence_off")},
}
_TINY = {"batch": 2, "patch": 16, "ema_warmup": True, "expect": "no meaningful score"}
SMOKE: dict[str, Any] = {
    "method": "paper",
    "data": {"train_crop": 144, "valid_crop": 96, "max_train": 4, "max_valid": 2},
    "teacher": {"kind": "small", "small_dim": 8, "small_layers": 1, "small_steps": 2,
                "small_batch": 2, "small_patch": 16},
    "stage1": _TINY | {"steps": 6, "lr": 1e-4, "warmup": 0.1, "validate_every": 3,
                       "checkpoint_every": 3, "recalibrate_batches": 2, "loss": {"l1": 1.0}},
    "stage2": _TINY | {"steps": 4, "lr": 1e-5, "decay": "halve", "validate_every": 2,
                       "checkpoint_every": 2, "recalibrate_batches": 2, "loss": STAGE2_LOSS},
    "stage3": _TINY | {"steps": 5, "lr": 1e-6, "decay": "halve", "validate_every": 5,
                       "checkpoint_every": 5, "loss": STAGE3_LOSS},
    "quant": {"calibration_images": 2},
    "export": {"height": 32, "width": 48},
    "ablation": {"archs": ("mobileone", "repdw", "abpn"),
                 "claims": ("published", "post_training", "stage1_longer"),
                 "stage1_steps": 2, "stage2_steps": 2, "stage3_steps": 2},
}
DEMO: dict[str, Any] = {
    "method": "paper",
    "data": {"valid_crop": 384},
    "teacher": {"small_steps": 150, "small_batch": 4},
    "stage1": {
        "steps": 500, "batch": 8, "patch": 32, "lr": 1e-3, "warmup": 0.10, "ema_warmup": True,
        "validate_every": 125, "checkpoint_every": 50, "recalibrate_batches": 32,
        "loss": {"l1": 1.0},
        "expect": "half a dB to 1 dB above bicubic after minutes; the paper trains 30,000 steps of "
                  "16 × 128²"},
    "stage2": {
        "steps": 150, "batch": 8, "patch": 40, "lr": 1e-4, "decay": "halve", "halve_every": 50,
        "ema_warmup": True, "validate_every": 50, "checkpoint_every": 50,
        "recalibrate_batches": 32, "loss": STAGE2_LOSS,
        "expect": "a small gain over stage 1, as in the paper"},
    "stage3": {
        "steps": 240, "batch": 8, "patch": 40, "lr": 2e-5, "decay": "halve", "halve_every": 80,
        "ema_warmup": True, "validate_every": 80, "checkpoint_every": 40, "loss": STAGE3_LOSS,
        "expect": "a loss of some hundredths of a dB against float"},
    "quant": {"calibration_images": 8},
    "export": {"height": 128, "width": 128},
    "ablation": {"stage1_steps": 120, "stage2_steps": 40, "stage3_steps": 40},
}
BENCHMARK: dict[str, Any] = {
    "method": "ours",  # it trains the shipped student
    "data": {"source": "folders", "train": ("bsds400", "t91", "cid22", "open"),
             "valid": ("clic_val",),
             "tests": ("benchmark/Set5", "benchmark/Set14", "benchmark/B100")},
    "teacher": {"kind": "published"},
    "stage1": {
        "steps": 12_000, "patch": 48, "lr": 1.5e-3, "warmup": 0.01, "hold": 0.4,
        "validate_every": 2000, "checkpoint_every": 250, "loss": {"l1": 1.0},
        "expect": "FP32 Y on Set5 ≥ 33.2 dB; the authors' weights give 33.54 after 18 GPU hours "
                  "on DIV2K"},
    "stage2": {
        "steps": 24_000, "patch": 48, "lr": 1.5e-3, "warmup": 0.02, "hold": 0.4,
        "validate_every": 2000, "checkpoint_every": 250, "loss": STAGE2_LOSS,
        "expect": "the authors' own stage 2 gained 0.015 dB over stage 1"},
    "stage3": {
        "steps": 500, "batch": 8, "patch": 48, "lr": 1e-5, "ema_warmup": True,
        "validate_every": 250, "checkpoint_every": 250, "loss": STAGE3_LOSS,
        "expect": "INT8 TFLite at most 0.08 dB RGB below float"},
    "ablation": {"stage1_steps": 1500, "stage2_steps": 500, "stage3_steps": 300,
                 "seeds": (1234, 1235, 1236, 1237, 1238),
                 "conditions": ("kd_1", "kd_0", "kd_10", "kd_100", "ortho_kd_1", "ortho_kd_0"),
                 "switches": ("teacher_none",)},
}
PROFILE_VALUES: dict[str, dict[str, Any]] = {
    "smoke": SMOKE, "demo": DEMO, "benchmark": BENCHMARK, "paper": PAPER}
PROFILES = tuple(PROFILE_VALUES)
EXCEPTIONS: dict[str, dict[str, Any]] = {"demo": {"student.init": "bilinear"}}
"""What a profile's schedule is too short for, whatever the method: from PyTorch's random start 900
steps give 26.77 dB, no more than bicubic (26.76), from the bilinear one 27.58."""


def load_settings(
    profile: str | None = None, overrides: str | dict[str, Any] | None = None,
) -> Settings:
    """The settings of a profile by its method, or the one asked for, with single fields overridden.

    Args:
        profile: one of `PROFILES`; None or "": the variable PAPERLIB_PROFILE, else demo.
        overrides: dotted field names and values, as a dict or a JSON object in a string; `method`
            switches all that belongs to a method, whatever its place, and the others lie on top.
    """
    profile = profile or os.environ.get("PAPERLIB_PROFILE") or "demo"
    if profile not in PROFILES:
        raise UserError(f"unknown profile {profile!r}. Nearest: {nearest(profile, PROFILES)}.")
    changes = parse_overrides(overrides)
    method = str(changes.pop("method", PROFILE_VALUES[profile]["method"]))
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}. There are: {', '.join(METHODS)}.")
    if method == "released" and profile != "paper":
        raise UserError("method=released is a schedule, the authors' own: choose "
                        "--profile paper.")
    return override(Settings(profile=profile, **PROFILE_VALUES[profile] | {"method": method}),
                    METHODS[method] | EXCEPTIONS.get(profile, {}) | changes)


class Notebook(NamedTuple):
    """The sections of the settings that a notebook's numbers depend on (the seed counts for all),
    its rough share of a run's time in %, and the stage that it trains."""

    sections: tuple[str, ...]
    share: int
    stage: str = ""


_STAGE1 = ("data", "student", "stage1")
_STAGE2 = (*_STAGE1, "teacher", "stage2")
_STAGE3 = (*_STAGE2, "stage3", "quant")
NOTEBOOKS = {
    "01_data": Notebook(("data",), 3),
    "02_stage1": Notebook(_STAGE1, 22, "stage1"),
    "03_teacher": Notebook(("data", "teacher"), 11),
    "04_stage2": Notebook(_STAGE2, 11, "stage2"),
    "05_fuse_qat": Notebook(_STAGE3, 10, "stage3"),
    "06_tflite_eval": Notebook((*_STAGE3, "export"), 7),
    "07_ablations": Notebook((*_STAGE3, "ablation"), 36),
}
TRAINED_BY = {notebook.stage: name for name, notebook in NOTEBOOKS.items() if notebook.stage}
"""Stage → the notebook that trains it."""
_MEASURED_BY = TRAINED_BY | {
    "data": "01_data", "B": "05_fuse_qat", "C": "07_ablations", "D": "07_ablations",
    "abstract": "06_tflite_eval"}
"""Stage or table → the notebook whose settings its numbers depend on."""
HARMLESS = (".expect", ".checkpoint_every")
"""Ends of the names of settings that change no measured value."""
_UNCOUNTED = (
    "profile", "method", "seed", "data.div2k", "data.tests", "teacher.small_", "export.upsample",
    "ablation.archs", "ablation.seeds", "ablation.conditions", "ablation.switches",
    "ablation.claims")
"""Beginnings of the names of settings that say where files lie or which rows are made. A seed is
one: whoever reproduces draws other patches."""


def _compared(settings: Settings) -> dict[str, Any]:
    flat = flatten("", settings.model_dump(mode="json"))
    return {name: value for name, value in flat.items()
            if not name.startswith(_UNCOUNTED) and not name.endswith(HARMLESS)}


def differences_from_paper(settings: Settings) -> list[str]:
    """The settings that are not the published ones, or those of method `released` for its runs."""
    method = "released" if settings.method == "released" else "paper"
    published = _compared(load_settings("paper", {"method": method}))
    return [name for name, value in _compared(settings).items() if value != published[name]]


def equals_paper(settings: Settings, part: str) -> bool:
    """Whether data, schedule and method behind a number are the paper's.

    Args:
        part: "data", a stage with all before it ("stage1" to "stage3"), or a table of the paper
            ("B", "C", "D", "abstract"). Single rows of B need less: see `part_of`.
    """
    sections = NOTEBOOKS[_MEASURED_BY[part]].sections
    return not any(name.split(".")[0] in sections for name in differences_from_paper(settings))


def part_of(table: str, row: str) -> str:
    """What the number in a row of the paper's tables depends on, for `equals_paper`."""
    rows = {"bicubic": "data", "student_stage2": "stage2", "student_deploy": "stage3",
            "fsrcnn": "C", "abpn": "C"}
    return rows.get(row, table) if table == "B" else table


def note(settings: Settings) -> str:
    """What must stand beside every figure of a run: whose data and schedule made it."""
    if settings.profile != "paper":
        return f"profile {settings.profile}: not the paper's numbers"
    if changed := ", ".join(differences_from_paper(settings)):
        return f"the paper's profile with other settings ({changed}): not the paper's numbers"
    return "the paper's data and schedule"
