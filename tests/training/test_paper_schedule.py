"""What the paper fixes, in one list: every field of the profile `paper`, its value, and where the paper says so."""

from paperlib.profiles import _compared, load_settings
from paperlib.settings import flatten

EVERY_STAGE = {  # section 4, but where a line names another
    "optimizer": "adam", "batch": 16, "clip_grad": 1.0, "ema": 0.999, "keep": "best", "validate_every": 50,
    "hold": 0.0, "halve_every": 2000, "ema_warmup": False, "recalibrate_batches": 64, "form": "expanded",
    # ours, so off: SOAP, text, permuted colours, dead channels
    "permute_colours": False, "text": 0.0, "text_until": 1.0, "revive": False}
EVERY_LOSS = {  # section 3
    "l1": 0.0, "charbonnier": 0.0, "mse": 0.0, "dct": 0.0, "dct_norm": "none", "kd": 0.0, "kd_mid": None,
    "kd_low": 0.0, "kd_p1": 0.25, "kd_p2": 0.60, "confidence": True, "kd_error": "l1", "gamma": 10.0,
    "w_min": 0.10, "w_max": 0.75}
CLIPPED = {"clip_body": 3.0, "clip_ends": 2.0}
STAGES = {
    # 600 epochs of 50 steps; warm-up over a tenth, cosine (section 4). The released run clips no weights here.
    "stage1": EVERY_STAGE | {"steps": 600 * 50, "patch": 128, "lr": 1e-3, "warmup": 0.10, "decay": "cosine",
                             "clip_body": 0.0, "clip_ends": 0.0},
    # 200 epochs, the rate halved every 40 (section 4)
    "stage2": EVERY_STAGE | CLIPPED | {"steps": 200 * 50, "patch": 160, "lr": 1.5e-5, "warmup": 0.0, "decay": "halve"},
    # 150 epochs (section 4)
    "stage3": EVERY_STAGE | CLIPPED | {"steps": 150 * 50, "patch": 144, "lr": 2e-6, "warmup": 0.0, "decay": "halve"}}
LOSSES = {
    "stage1": EVERY_LOSS | {"l1": 1.0}, "stage2": EVERY_LOSS | {"charbonnier": 1.0, "dct": 0.02, "kd": 0.03},
    "stage3": EVERY_LOSS | {"charbonnier": 1.0, "dct": 0.015, "kd": 0.010, "kd_mid": 0.005, "kd_low": 0.01}}
PAPER = {
    "student.arch": "mobileone", "student.channels": 32, "student.blocks": 8, "student.branches": 5,  # section 1
    "student.init": "default", "data.source": "div2k", "data.sampling": "image", "data.train_crop": 0,  # section 4
    "data.valid_crop": 0, "data.max_train": 0, "data.max_valid": 0, "data.train": [], "data.valid": [],
    "teacher.kind": "published", "teacher.outputs": "on_the_fly", "teacher.stage3": "same",  # section 2
    "quant.quantiser": "paper", "quant.observe_until": 30 / 150, "quant.calibration_images": 32,  # sections 4 and 5
    "quant.equalise": False, "quant.rounding": "nearest", "quant.skip": "add", "quant.start": "",
    "export.height": 720, "export.width": 1280, "export.overlap": 24,  # section 5
    "ablation.stage1_steps": 30_000, "ablation.stage2_steps": 10_000, "ablation.stage3_steps": 7_500,  # section 7
    "ablation.keep": "best",
    **{f"{stage}.{name}": value for stage, fields in STAGES.items() for name, value in fields.items()},
    **{f"{stage}.loss.{name}": value for stage, fields in LOSSES.items() for name, value in fields.items()}}


def test_the_paper_profile_is_what_the_paper_fixes_field_by_field():
    found = flatten("", load_settings("paper").model_dump(mode="json"))
    assert {name: found[name] for name in PAPER} == PAPER


def test_each_of_these_fields_and_no_other_decides_whether_a_number_is_the_papers():
    assert _compared(load_settings("paper")).keys() == PAPER.keys()
