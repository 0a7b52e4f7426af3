"""Photographs and what several upscalers make of them: computed when first asked for, once, then kept (section 6)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from paperlib.data import Pair
from paperlib.errors import UserError
from paperlib.metrics import psnr_rgb

Upscale = Callable[[np.ndarray], np.ndarray]
"""LR uint8 (h, w, 3) → SR (3h, 3w, 3) in 0..255; see `paperlib.evaluate.Upscaler`."""
ORIGINAL = "original"
"""Label of the HR photograph itself."""


class Upscaled:
    """Results by photograph and model, float32: 12 bytes a pixel for each that was asked for.

    Args:
        images: photographs with different names.
        upscalers: label → upscaler; no label may be "original".

    Raises:
        UserError: no photograph or no upscaler, a name twice, or something that cannot be called.
    """

    def __init__(self, images: Sequence[Pair], upscalers: Mapping[str, Upscale]) -> None:
        self.pairs, self.upscalers = {pair.name: pair for pair in images}, dict(upscalers)
        if not self.pairs or not self.upscalers:
            raise UserError(f"nothing to compare: {len(self.pairs)} photographs, {len(self.upscalers)} upscalers. "
                            "Give at least one of each.")
        names = [pair.name for pair in images]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"two photographs are called {', '.join(twice)}. Give each its own name.")
        for label, upscaler in self.upscalers.items():
            if not callable(upscaler):
                raise UserError(f"{label!r} is {type(upscaler).__name__}, not an upscaler. Give a callable from LR to "
                                "SR pixels, such as `load_upscaler` returns.")
        if ORIGINAL in self.upscalers:
            raise UserError(f"no upscaler can be called {ORIGINAL!r}: that is the HR photograph. Give another label.")
        self._results: dict[tuple[str, str], np.ndarray] = {}
        self._psnr: dict[tuple[str, str], float] = {}

    def known(self, name: str, label: str) -> bool:
        """Whether a result is there already."""
        return label == ORIGINAL or (name, label) in self._results

    def result(self, name: str, label: str) -> np.ndarray:
        """One photograph by one upscaler, clipped and not rounded, (3h, 3w, 3) in 0..255; HR itself for "original".

        Raises:
            UserError: the upscaler made another size.
        """
        pair, key = self.pairs[name], (name, label)
        if label == ORIGINAL:
            return pair.hr
        if key not in self._results:
            sr = np.asarray(self.upscalers[label](pair.lr))
            if sr.shape != pair.hr.shape:
                raise UserError(f"{label} made {sr.shape} of {name}, expected {pair.hr.shape}. Give an upscaler ×3.")
            self._results[key] = np.clip(sr, 0, 255).astype(np.float32)
        return self._results[key]

    def psnr(self, name: str, label: str) -> float:
        """PSNR RGB of a whole photograph in dB (`paperlib.metrics.psnr_rgb`); errors as `result`."""
        key = (name, label)
        if key not in self._psnr:
            self._psnr[key] = psnr_rgb(self.result(name, label), self.pairs[name].hr)
        return self._psnr[key]
