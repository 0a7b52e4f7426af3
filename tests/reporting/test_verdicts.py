"""Effects against textbook formulas and simulation, the rule of the verdicts, the list of claims."""

import math

import numpy as np
import pytest
from scipy import stats

from paperlib.evaluation.paper_numbers import reported
from paperlib.reporting.verdicts import CLAIMS, OTHER_SSIM, Effect, Verdict, change_word, effect_of, paired, verdict_of


def test_one_seed_has_no_interval_and_decides_nothing():
    effect = effect_of(np.array([[1.0, 1.0]]))
    assert effect == Effect(1.0, None, None, 1, 2)
    assert verdict_of(0.5, effect) is Verdict.ONE_SEED
    assert verdict_of(0.5, effect, papers=True) is Verdict.ONE_SEED
    assert str(effect) == "+1.000"


@pytest.mark.parametrize("over", ["seeds", "images"])
def test_without_spread_over_the_other_it_is_the_paired_t_interval(over):
    one = np.random.default_rng(0).normal(0.1, 0.05, 9)
    effect = effect_of(np.tile(one[:, None], 14) if over == "seeds" else np.tile(one, (3, 1)))
    low, high = stats.t.interval(0.95, 8, one.mean(), stats.sem(one))
    assert (effect.mean, effect.low, effect.high) == pytest.approx((one.mean(), low, high))


def test_the_variance_is_never_below_its_larger_part():
    """Seeds and images that rise and fall against each other: the sum of the parts less the rest is negative."""
    values = np.array([[0.3, -0.3, 0.1], [-0.3, 0.3, 0.0]])
    by_seed, by_image = values.mean(1), values.mean(0)
    parts = [by_seed.var(ddof=1) / 2, by_image.var(ddof=1) / 3]
    rest = values - by_seed[:, None] - by_image + values.mean()
    assert sum(parts) - (rest**2).sum() / 2 / 6 < 0 < max(parts)
    effect = effect_of(values)
    degrees = max(parts) ** 2 / (parts[0] ** 2 + parts[1] ** 2 / 2)
    half = stats.t.ppf(0.975, max(1, degrees)) * math.sqrt(max(parts))
    assert effect.high - effect.low == pytest.approx(2 * half)


