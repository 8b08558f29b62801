"""The macro average over benchmarks, each of which counts alike however many prompts it has.

Prompts of different benchmarks are taken as independent, but for benchmarks that are said to ask the same ones. It
speaks of these very benchmarks, not of benchmarks in general.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import fsum, sqrt

from dcr_ray.statistics.estimate import Estimate
from dcr_ray.statistics.seed_spread import SeedSpread, widened
from dcr_ray.statistics.seeds import SeededEstimate


def macro_average(benchmarks: Sequence[Estimate], asked: Sequence[str] | None = None) -> Estimate:
    """The mean of the benchmarks' rates, or of their paired differences, of the same models.

    The limits lie as far from the mean as the root of the sum of squared distances of the benchmarks' own limits,
    divided by their number (MOVER: Zou and Donner 2008, Stat. Med. 27, 1693): unlike mean +- z standard errors this
    holds where a benchmark is hit throughout. Coverage of 95 % (benchmarks/coverage.py; five benchmarks of 40 to 1,319
    prompts): rates 95 %, differences 98 %, since the benchmark of 40 is covered too often and weighs most.

    `asked` has a name for each benchmark; those of one name ask the same prompts, as a set plain and wrapped. How they
    are correlated is not known here: they are taken to err together, which makes the interval as wide as it can be, and
    their distances are added before they are squared. Raises ValueError where there is none, their confidences differ,
    or one is an estimate over seeds, since seeds tie benchmarks together (`macro_average_over_seeds`).
    """
    if any(isinstance(one, SeededEstimate) for one in benchmarks):
        raise ValueError("benchmarks answered by the same seeds are not independent: use macro_average_over_seeds")
    return _average(benchmarks, [(one.low, one.high) for one in benchmarks], asked)


def macro_average_over_seeds(
    benchmarks: Sequence[SeededEstimate], asked: Sequence[str] | None = None
) -> SeededEstimate:
    """As `macro_average`, for estimates over seeds: of all benchmarks by the same seeds in the same order.

    The prompts' share of the interval is put together as there, from the limits for these seeds; the seeds' share is
    that of their macro averages, so that a seed that is good everywhere counts in full. Coverage of 95 %: 96-98 %.
    `p_value` is None. Raises ValueError also where the numbers of arms or seeds differ.
    """
    limits = [(one.low_of_these_seeds, one.high_of_these_seeds) for one in benchmarks]
    average = _average(benchmarks, limits, asked)
    shapes = {tuple(len(spread.rates) for spread in one.spreads) for one in benchmarks}
    if len(shapes) > 1:
        raise ValueError(f"all benchmarks are of the same seeds of the same arms: found {sorted(shapes)}")
    # A rate has no p value of being nothing.
    least = 0.0 if all(one.p_value is None for one in benchmarks) else -1.0
    count = len(benchmarks)
    spreads = tuple(
        SeedSpread(
            rates=tuple(fsum(rates) / count for rates in zip(*(spread.rates for spread in arm), strict=True)),
            noise=fsum(spread.noise for spread in arm) / count**2,
        )
        for arm in zip(*(one.spreads for one in benchmarks), strict=True)
    )
    low, high = widened(average.value, (average.low, average.high), spreads, average.confidence, least)
    over_prompts = _squares(
        [sqrt(max(0.0, one.standard_error**2 - fsum(spread.variance for spread in one.spreads))) for one in benchmarks],
        asked,
    )
    return SeededEstimate(
        **vars(
            replace(
                average,
                low=low,
                high=high,
                standard_error=sqrt(over_prompts / count**2 + fsum(spread.variance for spread in spreads)),
            )
        ),
        low_of_these_seeds=average.low,
        high_of_these_seeds=average.high,
        spreads=spreads,
    )


def _average(
    benchmarks: Sequence[Estimate], limits: Sequence[tuple[float, float]], asked: Sequence[str] | None
) -> Estimate:
    if not benchmarks:
        raise ValueError("there is no average of no benchmarks")
    if len(confidences := {one.confidence for one in benchmarks}) > 1:
        raise ValueError(f"all intervals have one confidence: found {sorted(confidences)}")
    count = len(benchmarks)
    value = fsum(one.value for one in benchmarks) / count
    below = _squares([one.value - low for one, (low, _) in zip(benchmarks, limits, strict=True)], asked)
    above = _squares([high - one.value for one, (_, high) in zip(benchmarks, limits, strict=True)], asked)
    return Estimate(
        value=value,
        low=value - sqrt(below) / count,
        high=value + sqrt(above) / count,
        confidence=confidences.pop(),
        standard_error=sqrt(_squares([one.standard_error for one in benchmarks], asked)) / count,
        n=sum(one.n for one in benchmarks),
        clusters=sum(one.clusters for one in benchmarks),
        unscored=sum(one.unscored for one in benchmarks),
    )


def _squares(distances: Sequence[float], asked: Sequence[str] | None) -> float:
    """The sum of the squares of `distances`, those of one name added up first."""
    if asked is None:
        return fsum(distance**2 for distance in distances)
    together: dict[str, list[float]] = defaultdict(list)
    for name, distance in zip(asked, distances, strict=True):
        together[name].append(distance)
    return fsum(fsum(each) ** 2 for each in together.values())
