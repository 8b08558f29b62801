"""A scaling study planned and run: the studies of its rungs, one after another, the smallest model first.

A rung has its fixed arms, then its search, then what the search chose trained anew; a study that has ended costs
nothing when the ladder is run again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcr_ray.errors import InputError, Problem
from dcr_ray.ladder_search import again_studies, begun_search, by_size, parameters_of, search_results
from dcr_ray.methods.serves import has_chat_template
from dcr_ray.planning.plan import StudyPlan, data_facts, plan_for_cluster, plan_study
from dcr_ray.planning.work import DataFacts
from dcr_ray.scaling.cells import Cell
from dcr_ray.scaling.checks import ladder_problems, law_problems
from dcr_ray.scaling.spec import SEARCHED, Rung, ScalingSpec
from dcr_ray.study import StudySpec

MOST_WARM = 6
"""Recipes that smaller rungs propose to a larger one, at most."""


def ladder_plan(spec: ScalingSpec, cluster: Any = None) -> list[dict[str, Any]]:
    """One row for each study: what it will run, on this machine or on a described cluster; nothing is started."""
    rows = []
    facts: dict[str, DataFacts] = {}
    for rung in by_size(spec):
        for studies in _planned_studies(spec, rung):
            row: dict[str, Any] = {"rung": rung.label, "parameters": parameters_of(rung.model)}
            row |= planned(studies[0], cluster, facts)
            # Seeds differ in nothing that is planned.
            rows += [row | {"study": study.study} for study in studies]
    return rows


def _planned_studies(spec: ScalingSpec, rung: Rung) -> list[list[StudySpec]]:
    """The studies of a rung that differ by their seeds alone; what a search will choose counts as any recipe."""
    kinds = [spec.studies(rung)]
    if spec.search is not None and rung.search != "none":
        shared = spec.search.shared_points()
        warm = (shared * MOST_WARM)[:MOST_WARM]
        kinds.append([spec.search_study(rung, warm)])
        axis = spec.data_axis
        sizes = [*axis.sizes, *([axis.sizes[-1]] * 3 if rung != by_size(spec)[0] else [])]
        points = [(shared * len(sizes))[n] | {axis.coordinate: size} for n, size in enumerate(sizes)]
        kinds.append(spec.again_studies(rung, points))
    return kinds


def planned(study: StudySpec, cluster: Any, facts: dict[str, DataFacts]) -> dict[str, Any]:
    if cluster is None:
        plan: StudyPlan = plan_study(study)
        row: dict[str, Any] = {"trials": plan.trials, "stages": sum(plan.stages.values()), "seconds": plan.seconds}
        return row | {"problems": [str(problem) for problem in plan.problems]}
    # The rungs share their data, which take a while to be read and compared.
    data = study.data.model_dump_json()
    if data not in facts:
        facts[data] = data_facts(study)
    costed = plan_for_cluster(study, cluster, facts[data])
    row = {"hours": costed.hours, "reserved_hours": costed.reserved_hours, "price": costed.price}
    return row | {"problems": [str(problem) for problem in costed.problems]}


def planned_problems(spec: ScalingSpec) -> list[Problem]:
    """What a law could not tell from this ladder even when all of it is run, and what could still be concluded."""
    cells = [
        Cell(rung.family, rung.label, parameters_of(rung.model), size, arm, seed, metric, 0, 1)
        for rung in spec.ladder
        for arm in spec.all_arms
        if arm != SEARCHED or rung.search != "none"
        for size in spec.data_axis.sizes
        for seed in spec.seeds
        for metric in spec.metrics
    ]
    found: list[Problem] = []
    for arm in spec.all_arms:
        own = [cell for cell in cells if (cell.arm, cell.metric) == (arm, spec.metrics[0])]
        found += [each for each in (*law_problems(own)[0], *ladder_problems(own)) if each not in found]
    if spec.search is not None:
        kinds = {kind: [rung.label for rung in spec.ladder if rung.search == kind] for kind in ("full", "warm", "none")}
        fewer = ", ".join(kinds["warm"] + kinds["none"])
        if kinds["full"] and fewer:
            full = spec.search.trials
            said = f"{full} for {', '.join(kinds['full'])}; at most {MOST_WARM} proposed ones, or none, for {fewer}"
            fix = (
                "Winners are measured anew on other prompts, so their rates compare; that a longer search finds better "
                "recipes stays, and lends the smaller sizes a gain. The fixed arms have no such lead."
            )
            found.append(Problem("search trials", said, "as many for every size", fix))
    return found


def run_ladder(spec: ScalingSpec, address: str | None, say: Callable[[str], None], console: Any = None) -> bool:
    """Run, or go on with, the studies of all rungs, the smallest model first. Returns whether all came to their end.

    Raises InputError before anything is started where a rung's data, model or memory are wrong.
    """
    from dcr_ray.preflight import machine_for, preflight
    from dcr_ray.sweep import sweep

    problems: list[Problem] = []
    folders: dict[str, Path] = {}
    for rung, study in [(rung, kind[0]) for rung in by_size(spec) for kind in _planned_studies(spec, rung)]:
        try:
            ready = preflight(study, machine=machine_for(address), progress=say)
            folders[rung.label] = Path(ready.inputs.model_dir)
        except InputError as error:
            problems += [each for each in error.problems if each not in problems]
    problems += comparable_problems(folders)
    if problems:
        raise InputError(problems)
    for problem in planned_problems(spec):
        say(f"note: {problem}")
    total = sum(len(kind) for rung in spec.ladder for kind in _planned_studies(spec, rung))
    number = 0
    for rung in by_size(spec):
        for kind in (_fixed, _search, _again):
            # What a search found is known once it has run.
            for study in kind(spec, rung):
                number += 1
                say(f"{study.study} ({number} of {total}): {rung.model}")
                done = sweep(study, address=address, console=console)
                if not done.complete:
                    why = done.stopped or "interrupted"
                    say(f"{study.study} has not come to its end ({why}); the same command goes on")
                    return False
    return True


def _fixed(spec: ScalingSpec, rung: Rung) -> list[StudySpec]:
    return spec.studies(rung)


def _search(spec: ScalingSpec, rung: Rung) -> list[StudySpec]:
    if spec.search is None or rung.search == "none":
        return []
    study = begun_search(spec, rung, search_results(spec))
    return [study] if study is not None else []


def _again(spec: ScalingSpec, rung: Rung) -> list[StudySpec]:
    found = search_results(spec)
    own = next((each for each in found if each.rung == rung.label), None)
    return again_studies(spec, rung, found, own) if own is not None else []


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
