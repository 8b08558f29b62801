"""What a scaling study has measured, and what follows: cells, costs, laws, forecasts, and which cell to run next.

Nothing is kept here: cells are read from the studies' own journals every time, so a ladder is resumed, extended or read
while it runs by asking again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_ray.errors import InputError, Problem, nearest_name
from dcr_ray.ladder_run import planned
from dcr_ray.ladder_search import (
    again_trials,
    begun_search,
    by_size,
    has_begun_search,
    parameters_of,
    trials_of,
)
from dcr_ray.planning.work import DataFacts
from dcr_ray.scaling.backtest import Backtest, Outcome, backtest, outcome_of
from dcr_ray.scaling.cells import Cell, Link
from dcr_ray.scaling.checks import ladder_problems
from dcr_ray.scaling.design import Candidate, Choice, next_cells
from dcr_ray.scaling.forecast import Forecast, make_forecast, read_forecasts, write_forecast
from dcr_ray.scaling.joint import Joint, joint_probability
from dcr_ray.scaling.law import Law, Prediction, fit_law, predict
from dcr_ray.scaling.spec import SEARCHED, Rung, ScalingSpec, Target
from dcr_ray.study import StudySpec
from dcr_ray.trial import Trial

CEILINGS = (0.98, 0.95)
"""An asymptote cannot be fitted from a handful of sizes, so a law is fitted again with these set."""


@dataclass(frozen=True)
class Missing:
    """A cell that is wanted and not there, and why."""

    model: str
    data_size: int
    arm: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Fitted:
    """The law of one metric and arm, or why there is none; predictions for the targets, or why not."""

    metric: str
    arm: str
    law: Law | None
    predictions: dict[str, Prediction]
    backtest: Backtest
    problems: tuple[Problem, ...]
    under_ceiling: dict[float, dict[str, Prediction]]
    """The predictions again under ceilings that were not measured: `CEILINGS` times the judge's."""


def ladder_cells(spec: ScalingSpec) -> tuple[list[Cell], list[Missing]]:
    """The cells that there are by now, and those that are wanted and missing."""
    cells, missing = [], []
    for rung in spec.ladder:
        parameters = parameters_of(rung.model)
        found = _cell_trials(spec, rung)
        for seed in spec.seeds:
            for size in spec.data_axis.sizes:
                for arm in spec.all_arms:
                    if arm == SEARCHED and rung.search == "none":
                        continue
                    trial = found.get((arm, size, seed))
                    if trial is None or trial.state != "complete":
                        reason = "not run yet" if trial is None else trial.reason or trial.state
                        missing.append(Missing(rung.label, size, arm, seed, reason))
                        continue
                    for metric in spec.metrics:
                        cells.append(_cell(rung, parameters, size, arm, seed, metric, trial))
    return cells, missing


def _cell_trials(spec: ScalingSpec, rung: Rung) -> dict[tuple[str, int, int], Trial]:
    """The trials of a rung's cells by arm, data size and seed; a complete one before any other."""
    found: dict[tuple[str, int, int], Trial] = {}
    for seed, study in zip(spec.seeds, spec.studies(rung), strict=True):
        for trial in sorted(trials_of(study), key=lambda trial: trial.state == "complete"):
            recipe = trial.recipe
            size = recipe.sft.safety_pairs or (recipe.dcr.prompts_per_class if recipe.dcr else None)
            if size is not None:
                found[recipe.method, size, seed] = trial
    if spec.search is not None and rung.search != "none":
        for seed, trials in again_trials(spec, rung).items():
            for size in spec.data_axis.sizes:
                if str(size) in trials:
                    found[SEARCHED, size, seed] = trials[str(size)]
    return found


