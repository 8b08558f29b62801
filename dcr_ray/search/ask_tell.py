"""The search itself: which trial is next, and what Optuna is told when one ends.

A stopped trial is told as pruned and not as complete, a failed one as failed with its reason, a finished one with its
objectives and its constraints' violations; a trial that a killed driver left running is taken up again under its own
number. It knows nothing of Ray.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from optuna.trial import Trial as OptunaTrial
from optuna.trial import TrialState
from pydantic import ValidationError

from dcr_ray.recipe import Recipe
from dcr_ray.search.halving import goes_on
from dcr_ray.search.journal import BASELINE_NAME, StudyJournal, trial_name
from dcr_ray.space import sample
from dcr_ray.time_ledger import full_ledger

FEWEST_TRIALS_TO_JUDGE_FAILURES = 4
"""Before this many searched trials have ended, their failures do not stop the study."""


@dataclass(frozen=True)
class Ask:
    """A trial to run."""

    name: str
    recipe: Recipe
    params: dict[str, Any]


class Search:
    """Asks and tells one study. `stopped` says why no more trials are asked for although the budget has some left."""

    def __init__(self, journal: StudyJournal):
        self.journal = journal
        self.spec = journal.spec
        self.stopped: str | None = None
        self._running: dict[str, OptunaTrial] = {}
        self._held: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, float] = {}
        self._interrupted = [
            frozen._trial_id for frozen in journal.searched.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        ]

    @property
    def total(self) -> int:
        """Trials of the whole study, the baseline among them."""
        return self.spec.search.trials + 1

    def remaining(self) -> int:
        """Trials that still have to be run or finished, the baseline among them."""
        ended = [t for t in self.journal.searched.get_trials(deepcopy=False) if t.state.is_finished()]
        return max(0, self.spec.search.trials - len(ended)) + (self._baseline_values() is None)

    def next(self) -> Ask | None:
        """The next trial, or None when the study has all it was to have."""
        asked = time.monotonic()
        if self.stopped is not None:
            return None
        if self._baseline_values() is None and BASELINE_NAME not in self._running:
            self._asked[BASELINE_NAME] = asked
            return self._ask_baseline()
        while True:
            trial = self._ask_searched()
            if trial is None:
                return None
            params = sample(self.spec.dimensions, trial)
            name = trial_name(trial.number)
            self._running[name] = trial
            self._asked[name] = asked
            try:
                return Ask(name, self.spec.searched_recipe(params), params)
            except ValidationError as error:
                self.finish(name, {"failure": {"kind": "error", "stage": "recipe", "reason": error.errors()[0]["msg"]}})

    def reached_rung(self, name: str, metrics: dict[str, float]) -> bool:
        """Whether a trial goes on after its DCR stage. The figure is remembered in the journal either way."""
        spec = self.spec.halving
        if spec is None or name == BASELINE_NAME or spec.metric not in metrics:
            return True
        trial = self._running[name]
        earlier = [
            frozen.user_attrs["rung"]
            for frozen in self.journal.searched.get_trials(deepcopy=False)
            if "rung" in frozen.user_attrs and frozen.number != trial.number
        ]
        trial.set_user_attr("rung", float(metrics[spec.metric]))
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
        elif self._baseline_values() is None and self._needs_baseline() and self._succeeded(outcome):
            self._held[name] = outcome | {"held_since": time.monotonic()}
        else:
            self._tell(name, outcome)

    def _tell(self, name: str, outcome: dict[str, Any]) -> None:
        trial = self._running.pop(name)
        self._describe(trial, outcome, self._asked.pop(name))
        reason = self._failure_reason(outcome)
        if outcome.get("pruned"):
            trial.set_user_attr("reason", outcome["pruned"])
            self.journal.searched.tell(trial, state=TrialState.PRUNED)
        elif reason is not None:
            trial.set_user_attr("reason", reason)
            self.journal.searched.tell(trial, state=TrialState.FAIL)
        else:
            metrics = outcome["metrics"]
            baseline = self._baseline_values() or {}
            for metric, bound in self.spec.constraints.items():
                trial.set_constraint(metric, bound.violation(metrics[metric], baseline.get(metric)))
            self.journal.searched.tell(trial, [metrics[metric] for metric in self.spec.objectives])
        self._stop_on_failures()

    def _finish_baseline(self, outcome: dict[str, Any]) -> None:
        trial = self._running.pop(BASELINE_NAME)
        self._describe(trial, outcome, self._asked.pop(BASELINE_NAME))
        reason = self._failure_reason(outcome)
        if reason is None:
            self.journal.baseline.tell(trial, [outcome["metrics"][metric] for metric in self.spec.objectives])
            return
        trial.set_user_attr("reason", reason)
        self.journal.baseline.tell(trial, state=TrialState.FAIL)
        self.stopped = f"the STL baseline failed, and nothing can be compared without it ({reason})"
        for held in list(self._held.values()):
            held["failure"] = {"kind": "error", "stage": "baseline", "reason": "the STL baseline failed"}

    def _describe(self, trial: OptunaTrial, outcome: dict[str, Any], asked: float) -> None:
        telling = time.monotonic()
        finite = {name: value for name, value in outcome.get("metrics", {}).items() if math.isfinite(value)}
        trial.set_user_attr("metrics", finite)
        trial.set_user_attr("stages", outcome.get("stages", []))
        trial.set_user_attr("seconds", outcome.get("seconds", {}))
        parts, now = dict(outcome.get("ledger", {})), time.monotonic()
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

    def _stop_on_failures(self) -> None:
        ended = [t for t in self.journal.searched.get_trials(deepcopy=False) if t.state.is_finished()]
        failed = [t for t in ended if t.state == TrialState.FAIL]
        limit = self.spec.search.max_failed_share
        if len(ended) >= FEWEST_TRIALS_TO_JUDGE_FAILURES and len(failed) > limit * len(ended):
            self.stopped = (
                f"{len(failed)} of {len(ended)} trials failed, more than search.max_failed_share {limit:g} allows; "
                f"the last reason: {failed[-1].user_attrs.get('reason')}"
            )

    def _needs_baseline(self) -> bool:
        return any(bound.needs_baseline for bound in self.spec.constraints.values())

    def _baseline_values(self) -> dict[str, float] | None:
        complete = self.journal.baseline.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return complete[-1].user_attrs["metrics"] if complete else None

    def _ask_baseline(self) -> Ask:
        running = self.journal.baseline.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        study = self.journal.baseline
        self._running[BASELINE_NAME] = OptunaTrial(study, running[-1]._trial_id) if running else study.ask()
        return Ask(BASELINE_NAME, self.spec.baseline_recipe(), {})

    def _ask_searched(self) -> OptunaTrial | None:
        study = self.journal.searched
        if self._interrupted:
            return OptunaTrial(study, self._interrupted.pop(0))
        if len(study.get_trials(deepcopy=False)) >= self.spec.search.trials:
            return None
        return study.ask()
