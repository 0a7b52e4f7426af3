"""The ×3 student, its re-parameterisable blocks and the baselines (paper section 1)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "blocks": ["fold_bn", "kernel_and_bias"],
        "models": ["build_model", "fuse_model"],
        "network": ["count_parameters"],
        "dead_channels": ["find_dead_channels"],
    },
)
