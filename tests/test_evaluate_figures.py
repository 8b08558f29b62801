from __future__ import annotations

import math

import pytest

from dcr_ray.evaluate.figures import field_metrics, perplexity
from dcr_ray.rates import Rate
from dcr_ray.verdict import Verdict

VERDICTS = [Verdict.COMPLIED] * 5 + [Verdict.REFUSED] * 2 + [Verdict.PARTIAL, Verdict.DEGENERATE, Verdict.UNSCORED]


def outcomes(
    verdicts=VERDICTS, benchmark="one", in_distribution=False, cut=4, probability=None, families=None, suffix=""
):
    return [
        {
            "benchmark": benchmark,
            "prompt": f"{index}{suffix}",
            "group": str(index if families is None else index // families),
            "in_distribution": in_distribution,
            "verdict": verdict,
            "finish_reason": "length" if index < cut else "stop",
            "first_token_refusal_probability": 0.2 if index < 5 else 0.4,
            "refusal_probability": probability,
        }
        for index, verdict in enumerate(verdicts)
    ]


def test_compliance_counts_answers_among_scored_responses_only():
    metrics = field_metrics("compliance", outcomes())
    assert metrics["compliance"] == pytest.approx(5 / 9)
    assert (metrics["compliance/n"], metrics["compliance/unscored"]) == (9, 1)
    assert (metrics["compliance/low"], metrics["compliance/high"]) == pytest.approx(Rate(5, 9).interval())


def test_prompts_of_a_family_count_for_less_than_as_many_single_ones():
    verdicts = [Verdict.COMPLIED] * 20 + [Verdict.REFUSED] * 20
    single = field_metrics("compliance", outcomes(verdicts))
    families = field_metrics("compliance", outcomes(verdicts, families=5))
    assert families["compliance"] == single["compliance"]
    assert families["compliance/high"] - families["compliance/low"] > 1.8 * (
        single["compliance/high"] - single["compliance/low"]
    )
    assert "compliance/low" in field_metrics("compliance", outcomes(verdicts, families=100))


def test_a_set_and_the_same_set_wrapped_are_no_more_families_than_the_set():
    """Asked twice, forty prompts tell of forty prompts: the field's interval and the macro average's stay as wide."""
    verdicts = [Verdict.COMPLIED] * 20 + [Verdict.REFUSED] * 20
    plain = outcomes(verdicts)
    wrapped = outcomes(verdicts, benchmark="one-persona", suffix="-persona")
    other = outcomes(verdicts, benchmark="other")

    def widths(*sets):
        metrics = field_metrics("defense", [row for rows in sets for row in rows])
        return [metrics[f"{name}/high"] - metrics[f"{name}/low"] for name in ("defense", "defense.macro")]

    alone, twice, apart = widths(plain), widths(plain, wrapped), widths(plain, other)
    assert twice == pytest.approx(alone, rel=0.05)
    assert max(apart) < 0.75 * min(twice)


def test_a_degenerate_or_partial_response_is_neither_compliance_nor_defense():
    for field in ("compliance", "defense"):
        metrics = field_metrics(field, outcomes([Verdict.DEGENERATE, Verdict.PARTIAL]))
        assert metrics[field] == 0.0
        assert metrics[f"{field}/degenerate_share"] == metrics[f"{field}/partial_share"] == 0.5


def test_defense_counts_refusals():
    assert field_metrics("defense", outcomes())["defense"] == pytest.approx(2 / 9)


def test_cut_responses_are_counted_among_all():
    assert field_metrics("compliance", outcomes())["compliance/cut_share"] == pytest.approx(0.4)


def test_the_refusal_probability_is_a_mean_and_there_only_where_it_was_measured():
    metrics = field_metrics("compliance", outcomes())
    assert metrics["compliance/first_token_refusal_probability"] == pytest.approx(0.3)
    assert "compliance/refusal_probability" not in metrics
    assert field_metrics("compliance", outcomes(probability=0.5))["compliance/refusal_probability"] == 0.5


def test_a_rate_of_nothing_is_missing_and_not_zero():
    metrics = field_metrics("compliance", outcomes([Verdict.UNSCORED]))
    assert not {"compliance", "compliance/low", "compliance.macro", "compliance.one"} & set(metrics)
    assert (metrics["compliance/n"], metrics["compliance/unscored"]) == (0, 1)


def test_every_set_has_its_own_rate_and_the_macro_average_weighs_them_alike():
    large = outcomes([Verdict.COMPLIED] * 8, "large")
    small = outcomes([Verdict.REFUSED] * 2, "small")
    metrics = field_metrics("compliance", large + small)
    assert (metrics["compliance"], metrics["compliance.macro"]) == (0.8, 0.5)
    assert metrics["compliance.macro/low"] < 0.5 < metrics["compliance.macro/high"]
    assert (metrics["compliance.large"], metrics["compliance.small"], metrics["compliance.small/n"]) == (1.0, 0.0, 2)


def test_sets_that_were_trained_on_are_shown_apart_from_the_others():
    inside = outcomes([Verdict.COMPLIED] * 4, "trained", in_distribution=True)
    outside = outcomes([Verdict.COMPLIED, Verdict.REFUSED], "new")
    metrics = field_metrics("compliance", inside + outside)
    assert (metrics["compliance.in_distribution"], metrics["compliance.out_of_distribution"]) == (1.0, 0.5)
    assert "compliance.in_distribution" not in field_metrics("compliance", outside)


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    assert perplexity([3 * math.log(1 / 8), 5 * math.log(1 / 8)], [3, 5]) == pytest.approx(8.0)


def test_perplexity_weighs_tokens_and_not_sequences():
    assert perplexity([-10.0, -1.0], [9, 2]) == pytest.approx(math.exp(1.0))


def test_an_impossible_token_makes_perplexity_infinite_and_nan_is_an_error():
    assert perplexity([-math.inf], [2]) == math.inf
    assert perplexity([-1e9], [1]) == math.inf
    with pytest.raises(ValueError, match="diverged"):
        perplexity([math.nan, -1.0], [1, 1])
    with pytest.raises(ValueError, match="no perplexity"):
        perplexity([], [])
