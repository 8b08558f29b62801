"""The search tells Optuna the truth, resumes from its journal, and leaves no zombie. Outcomes come from a formula."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal

import pytest
from optuna.trial import TrialState

from dcr_ray.errors import InputError
from dcr_ray.search.ask_tell import Search
from dcr_ray.search.halving import goes_on
from dcr_ray.search.journal import StudyJournal, importances, read_trials
from dcr_ray.search.journal_file import JOURNAL_FILE, mend_journal
from dcr_ray.space import grid_points
from dcr_ray.study import HalvingSpec, parse_study


def spec_with(**changes):
    plain = {
        "study": "s",
        "data": {
            "train": {"seemingly_toxic": "a", "toxic": "b", "general": "c", "safety": "d"},
            "evaluate": {"compliance": "a", "defense": "b", "capability": "c"},
        },
        "space": {"dcr.layer_depth": {"low": 0.2, "high": 0.8}, "dcr.scale": {"low": 8.0, "high": 128.0, "log": True}},
        "objectives": {"compliance": "maximize", "defense": "maximize"},
        "constraints": {"perplexity": {"at_most_baseline_times": 1.2}},
        "search": {"trials": 6, "startup_trials": 2, "sampler": "random"},
    }
    for key, value in changes.items():
        plain[key] = plain[key] | value if isinstance(plain.get(key), dict) and key in ("search",) else value
    return parse_study(plain)


def simulated(ask) -> dict:
    """A response surface: the middle layers are best, and a large scale costs defense and perplexity."""
    depth = ask.params.get("dcr.layer_depth", 0.0)
    scale = ask.params.get("dcr.scale", 8.0)
    metrics = {
        "compliance": 0.9 - (depth - 0.5) ** 2,
        "defense": 0.8 - scale / 1000,
        "perplexity": 10 + scale / 20,
    }
    return {"metrics": metrics, "stages": [], "seconds": {"sft": 1.0}, "failure": None}


def run_all(search: Search) -> list[str]:
    names = []
    while (ask := search.next()) is not None:
        search.finish(ask.name, simulated(ask))
        names.append(ask.name)
    return names


def test_the_baseline_is_always_first_and_the_budget_is_kept(tmp_path):
    search = Search(StudyJournal(spec_with(), tmp_path))
    assert run_all(search) == ["stl", "t000", "t001", "t002", "t003", "t004", "t005"]
    assert search.remaining() == 0
    baseline, *searched = search.journal.trials()
    assert baseline.role == "baseline" and baseline.recipe.dcr is None
    assert all(trial.state == "complete" and trial.recipe.dcr is not None for trial in searched)


def test_constraints_relative_to_the_baseline_are_told(tmp_path):
    search = Search(StudyJournal(spec_with(search={"trials": 20}), tmp_path))
    run_all(search)
    limit = 1.2 * search.journal.trials()[0].metrics["perplexity"]
    searched = search.journal.trials()[1:]
    assert {trial.feasible for trial in searched} == {True, False}
    assert all(trial.feasible == (trial.metrics["perplexity"] <= limit) for trial in searched)
    assert all(trial.constraints["perplexity"] is not None for trial in search.journal.searched.trials)


def test_a_trial_that_ends_before_the_baseline_is_told_after_it(tmp_path):
    search = Search(StudyJournal(spec_with(), tmp_path))
    baseline, first = search.next(), search.next()
    search.finish(first.name, simulated(first))
    assert search.journal.searched.trials[0].state == TrialState.RUNNING
    search.finish(baseline.name, simulated(baseline))
    assert search.journal.searched.trials[0].state == TrialState.COMPLETE


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        (
            {"failure": {"kind": "diverged", "stage": "dcr", "reason": "loss is nan at step 3"}},
            "failed",
            "diverged in dcr: loss is nan at step 3",
        ),
        ({"pruned": "not among the best"}, "pruned", "not among the best"),
        (
            {"metrics": {"compliance": math.nan, "defense": 0.5, "perplexity": 9.0}},
            "failed",
            "error: no finite value of compliance",
        ),
        ({"metrics": {"compliance": 0.5, "defense": 0.5}}, "failed", "error: no finite value of perplexity"),
    ],
)
def test_a_trial_without_a_result_ends_with_its_reason_and_never_as_complete(tmp_path, outcome, state, reason):
    search = Search(StudyJournal(spec_with(), tmp_path))
    baseline, ask = search.next(), search.next()
    search.finish(baseline.name, simulated(baseline))
    search.finish(ask.name, {"metrics": {}, "stages": [], "seconds": {}, "failure": None} | outcome)
    trial = search.journal.trials()[1]
    assert (trial.state, trial.reason) == (state, reason)
    assert search.journal.searched.trials[0].values is None


def test_a_study_of_failures_stops(tmp_path):
    search = Search(StudyJournal(spec_with(search={"trials": 50}), tmp_path))
    baseline = search.next()
    search.finish(baseline.name, simulated(baseline))
    count = 0
    while (ask := search.next()) is not None:
        search.finish(ask.name, {"metrics": {}, "failure": {"kind": "out_of_memory", "stage": "sft", "reason": "r"}})
        count += 1
    assert count == 4
    assert "4 of 4 trials failed" in search.stopped


def test_without_a_baseline_nothing_is_compared(tmp_path):
    search = Search(StudyJournal(spec_with(), tmp_path))
    baseline, ask = search.next(), search.next()
    search.finish(ask.name, simulated(ask))
    search.finish(baseline.name, {"metrics": {}, "failure": {"kind": "error", "stage": "sft", "reason": "r"}})
    assert "baseline failed" in search.stopped and search.next() is None
    assert search.journal.trials()[1].state == "failed"


def _run_until_killed(folder, steps, ready):
    search = Search(StudyJournal(spec_with(search={"trials": 12, "sampler": "tpe"}), folder))
    for _ in range(steps):
        ask = search.next()
        search.finish(ask.name, simulated(ask))
    search.next(), search.next()
    ready.set()
    signal.pause()


def test_a_killed_search_goes_on_with_the_same_trials_and_leaves_none_running(tmp_path):
    fresh = multiprocessing.get_context("spawn")
    for steps in (1, 3, 2):
        ready = fresh.Event()
        process = fresh.Process(target=_run_until_killed, args=(tmp_path, steps, ready))
        process.start()
        assert ready.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        mend_journal(tmp_path / JOURNAL_FILE)
    spec = spec_with(search={"trials": 12, "sampler": "tpe"})
    before = {trial.name: trial.params for trial in read_trials(spec, tmp_path)}
    search = Search(StudyJournal(spec, tmp_path))
    run_all(search)
    after = search.journal.trials()
    assert len(after) == 13 and all(trial.state == "complete" for trial in after)
    assert all(params == next(t.params for t in after if t.name == name) for name, params in before.items())
    points = [tuple(trial.params.values()) for trial in after[1:]]
    assert len(set(points)) == len(points), "a resumed sampler must not draw its old points again"


def test_a_torn_line_and_a_stale_lock_are_mended(tmp_path):
    search = Search(StudyJournal(spec_with(), tmp_path))
    run_all(search)
    file = tmp_path / JOURNAL_FILE
    with open(file, "ab") as stream:
        stream.write(b'{"op_code": 4, "wor')
    file.with_name(file.name + ".lock").touch()
    mend_journal(file)
    again = StudyJournal(spec_with(search={"trials": 8}), tmp_path)
    assert run_all(Search(again)) == ["t006", "t007"]


def test_reading_a_study_writes_nothing(tmp_path):
    search = Search(StudyJournal(spec_with(), tmp_path))
    run_all(search)
    before = (tmp_path / JOURNAL_FILE).read_bytes()
    assert len(read_trials(spec_with(), tmp_path)) == 7
    assert (tmp_path / JOURNAL_FILE).read_bytes() == before


def test_another_space_under_the_same_name_is_refused_field_by_field(tmp_path):
    run_all(Search(StudyJournal(spec_with(), tmp_path)))
    other = spec_with(space={"dcr.layer_depth": {"low": 0.2, "high": 0.9}})
    with pytest.raises(InputError, match=r"space.dcr.layer_depth.high: 0.8 -> 0.9"):
        StudyJournal(other, tmp_path)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random", "grid"])
def test_every_sampler_runs_a_study_with_constraints(tmp_path, sampler):
    space = {"dcr.layer_depth": {"low": 0.2, "high": 0.8, "step": 0.2}, "dcr.scale": {"choices": [8.0, 64.0]}}
    search = Search(StudyJournal(spec_with(space=space, search={"sampler": sampler, "trials": 8}), tmp_path))
    run_all(search)
    trials = search.journal.trials()[1:]
    assert len(trials) == 8 and all(trial.state == "complete" for trial in trials)
    if sampler == "grid":
        assert len({tuple(trial.params.values()) for trial in trials}) == 8


def test_tpe_takes_conditional_coordinates(tmp_path):
    space = {
        "dcr.loss": {"choices": ["circle", "infonce"]},
        "dcr.margin": {"low": 0.1, "high": 0.4, "when": {"dcr.loss": ["circle"]}},
        "dcr.layer_depth": {"low": 0.2, "high": 0.8},
    }
    search = Search(StudyJournal(spec_with(space=space, search={"sampler": "tpe", "trials": 20}), tmp_path))
    run_all(search)
    trials = search.journal.trials()[1:]
    assert all(("dcr.margin" in trial.params) == (trial.params["dcr.loss"] == "circle") for trial in trials)
    assert {trial.params["dcr.loss"] for trial in trials} == {"circle", "infonce"}


def test_importance_finds_the_parameter_that_matters(tmp_path):
    search = Search(StudyJournal(spec_with(search={"trials": 60}), tmp_path))
    run_all(search)
    found = importances(search.journal)
    assert found["compliance"]["dcr.layer_depth"] > 0.8
    assert found["defense"]["dcr.scale"] > 0.8


def test_halving_keeps_the_best_share_and_remembers_figures_across_a_restart(tmp_path):
    halving = {"metric": "held_out_margin", "reduction_factor": 2, "min_trials": 3}
    spec = spec_with(halving=halving, search={"trials": 8})
    search = Search(StudyJournal(spec, tmp_path))
    baseline = search.next()
    assert search.reached_rung(baseline.name, {})
    search.finish(baseline.name, simulated(baseline))
    asks = [search.next() for _ in range(3)]
    assert search.reached_rung(asks[0].name, {"held_out_margin": 0.5})
    assert search.reached_rung(asks[1].name, {"held_out_margin": 0.1}), "two figures are too few to judge by"
    search = Search(StudyJournal(spec, tmp_path))
    again = [search.next() for _ in range(4)]
    assert [ask.name for ask in again[:3]] == [ask.name for ask in asks]
    assert not search.reached_rung(again[2].name, {"held_out_margin": 0.05})
    assert search.reached_rung(again[3].name, {"held_out_margin": 0.6})


def test_halving_turns_with_its_direction():
    up = HalvingSpec(metric="held_out_margin", direction="maximize", reduction_factor=2, min_trials=1)
    down = HalvingSpec(metric="held_out_across_cosine", direction="minimize", reduction_factor=2, min_trials=1)
    assert goes_on(0.9, [0.1, 0.2, 0.3], up) and not goes_on(0.9, [0.1, 0.2, 0.3], down)
    assert not goes_on(0.1, [0.2, 0.3, 0.9], up) and goes_on(0.1, [0.2, 0.3, 0.9], down)


def test_a_grid_has_every_step_with_both_ends():
    space = spec_with(space={"dcr.layer_depth": {"low": 0.2, "high": 0.8, "step": 0.2}}).dimensions
    assert grid_points(space)["dcr.layer_depth"] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_hundreds_of_trials_cost_seconds(tmp_path):
    import time

    search = Search(StudyJournal(spec_with(search={"trials": 300}), tmp_path))
    started = time.perf_counter()
    run_all(search)
    assert len(search.journal.trials()) == 301
    assert time.perf_counter() - started < 30
