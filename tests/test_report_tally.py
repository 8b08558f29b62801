"""The kept-up figures of a study are those of a count over all its trials."""

from __future__ import annotations

import random
from dataclasses import replace

from dcr_ray.pareto import pareto_front
from dcr_ray.report.measured import baseline_of
from dcr_ray.report.progress import ENDED, RunningStage, time_left
from dcr_ray.report.tally import Tally, changed
from tests.report_trials import TWO, baseline, failed_trial, search_trial


def some_end(name: str, chance: random.Random):
    if chance.random() < 0.2:
        return failed_trial(name, reason="no memory")
    trial = search_trial(name, chance.randrange(1, 60), chance.randrange(1, 60), feasible=chance.random() < 0.8)
    minutes = chance.randrange(60)
    return replace(trial, started="2026-11-25T10:00:00+00:00", ended=f"2026-11-25T10:{minutes:02d}:30+00:00")


def running(name: str):
    return search_trial(name, state="running", metrics={}, stages=(), feasible=None, started=None, ended=None)


def test_after_every_change_the_figures_are_those_of_all_trials():
    chance = random.Random(3)
    tally, trials = Tally(TWO), []
    for step in range(300):
        if step == 20:
            trials.append(baseline())
        elif step == 250:
            # A complete trial is another one now, as where a file was repaired.
            place = next(place for place, trial in enumerate(trials) if trial in tally.front)
            trials[place] = replace(trials[place], feasible=False)
        elif step == 280:
            trials = trials[:-3]
        under_way = [place for place, trial in enumerate(trials) if trial.state == "running"]
        if under_way and chance.random() < 0.6:
            place = chance.choice(under_way)
            trials[place] = some_end(trials[place].name, chance)
        else:
            trials.append(running(f"t{step}"))
        tally.update(tuple(trials))
        stages = [RunningStage(trials[place].name, "sft", since_seconds=40.0 * place) for place in under_way[:1]]
        assert tally.front == pareto_front(trials, TWO)
        assert tally.baseline is baseline_of(trials)
        assert tally.ended == sum(trial.state in ENDED for trial in trials)
        assert tally.time_left(400, stages, 3) == time_left(trials, 400, stages, 3)


def test_only_other_objects_are_changes():
    one, two, three = running("a"), running("b"), running("c")
    assert list(changed([one, two], [one, replace(two), three])) == [1, 2]
    assert list(changed([one, two], [one, two])) == []
