"""What may be said of a difference between two networks: an effect with its 95 % interval, and one of three words.

Values are paired: the same image under both networks, the same seed (patches, start) for both trainings. Seeds and
images are both samples, of trainings and of photographs, so the interval counts the spread of both. Section 7 of the
paper reports differences of single runs; here one seed is always undecided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EQUAL = {"psnr": 0.02, "ssim": 0.0015}
"""An interval inside ± this is no difference (equivalence): it fails a reported difference that is larger."""
LEAST = {"psnr": 0.005, "ssim": 0.0002}
"""Effects smaller than this are not worth a word, however sure."""


@dataclass(frozen=True)
class Effect:
    """A mean paired difference (dB or SSIM) with its 95 % interval.

    `low` and `high` are None for one seed; `images` is 0 where only the means of the image sets are known.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    images: int

    def __str__(self) -> str:
        images = f"{self.images} image{'s' * (self.images != 1)}" if self.images else "means of the set"
        counted = f"{self.seeds} seed{'s' * (self.seeds != 1)}, {images}"
        if self.low is None or self.high is None:
            return f"{self.mean:+.3f} ({counted})"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] ({counted})"


def t_quantile(degrees: float, probability: float = 0.975) -> float:
    """Quantile of Student's t distribution, to 1e-9 (Newton's method on its distribution function)."""
    from scipy.stats import t  # a part of scikit-image's installation; loaded only where something is judged

    return float(t.ppf(probability, degrees))


def paired_effect(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Effect:
    """Effect of `one` minus `other`.

    Crossed design: with d[s, i] the difference for seed s on image i, SE² = V(seed means)/S + V(image means)/I −
    V(rest)/(S·I), not below either of the first two, with Satterthwaite's degrees of freedom.

    Args:
        one, other: values per seed (the same seeds, in the same order) and image (the same images): S × I.

    Raises:
        ValueError: different shapes, or nothing to compare.
    """
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    if np.shape(one) != np.shape(other) or difference.ndim != 2 or not difference.size:
        raise ValueError(f"values of {np.shape(one)} and {np.shape(other)} (seeds × images) cannot be paired")
    seeds, images = difference.shape
    mean = float(difference.mean())
    if seeds < 2:
        return Effect(mean, None, None, seeds, images)
    by_seed, by_image = difference.mean(1), difference.mean(0)
    parts = [float(by_seed.var(ddof=1)) / seeds, float(by_image.var(ddof=1)) / images if images > 1 else 0.0]
    rest = difference - by_seed[:, None] - by_image[None] + mean
    degrees_of_rest = max(1, (seeds - 1) * (images - 1))
    squared = max(*parts, sum(parts) - float((rest**2).sum()) / degrees_of_rest / (seeds * images))
    if squared == 0:
        return Effect(mean, mean, mean, seeds, images)
    below = parts[0] ** 2 / (seeds - 1) + (parts[1] ** 2 / (images - 1) if images > 1 else 0.0)
    half = t_quantile(max(1.0, squared**2 / below)) * math.sqrt(squared)
    return Effect(mean, mean - half, mean + half, seeds, images)


def judged(reported: float, effect: Effect, metric: str) -> str:
    """What an effect says of a reported difference: "trend holds", "trend fails" or "undecided".

    Holds: the whole interval is on the reported side of zero, and the effect is worth a word (`LEAST`). Fails: it is on
    the other side, or inside ± `EQUAL` where more was reported. One seed, and everything else, is undecided.
    """
    if effect.low is None or effect.high is None:
        return "undecided"
    side = math.copysign(1.0, reported)
    near, far = sorted((side * effect.low, side * effect.high))
    if near > 0 and abs(effect.mean) >= LEAST[metric]:
        return "trend holds"
    equal = max(abs(effect.low), abs(effect.high)) <= EQUAL[metric] < abs(reported)
    return "trend fails" if far < 0 or equal else "undecided"
