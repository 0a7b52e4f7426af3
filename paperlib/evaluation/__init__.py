"""Metrics, upscalers, scores and the audit of the authors' files (paper section 6)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "audit": ["authors_report"],
        "metrics": ["psnr_rgb", "tensorflow_mean"],
        "paper_numbers": ["reported", "score"],
        "torch_upscalers": ["TorchUpscaler"],
        "scoring": ["mean_psnr", "measure"],
        "exported": ["export_run"],
        "upscalers": ["load_upscaler"],
        "verify": ["committed_div2k", "measured_authors"],
    },
)
