"""Recipes searched at every rung of a ladder: what each size found, and whether it carries over to the next.

All is read from the searches' own journals and outcomes. A search chooses by one half of the search split's prompts;
what it chose, and what a smaller size would have chosen, is trained anew with the ladder's seeds and measured on the
other half, so that neither luck of the seed nor of the prompts is counted as gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log, log10
from statistics import mean
from typing import Any

import numpy as np

from dcr_ray.errors import DcrError, InputError
from dcr_ray.models import ModelCard
from dcr_ray.planning.plan import planned_card
from dcr_ray.preflight import storage_root, study_folder
from dcr_ray.recipe import Recipe
from dcr_ray.scaling.spec import RecipeSearch, Rung, ScalingSpec
from dcr_ray.scaling.transfer import (
    Agreement,
    Drift,
    Optimum,
    Regret,
    Tried,
    drift,
    optimum,
    rank_agreement,
    regret,
    warm_starts,
)
from dcr_ray.study import StudySpec
from dcr_ray.trial import Trial
from dcr_ray.verdict import HITS, Verdict

_Prompt = tuple[str, str, str]
"""Field, benchmark and id."""

POLICIES = ("unchanged", "extrapolated", "default")
"""What may be carried to a size: the winner of the largest smaller one, the same moved by the drifts that can be told
from none, or the recipe that the ladder starts from."""

STEP = 0.15
"""Share of a coordinate's range between the centre and the warm starts beside it."""


@dataclass(frozen=True)
class Searched:
    """What one rung's search tried, in the coordinates of its space, and its winner; None where nothing ended well.

    `shared` are the figures of the recipes that every rung tries, None for one that did not end well.
    """

    rung: str
    family: str
    parameters: int
    tried: tuple[Tried, ...]
    winner: dict[str, float] | None
    shared: tuple[float | None, ...]


@dataclass(frozen=True)
class Transfer:
    """Whether settings carry over between the sizes that were searched. `notes` say what could not be told, and why."""

    searched: tuple[Searched, ...]
    optima: tuple[Optimum, ...]
    drifts: tuple[Drift, ...]
    regrets: tuple[tuple[str, Regret], ...]
    agreements: tuple[tuple[str, str, Agreement], ...]
    notes: tuple[str, ...]


def parameters_of(model: str) -> int:
    card: ModelCard = planned_card(model)
    return card.parameters


def by_size(spec: ScalingSpec) -> list[Rung]:
    return sorted(spec.ladder, key=lambda rung: parameters_of(rung.model))


def trials_of(study: StudySpec) -> list[Trial]:
    """The trials of a study in the ladder, the baseline among them; none where it has not begun."""
    from dcr_ray.search.journal import read_trials

    folder = study_folder(study)
    if not folder.is_dir():
        return []
    try:
        return list(read_trials(study, folder))
    except InputError as error:
        raise DcrError(f"{study.study}: {error}") from error


def figure_of(trial: Trial, metrics: Sequence[str]) -> float:
    """The mean over metrics of empirical logits, by which recipes are compared; half a count keeps 0 and n of n in."""
    logits = []
    for name in metrics:
        n = trial.metrics.get(f"{name}/n", 0.0)
        hits = trial.metrics.get(name, 0.0) * n
        logits.append(log((hits + 0.5) / (n - hits + 0.5)))
    return float(np.mean(logits))


def search_results(spec: ScalingSpec) -> list[Searched]:
    """What the searches have found by now, the smallest rung first; rungs that are not searched are left out."""
    if spec.search is None:
        return []
    return [_searched(spec, rung) for rung in by_size(spec) if rung.search != "none"]


def begun_search(spec: ScalingSpec, rung: Rung, smaller: Sequence[Searched]) -> StudySpec | None:
    """The search of a rung as it was begun, or as it would begin now. None for a warm one without a smaller winner."""
    probe = spec.search_study(rung, _known_points(spec, rung, "search"))
    if rung.search == "full" or trials_of(probe):
        return probe
    points = warm_points(spec, rung, smaller)
    return spec.search_study(rung, points) if points else None


def has_begun_search(spec: ScalingSpec, rung: Rung) -> bool:
    return bool(_known_points(spec, rung, "search"))


def warm_points(spec: ScalingSpec, rung: Rung, smaller: Sequence[Searched]) -> list[dict[str, float]]:
    """Three to six recipes to begin with at a rung, from what smaller ones found. Empty where none found anything."""
    source = _source(rung, smaller)
    if source is None:
        return []
    search = spec.search
    steps = {name: STEP * (high - low) for name, (low, high) in search.limits.items()}
    centre = search.coordinates(source.winner)
    points = warm_starts(
        centre, _default(spec, rung), _drifts(smaller, search), steps, search.limits, _decades(rung, source)
    )
    return [search.point(point) for point in points]


