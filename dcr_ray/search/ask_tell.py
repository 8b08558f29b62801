"""The search itself: which trial is next, and what Optuna is told when one ends.

A stopped trial is told as pruned and not as complete, a failed one as failed with its reason, a finished one with its
objectives and its constraints' violations; a trial that a killed driver left running is taken up again under its own
number. It knows nothing of Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.trial import Trial as OptunaTrial
from optuna.trial import TrialState
from pydantic import ValidationError

from dcr_ray.recipe import Recipe
from dcr_ray.search.ahead import AskedAhead
from dcr_ray.search.halving import goes_on
from dcr_ray.search.journal import AHEAD, BEGAN, StudyJournal, trial_name
from dcr_ray.search.journal_file import together
from dcr_ray.space import sample
from dcr_ray.study import StudySpec
from dcr_ray.time_ledger import full_ledger
from dcr_ray.trial import BASELINE_NAME

FEWEST_TRIALS_TO_JUDGE_FAILURES = 4
"""Before this many searched trials have ended, their failures do not stop the study."""


MOST_AHEAD = 2
"""Trials that a sweep asks for before there is a place for them; see `Search`."""


def places_ahead(spec: StudySpec) -> int:
    """How many trials a sweep asks for ahead.

    What is asked ahead knows nothing of the results that come in meanwhile. A sampler that does not learn loses nothing
    by that; GP's suggestions take long enough for a place to be left waiting. TPE (bounded here) and NSGA-II answer in
    some milliseconds, so they are asked when the place is free, and so is everybody where there is one place.
    """
    most = {"random": MOST_AHEAD, "grid": MOST_AHEAD, "gp": 1}.get(spec.search.sampler, 0)
    return min(most, spec.search.concurrent - 1)


@dataclass(frozen=True)
class Ask:
    """A trial to run."""

    name: str
    recipe: Recipe
    params: dict[str, Any]


class Search:
    """Asks and tells one study. `stopped` says why no more trials are asked for although there should be some;
    `used_up`, set from outside, says that the study's budget is the reason.

    The journal is read once, here; from then on what is counted is counted as it is told, so that a trial costs the
    same however many went before it. Nobody else writes to the study meanwhile: that is the driver lock's to see to.

    Up to `ahead` trials are asked for while others run, in a thread, so that a place that becomes free has its next
    trial at once. Such a trial was chosen without the results of the trials that ended after it was asked for: with
    `ahead` of them waiting and c places, a sampler that learns is up to c - 1 + ahead results behind instead of c - 1.
    (TPE knows their parameters, as it knows those of the running ones, and keeps away from them.) With 0 nothing is
    asked before it is wanted and one place is as deterministic as its sampler. They are in the journal like any trial
    that was asked for: a study that is killed takes them up again.
    """

    def __init__(self, journal: StudyJournal, ahead: int = 0, clock: Callable[[], float] = time.monotonic):
        self.journal = journal
        self._now = clock
        self.spec = journal.spec
        self.stopped: str | None = None
        self.used_up: str | None = None
        self._running: dict[str, OptunaTrial] = {}
        self._held: dict[str, dict[str, Any]] = {}
        self._asked_at: dict[str, float] = {}
        trials = journal.searched.get_trials(deepcopy=False)
        ended = [trial for trial in trials if trial.state.is_finished()]
        self._interrupted = [trial._trial_id for trial in trials if trial.state == TrialState.RUNNING]
        # Points of search.first wait until they are asked for.
        self._asked = sum(trial.state != TrialState.WAITING for trial in trials)
        self._ended = len(ended)
        self._failed = sum(trial.state == TrialState.FAIL for trial in ended)
        self._figures = {trial.number: trial.user_attrs["rung"] for trial in trials if "rung" in trial.user_attrs}
        complete = journal.baseline.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        self._baseline: dict[str, float] | None = complete[-1].user_attrs["metrics"] if complete else None
        self._ahead = AskedAhead(self._ask_searched, ahead)

    @property
    def total(self) -> int:
        """Trials of the whole study, the baseline among them."""
        return self.spec.search.trials + 1

    def remaining(self) -> int:
        """Trials that still have to be run or finished, the baseline among them."""
        return max(0, self.spec.search.trials - self._ended) + (self._baseline is None)

    def next(self) -> Ask | None:
        """The next trial, or None when the study has all it was to have."""
        asked_at = self._now()
        if self.stopped is not None or self.used_up is not None:
            return None
        if self._baseline is None and BASELINE_NAME not in self._running:
            self._asked_at[BASELINE_NAME] = asked_at
            return self._ask_baseline()
        while True:
            asked = self._ahead.take()
            if asked is None:
                return None
            trial, params = asked
            name = trial_name(trial.number)
            self._running[name] = trial
            self._asked_at[name] = asked_at
            self._begin(trial)
            try:
                return Ask(name, self.spec.searched_recipe(params), params)
            except ValidationError as error:
                self.finish(name, {"failure": {"kind": "error", "stage": "recipe", "reason": error.errors()[0]["msg"]}})
                if self.stopped is not None:
                    return None

    def close(self) -> None:
        """Ask for no more trials ahead, and wait for the one that is being asked for."""
        self._ahead.close()

    def reached_rung(self, name: str, metrics: dict[str, float]) -> bool:
        """Whether a trial goes on after its DCR stage. The figure is remembered in the journal either way."""
        spec = self.spec.halving
        if spec is None or name == BASELINE_NAME or spec.metric not in metrics:
            return True
        trial = self._running[name]
        earlier = [figure for number, figure in self._figures.items() if number != trial.number]
        self._figures[trial.number] = float(metrics[spec.metric])
        trial.set_user_attr("rung", self._figures[trial.number])
        return goes_on(metrics[spec.metric], earlier, spec)

    def finish(self, name: str, outcome: dict[str, Any]) -> None:
        """Tell Optuna how a trial ended.

        `outcome` has metrics, stages, seconds, the time ledger's parts (`ledger`), and either failure (kind, stage,
        reason) or pruned (a sentence). Where a constraint needs the baseline, the telling waits for it.
        """
        if name == BASELINE_NAME:
            self._finish_baseline(outcome)
            for held, waiting in list(self._held.items()):
                del self._held[held]
                self._tell(held, waiting)
        elif self._baseline is None and self._needs_baseline() and self._succeeded(outcome):
            self._held[name] = outcome | {"held_since": self._now()}
        else:
            self._tell(name, outcome)

    def _tell(self, name: str, outcome: dict[str, Any]) -> None:
        trial = self._running.pop(name)
        reason = self._failure_reason(outcome)
        with together(self.journal.storage):
            self._describe(trial, outcome, self._asked_at.pop(name))
            if outcome.get("pruned"):
                trial.set_user_attr("reason", outcome["pruned"])
                self.journal.searched.tell(trial, state=TrialState.PRUNED)
            elif reason is not None:
                trial.set_user_attr("reason", reason)
                self.journal.searched.tell(trial, state=TrialState.FAIL)
            else:
                metrics = outcome["metrics"]
                for metric, bound in self.spec.constraints.items():
                    violation = bound.violation(metrics[metric], (self._baseline or {}).get(metric))
                    trial.set_constraint(metric, violation)
                self.journal.searched.tell(trial, [metrics[metric] for metric in self.spec.objectives])
        self._ended += 1
        if reason is not None and not outcome.get("pruned"):
            self._failed += 1
        self._stop_on_failures(reason)

    def _finish_baseline(self, outcome: dict[str, Any]) -> None:
        trial = self._running.pop(BASELINE_NAME)
        self._describe(trial, outcome, self._asked_at.pop(BASELINE_NAME))
        reason = self._failure_reason(outcome)
        if reason is None:
            self.journal.baseline.tell(trial, [outcome["metrics"][metric] for metric in self.spec.objectives])
            self._baseline = self.journal.baseline.get_trials(deepcopy=False)[-1].user_attrs["metrics"]
            return
        trial.set_user_attr("reason", reason)
        self.journal.baseline.tell(trial, state=TrialState.FAIL)
        self.stopped = f"the STL baseline failed, and nothing can be compared without it ({reason})"
        for held in list(self._held.values()):
            held["failure"] = {"kind": "error", "stage": "baseline", "reason": "the STL baseline failed"}

    def _describe(self, trial: OptunaTrial, outcome: dict[str, Any], asked: float) -> None:
        telling = self._now()
        finite = {name: value for name, value in outcome.get("metrics", {}).items() if math.isfinite(value)}
        trial.set_user_attr("metrics", finite)
        trial.set_user_attr("stages", outcome.get("stages", []))
        trial.set_user_attr("seconds", outcome.get("seconds", {}))
        parts, now = dict(outcome.get("ledger", {})), self._now()
        parts["tracking"] = parts.get("tracking", 0.0) + now - telling
        if "held_since" in outcome:
            held = telling - outcome["held_since"]
            parts |= {"idle": parts.get("idle", 0.0) + held, "idle/held": held}
        trial.set_user_attr("ledger", {"wall": round(now - asked, 4), "parts": full_ledger(parts)})

    def _failure_reason(self, outcome: dict[str, Any]) -> str | None:
        failure = outcome.get("failure")
        if failure:
            return f"{failure['kind']} in {failure['stage']}: {failure['reason']}"
        if outcome.get("pruned"):
            return None
        wanted = {*self.spec.objectives, *self.spec.constraints}
        missing = sorted(name for name in wanted if not math.isfinite(outcome["metrics"].get(name, math.nan)))
        return f"error: no finite value of {', '.join(missing)}" if missing else None

    def _succeeded(self, outcome: dict[str, Any]) -> bool:
        return not outcome.get("pruned") and self._failure_reason(outcome) is None

    def _stop_on_failures(self, last_reason: str | None) -> None:
        limit = self.spec.search.max_failed_share
        if self._ended >= FEWEST_TRIALS_TO_JUDGE_FAILURES and self._failed > limit * self._ended:
            self.stopped = (
                f"{self._failed} of {self._ended} trials failed, more than search.max_failed_share {limit:g} allows; "
                f"the last reason: {last_reason}"
            )

    def _needs_baseline(self) -> bool:
        return any(bound.needs_baseline for bound in self.spec.constraints.values())

    def _ask_baseline(self) -> Ask:
        running = self.journal.baseline.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        study = self.journal.baseline
        self._running[BASELINE_NAME] = OptunaTrial(study, running[-1]._trial_id) if running else study.ask()
        return Ask(BASELINE_NAME, self.spec.baseline_recipe(), {})

    def _begin(self, trial: OptunaTrial) -> None:
        attrs = trial.user_attrs
        if AHEAD in attrs and BEGAN not in attrs:
            trial.set_user_attr(BEGAN, datetime.now(UTC).isoformat(timespec="seconds"))

    def _ask_searched(self, ahead: bool) -> tuple[OptunaTrial, dict[str, Any]] | None:
        """One more trial with its parameters, an interrupted one while there is any; None when the budget is spent."""
        study = self.journal.searched
        if self._interrupted:
            trial = OptunaTrial(study, self._interrupted.pop(0))
        elif self._asked < self.spec.search.trials:
            self._asked += 1
            trial = study.ask()
        else:
            return None
        with together(self.journal.storage):
            params = sample(self.spec.dimensions, trial)
            if ahead:
                trial.set_user_attr(AHEAD, True)
        return trial, params
