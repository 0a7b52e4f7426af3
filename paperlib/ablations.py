"""Tables B, C and D as experiments: every row a short training of its own, all on one schedule (paper section 7).

A training is idempotent and resumable: it lies in `checkpoints/ablation/<name>/` and is not repeated when it is done.
Every variant is a change of settings; nothing here trains in a way that a user could not ask for with `--set`.
"""

from typing import Any

SWITCHES: dict[str, dict[str, Any]] = {
    "teacher_none": {"stage3.loss.kd": 0.0, "stage3.loss.kd_mid": None},
    "dct_off": {"stage3.loss.dct": 0.0},
    "confidence_off": {"stage3.loss.confidence": False},
    "weight_clip_off": {"stage3.clip_body": 0.0, "stage3.clip_ends": 0.0},
    "ema_off": {"stage3.ema": 0.0},
    "quantiser_paper": {"quant.quantiser": "paper"},
    "quantiser_tflite": {"quant.quantiser": "tflite"},
    "equalise": {"quant.quantiser": "tflite", "quant.equalise": True},
}
"""One-change variants of stage 3, each from the run's own stage-2 weights."""
