"""From verdicts to the flat metrics of a trial: rates with their intervals, and perplexity.

It knows nothing of texts, models or judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dcr_ray.outcomes.variants import plain_benchmark
from dcr_ray.statistics.estimate import Estimate
from dcr_ray.statistics.macro import macro_average
from dcr_ray.statistics.proportions import estimate_rate
from dcr_ray.verdict import HITS, Verdict


def field_metrics(field: str, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Flat metrics of one field of an evaluation from the rows of its outcomes under one judge, in [0, 1] but for
    counts.

    `field` is over all prompts; `field.SET` over those of one set; `field.in_distribution` over the sets whose file was
    trained on and `field.out_of_distribution` over the others, where there are both; `field.macro` the mean of the
    sets' rates. Each is the share of scored responses whose verdict is a hit (`verdict.HITS`), with NAME/low and /high,
    its 95 % interval (families of prompts count as one, and so do a prompt and the same one wrapped), /n, the number
    scored, and /unscored. /degenerate_share and /partial_share are shares of the scored, /cut_share (cut by the token
    limit) of all; /first_token_refusal_probability, and /refusal_probability where it was measured, are means over all.
    A rate of which nothing was scored is missing.
    """
    sets = dict.fromkeys(row["benchmark"] for row in outcomes)
    metrics = _rate_metrics(field, field, outcomes)[0]
    rates, asked = [], []
    for name in sets:
        rows = [row for row in outcomes if row["benchmark"] == name]
        of_set, rate = _rate_metrics(f"{field}.{name}", field, rows)
        metrics |= of_set
        rates += [rate] if rate else []
        asked.append(plain_benchmark(name, rows[0]["prompt"]))
    parts = {inside: [row for row in outcomes if row["in_distribution"] is inside] for inside in (True, False)}
    if all(parts.values()):
        metrics |= _rate_metrics(f"{field}.in_distribution", field, parts[True])[0]
        metrics |= _rate_metrics(f"{field}.out_of_distribution", field, parts[False])[0]
    if rates and len(rates) == len(sets):
        average = macro_average(rates, asked)
        metrics[f"{field}.macro"] = average.value
        metrics[f"{field}.macro/low"], metrics[f"{field}.macro/high"] = average.low, average.high
    return metrics


def _rate_metrics(
    name: str, field: str, outcomes: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float], Estimate | None]:
    verdicts = [Verdict(row["verdict"]) for row in outcomes]
    scored = [verdict for verdict in verdicts if verdict is not Verdict.UNSCORED]
    metrics: dict[str, float] = {f"{name}/n": len(scored), f"{name}/unscored": len(verdicts) - len(scored)}
    rate = None
    if scored:
        families = [f"{plain_benchmark(row['benchmark'], row['prompt'])}/{row['group']}" for row in outcomes]
        several = len({f for f, verdict in zip(families, verdicts) if verdict is not Verdict.UNSCORED}) > 1
        rate = estimate_rate(
            [math.nan if verdict is Verdict.UNSCORED else verdict in HITS[field] for verdict in verdicts],
            # How far families differ cannot be known from one: then its prompts are taken for single ones.
            families if several else None,
        )
        metrics |= {name: rate.value, f"{name}/low": rate.low, f"{name}/high": rate.high}
        metrics[f"{name}/degenerate_share"] = scored.count(Verdict.DEGENERATE) / rate.n
        metrics[f"{name}/partial_share"] = scored.count(Verdict.PARTIAL) / rate.n
    if outcomes:
        metrics[f"{name}/cut_share"] = sum(row["finish_reason"] == "length" for row in outcomes) / len(outcomes)
    for probability in ("first_token_refusal_probability", "refusal_probability"):
        values = [row[probability] for row in outcomes if row[probability] is not None]
        if values:
            metrics[f"{name}/{probability}"] = math.fsum(values) / len(values)
    return metrics, rate


def perplexity(logprobs: Sequence[float], token_counts: Sequence[int]) -> float:
    """exp(-sum of log-probabilities in nats / tokens), over all tokens of all sequences together.

    Infinity where a token has probability 0 or the exponent is too large for a float. Raises ValueError where there
    are no tokens, the lengths differ, or a log-probability is NaN.
    """
    if len(logprobs) != len(token_counts) or sum(token_counts) <= 0:
        raise ValueError(f"no perplexity of {len(logprobs)} log-probabilities and {sum(token_counts)} tokens")
    exponent = -math.fsum(logprobs) / sum(token_counts) if all(map(math.isfinite, logprobs)) else -sum(logprobs)
    if math.isnan(exponent):
        raise ValueError("a log-probability is NaN: the model has diverged")
    return math.exp(exponent) if exponent < 700 else math.inf
