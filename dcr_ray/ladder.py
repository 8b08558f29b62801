"""A scaling study at work: the studies of its rungs, one after another, and the cells that they leave.

Nothing is kept here: cells are read from the studies' own journals every time, so a ladder is resumed, extended or read
while it runs by asking again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_ray.errors import DcrError, InputError, Problem
from dcr_ray.methods.serves import has_chat_template
from dcr_ray.models import ModelCard
from dcr_ray.planning.plan import StudyPlan, data_facts, plan_for_cluster, plan_study, planned_card
from dcr_ray.planning.work import DataFacts
from dcr_ray.preflight import study_folder
from dcr_ray.scaling.backtest import Backtest, Outcome, backtest, outcome_of
from dcr_ray.scaling.cells import Cell, Link
from dcr_ray.scaling.checks import ladder_problems
from dcr_ray.scaling.forecast import Forecast, make_forecast, read_forecasts, write_forecast
from dcr_ray.scaling.law import Law, Prediction, fit_law, predict
from dcr_ray.scaling.spec import Rung, ScalingSpec, Target
from dcr_ray.study import StudySpec
from dcr_ray.trial import Trial


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


def ladder_plan(spec: ScalingSpec, cluster: Any = None) -> list[dict[str, Any]]:
    """One row for each study: what it will run, on this machine or on a described cluster; nothing is started."""
    rows = []
    facts: dict[str, DataFacts] = {}
    for rung in _by_size(spec):
        first, *others = spec.studies(rung)
        row: dict[str, Any] = {"rung": rung.label, "parameters": _parameters(rung.model)}
        if cluster is None:
            plan: StudyPlan = plan_study(first)
            row |= {"trials": plan.trials, "stages": sum(plan.stages.values()), "seconds": plan.seconds}
            row["problems"] = [str(problem) for problem in plan.problems]
        else:
            # The rungs share their data, which take a while to be read and compared.
            data = first.data.model_dump_json()
            if data not in facts:
                facts[data] = data_facts(first)
            costed = plan_for_cluster(first, cluster, facts[data])
            row |= {"hours": costed.hours, "reserved_hours": costed.reserved_hours, "price": costed.price}
            row["problems"] = [str(problem) for problem in costed.problems]
        # Seeds differ in nothing that is planned.
        rows += [row | {"study": study.study} for study in (first, *others)]
    return rows


def run_ladder(spec: ScalingSpec, address: str | None, say: Callable[[str], None], console: Any = None) -> bool:
    """Run, or go on with, the studies of all rungs, the smallest model first. Returns whether all came to their end.

    Raises InputError before anything is started where a rung's data, model or memory are wrong.
    """
    from dcr_ray.preflight import machine_for, preflight
    from dcr_ray.sweep import sweep

    studies = [(rung, study) for rung in _by_size(spec) for study in spec.studies(rung)]
    problems: list[Problem] = []
    folders: dict[str, Path] = {}
    for rung, study in studies:
        try:
            ready = preflight(study, machine=machine_for(address), progress=say)
            folders[rung.label] = Path(ready.inputs.model_dir)
        except InputError as error:
            problems += [each for each in error.problems if each not in problems]
    problems += comparable_problems(folders)
    if problems:
        raise InputError(problems)
    for number, (rung, study) in enumerate(studies, 1):
        say(f"{study.study} ({number} of {len(studies)}): {rung.model}")
        done = sweep(study, address=address, console=console)
        if not done.complete:
            say(f"{study.study} has not come to its end ({done.stopped or 'interrupted'}); the same command goes on")
            return False
    return True


def comparable_problems(folders: dict[str, Path]) -> list[Problem]:
    """Rungs, by name and folder, that are not asked in the same way: without a tokenizer, or some with a chat template
    and others without."""
    problems = [
        Problem(f"ladder ({label})", f"no tokenizer in {folder}", "a folder with tokenizer files")
        for label, folder in folders.items()
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    ]
    bare = [label for label, folder in folders.items() if not has_chat_template(folder)]
    if bare and len(bare) < len(folders):
        found = f"{', '.join(bare)} without a chat template, the others with one"
        fix = "A base model and a tuned one differ in more than size: take one kind for all rungs."
        problems.append(Problem("ladder", found, "rungs that are all asked alike", fix))
    return problems


def ladder_cells(spec: ScalingSpec) -> tuple[list[Cell], list[Missing]]:
    """The cells that there are by now, and those that are wanted and missing."""
    cells, missing = [], []
    for rung in spec.ladder:
        parameters = _parameters(rung.model)
        for seed, study in zip(spec.seeds, spec.studies(rung), strict=True):
            trials = _trials(study)
            for size in spec.data_axis.sizes:
                for arm in spec.arms:
                    trial = trials.get((arm, size))
                    if trial is None or trial.state != "complete":
                        reason = "not run yet" if trial is None else trial.reason or trial.state
                        missing.append(Missing(rung.label, size, arm, seed, reason))
                        continue
                    for metric in spec.metrics:
                        cells.append(_cell(rung, parameters, size, arm, seed, metric, trial))
    return cells, missing


def ladder_costs(spec: ScalingSpec) -> list[dict[str, Any]]:
    """One row for each study that has begun: trials that ended, and the hours of their stages, shared ones once."""
    rows = []
    for rung in spec.ladder:
        for study in spec.studies(rung):
            stages = {
                stage.key: stage.seconds
                for trial in _trials(study).values()
                for stage in trial.stages
                if not stage.cached
            }
            ended = sum(trial.state == "complete" for trial in _trials(study).values())
            if ended:
                hours = sum(stages.values()) / 3600
                rows.append({"rung": rung.label, "study": study.study, "trials": ended, "stage hours": hours})
    return rows


def fit_ladder(spec: ScalingSpec, cells: list[Cell]) -> list[Fitted]:
    """The law, predictions and back-test of every metric and arm."""
    found = []
    for metric in spec.metrics:
        for arm in spec.arms:
            own = [cell for cell in cells if (cell.metric, cell.arm) == (metric, arm)]
            link = link_of(spec, metric)
            problems: list[Problem] = ladder_problems(own)
            law, predictions = None, {}
            try:
                law = fit_law(own, link, base_data=float(max(spec.data_axis.sizes)))
                for target in spec.targets:
                    size = target.data_size or max(spec.data_axis.sizes)
                    predictions[target.model] = predict(law, target.family, target_parameters(target), size)
            except InputError as error:
                problems += error.problems
            tested = backtest(own, link) if own else Backtest((), None, None, None, ("there are no cells",))
            found.append(Fitted(metric, arm, law, predictions, tested, tuple(problems)))
    return found


def forecast_ladder(spec: ScalingSpec, cells: list[Cell]) -> list[Path]:
    """Write a forecast for every target, metric and arm whose target has not been run. Raises InputError where one is
    there already, or none can be made."""
    if not spec.targets:
        raise InputError([Problem("targets", "none", "one or more models to foretell")])
    made: list[Forecast] = []
    problems: list[Problem] = []
    for metric in spec.metrics:
        for arm in spec.arms:
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


def outcomes(spec: ScalingSpec, cells: list[Cell]) -> list[Outcome]:
    """What became of this ladder's forecasts whose targets have been run since."""
    folder = Path(spec.forecasts)
    forecasts = [each for each in read_forecasts(folder) if each.study == spec.scaling] if folder.is_dir() else []
    return [found for found in (outcome_of(each, cells) for each in forecasts) if found is not None]


