"""TPE for thousands of trials: Optuna's, on a bounded memory of them.

Optuna's TPE sorts all trials and puts a kernel on each for every suggestion: 15 ms after 1,000 trials, 130 after
10,000. Up to `MOST_REMEMBERED` trials this is Optuna's sampler, number for number. Beyond, it suggests from the best
trials of all, the newest ones, and of the older, worse ones fewer the older they are. The best tenth, on which TPE puts
its good density, is the best tenth of what is remembered, so it is narrower than the best tenth of all; the density of
the rest is estimated from a sample that leans to the newer trials, as TPE's own weights do.
"""

from __future__ import annotations

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler

# The split into good and bad trials is TPE's own and has no public name; the version is pinned.
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import FrozenTrial, TrialState

MOST_REMEMBERED = 600
REMEMBERED_AFTER_FORGETTING = 500
_BEST, _NEWEST = 100, 250
"""Of the trials that are kept: the best by TPE's own order, and the newest."""

_LEARNT_FROM = (TrialState.COMPLETE, TrialState.PRUNED)


class RememberingTPESampler(TPESampler):
    """Takes the arguments of Optuna's TPESampler. For one study."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._remembered: list[FrozenTrial] | None = None
        self._told: list[int] = []

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(self._memory(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(self._memory(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return super().sample_independent(self._memory(study), trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        super().after_trial(study, trial, state, values)
        if state in _LEARNT_FROM:
            # Optuna calls this just before the trial is stored as ended.
            self._told.append(trial._trial_id)

    def _memory(self, study: Study) -> _Memory:
        if isinstance(study, _Memory):
            return study
        if self._remembered is None:
            self._told.clear()
            self._remembered = []
            self._remember(study, study._get_trials(deepcopy=False, states=_LEARNT_FROM, use_cache=False))
        told, self._told = self._told, []
        trials = [study._storage.get_trial(trial) for trial in told]
        self._told += [trial._trial_id for trial in trials if not trial.state.is_finished()]
        self._remember(study, [trial for trial in trials if trial.state.is_finished()])
        return _Memory(study, self._remembered)

    def _remember(self, study: Study, trials: list[FrozenTrial]) -> None:
        for trial in trials:
            self._remembered.append(trial)
            if len(self._remembered) > MOST_REMEMBERED:
                self._remembered = _kept(study, self._remembered)


def _kept(study: Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """`REMEMBERED_AFTER_FORGETTING` of the trials, by number: the best, the newest, and every second or so between."""
    best, others = _split_trials(study, trials, _BEST)
    newest = others[-_NEWEST:]
    older = others[: -len(newest)]
    room = REMEMBERED_AFTER_FORGETTING - len(best) - len(newest)
    step = len(older) / room
    return sorted([*best, *newest, *(older[int(place * step)] for place in range(room))], key=lambda t: t.number)


class _Memory:
    """A study as TPE asks about it, with the remembered trials and those that run, and everything else its own."""

    def __init__(self, study: Study, remembered: list[FrozenTrial]):
        self._study = study
        self._remembered = remembered

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:
        if deepcopy or states is None or not set(states) <= {*_LEARNT_FROM, TrialState.RUNNING}:
            return self._study._get_trials(deepcopy, states, use_cache)
        found = [trial for trial in self._remembered if trial.state in states]
        if TrialState.RUNNING in states:
            study = self._study
            found += study._storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.RUNNING,))
        return found