@pytest.mark.parametrize(("seeds", "images", "over_seeds", "over_images"), [
    (5, 14, 0.03, 0.03), (5, 100, 0.01, 0.05), (3, 14, 0.05, 0.01), (5, 5, 0.0, 0.05)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds, images, over_seeds, over_images):
    random, hits, runs = np.random.default_rng(1), 0, 600
    for _ in range(runs):
        values = (0.04 + random.normal(0, over_seeds, (seeds, 1)) + random.normal(0, over_images, (1, images))
                  + random.normal(0, 0.02, (seeds, images)))
        effect = effect_of(values)
        hits += effect.low <= 0.04 <= effect.high
    assert hits / runs >= 0.93  # never less sure than it says; it may be wider


HOLDS, FAILS, UNDECIDED = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED


@pytest.mark.parametrize(("paper", "low", "high", "word"), [
    (0.09, 0.03, 0.08, HOLDS), (-0.09, -0.08, -0.03, HOLDS),
    (0.09, -0.08, -0.03, FAILS),  # the other way
    (0.09, -0.01, 0.015, FAILS),  # nothing, surely
    (0.089, 0.001, 0.011, FAILS),  # surely above zero, and surely nothing: equivalence comes first
    (0.09, 0.001, 0.021, HOLDS), (0.09, -0.01, 0.03, UNDECIDED), (0.09, -0.10, 0.30, UNDECIDED),
    (0.01, -0.01, 0.015, UNDECIDED),  # what was reported is itself within nothing
    (0.006, 0.001, 0.011, HOLDS), (0.006, -0.26, -0.1, FAILS)])
def test_words_of_smaller_runs(paper, low, high, word):
    effect = Effect((low + high) / 2, low, high, 5, 14)
    assert verdict_of(paper, effect) is word
    assert verdict_of(paper, Effect(effect.mean, low, high, 2, 14), papers=True) is word


@pytest.mark.parametrize(("paper", "low", "high", "word"), [
    (0.089, 0.03, 0.12, Verdict.REPRODUCED), (-0.15, -0.2, -0.1, Verdict.REPRODUCED),
    (0.089, 0.01, 0.08, Verdict.MISSED),  # the right sign, but not the paper's effect
    (0.089, -0.00005, 0.00015, Verdict.MISSED),  # 29.9605 against 29.9604
    (0.089, -0.1, -0.01, Verdict.MISSED), (0.089, -0.02, 0.12, UNDECIDED)])
def test_words_with_the_papers_data_schedule_and_method(paper, low, high, word):
    assert verdict_of(paper, Effect((low + high) / 2, low, high, 3, 100), papers=True) is word


def test_ssim_has_a_smaller_nothing():
    effect = Effect(0.002, 0.001, 0.003, 5, 14)
    assert [verdict_of(0.03, effect, metric) for metric in ("ssim", "psnr")] == [HOLDS, FAILS]


@pytest.mark.parametrize(("low", "high", "word"), [
    (0.01, 0.05, "better"), (-0.05, -0.01, "worse"), (-0.01, 0.015, "no difference"),
    (-0.01, 0.03, "undecided"), (0.001, 0.004, "no difference"), (None, None, "one seed")])
def test_changes_that_the_paper_does_not_report_are_two_sided(low, high, word):
    assert change_word(Effect(0.0 if low is None else (low + high) / 2, low, high, 5, 14)) == word


def measured(values, seeds, row="x"):
    return {"row": row, "value": float(np.mean(values)), "values": [float(np.mean(v)) for v in values],
            "images": [list(v) for v in values], "seed_ids": seeds}


def test_only_common_seeds_are_paired_one_named_twice_is_one_and_what_was_not_trained_stands_beside_all():
    one = measured([[1.0, 2.0], [1.5, 2.5], [9.0, 9.0]], [1, 2, 3])
    other = measured([[1.1, 2.0], [0.5, 1.5]], [2, 1])
    effect = paired([one, other])
    wanted = effect_of(np.array([[0.5, 0.5], [0.4, 0.5]]))
    assert (effect.seeds, effect.images) == (2, 2)
    assert (effect.mean, effect.low) == pytest.approx((wanted.mean, wanted.low))
    assert paired([measured([[1.0]] * 2, [1, 1]), measured([[0.0]] * 2, [1, 1])]).seeds == 1
    apart = paired([one, measured([[1.0, 2.0]], [7])])
    assert (apart.mean, apart.low, apart.seeds) == (pytest.approx(25 / 6 - 1.5), None, 0)
    bicubic = {"row": "bicubic", "value": 1.5, "images": [1.0, 2.0]}
    effect = paired([measured([[2.0, 3.0], [2.1, 3.1]], [1, 2]), bicubic])
    assert (effect.mean, effect.seeds, effect.images) == (pytest.approx(1.05), 2, 2)


def test_pairing_takes_out_what_both_share():
    random = np.random.default_rng(2)
    shared = random.normal(30, 3, (1, 14)) + random.normal(0, 0.5, (5, 1))
    noise = random.normal(0, 0.005, (2, 5, 14))
    seeds = list(range(5))
    effect = paired([measured(shared + 0.05 + noise[0], seeds), measured(shared + noise[1], seeds)])
    assert 0.04 < effect.low < effect.high < 0.06


def test_the_claims_are_the_papers_differences():
    """The numbers that verdicts rest on, typed a second time."""
    paper = {claim.text: round(claim.reported(), 4) for claim in CLAIMS}
    assert paper == {
        "Table B: the student beats bicubic, FP32": 2.02, "Table B: the student beats FSRCNN, FP32": 0.83,
        "Table B: FSRCNN beats bicubic, FP32": 1.19, "Table B: ABPN in INT8 beats FSRCNN in FP32": 0.7,
        "Table B: what FP32 to INT8 costs the student": -0.15, "Table C: MobileOne beats RepConv, FP32": 0.0453,
        "Table C: MobileOne beats RepConv, INT8": 0.1511, "Table C: INT8 costs MobileOne less than RepConv": 0.1058,
        "Table C: the same, from the float networks": 0.1058, "Table C: MobileOne beats RepDW, FP32": 0.7767,
        "Table C: MobileOne beats RepDW, INT8": 1.2972, "Table C: INT8 costs MobileOne less than RepDW": 0.5205,
        "Table D: the Mamba teacher helps stage 3, INT8": 0.0889, "Abstract: what INT8 costs the dynamic file": -0.2797,
        "Abstract: the fixed file beats the dynamic one": 0.0057}


def test_every_measurable_number_is_judged_by_a_claim():
    models = {key[:3] for key in reported() if key[0] != "A"}
    assert {model for claim in CLAIMS for model in claim.judges} == models
    for precision in ("fp32", "int8"):
        repconv = ("C", "repconv", precision)
        assert any(repconv in claim.judges and ("C", "mobileone", precision) in claim.judges for claim in CLAIMS)


def test_ssim_that_the_paper_measured_otherwise_is_named():
    inflated = {key[:3] for key in reported() if key[0] in ("C", "D", "abstract") and key[2] == "int8"}
    assert {model for model, why in OTHER_SSIM.items() if "tf.image.ssim" in why} == inflated
    assert not {("B", "bicubic", "fp32"), ("B", "fsrcnn", "fp32")} & OTHER_SSIM.keys()
