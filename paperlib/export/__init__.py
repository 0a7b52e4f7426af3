"""From a trained network to .tflite files, and what is in them (paper section 5)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "convert": ["export_all", "export_tflite"],
        "inspection": ["inspect_tflite"],
        "tflite": ["TFLiteUpscaler"],
    },
)