def ladder_costs(spec: ScalingSpec) -> list[dict[str, Any]]:
    """One row for each cell that was run, seeds together, and each search: trials, the minutes of their own stages, a
    stage that several share with the first of them, and the hours of GPUs that those took (none on a CPU)."""
    rows, counted = [], set()
    for rung in by_size(spec):
        groups: dict[tuple[str, str], list[Trial]] = {}
        if spec.search is not None and rung.search != "none":
            study = begun_search(spec, rung, [])
            groups["search", ""] = trials_of(study) if study is not None else []
        for (arm, size, _), trial in sorted(_cell_trials(spec, rung).items()):
            groups.setdefault((arm, str(size)), []).append(trial)
        gpus = _gpus(spec.studies(rung)[0])
        for (arm, size), trials in groups.items():
            ended = [trial for trial in trials if trial.state == "complete"]
            minutes = 0.0
            for stage in (stage for trial in ended for stage in trial.stages):
                if stage.key not in counted:
                    counted.add(stage.key)
                    minutes += stage.seconds / 60
            if ended:
                row = {"rung": rung.label, "arm": arm, "data": size, "trials": len(ended), "minutes": minutes}
                rows.append(row | ({"GPU hours": minutes / 60 * gpus} if gpus else {}))
    return rows


def _gpus(study: StudySpec) -> float:
    """GPUs that a training stage reserves, where the ladder says so."""
    return (study.resources.gpus_per_rank or 0.0) * (study.shape.ranks or 1)


def fit_ladder(spec: ScalingSpec, cells: list[Cell]) -> list[Fitted]:
    """The law, predictions and back-test of every metric and arm."""
    found = []
    for metric in spec.metrics:
        for arm in spec.all_arms:
            own = [cell for cell in cells if (cell.metric, cell.arm) == (metric, arm)]
            link = link_of(spec, metric)
            problems: list[Problem] = ladder_problems(own)
            law, predictions, under = None, {}, {}
            try:
                law = fit_law(own, link, base_data=float(max(spec.data_axis.sizes)))
                predictions = _predictions(spec, law)
                for share in CEILINGS:
                    low = Link(link.floor, link.floor + share * (link.ceiling - link.floor))
                    under[share] = _predictions(spec, fit_law(own, low, base_data=law.base_data))
            except InputError as error:
                problems += [each for each in error.problems if each not in problems]
            tested = backtest(own, link) if own else Backtest((), None, None, None, ("there are no cells",))
            found.append(Fitted(metric, arm, law, predictions, tested, tuple(problems), under))
    return found


def _predictions(spec: ScalingSpec, law: Law) -> dict[str, Prediction]:
    sizes = {target.model: target.data_size or max(spec.data_axis.sizes) for target in spec.targets}
    return {
        target.model: predict(law, target.family, target_parameters(target), sizes[target.model])
        for target in spec.targets
    }


def joint_forecasts(spec: ScalingSpec, fitted: list[Fitted]) -> dict[tuple[str, str], Joint]:
    """By arm and target: how likely all thresholds are reached at once. Empty without thresholds, or without laws."""
    found = {}
    for arm in spec.all_arms if spec.thresholds else ():
        laws = {each.metric: each.law for each in fitted if each.arm == arm and each.law is not None}
        for target in spec.targets:
            size = target.data_size or max(spec.data_axis.sizes)
            told = all(target.model in each.predictions for each in fitted if each.arm == arm)
            if told and set(spec.thresholds) <= set(laws):
                found[arm, target.model] = joint_probability(
                    laws, spec.thresholds, target.family, target_parameters(target), size
                )
    return found


def choices(
    spec: ScalingSpec, cells: list[Cell], target: Target, metric: str, arm: str, cluster: Any, budget: float | None
) -> list[Choice]:
    """Which model and data size to run next: what narrows the forecast of `metric` and `arm` at `target` most for its
    price, the candidates and the ladder's own rungs at every data size. A price is money on a described cluster, for
    all seeds, and for the search of a recipe at a rung that has none yet. Raises InputError where no law can be
    fitted."""
    own = [cell for cell in cells if (cell.metric, cell.arm) == (metric, arm)]
    law = fit_law(own, link_of(spec, metric), base_data=float(max(spec.data_axis.sizes)))
    rungs = {rung.label: rung for rung in (*spec.ladder, *spec.candidates)}
    places = [
        Candidate(label, rung.family, parameters_of(rung.model), size)
        for label, rung in rungs.items()
        for size in spec.data_axis.sizes
    ]
    prices: dict[tuple[str, int], float] = {}
    facts: dict[str, DataFacts] = {}

    def price(candidate: Candidate) -> float:
        key = candidate.model, candidate.data_size
        if key not in prices:
            axis = spec.data_axis.model_copy(update={"sizes": (candidate.data_size,)})
            one = spec.model_copy(
                update={"data_axis": axis, "arms": (arm,) if arm != SEARCHED else (spec.search.method,)}
            )
            rung = rungs[candidate.model]
            prices[key] = len(spec.seeds) * planned(one.studies(rung)[0], cluster, facts)["price"]
            if arm == SEARCHED and not has_begun_search(spec, rung):
                prices[key] += planned(spec.search_study(rung), cluster, facts)["price"]
        return prices[key]

    data = target.data_size or max(spec.data_axis.sizes)
    place = (target.family, target_parameters(target))
    return next_cells(own, law, place, places, price, budget=budget, target_data=data)


