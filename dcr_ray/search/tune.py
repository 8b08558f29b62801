"""The search under Ray Tune: Tune runs the trials, `Search` decides and remembers.

A Tune trial is a light coordinator without CPU or GPU of its own. It submits stages to the broker, waits, and reports;
it can be stopped at any time without taking a worker with it. What Tune itself stores is thrown away after the run:
the journal and the records are what a study resumes from.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dcr_ray.cache import Record
from dcr_ray.pools.broker import submit_through
from dcr_ray.recipe import Recipe
from dcr_ray.search.ask_tell import Search
from dcr_ray.stages import StageTask, StudyInputs, run_stages
from dcr_ray.time_ledger import TimeLine, received, stamp

COORDINATOR_RESOURCES = {"node:__internal_head__": 0.0001}
"""A place on the head node and nothing else. Tune refuses a trial that asks for nothing at all."""


ROUND_TRIALS = 1000
"""At the end of a round places wait for its last trials: half a trial's time in a thousand."""


class TuneSearcher(Searcher):
    """Tune's view of a Search."""

    def __init__(
        self,
        search: Search,
        started: Callable[[str, Recipe], None],
        ended: Callable[[str], None],
        prunings: dict[str, str],
    ):
        super().__init__(metric=None, mode=None)
        self._search = search
        self._started = started
        self._ended = ended
        self._prunings = prunings
        self._names: dict[str, str] = {}
        self._asked: dict[str, dict[str, Any]] = {}
        self.interrupted = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher to restore it later, which is never done here: see `restore`."""
        return {}

    @property
    def over(self) -> bool:
        """Whether no trial is to be begun any more."""
        search = self._search
        return self.interrupted or bool(search.stopped or search.used_up) or not search.remaining()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        asked = stamp()
        ask = None if self.interrupted else self._search.next()
        if ask is None:
            return Searcher.FINISHED
        self._names[trial_id] = ask.name
        mirroring = time.monotonic()
        self._started(ask.name, ask.recipe)
        self._asked[ask.name] = asked | {"tracking": time.monotonic() - mirroring}
        return {"name": ask.name, "recipe": ask.recipe.model_dump(mode="json"), "asked": self._asked[ask.name]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing is told before a trial ends; what the DCR stage leaves goes to the scheduler."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name = self._names.pop(trial_id, None)
        # A trial that ends because the study is being stopped keeps its RUNNING state and is taken up again later.
        if name is None or self.interrupted:
            return
        outcome = json.loads((result or {}).get("outcome") or '{"metrics": {}, "stages": [], "seconds": {}}')
        asked, sent = self._asked.pop(name), outcome.pop("time", None)
        if sent is not None:
            # A coordinator that died said nothing after its last report, so there is no way back to count.
            reported = result["over"] or name in self._prunings
            outcome["ledger"] = received(sent, asked) if reported else sent["seconds"]
        if name in self._prunings:
            outcome["pruned"] = self._prunings.pop(name)
        elif error or not result or not result.get("over"):
            outcome["failure"] = {
                "stage": "trial",
                "kind": "error",
                "reason": "the trial's coordinator died; see the study's logs",
            }
        self._search.finish(name, outcome)
        self._ended(name)

    def save(self, checkpoint_path: str) -> None:
        """Tune snapshots its searcher. Ours has nothing to save: the journal is written as it goes."""
        Path(checkpoint_path).write_text("the study's journal holds the state of the search\n")

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study resumes from its journal: run the same command again")


class StageHalving(FIFOScheduler):
    """Stops a trial after its DCR stage when the search says so; otherwise first in, first out."""

    def __init__(self, search: Search, prunings: dict[str, str]):
        super().__init__()
        self._search = search
        self._prunings = prunings

    @property
    def wanted(self) -> bool:
        """Whether trials have to report after their DCR stage."""
        return self._search.spec.halving is not None

    def __getstate__(self) -> dict[str, Any]:
        """As for the searcher: what the scheduler knows is in the journal."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["over"]:
            return TrialScheduler.CONTINUE
        figures = json.loads(result["outcome"])["metrics"]
        if self._search.reached_rung(result["name"], figures):
            return TrialScheduler.CONTINUE
        spec = self._search.spec.halving
        self._prunings[result["name"]] = (
            f"{spec.metric} {figures[spec.metric]:.4g} after the DCR stage "
            f"is not among the best 1/{spec.reduction_factor:g} so far"
        )
        return TrialScheduler.STOP


@dataclass(frozen=True)
class Assignment:
    """What every coordinator of a study is given. `inputs` refers to its StudyInputs in Ray's object store."""

    broker: str
    namespace: str
    inputs: ray.ObjectRef
    halved: bool


def coordinate(config: dict[str, Any], assignment: Assignment) -> None:
    """The trainable: one trial's stages, in order, through the broker."""
    line = TimeLine(config["asked"])
    queue, inputs = _broker(assignment.broker, assignment.namespace), _inputs(assignment.inputs)
    tasks = inputs.tasks(Recipe.model_validate(config["recipe"]), config["name"])
    line.lap("start")

    def after(task: StageTask, record: Record, so_far: dict[str, Any]) -> None:
        if task.stage == "dcr" and assignment.halved:
            # Returns once the scheduler has let the trial go on.
            report(so_far, over=False)

    def report(outcome: dict[str, Any], over: bool) -> None:
        line.lap("idle")
        # As text, since Tune flattens nested results into one dictionary.
        text = json.dumps(outcome | {"time": line.sent()})
        tune.report({"name": config["name"], "over": over, "outcome": text})
        line.lap("tracking")

    report(run_stages(tasks, submit_through(queue, line), after), over=True)


# A coordinator's process stays for many trials; all of them are of one study, so what it fetched once stays true.
@lru_cache(maxsize=1)
def _broker(name: str, namespace: str) -> Any:
    return ray.get_actor(name, namespace=namespace)


@lru_cache(maxsize=1)
def _inputs(inputs: ray.ObjectRef) -> StudyInputs:
    return ray.get(inputs)


def run_trials(
    searcher: TuneSearcher,
    halving: StageHalving,
    count: int,
    concurrent: int,
    broker: str,
    namespace: str,
    inputs: StudyInputs,
    storage_path: str,
    name: str,
    round_trials: int = ROUND_TRIALS,
) -> None:
    """Run up to `count` trials, `concurrent` at a time, until the search has none left. Blocks until then.

    Tune keeps all that it ever ran, so it is begun anew after every `round_trials` trials.
    """
    assignment = Assignment(broker, namespace, ray.put(inputs), halving.wanted)
    trainable = tune.with_resources(tune.with_parameters(coordinate, assignment=assignment), COORDINATOR_RESOURCES)
    for begun in range(0, count, round_trials):
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=halving,
                num_samples=min(round_trials, count - begun),
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name=f"{name}-{begun}", storage_path=storage_path, verbose=0),
        ).fit()
        shutil.rmtree(Path(storage_path, f"{name}-{begun}"), ignore_errors=True)
        if searcher.over:
            return