def again_points(spec: ScalingSpec, rung: Rung, smaller: Sequence[Searched], own: Searched) -> list[dict[str, Any]]:
    """The rung's winner at every data size, then the policies at the largest, where a smaller rung has a winner."""
    search, axis = spec.search, spec.data_axis
    if own.winner is None:
        return []
    points: list[dict[str, Any]] = [own.winner | {axis.coordinate: size} for size in axis.sizes]
    source = _source(rung, smaller)
    if source is not None:
        centre = search.coordinates(source.winner)
        moved = warm_starts(centre, centre, _drifts(smaller, search), {}, search.limits, _decades(rung, source))[0]
        carried = {"unchanged": centre, "extrapolated": moved, "default": _default(spec, rung)}
        points += [search.point(carried[policy]) | {axis.coordinate: axis.sizes[-1]} for policy in POLICIES]
    return points


def again_studies(spec: ScalingSpec, rung: Rung, smaller: Sequence[Searched], own: Searched) -> list[StudySpec]:
    """The studies of the rung's chosen recipes, as they were begun or as they would begin now; empty without any."""
    known = _known_points(spec, rung, "again")
    points = known or again_points(spec, rung, smaller, own)
    return spec.again_studies(rung, points) if points else []


def again_trials(spec: ScalingSpec, rung: Rung) -> dict[int, dict[str, Trial]]:
    """By seed: the trials of chosen recipes, by data size (`16`, `48`, ...) and policy (`unchanged`, ...)."""
    points = _known_points(spec, rung, "again")
    if not points:
        return {}
    names = [*map(str, spec.data_axis.sizes), *POLICIES]
    return {
        seed: {names[trial.number]: trial for trial in trials_of(study) if trial.role == "search"}
        for seed, study in zip(spec.seeds, spec.again_studies(rung, points), strict=True)
    }


def transfer_of(spec: ScalingSpec) -> Transfer | None:
    """Optimum per size, drift, regret and rank agreement, as far as the searches have come. None without a search."""
    if spec.search is None:
        return None
    found = search_results(spec)
    search, notes = spec.search, []
    optima = _optima(found, search)
    for each in found:
        if len(each.tried) < _fewest(search):
            notes.append(
                f"{each.rung}: {len(each.tried)} trials tell no optimum along {len(search.space)} coordinates; "
                f"{_fewest(search)} or more do"
            )
    drifts = _drifts(found, search)
    notes += [
        f"{name}: no drift can be told from fewer than three optima off the edges of their range, and more than "
        "families and a slope"
        for name in search.space
        if name not in drifts
    ]
    agreements = []
    for small, large in combinations(found, 2):
        both = [(a, b) for a, b in zip(small.shared, large.shared, strict=False) if a is not None and b is not None]
        if len(both) < 3:
            notes.append(f"{small.rung} and {large.rung}: {len(both)} recipes ran at both, too few to compare ranks")
            continue
        figures = list(zip(*both, strict=True))
        alike = [each.rung for each, own in zip((small, large), figures, strict=True) if len(set(own)) == 1]
        if alike:
            ran = f"{small.rung} and {large.rung}: all {len(both)} recipes that ran at both measured alike at"
            notes.append(f"{ran} {' and '.join(alike)}, so there is no order to compare")
        else:
            agreements.append((small.rung, large.rung, rank_agreement(*figures)))
    regrets = []
    for rung in by_size(spec):
        if rung.search != "none":
            regrets += [(rung.label, each) for each in _regrets(spec, rung)]
    return Transfer(
        tuple(found), tuple(optima), tuple(drifts.values()), tuple(regrets), tuple(agreements), tuple(notes)
    )


def _searched(spec: ScalingSpec, rung: Rung) -> Searched:
    study = spec.search_study(rung, _known_points(spec, rung, "search"))
    trials = [trial for trial in trials_of(study) if trial.role == "search"]
    ended = [trial for trial in trials if trial.state == "complete"]
    tried = tuple(Tried(spec.search.coordinates(trial.params), figure_of(trial, spec.metrics)) for trial in ended)
    allowed = [(figure.figure, trial) for figure, trial in zip(tried, ended, strict=True) if trial.feasible]
    winner = max(allowed, key=lambda pair: pair[0])[1] if allowed else None
    shared: list[float | None] = []
    if rung.search == "full":
        figures = {trial.number: figure.figure for figure, trial in zip(tried, ended, strict=True)}
        shared = [figures.get(number) for number in range(spec.search.common)]
    params = {name: float(winner.params[name]) for name in spec.search.space} if winner else None
    return Searched(rung.label, rung.family, parameters_of(rung.model), tried, params, tuple(shared))