def forecast_ladder(spec: ScalingSpec, cells: list[Cell]) -> list[Path]:
    """Write a forecast for every target, metric and arm whose target has not been run. Raises InputError where one is
    there already, or none can be made."""
    if not spec.targets:
        raise InputError([Problem("targets", "none", "one or more models to foretell")])
    made: list[Forecast] = []
    problems: list[Problem] = []
    for metric in spec.metrics:
        for arm in spec.all_arms:
            own = [cell for cell in cells if (cell.metric, cell.arm) == (metric, arm)]
            for target in spec.targets:
                size = target.data_size or max(spec.data_axis.sizes)
                smaller = [cell for cell in own if cell.model != target.model]
                try:
                    if any(cell.model == target.model for cell in own):
                        found = f"{target.model}, which has been run"
                        fix = "A forecast after the fact is none; `dcr-ray scale backtest` holds it out instead."
                        raise InputError([Problem(f"targets ({metric}, {arm})", found, "a size that has not", fix)])
                    law = fit_law(smaller, link_of(spec, metric), base_data=float(max(spec.data_axis.sizes)))
                    made.append(
                        make_forecast(
                            spec.scaling, law, smaller, model=target.model, family=target.family,
                            parameters=round(target_parameters(target)), data_size=size,
                        )
                    )  # fmt: skip
                except InputError as error:
                    problems += [each for each in error.problems if each not in problems]
    folder = Path(spec.forecasts)
    problems += [
        Problem(
            "forecasts", f"{folder / one.name}.json, written before", "none of this name", "They are kept as they are."
        )
        for one in made
        if (folder / f"{one.name}.json").exists()
    ]
    if problems:
        raise InputError(problems)
    return [write_forecast(one, folder) for one in made]


def target_of(spec: ScalingSpec, target: str | None, metric: str | None, arm: str | None) -> tuple[Target, str, str]:
    """The target, metric and arm by name, the first ones where none is named. Raises InputError for unknown ones."""
    known = {one.model: one for one in spec.targets}
    problems = [] if known else [Problem("targets", "none", "one or more models to foretell")]
    for where, named, among in (
        ("--target", target, list(known)), ("--metric", metric, spec.metrics), ("--arm", arm, spec.all_arms),
    ):  # fmt: skip
        if named is not None and among and named not in among:
            problems.append(Problem(where, f"'{named}'", ", ".join(among), nearest_name(named, list(among))))
    if problems:
        raise InputError(problems)
    return known[target or spec.targets[0].model], metric or spec.metrics[0], arm or spec.all_arms[0]


def outcomes(spec: ScalingSpec, cells: list[Cell]) -> list[Outcome]:
    """What became of this ladder's forecasts whose targets have been run since."""
    folder = Path(spec.forecasts)
    forecasts = [each for each in read_forecasts(folder) if each.study == spec.scaling] if folder.is_dir() else []
    return [found for found in (outcome_of(each, cells) for each in forecasts) if found is not None]


def link_of(spec: ScalingSpec, metric: str) -> Link:
    return Link.of_judge(*spec.judge[metric]) if metric in spec.judge else Link()


def target_parameters(target: Target) -> float:
    """Raises InputError for a model that is not known by name and has no `parameters`."""
    return target.parameters or float(parameters_of(target.model))


def _cell(rung: Rung, parameters: int, size: int, arm: str, seed: int, metric: str, trial: Trial) -> Cell:
    n = int(trial.metrics.get(f"{metric}/n", 0))
    return Cell(
        rung.family,
        rung.label,
        parameters,
        size,
        arm,
        seed,
        metric,
        round(trial.metrics.get(metric, 0.0) * n) if n else 0,
        n,
        int(trial.metrics.get(f"{metric}/unscored", 0)),
        params=dict(trial.params),
    )
