"""Photographs, pairs and patches (paper sections 4 and 6): what is trained on and measured on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["Data", "calibration", "open_data", "patches_of"],
        "photographs": ["Pair", "read_pairs"],
        "resize": ["bicubic_downscale", "cubic"],
        "tiles": ["starts"],
    },
)
