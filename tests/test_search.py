"""The search tells Optuna the truth, resumes from its journal, and leaves no zombie. Outcomes come from a formula."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dcr_ray.errors import InputError
from dcr_ray.report.tally import Tally
from dcr_ray.search import tpe
from dcr_ray.search.ahead import AskedAhead
from dcr_ray.search.ask_tell import Search, places_ahead
from dcr_ray.search.halving import goes_on
from dcr_ray.search.journal import StudyJournal, importances, read_trials
from dcr_ray.search.journal_file import JOURNAL_FILE, journal_storage, mend_journal, together
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


FIRST = [{"dcr.layer_depth": 0.3, "dcr.scale": 16.0}, {"dcr.layer_depth": 0.7, "dcr.scale": 64.0}]


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsga2"])
def test_the_first_points_are_tried_first_and_once_also_after_a_kill(tmp_path, sampler):
    spec = spec_with(search={"sampler": sampler, "first": FIRST})
    search = Search(StudyJournal(spec, tmp_path))
    search.finish(search.next().name, simulated(search.next()))
    # The first point runs when the driver dies, the second one waits.
    search.close()
    again = Search(StudyJournal(spec, tmp_path))
    assert again.remaining() == 6
    assert run_all(again) == ["t000", "t001", "t002", "t003", "t004", "t005"]
    params = [trial.params for trial in again.journal.trials() if trial.role == "search"]
    assert params[:2] == FIRST and FIRST[0] not in params[2:] and FIRST[1] not in params[2:]


def test_first_points_outside_the_space_are_named(tmp_path):
    first = [{"dcr.layer_depth": 0.9, "dcr.margin": 0.1}]
    with pytest.raises(InputError) as caught:
        spec_with(search={"first": first, "trials": 0})
    said = str(caught.value)
    assert "search.first[0].dcr.layer_depth" in said and "dcr.margin" in said and "search.trials" in said


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


def test_reading_a_study_that_has_not_begun_does_not_begin_it(tmp_path):
    assert read_trials(spec_with(), tmp_path) == [] and not list(tmp_path.iterdir())
    StudyJournal(spec_with(study="other"), tmp_path)
    assert read_trials(spec_with(search={"first": FIRST}), tmp_path) == []
    assert run_all(Search(StudyJournal(spec_with(), tmp_path)))[0] == "stl"


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


def test_a_trial_costs_the_same_however_many_went_before(tmp_path):
    trials, window = 2000, 50
    spec = spec_with(search={"trials": trials, "concurrent": 4})

    def run_windows(folder: Path) -> Iterator[float]:
        """Seconds of CPU of one window of trials after another."""
        folder.mkdir()
        search, tally = Search(StudyJournal(spec, folder), ahead=2), Tally(spec.objectives)
        began, count = time.process_time(), 0
        while (ask := search.next()) is not None:
            search.finish(ask.name, simulated(ask))
            search.journal.trial(ask.name)
            count += 1
            if count % 20 == 0:
                tally.update(search.journal.trials())
            if count % window == 0:
                yield time.process_time() - began
                began = time.process_time()
        search.close()
        assert tally.ended >= trials - 20

    old = run_windows(tmp_path / "old")
    for _ in range(trials // window - 10):
        next(old)
    # First and last windows in turn, so that a busy machine slows both; of each the quickest, to which collections of
    # garbage and other threads only add.
    pairs = list(zip(old, run_windows(tmp_path / "new")))
    last, first = (min(each) for each in zip(*pairs, strict=True))
    assert len(pairs) == 10
    assert last < 1.5 * first, f"seconds of {window} trials, the last against the first"
    assert last / window < 0.02


def test_views_that_are_kept_are_those_that_a_new_reader_builds(tmp_path):
    spec = spec_with(search={"trials": 12, "concurrent": 3})
    search = Search(StudyJournal(spec, tmp_path), ahead=1)
    running, seen = [search.next() for _ in range(3)], []
    while running:
        ask = running.pop(0)
        outcome = simulated(ask) | ({"pruned": "not among the best"} if ask.name == "t004" else {})
        search.finish(ask.name, outcome)
        if (following := search.next()) is not None:
            running.append(following)
        search._ahead.settle()
        seen.append(search.journal.trials())
        assert seen[-1] == read_trials(spec, tmp_path)
        assert all(search.journal.trial(trial.name) == trial for trial in seen[-1])
    kept = [one is other for one, other in zip(*seen[-2:], strict=True)]
    assert kept.count(False) == 1, "only the trial that ended is built again"
    with pytest.raises(KeyError):
        search.journal.trial("t999")


def _ask_ahead_until_killed(folder, ready):
    search = Search(StudyJournal(spec_with(search={"trials": 12, "sampler": "tpe"}), folder), ahead=2)
    for _ in range(4):
        ask = search.next()
        search.finish(ask.name, simulated(ask))
    search.next()
    search._ahead.settle()
    ready.set()
    signal.pause()


def test_trials_asked_for_ahead_outlive_a_killed_driver(tmp_path):
    fresh = multiprocessing.get_context("spawn")
    ready = fresh.Event()
    process = fresh.Process(target=_ask_ahead_until_killed, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    mend_journal(tmp_path / JOURNAL_FILE)
    spec = spec_with(search={"trials": 12, "sampler": "tpe"})
    before = read_trials(spec, tmp_path)
    assert [trial.state for trial in before] == ["complete"] * 4 + ["running", "waiting", "waiting"]
    search = Search(StudyJournal(spec, tmp_path), ahead=2)
    assert search.remaining() == 9
    asked = [search.next() for _ in range(3)]
    assert [(ask.name, ask.params) for ask in asked] == [(trial.name, trial.params) for trial in before[4:]]
    assert [trial.state for trial in read_trials(spec, tmp_path)[4:7]] == ["running"] * 3
    for ask in asked:
        search.finish(ask.name, simulated(ask))
    run_all(search)
    search.close()
    after = search.journal.trials()
    assert len(after) == 13 and all(trial.state == "complete" for trial in after)
    assert len({tuple(trial.params.values()) for trial in after[1:]}) == 12


def test_a_place_that_is_free_gets_its_trial_while_the_next_is_asked_for():
    let_go, asked = threading.Event(), iter(range(10))

    def ask(ahead: bool) -> int:
        if ahead:
            assert let_go.wait(30)
        return next(asked)

    trials = AskedAhead(ask, 2)
    assert trials.take() == 0
    let_go.set()
    trials.settle()
    let_go.clear()
    assert trials.take() == 1 and trials.take() == 2, "these two were there before the thread could ask on"
    let_go.set()
    trials.close()


def test_what_asking_ahead_raises_is_raised_when_its_trial_is_taken():
    def ask(ahead: bool) -> int:
        if ahead:
            raise ValueError("no such point")
        return 0

    trials = AskedAhead(ask, 1)
    assert trials.take() == 0
    with pytest.raises(ValueError, match="no such point"):
        trials.take()
    trials.close()


def test_lines_written_together_are_all_there_or_none(tmp_path):
    storage = journal_storage(tmp_path / JOURNAL_FILE)
    study = optuna.create_study(storage=storage, directions=["maximize"])
    trial = study.ask()
    with pytest.raises(ZeroDivisionError), together(storage):
        trial.set_user_attr("a", 1)
        _ = 1 / 0
    before = (tmp_path / JOURNAL_FILE).read_bytes()
    with together(storage):
        trial.set_user_attr("b", 2)
        trial.set_user_attr("c", 3)
        study.tell(trial, 0.5)
        assert (tmp_path / JOURNAL_FILE).read_bytes() == before
    plain = JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL_FILE)))
    (read,) = optuna.load_study(study_name=study.study_name, storage=plain).trials
    assert read.user_attrs == {"b": 2, "c": 3} and read.value == 0.5
    with pytest.raises(RuntimeError, match="within a block"), together(storage), together(storage):
        pass


def test_unfinished_trials_are_those_that_optuna_finds(tmp_path):
    file = tmp_path / JOURNAL_FILE
    study = optuna.create_study(storage=journal_storage(file))
    trials = [study.ask() for _ in range(6)]
    study.enqueue_trial({"x": 1.0})
    study.tell(trials[1], 1.0)
    study.tell(trials[4], state=TrialState.FAIL)
    plain = optuna.load_study(study_name=study.study_name, storage=JournalStorage(JournalFileBackend(str(file))))
    again = optuna.load_study(study_name=study.study_name, storage=journal_storage(file))
    for states in ((TrialState.RUNNING,), (TrialState.WAITING,), (TrialState.RUNNING, TrialState.WAITING)):
        wanted = plain.get_trials(states=states)
        assert wanted and study.get_trials(states=states) == wanted == again.get_trials(states=states)


def _suggested(sampler, trials: int) -> list[dict[str, float]]:
    return [trial.params for trial in _ran(sampler, trials).trials]


def _ran(sampler, trials: int, directions: tuple[str, ...] = ("maximize", "minimize")) -> optuna.Study:
    study = optuna.create_study(sampler=sampler, directions=directions)
    for _ in range(trials):
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        trial.set_constraint("y", y - 0.9)
        study.tell(trial, [1 - (x - 0.3) ** 2, (y - 0.6) ** 2 + x / 10][: len(directions)])
    return study


def test_tpe_is_optunas_own_until_it_forgets(monkeypatch):
    options = {"seed": 1, "n_startup_trials": 5, "multivariate": True, "constant_liar": True}
    plain = _suggested(optuna.samplers.TPESampler(**options), 60)
    assert _suggested(tpe.RememberingTPESampler(**options), 60) == plain
    for name, value in (("MOST_REMEMBERED", 30), ("REMEMBERED_AFTER_FORGETTING", 25), ("_BEST", 6), ("_NEWEST", 12)):
        monkeypatch.setattr(tpe, name, value)
    forgetful = tpe.RememberingTPESampler(**options)
    assert _suggested(forgetful, 60)[:30] == plain[:30]
    forgetful = tpe.RememberingTPESampler(**options)
    study = _ran(forgetful, 120, ("maximize",))
    remembered = {trial.number for trial in forgetful._remembered}
    assert len(remembered) == len(forgetful._remembered) <= 30
    assert {*range(112, 119)} <= remembered, "the newest are not forgotten"
    feasible = [trial for trial in study.trials[:119] if trial.params["y"] <= 0.9]
    best = sorted(feasible, key=lambda trial: trial.value, reverse=True)[:6]
    assert {trial.number for trial in best} <= remembered, "nor are the best of all"


@pytest.mark.parametrize(
    ("sampler", "concurrent", "ahead"),
    [("random", 8, 2), ("random", 1, 0), ("gp", 8, 1), ("tpe", 8, 0), ("nsga2", 8, 0)],
)
def test_only_who_loses_little_or_takes_long_is_asked_ahead(sampler, concurrent, ahead):
    search = {"trials": 12, "sampler": sampler, "concurrent": concurrent}
    assert places_ahead(spec_with(search=search)) == ahead
