"""Metrics, upscalers, scores and the audit of the authors' files (paper section 6)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "audit": ["authors_report", "measured_authors"],
        "networks": ["TorchUpscaler"],
        "scoring": ["mean_psnr", "measure", "score_pairs"],
        "shipped": ["graph_forms", "ship"],
        "upscalers": ["load_upscaler"],
    },
)
