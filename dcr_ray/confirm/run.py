"""A confirmation: finalists and the STL baseline, trained anew with fresh seeds and evaluated on the test split, once.

It chooses the finalists by the search's figures, enters the opening of the test split before it is read, and runs the
stages on the same crew as a sweep. What the outcomes mean is said by `confirm.analysis`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dcr_ray.confirm.openings import Opening, finish_opening, open_test_split
from dcr_ray.data.examples import dataset_fingerprint
from dcr_ray.errors import InputError, Problem
from dcr_ray.gathered import Evaluated, arm_of, gather
from dcr_ray.observe import Observer
from dcr_ray.outcomes import Outcomes
from dcr_ray.pareto import finalists
from dcr_ray.pools.broker import submit_through
from dcr_ray.preflight import Ready, machine_for, preflight, study_folder
from dcr_ray.recipe import Recipe
from dcr_ray.report.live import LiveView
from dcr_ray.runtime import ray_messages_in, start_ray
from dcr_ray.stages import run_here, run_stages
from dcr_ray.study import StudySpec
from dcr_ray.sweep import cpus_needed, driver_lock, fitted, watching
from dcr_ray.time_ledger import TimeLine, full_ledger
from dcr_ray.tracking import Tracker
from dcr_ray.trial import BASELINE_NAME, StageView, Trial

OUTCOMES_FILE = "confirmed.parquet"


@dataclass(frozen=True)
class Confirmed:
    """What a confirmation left. `outcomes` hold the test split alone; `trials` are the trainings with fresh seeds."""

    opening: Opening
    finalists: tuple[str, ...]
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]
    outcomes: Outcomes
    search_trials: tuple[Trial, ...]
    study_dir: Path
    report_dir: Path
    complete: bool


def confirm(
    spec: StudySpec,
    *,
    top: int,
    seeds: int,
    force: bool = False,
    address: str | None = None,
    console: Any = None,
) -> Confirmed:
    """Re-train the best `top` trials and the baseline with `seeds` fresh seeds each and judge them on the test split.

    The same call goes on with a confirmation that was interrupted. Raises InputError before anything is started: for a
    study that is not complete, one without a finalist, or a test split that was opened for something else.
    """
    from rich.console import Console

    from dcr_ray.search.journal import read_trials

    console = console or Console(stderr=True)
    folder = study_folder(spec)
    if not folder.is_dir():
        raise InputError([Problem("STUDY", f"no study '{spec.study}' in {folder.parent}", "a study that has ended")])
    trials = read_trials(spec, folder)
    chosen = _finalists(spec, trials, top, seeds, force)
    ready = preflight(
        spec, machine=machine_for(address), split="test", judges=tuple(judge.name for judge in spec.judges)
    )
    base = spec.base_recipe().seed
    fresh = tuple(range(base + 1, base + 1 + seeds))
    recipes = {BASELINE_NAME: spec.baseline_recipe(), **{trial.name: trial.recipe for trial in chosen}}
    with driver_lock(ready.study_dir):
        opening = open_test_split(ready.study_dir, _purpose(ready, recipes, fresh, _early(spec, trials)), force=force)
        runs = [
            _Run(name, seed, repeat=seed == fresh[0], recipe=recipe.model_copy(update={"seed": seed}))
            for seed in fresh
            for name, recipe in recipes.items()
        ]
        stopped = _run(ready, runs, address, console)
        complete = stopped is None and all(run.trial.state == "complete" for run in runs)
        outcomes = gather(Path(ready.inputs.cache_root), [entry for run in runs for entry in run.evaluated()])
        outcomes.write(ready.study_dir / OUTCOMES_FILE)
        if complete:
            finish_opening(ready.study_dir, opening)
    return Confirmed(
        opening,
        tuple(trial.name for trial in chosen),
        fresh,
        tuple(run.trial for run in runs),
        outcomes,
        tuple(trials),
        ready.study_dir,
        ready.report_dir,
        complete,
    )


class _Run:
    """One training of one recipe with one fresh seed, and how far it has come. `repeat`: its weights answer twice."""

    def __init__(self, name: str, seed: int, repeat: bool, recipe: Recipe):
        self.name, self.seed, self.repeat, self.recipe = name, seed, repeat, recipe
        role = "baseline" if name == BASELINE_NAME else "search"
        self.trial = Trial(f"{name}-seed{seed}", role, "waiting", recipe)
        self.generated: dict[int, str] = {}

    def evaluated(self) -> list[Evaluated]:
        return [
            Evaluated(self.name, self.trial.role, arm_of(self.recipe), self.seed, repeat, key)
            for repeat, key in self.generated.items()
        ]


def _finalists(spec: StudySpec, trials: Sequence[Trial], top: int, seeds: int, force: bool) -> list[Trial]:
    problems = []
    if top < 1:
        problems.append(Problem("--top", str(top), "1 or more finalists"))
    if seeds < 1:
        problems.append(Problem("--seeds", str(seeds), "1 or more fresh seeds; 3 or more tell seeds from prompts"))
    early = _early(spec, trials)
    if early and not force:
        fix = "Run `dcr-ray sweep` to its end first, or use --force; the report will say so."
        problems.append(Problem("STUDY", early, "a search that is over", fix))
    chosen = finalists(trials, spec.objectives, max(1, top))
    if not chosen:
        found = "no complete trial that keeps the constraints"
        problems.append(Problem("STUDY", found, "one finalist or more", "Loosen the constraints, or run more trials."))
    if problems:
        raise InputError(problems)
    return chosen


def _early(spec: StudySpec, trials: Sequence[Trial]) -> str | None:
    """How far a search has come that has not ended."""
    ended = sum(trial.role == "search" and trial.state in ("complete", "pruned", "failed") for trial in trials)
    return f"{ended} of {spec.search.trials} trials ended" if ended < spec.search.trials else None


def _purpose(ready: Ready, recipes: dict[str, Recipe], seeds: tuple[int, ...], early: str | None) -> dict[str, Any]:
    data = ready.inputs.data
    return ({"early": early} if early else {}) | {
        "what": "confirm",
        "arms": {name: arm_of(recipe) for name, recipe in recipes.items()},
        "seeds": list(seeds),
        "margin": ready.spec.confirm.margin,
        "test": {field: dataset_fingerprint(getattr(data, field)) for field in ("compliance", "defense", "capability")},
    }


def _run(ready: Ready, runs: list[_Run], address: str | None, console: Any) -> str | None:
    """All runs to their ends, those that the cache has without a crew. Returns why it stopped early, if it did."""
    spec = ready.spec
    with Tracker(ready.study_dir, ready.tracking_uri, spec.study) as tracker:
        observer = Observer(spec, _Trials(runs), tracker, spec.as_yaml())
        if all(_from_cache(ready, run) for run in runs):
            return None
        needed = cpus_needed(spec)
        cluster = start_ray(address, needed, spec.study, ready.study_dir, ready.cache_dir)
        import ray

        from dcr_ray.pools.crew import Crew
        from dcr_ray.pools.fair_share import FairShare

        try:
            resources = fitted(spec, cluster, needed)
            inputs = replace(ready.inputs, shape=spec.shape.settled(on_gpu=bool(resources.gpus_per_rank)))
            view = LiveView(console, f"{spec.study}, confirmation", len(runs), spec.objectives, spec.search.concurrent)
            share = None if cluster.own else FairShare(spec.study, resources, inputs.shape.ranks)
            stop = _Stop()
            with (
                ray_messages_in(ready.study_dir),
                stop.on_signals(),
                Crew(inputs, resources, cluster.namespace, ready.study_dir, cluster.environment, share) as crew,
                view,
                watching(crew, observer, view, stop),
                ThreadPoolExecutor(spec.search.concurrent, thread_name_prefix="confirm") as pool,
            ):
                left = [run for run in runs if run.trial.state != "complete"]
                waiting = {pool.submit(_one, run, inputs, crew.broker, observer, stop) for run in left}
                while waiting and not stop.interrupted:
                    done, waiting = wait(waiting, timeout=1.0)
                    for future in done:
                        future.result()
                if stop.interrupted:
                    pool.shutdown(wait=False, cancel_futures=True)
                    crew.close("the confirmation was stopped")
        finally:
            # What Ray held back it prints now.
            with ray_messages_in(ready.study_dir):
                ray.shutdown()
        if observer.fault is not None:
            raise observer.fault
        return "interrupted" if stop.interrupted else None


def _from_cache(ready: Ready, run: _Run) -> bool:
    """Whether every stage of a run is finished; if so, its outcome is read, and missing judges are asked here."""
    shape = ready.spec.shape.settled(on_gpu=False)
    for repeat in range(1 + run.repeat):
        for task in replace(ready.inputs, shape=shape).tasks(run.recipe, run.trial.name, repeat):
            if task.place != "here" and task.record() is None:
                return False
    _finish(run, replace(ready.inputs, shape=shape), run_here)
    return True


def _one(run: _Run, inputs: Any, broker: Any, observer: Observer, stop: _Stop) -> None:
    if stop.interrupted:
        return
    began, line = time.monotonic(), TimeLine()
    run.trial = replace(run.trial, state="running", started=_now())
    observer.trial_started(run.trial.name, run.recipe)
    line.lap("tracking")
    _finish(run, inputs, submit_through(broker, line), stop)
    line.lap("idle")
    if run.trial.state != "running":
        run.trial = replace(run.trial, ledger=full_ledger(line.seconds), wall=time.monotonic() - began)
        observer.trial_ended(run.trial.name)


def _finish(run: _Run, inputs: Any, submit: Any, stop: _Stop | None = None) -> None:
    metrics, stages, seconds = {}, [], {}
    for repeat in range(1 + run.repeat):
        outcome = run_stages(inputs.tasks(run.recipe, run.trial.name, repeat), submit, lambda *_: None)
        if outcome["failure"] is not None:
            if stop is not None and stop.interrupted:
                return
            failure = outcome["failure"]
            reason = f"{failure['stage']}: {failure['reason']}"
            run.trial = replace(run.trial, state="failed", reason=reason, ended=_now())
            return
        run.generated[repeat] = next(stage["key"] for stage in outcome["stages"] if stage["name"] == "generate")
        if not repeat:
            metrics, seconds = outcome["metrics"], outcome["seconds"]
            stages = [StageView(**stage) for stage in outcome["stages"]]
    run.trial = replace(
        run.trial, state="complete", metrics=metrics, stages=tuple(stages), seconds=seconds, feasible=True, ended=_now()
    )


class _Trials:
    """The trainings as the observer reads a journal."""

    def __init__(self, runs: Sequence[_Run]):
        self._runs = runs

    def trials(self) -> list[Trial]:
        return [run.trial for run in self._runs]

    def trial(self, name: str) -> Trial:
        return next(run.trial for run in self._runs if run.trial.name == name)


class _Stop:
    """Set by Ctrl-C or SIGTERM: runs under way are given up, and the same command goes on with them later."""

    interrupted = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        def interrupt(number: int, frame: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
