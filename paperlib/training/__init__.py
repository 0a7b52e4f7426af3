"""Losses, the one training loop, the three stages and the ablations (paper sections 3, 4 and 7)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ablations": ["abstract_claims", "backbones", "sizes", "stage3_variants", "teacher_shares"],
        "losses": ["charbonnier", "confidence", "confidence_map", "dct2", "dct_l1", "distillation",
                   "kd_weight", "l1"],
        "loop": ["learning_rate"],
        "stages": ["dead_channel_patches", "distillation_targets", "open_teacher", "recalibrated",
                   "stage1", "stage2", "stage3", "stage_shares", "start_path",
                   "teacher_targets"],
    },
)
