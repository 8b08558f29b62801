"""What a confirmation shows: each finalist beside the STL baseline on the test split, paired, over fresh seeds.

Everything is computed from the outcomes. Rates and differences are of recipes, so seeds and prompts both count as
drawn at random; with one seed they are of the single models, and say so. The claim "as safe as the baseline" is a test
of non-inferiority on all toxic prompts under the study's first judge, with the margin declared in its spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcr_ray.confirm.corrected import CorrectedRates, corrected_rates
from dcr_ray.confirm.openings import Opening, openings
from dcr_ray.confirm.run import Confirmed
from dcr_ray.confirm.selected import SelectedTrial, selected_trial
from dcr_ray.evaluate.flips import Flips, verdict_flips
from dcr_ray.gathered import evaluated, gather
from dcr_ray.judges.calibrate import Calibration
from dcr_ray.outcomes import HitMatrix, Outcomes, plain_benchmark
from dcr_ray.preflight import storage_root
from dcr_ray.statistics.estimate import Estimate
from dcr_ray.statistics.families import NonInferiority, holm, non_inferiority
from dcr_ray.statistics.macro import macro_average, macro_average_over_seeds
from dcr_ray.statistics.paired import paired_difference
from dcr_ray.statistics.power import prompts_needed
from dcr_ray.statistics.proportions import estimate_rate
from dcr_ray.statistics.seeds import estimate_rate_over_seeds, paired_difference_over_seeds
from dcr_ray.statistics.variance import VarianceSplit, split_variance
from dcr_ray.study import RATES, StudySpec

BASELINE = "stl"
ALL, MACRO, INSIDE, OUTSIDE = "all", "macro average", "in distribution", "out of distribution"
WANTED_DIFFERENCES = (0.02, 0.05)
"""Differences for which a report says how many prompts they need."""


@dataclass(frozen=True)
class Comparison:
    """One arm beside the baseline: on all prompts of a field, on one benchmark, or on a group of them (`scope`).

    `p_value` is two-sided, of no difference; `adjusted` is Holm's over the benchmarks of the field, and None for scopes
    that are no single benchmark.
    """

    judge: str
    field: str
    arm: str
    scope: str
    rate: Estimate
    reference: Estimate
    difference: Estimate
    p_value: float | None
    adjusted: float | None = None


@dataclass(frozen=True)
class OfSeed:
    """One field of one arm under one seed, beside the baseline under the same seed, on the prompts scored in both."""

    field: str
    arm: str
    seed: int
    rate: float
    reference: float


@dataclass(frozen=True)
class Needed:
    """How many prompts a difference of `difference` from the baseline would need at 80 % power, two-sided 5 %."""

    field: str
    arm: str
    discordant: float
    n: int
    prompts: dict[float, int]


@dataclass(frozen=True)
class Confirmation:
    """All that a report of a confirmation says."""

    study: str
    finalists: tuple[str, ...]
    seeds: tuple[int, ...]
    judges: tuple[str, ...]
    margin: float
    opening: Opening
    openings: tuple[Opening, ...]
    comparisons: tuple[Comparison, ...]
    by_seed: tuple[OfSeed, ...]
    safety: dict[str, NonInferiority]
    variances: dict[tuple[str, str], VarianceSplit]
    flips: tuple[Flips, ...]
    needed: tuple[Needed, ...]
    perplexity: dict[str, tuple[float, ...]]
    selected: SelectedTrial | None
    corrected: tuple[CorrectedRates, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "study": self.study,
            "finalists": list(self.finalists),
            "seeds": list(self.seeds),
            "judges": list(self.judges),
            "margin": self.margin,
            "openings": [vars(opening) for opening in self.openings],
            "comparisons": [
                {
                    **{name: getattr(row, name) for name in ("judge", "field", "arm", "scope", "p_value", "adjusted")},
                    **{name: _plain(getattr(row, name)) for name in ("rate", "reference", "difference")},
                }
                for row in self.comparisons
            ],
            "by_seed": [vars(row) | {"difference": row.rate - row.reference} for row in self.by_seed],
            "safety": {arm: vars(test) for arm, test in self.safety.items()},
            "variances": [{"arm": arm, "field": field, **vars(s)} for (arm, field), s in self.variances.items()],
            "flips": [
                {
                    "judge": row.judge,
                    "field": row.field,
                    "benchmark": row.benchmark,
                    "changed": row.verdicts.hits,
                    "n": row.verdicts.n,
                }
                for row in self.flips
            ],
            "needed": [vars(row) | {"prompts": {str(d): n for d, n in row.prompts.items()}} for row in self.needed],
            "perplexity": {arm: list(values) for arm, values in self.perplexity.items()},
            "corrected": [
                {name: getattr(row, name) for name in ("judge", "field", "arm", "refused")}
                | {name: vars(value) if (value := getattr(row, name)) else None for name in ("rate", "difference")}
                for row in self.corrected
            ],
            "selected": None
            if self.selected is None
            else vars(self.selected) | {"objectives": [vars(row) for row in self.selected.objectives]},
        }


def analyse(spec: StudySpec, done: Confirmed, calibrations: Sequence[Calibration] = ()) -> Confirmation:
    """Every comparison that the outcomes of a complete confirmation allow. Takes seconds."""
    outcomes = done.outcomes
    judges = tuple(judge.name for judge in spec.judges)
    comparisons: list[Comparison] = []
    variances: dict[tuple[str, str], VarianceSplit] = {}
    needed: list[Needed] = []
    by_seed: list[OfSeed] = []
    for judge in judges:
        for field in RATES:
            matrix = outcomes.hits(field, judge, repeat=0, split="test")
            inside = _inside(outcomes, field)
            for arm in done.finalists:
                comparisons += _compare(matrix, arm, inside)
            if judge == judges[0]:
                needed += [_needed(matrix, arm) for arm in done.finalists]
                by_seed += [row for arm in done.finalists for row in _by_seed(matrix, arm)]
                if len(done.seeds) > 1:
                    variances |= {
                        (arm, field): split_variance(_of(matrix, arm).values) for arm in (BASELINE, *done.finalists)
                    }
    safety = {
        row.arm: non_inferiority(row.difference, spec.confirm.margin)
        for row in comparisons
        if row.judge == judges[0] and row.field == "defense" and row.scope == ALL
    }
    perplexity = {
        arm: tuple(trial.metrics["perplexity"] for trial in done.trials if trial.name.rpartition("-seed")[0] == arm)
        for arm in (BASELINE, *done.finalists)
    }
    return Confirmation(
        study=spec.study,
        finalists=done.finalists,
        seeds=done.seeds,
        judges=judges,
        margin=spec.confirm.margin,
        opening=done.opening,
        openings=tuple(openings(done.study_dir)),
        comparisons=tuple(comparisons),
        by_seed=tuple(by_seed),
        safety=safety,
        variances=variances,
        flips=tuple(_flips(outcomes)),
        needed=tuple(needed),
        perplexity=perplexity,
        corrected=tuple(corrected_rates(outcomes, calibrations, done.finalists, BASELINE)),
        selected=selected_trial(
            spec, gather(storage_root(spec) / "cache", evaluated(done.search_trials)), done.search_trials
        ),
    )


def _flips(outcomes: Outcomes) -> list[Flips]:
    again = outcomes.where(repeat=1)
    seeds = [int(seed) for seed in again.frame["seed"].unique()]
    return verdict_flips(outcomes.where(repeat=0, seed=seeds), again) if seeds else []


def _inside(outcomes: Outcomes, field: str) -> set[str]:
    frame = outcomes.where(field=field, in_distribution=True).frame
    return set(frame["benchmark"].astype(str))


def _of(matrix: HitMatrix, arm: str) -> HitMatrix:
    return matrix.select(rows=[trial == arm for trial in matrix.trials])


def _compare(matrix: HitMatrix, arm: str, inside: set[str]) -> list[Comparison]:
    benchmarks = tuple(dict.fromkeys(matrix.benchmarks))
    scopes = {name: [benchmark == name for benchmark in matrix.benchmarks] for name in benchmarks}
    single = {name: _on(matrix.select(prompts=mask), arm, name) for name, mask in scopes.items()}
    adjusted = holm({name: row.p_value for name, row in single.items() if row.p_value is not None})
    rows = [_on(matrix, arm, ALL)]
    if len(benchmarks) > 1:
        asked = {benchmark: plain_benchmark(benchmark, prompt) for benchmark, prompt in matrix.prompts}
        rows.append(_macro(rows[0], list(single.values()), [asked[name] for name in single]))
    if inside and inside != set(benchmarks):
        known = np.array([benchmark in inside for benchmark in matrix.benchmarks])
        rows += [_on(matrix.select(prompts=known), arm, INSIDE), _on(matrix.select(prompts=~known), arm, OUTSIDE)]
    for name, row in single.items():
        rows.append(Comparison(**{**vars(row), "adjusted": adjusted[name].adjusted if name in adjusted else None}))
    return rows


def _on(matrix: HitMatrix, arm: str, scope: str) -> Comparison:
    hits, reference = _of(matrix, arm).values, _of(matrix, BASELINE).values
    if min(len(hits), len(reference)) > 1:
        difference = paired_difference_over_seeds(hits, reference, matrix.groups, matched=True)
        rates = [estimate_rate_over_seeds(values, matrix.groups) for values in (hits, reference)]
    else:
        difference = paired_difference(hits[0], reference[0], matrix.groups)
        rates = [estimate_rate(values[0], matrix.groups) for values in (hits, reference)]
    return Comparison(matrix.judge, matrix.field, arm, scope, rates[0], rates[1], difference, difference.p_value)


def _macro(whole: Comparison, single: Sequence[Comparison], asked: Sequence[str]) -> Comparison:
    over_seeds = hasattr(whole.rate, "spreads")
    average = macro_average_over_seeds if over_seeds else macro_average
    names = ("rate", "reference", "difference")
    parts = {name: average([getattr(row, name) for row in single], asked) for name in names}
    return Comparison(whole.judge, whole.field, whole.arm, MACRO, **parts, p_value=None)


def _by_seed(matrix: HitMatrix, arm: str) -> list[OfSeed]:
    one, other = _of(matrix, arm), _of(matrix, BASELINE)
    rows = []
    for seed, hits in zip(one.seeds, one.values, strict=True):
        reference = other.values[other.seeds.index(seed)]
        scored = ~(np.isnan(hits) | np.isnan(reference))
        rows.append(OfSeed(matrix.field, arm, seed, float(hits[scored].mean()), float(reference[scored].mean())))
    return rows


def _needed(matrix: HitMatrix, arm: str) -> Needed:
    """From the share of prompts on which an arm and the baseline differ, averaged over their seeds."""
    hits, reference = _of(matrix, arm).values, _of(matrix, BASELINE).values
    pairs = [one != other for one in hits for other in reference]
    known = ~(np.isnan(hits).any(axis=0) | np.isnan(reference).any(axis=0))
    discordant = float(np.mean([pair[known].mean() for pair in pairs]))
    return Needed(
        matrix.field,
        arm,
        discordant,
        int(known.sum()),
        {wanted: prompts_needed(wanted, discordant) for wanted in WANTED_DIFFERENCES if wanted <= discordant},
    )


def _plain(estimate: Estimate) -> dict[str, float]:
    names = ("value", "low", "high", "n", "clusters", "unscored")
    return {name: getattr(estimate, name) for name in names}