def _known_points(spec: ScalingSpec, rung: Rung, kind: str) -> list[dict[str, Any]]:
    """The points that a study of this rung was begun with: once begun, later rungs do not change it."""
    place = [{}] if kind == "search" else [{spec.data_axis.coordinate: spec.data_axis.sizes[-1]}]
    study = spec.search_study(rung) if kind == "search" else spec.again_studies(rung, place)[0]
    trials = [trial for trial in trials_of(study) if trial.role == "search"]
    return [dict(trial.params) for trial in sorted(trials, key=lambda trial: trial.number)]


def _source(rung: Rung, smaller: Sequence[Searched]) -> Searched | None:
    """The largest smaller rung that has a winner; of the same family where there is one."""
    won = [each for each in smaller if each.winner is not None and each.parameters < parameters_of(rung.model)]
    own = [each for each in won if each.family == rung.family] or won
    return max(own, key=lambda each: each.parameters) if own else None


def _decades(rung: Rung, source: Searched) -> float:
    return log10(parameters_of(rung.model) / source.parameters)


def _default(spec: ScalingSpec, rung: Rung) -> dict[str, float]:
    """The recipe that the ladder starts from, in the search's coordinates."""
    recipe = Recipe.model_validate(spec.search_study(rung).recipe).model_dump()

    def at(path: str) -> Any:
        value: Any = recipe
        for part in path.split("."):
            value = value[part]
        return value

    return spec.search.coordinates(
        spec.search.point(spec.search.coordinates({name: at(name) for name in spec.search.space}))
    )


def _fewest(search: RecipeSearch) -> int:
    """Trials for a quadratic along every coordinate, with one to spare."""
    return 2 * len(search.space) + 2


def _optima(found: Sequence[Searched], search: RecipeSearch) -> list[Optimum]:
    return [
        optimum(each.tried, name, search.limits[name], family=each.family, parameters=each.parameters)
        for name in search.space
        for each in found
        if len(each.tried) >= _fewest(search)
    ]


def _drifts(found: Sequence[Searched], search: RecipeSearch) -> dict[str, Drift]:
    optima = _optima(found, search)
    drifts: Mapping[str, Drift | None] = {
        name: drift([each for each in optima if each.coordinate == name]) for name in search.space
    }
    return {name: each for name, each in drifts.items() if each is not None}


def _regrets(spec: ScalingSpec, rung: Rung) -> list[Regret]:
    """Of every policy at a rung, paired by prompt, a prompt's hits averaged over seeds."""
    best: dict[_Prompt, list[bool]] = {}
    carried: dict[str, dict[_Prompt, list[bool]]] = {policy: {} for policy in POLICIES}
    for trials in again_trials(spec, rung).values():
        hits = _hits(spec, [trial for trial in trials.values() if trial.state == "complete"])
        for into, name in [(best, str(spec.data_axis.sizes[-1])), *((carried[policy], policy) for policy in POLICIES)]:
            if name in trials:
                for prompt, hit in hits.get(trials[name].name, {}).items():
                    into.setdefault(prompt, []).append(hit)
    regrets = []
    for policy, found in carried.items():
        both = sorted(set(best) & set(found))
        if both:
            regrets.append(regret(policy, [mean(best[key]) for key in both], [mean(found[key]) for key in both]))
    return regrets


def _hits(spec: ScalingSpec, trials: Sequence[Trial]) -> dict[str, dict[_Prompt, bool]]:
    """Scored prompts of each trial, (field, benchmark, id), by the judge that steers, and whether each was a hit."""
    from dcr_ray.gathered import evaluated, gather

    study = spec.search_study(spec.ladder[0])
    table = gather(storage_root(study) / "cache", evaluated(trials)).frame
    table = table[(table["judge"] == study.judges[0].name) & table["field"].isin(spec.metrics)]
    found: dict[str, dict[_Prompt, bool]] = {}
    columns = (table[name].astype(str) for name in ("trial", "field", "benchmark", "prompt", "verdict"))
    for trial, field, benchmark, prompt, verdict in zip(*columns, strict=True):
        if verdict != Verdict.UNSCORED:
            found.setdefault(trial, {})[field, benchmark, prompt] = Verdict(verdict) in HITS[field]
    return found