def link_of(spec: ScalingSpec, metric: str) -> Link:
    return Link.of_judge(*spec.judge[metric]) if metric in spec.judge else Link()


def target_parameters(target: Target) -> float:
    """Raises InputError for a model that is not known by name and has no `parameters`."""
    return target.parameters or float(_parameters(target.model))


def _by_size(spec: ScalingSpec) -> list[Rung]:
    return sorted(spec.ladder, key=lambda rung: _parameters(rung.model))


def _parameters(model: str) -> int:
    card: ModelCard = planned_card(model)
    return card.parameters


def _trials(study: StudySpec) -> dict[tuple[str, int], Trial]:
    """The trials of a rung's study by method and data size; a complete one before any other."""
    from dcr_ray.search.journal import read_trials

    folder = study_folder(study)
    if not folder.is_dir():
        return {}
    try:
        trials = read_trials(study, folder)
    except InputError as error:
        raise DcrError(f"{study.study}: {error}") from error
    found: dict[tuple[str, int], Trial] = {}
    for trial in sorted(trials, key=lambda trial: trial.state == "complete"):
        recipe = trial.recipe
        size = recipe.sft.safety_pairs or (recipe.dcr.prompts_per_class if recipe.dcr else None)
        if size is not None:
            found[recipe.method, size] = trial
    return found


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
