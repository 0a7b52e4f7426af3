"""A run's saved figures and what each shows, for summary and report (paper section 7)."""

from pathlib import Path

from paperlib.run import Run

CAPTIONS = {
    "pair": "One pair: LR, the baseline, HR. PSNR is over the whole photograph.",
    "batch": "Patches of one training step: LR above, HR below.",
    "curves": "Loss and its terms (left, means since the last point), validation PSNR of the averaged weights (right).",
    "crops": "The most detailed part of a validation photograph; PSNR is over the whole photograph.",
    "confidence": "Where the teacher is trusted: its weight in the distillation loss.",
    "error": "INT8 file minus float network. Noise is harmless; edges would be seen.",
    "ranges": "What each layer's grid has to span.",
    "shares": "What each term of the loss is worth, in value and in gradient.",
    "sqnr": "How much of the signal survives the rounding up to each layer.",
    "backbones": "Trained on one short, equal schedule; bars compare with each other alone.",
}
"""Part of a figure's name → its caption; the first that is in the name."""


def caption(name: str) -> str:
    """What a figure shows, by the name of its file without suffix; empty where nobody has said so."""
    return next((text for part, text in CAPTIONS.items() if part in name), "")


def saved_figures(run: Run) -> list[Path]:
    """The notebooks' figures, PNG and WebP, in the notebooks' order."""
    return sorted(path for path in (run.out / "figures").glob("[0-9]*") if path.suffix in (".png", ".webp"))
