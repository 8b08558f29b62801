"""The figures of a study that a live view shows, kept up with the trials that changed and not counted anew each time.

It knows nothing of terminals. What it says is what `pareto_front`, `baseline_of` and `time_left` say of all trials.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import compress, count

from dcr_ray.pareto import Objectives, dominates, objective_values
from dcr_ray.report.progress import ENDED, RunningStage, left_of, length_seconds
from dcr_ray.trial import Trial


class Tally:
    """`update` it with all trials, in an order that stays; one that did not change is the same object as before."""

    def __init__(self, objectives: Objectives):
        self._objectives = objectives
        self._trials: Sequence[Trial] = ()
        self._lengths: list[float] = []
        self._under_way: dict[int, Trial] = {}
        self._front: list[tuple[tuple[float, ...], int, Trial]] = []
        self.states: Counter[str] = Counter()
        self.baseline: Trial | None = None

    def update(self, trials: Sequence[Trial]) -> None:
        """Take the changes since the last call."""
        before, self._trials = self._trials, trials
        for place, old in enumerate(before[len(trials) :], len(trials)):
            self._leave(place, old)
        rebuild = any(old.state == "complete" for old in before[len(trials) :])
        for place in changed(before, trials):
            old = before[place] if place < len(before) else None
            new = trials[place]
            if old is not None:
                self._leave(place, old)
                rebuild |= old.state == "complete"
            self._enter(place, new)
        if rebuild:
            # A complete trial is another one now, which is seldom: front and baseline are found anew.
            self._front, self.baseline = [], None
            for place, trial in enumerate(trials):
                self._enter_best(place, trial)

    @property
    def ended(self) -> int:
        return sum(self.states[state] for state in ENDED)

    @property
    def front(self) -> list[Trial]:
        """As `pareto_front`."""
        return [trial for _, _, trial in self._front]

    def time_left(self, total: int, running: Sequence[RunningStage], concurrent: int) -> float | None:
        """As `time_left`."""
        return left_of(self._lengths, self.ended, list(self._under_way.values()), total, running, concurrent)

    def _leave(self, place: int, trial: Trial) -> None:
        self.states[trial.state] -= 1
        self._under_way.pop(place, None)
        if trial.state in ENDED and (length := length_seconds(trial)) > 0:
            del self._lengths[bisect_left(self._lengths, length)]

    def _enter(self, place: int, trial: Trial) -> None:
        self.states[trial.state] += 1
        if trial.state == "running":
            self._under_way[place] = trial
        if trial.state in ENDED and (length := length_seconds(trial)) > 0:
            insort(self._lengths, length)
        self._enter_best(place, trial)

    def _enter_best(self, place: int, trial: Trial) -> None:
        if trial.state != "complete":
            return
        if trial.role == "baseline":
            self.baseline = self.baseline or trial
        elif trial.feasible is not False and (values := objective_values(trial, self._objectives)) is not None:
            self._enter_front(place, trial, values)

    def _enter_front(self, place: int, trial: Trial, values: tuple[float, ...]) -> None:
        on_front = [(entry, objective_values(entry[2], self._objectives)) for entry in self._front]
        if any(dominates(other, values, self._objectives) for _, other in on_front):
            return
        self._front = [entry for entry, other in on_front if not dominates(values, other, self._objectives)]
        insort(self._front, (self._order(trial), place, trial))

    def _order(self, trial: Trial) -> tuple[float, ...]:
        values = objective_values(trial, self._objectives)
        return tuple(
            -value if direction == "maximize" else value
            for value, direction in zip(values, self._objectives.values(), strict=True)
        )


def changed(before: Sequence[Trial], now: Sequence[Trial]) -> Iterator[int]:
    """The places of `now` that hold another object than `before` did, and those that it did not have."""
    yield from compress(count(), map(operator.is_not, before, now))
    yield from range(len(before), len(now))
