"""Macro averages, and decisions over several benchmarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from dcr_ray.statistics.estimate import Estimate
from dcr_ray.statistics.families import HolmTest, holm, non_inferiority
from dcr_ray.statistics.macro import macro_average, macro_average_over_seeds
from dcr_ray.statistics.paired import paired_difference
from dcr_ray.statistics.proportions import estimate_rate
from dcr_ray.statistics.seeds import paired_difference_over_seeds


def an_estimate(value: float, low: float, high: float, **rest) -> Estimate:
    settings = {"confidence": 0.95, "standard_error": 0.02, "n": 100, "clusters": 80} | rest
    return Estimate(value=value, low=low, high=high, **settings)


def test_the_average_of_one_benchmark_is_itself():
    one = an_estimate(0.9, 0.82, 0.95, unscored=3)
    mean = macro_average([one])
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.9, 0.82, 0.95))
    assert (mean.standard_error, mean.n, mean.clusters, mean.unscored) == (pytest.approx(0.02), 100, 80, 3)


def test_distances_are_added_in_squares_to_each_side():
    mean = macro_average([an_estimate(0.9, 0.86, 0.93), an_estimate(0.5, 0.47, 0.54, n=50, unscored=2)])
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.7, 0.7 - 0.05 / 2, 0.7 + 0.05 / 2))
    assert mean.standard_error == pytest.approx(0.02 * np.sqrt(2) / 2)
    assert (mean.n, mean.clusters, mean.unscored) == (150, 160, 2)


def test_a_benchmark_hit_throughout_still_leaves_an_error():
    mean = macro_average([estimate_rate([1] * 40), estimate_rate([1] * 60)])
    assert (mean.value, mean.high, mean.standard_error) == (1, 1, 0)
    assert mean.low < 0.97


def test_benchmarks_that_ask_the_same_prompts_are_as_good_as_one():
    one, other = an_estimate(0.9, 0.86, 0.93), an_estimate(0.5, 0.44, 0.54)
    twice = macro_average([one, one], ["a", "a"])
    assert (twice.low, twice.high) == pytest.approx((one.low, one.high))
    assert twice.standard_error == pytest.approx(one.standard_error)
    assert macro_average([one, other], ["a", "b"]) == macro_average([one, other])
    assert macro_average([one, other], ["a", "a"]).low < macro_average([one, other]).low


def test_macro_averages_of_differences_are_covered():
    random = np.random.default_rng(41)
    tables = ((100, (0.8, 0.1, 0.05, 0.05)), (150, (0.9, 0.05, 0.03, 0.02)), (200, (0.85, 0.05, 0.05, 0.05)))
    truth = (0.05 + 0.02 + 0.0) / 3
    covered = 0
    for _ in range(300):
        parts = []
        for n, shares in tables:
            kinds = random.choice(4, n, p=shares)
            parts.append(paired_difference(kinds < 2, kinds % 2 == 0))
        mean = macro_average(parts)
        covered += mean.low <= truth <= mean.high
    assert 0.93 <= covered / 300 <= 0.985


def seeded(shift: np.ndarray, seed: int):
    """A benchmark whose arms differ by seed effects that it shares with others."""
    random = np.random.default_rng(seed)
    arms = [(random.standard_normal((3, 300)) + effects[:, None]) < norm.ppf(0.8) for effects in shift]
    return paired_difference_over_seeds(*arms)


def test_a_seed_that_is_good_everywhere_counts_in_full():
    effects = np.array([[-0.4, 0.0, 0.4], [0.3, -0.3, 0.0]])
    single = seeded(effects, 0)
    together = macro_average_over_seeds([seeded(effects, number) for number in range(6)])
    # Each seed is good, middling and bad on two benchmarks, so that the seeds' averages hardly differ.
    apart = macro_average_over_seeds([seeded(np.roll(effects, number, axis=1), number) for number in range(6)])
    prompts = together.high_of_these_seeds - together.low_of_these_seeds
    assert prompts < 0.6 * (single.high_of_these_seeds - single.low_of_these_seeds)
    assert together.high - together.low > 0.8 * (single.high - single.low)
    assert apart.high - apart.low < 0.4 * (together.high - together.low)
    assert len(together.spreads) == 2 and len(together.spreads[0].rates) == 3


def test_one_benchmark_over_seeds_is_itself_too():
    one = seeded(np.array([[0.1, -0.2, 0.3], [0.0, 0.2, 0.1]]), 5)
    mean = macro_average_over_seeds([one])
    for name in ("value", "low", "high", "standard_error", "low_of_these_seeds", "high_of_these_seeds"):
        assert getattr(mean, name) == pytest.approx(getattr(one, name))


def test_averages_of_what_does_not_belong_together_are_refused():
    over_seeds = seeded(np.zeros((2, 3)), 1)
    with pytest.raises(ValueError, match="no benchmarks"):
        macro_average([])
    with pytest.raises(ValueError, match="one confidence"):
        macro_average([an_estimate(0.9, 0.8, 1.0), an_estimate(0.9, 0.8, 1.0, confidence=0.9)])
    with pytest.raises(ValueError, match="macro_average_over_seeds"):
        macro_average([over_seeds])
    fewer = replace(over_seeds, spreads=over_seeds.spreads[:1])
    with pytest.raises(ValueError, match="same seeds"):
        macro_average_over_seeds([over_seeds, fewer])


def test_holms_correction_by_hand():
    tests = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert [tests[name].adjusted for name in "abcd"] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [tests[name].rejected for name in "abcd"] == [True, False, False, True]
    assert tests["c"].p_value == 0.03
    assert list(tests) == list("abcd")


def test_a_family_of_one_needs_no_correction_and_one_of_none_has_no_test():
    assert holm({"only": 0.04}) == {"only": HolmTest(0.04, 0.04, True)}
    assert holm({}) == {}


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": p})


@pytest.mark.parametrize(
    ("low", "margin", "expected"),
    [(-0.019, 0.02, True), (-0.02, 0.02, False), (-0.021, 0.02, False), (0.01, 0.02, True)],
)
def test_non_inferior_is_a_lower_limit_above_the_margin(low, margin, expected):
    one = non_inferiority(an_estimate(low + 0.015, low, low + 0.03), margin)
    assert one.non_inferior is expected
    assert (one.low, one.margin, one.alpha) == (low, margin, pytest.approx(0.025))
    assert one.difference == pytest.approx(low + 0.015)


@pytest.mark.parametrize("margin", [0, -0.02, 2, float("nan")])
def test_a_margin_in_points_or_of_0_is_refused(margin):
    with pytest.raises(ValueError, match="margin"):
        non_inferiority(an_estimate(0, -0.01, 0.01), margin)
