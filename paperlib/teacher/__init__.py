"""MambaIRv2-light, and what a student learns from it (paper section 2)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "network": ["MambaIRv2Light", "TeacherUpscaler"],
        "scan": ["loop_scan"],
    },
)
