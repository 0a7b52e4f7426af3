"""Effects: the arithmetic against textbook formulas and simulation, and the three words."""

import math

import numpy as np
import pytest
from scipy import stats

from paperlib.reporting.effects import Effect, judged, paired_effect


def test_one_seed_has_no_interval_and_decides_nothing():
    effect = paired_effect([[30.0, 31.0]], [[29.0, 30.0]])
    assert effect == Effect(1.0, None, None, 1, 2)
    assert judged(0.5, effect, "psnr") == "undecided"
    assert str(effect) == "+1.000 (1 seed, 2 images)"


def test_without_spread_over_images_it_is_the_paired_t_interval_over_seeds():
    by_seed = np.array([0.10, 0.13, 0.08, 0.11, 0.12])
    one = np.repeat(by_seed[:, None], 14, axis=1) + np.arange(14)
    effect = paired_effect(one, np.tile(np.arange(14.0), (5, 1)))
    low, high = stats.t.interval(0.95, 4, by_seed.mean(), stats.sem(by_seed))
    assert (effect.mean, effect.low, effect.high) == pytest.approx((by_seed.mean(), low, high))


def test_without_spread_over_seeds_it_is_the_paired_t_interval_over_images():
    by_image = np.random.default_rng(0).normal(0.1, 0.05, 20)
    effect = paired_effect(np.tile(by_image, (3, 1)), np.zeros((3, 20)))
    low, high = stats.t.interval(0.95, 19, by_image.mean(), stats.sem(by_image))
    assert (effect.low, effect.high) == pytest.approx((low, high))


@pytest.mark.parametrize(("seeds", "images", "over_seeds", "over_images"), [
    (5, 14, 0.03, 0.03), (5, 100, 0.01, 0.05), (3, 14, 0.05, 0.01), (5, 5, 0.0, 0.05)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds, images, over_seeds, over_images):
    random, hits, runs = np.random.default_rng(1), 0, 600
    for _ in range(runs):
        values = (0.04 + random.normal(0, over_seeds, (seeds, 1)) + random.normal(0, over_images, (1, images))
                  + random.normal(0, 0.02, (seeds, images)))
        effect = paired_effect(values, np.zeros_like(values))
        hits += effect.low <= 0.04 <= effect.high
    assert hits / runs >= 0.93  # never less sure than it says; it may be wider


def test_pairing_takes_out_what_both_share():
    random = np.random.default_rng(2)
    images, seeds = random.normal(30, 3, (1, 14)), random.normal(0, 0.5, (5, 1))
    noise = random.normal(0, 0.005, (2, 5, 14))
    effect = paired_effect(images + seeds + 0.05 + noise[0], images + seeds + noise[1])
    assert effect.low > 0.04
    assert effect.high < 0.06


@pytest.mark.parametrize(("reported", "low", "high", "word"), [
    (0.09, 0.03, 0.08, "trend holds"), (-0.09, -0.08, -0.03, "trend holds"),
    (0.09, -0.08, -0.03, "trend fails"),  # the other way
    (0.09, -0.01, 0.015, "trend fails"),  # nothing, surely
    (0.09, -0.01, 0.03, "undecided"), (0.09, -0.10, 0.30, "undecided"),
    (0.01, -0.01, 0.015, "undecided"),  # what was reported is itself within nothing
    (0.09, 0.001, 0.004, "trend fails"),  # sure, but worth no word, and within nothing
])
def test_three_words(reported, low, high, word):
    assert judged(reported, Effect((low + high) / 2, low, high, 5, 14), "psnr") == word


def test_what_cannot_be_paired_is_refused():
    for one, other in (([[1.0]], [[1.0, 2.0]]), ([], []), ([1.0], [1.0])):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_effect(one, other)
    assert math.isclose(paired_effect([[2.0], [2.0]], [[1.0], [1.0]]).high, 1.0)
