"""The search under real Ray Tune, with simulated stages."""

from __future__ import annotations

import pytest
import ray

from dcr_ray.pools.broker import Broker
from dcr_ray.runtime import start_ray
from dcr_ray.search.ask_tell import Search
from dcr_ray.search.journal import StudyJournal
from dcr_ray.search.tune import StageHalving, TuneSearcher, run_trials
from dcr_ray.study import parse_study
from dcr_ray.time_ledger import accounted
from tests.simulated import SimulatedWorker, study_inputs


def spec_with(study: str, **changes):
    plain = {
        "study": study,
        "data": {
            "train": {"seemingly_toxic": "a", "toxic": "b", "general": "c", "safety": "d"},
            "evaluate": {"compliance": "a", "defense": "b", "capability": "c"},
        },
        "space": {
            "dcr.layer_depth": {"low": 0.1, "high": 0.9},
            "dcr.strength": {"low": 1e-4, "high": 1e-3, "log": True},
        },
        "objectives": {"compliance": "maximize", "defense": "maximize"},
        "constraints": {"perplexity": {"at_most_baseline_times": 1.2}},
        "search": {"trials": 6, "startup_trials": 2, "concurrent": 3, "max_failed_share": 1.0},
    }
    return parse_study(plain | changes)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    yield start_ray("local", 2, "tests", folder, folder)
    ray.shutdown()


def run(spec, folder, cluster, round_trials=1000):
    inputs = study_inputs(spec, folder)
    search = Search(StudyJournal(spec, folder), ahead=1)
    name = f"broker-{spec.study}"
    broker = (
        ray.remote(Broker).options(name=name, namespace=cluster.namespace, num_cpus=0, max_concurrency=1000).remote()
    )
    workers = [ray.remote(SimulatedWorker).options(num_cpus=0).remote() for _ in range(2)]
    serving = [
        worker.serve.remote(name, cluster.namespace, place, place)
        for worker, place in zip(workers, ("train", "generate"), strict=True)
    ]
    prunings: dict[str, str] = {}
    ended: list[str] = []
    searcher = TuneSearcher(search, lambda name, recipe: None, ended.append, prunings)
    run_trials(
        searcher,
        StageHalving(search, prunings),
        search.remaining(),
        spec.search.concurrent,
        name,
        cluster.namespace,
        inputs,
        str(folder / "tune"),
        "run",
        round_trials,
    )
    search.close()
    events = ray.get(broker.events.remote())
    ray.get(broker.close.remote("over"))
    served = ray.get(serving)
    for actor in (*workers, broker):
        ray.kill(actor)
    return search, ended, served, events


def test_tune_runs_every_trial_and_optuna_is_told_how_each_ended(tmp_path, cluster):
    search, ended, served, events = run(
        spec_with("all", search={"trials": 8, "startup_trials": 3, "concurrent": 3, "max_failed_share": 1.0}),
        tmp_path,
        cluster,
    )
    baseline, *searched = search.journal.trials()
    assert baseline.state == "complete", baseline.reason
    assert set(ended) == {"stl", *(f"t{i:03d}" for i in range(8))}
    assert {trial.state for trial in searched} <= {"complete", "failed"}
    for trial in searched:
        diverged = trial.params["dcr.strength"] > 9e-4
        assert trial.state == ("failed" if diverged else "complete")
        assert not diverged or "diverged in dcr" in trial.reason
        if not diverged:
            assert [stage.name for stage in trial.stages] == ["dcr", "sft", "generate", "judge"]
            assert trial.metrics["compliance"] == pytest.approx(
                1 - abs(trial.params["dcr.layer_depth"] - 0.5), abs=0.051
            )
            assert trial.metrics["defense"] == 1.0


def test_trials_that_share_their_dcr_recipe_run_its_stage_once(tmp_path, cluster):
    space = {"sft.learning_rate": {"choices": [1e-5, 2e-5, 3e-5, 4e-5]}}
    spec = spec_with("shared", space=space, search={"sampler": "grid", "trials": 4, "concurrent": 3})
    search, _, served, events = run(spec, tmp_path, cluster)
    assert [trial.state for trial in search.journal.trials()] == ["complete"] * 5
    assert [event["stage"] for event in events if event["event"] == "started"].count("dcr") == 1
    assert [event["stage"] for event in events if event["event"] == "started"].count("sft") == 5


def test_halved_trials_are_told_as_pruned_before_their_sft(tmp_path, cluster):
    halving = {"metric": "held_out_margin", "reduction_factor": 2, "min_trials": 2}
    space = {"dcr.layer_depth": {"low": 0.1, "high": 0.9}}
    spec = spec_with("halved", space=space, halving=halving, search={"trials": 8, "concurrent": 2, "sampler": "random"})
    search, _, _, events = run(spec, tmp_path, cluster)
    states = [trial.state for trial in search.journal.trials()[1:]]
    assert states.count("pruned") >= 2 and states.count("complete") >= 2 and len(states) == 8
    trained = {event["trial"] for event in events if event["stage"] == "sft"}
    pruned = [trial for trial in search.journal.trials() if trial.state == "pruned"]
    assert not trained & {trial.name for trial in pruned}
    assert all("held_out_margin" in trial.reason for trial in pruned)


def test_a_study_can_be_extended_and_takes_finished_stages_from_the_cache(tmp_path, cluster):
    space = {"dcr.layer_depth": {"low": 0.1, "high": 0.9}}
    first, *_ = run(spec_with("more", space=space, search={"trials": 2, "concurrent": 2}), tmp_path, cluster)
    before = [trial.params for trial in first.journal.trials()]
    second, ended, served, _ = run(
        spec_with("more", space=space, search={"trials": 4, "concurrent": 2}), tmp_path, cluster
    )
    after = second.journal.trials()
    assert [trial.params for trial in after[:3]] == before and len(after) == 5
    assert set(ended) == {"t002", "t003"} and served == [4, 2]


def test_the_parts_of_every_trial_add_up_to_its_wall_clock(tmp_path, cluster):
    space = {"dcr.layer_depth": {"low": 0.1, "high": 0.9}, "dcr.strength": {"low": 5e-4, "high": 1.1e-3}}
    halving = {"metric": "held_out_margin", "reduction_factor": 2, "min_trials": 2}
    search = {"trials": 12, "concurrent": 3, "sampler": "random", "max_failed_share": 1.0}
    found, *_ = run(spec_with("ledger", space=space, halving=halving, search=search), tmp_path, cluster)
    trials = found.journal.trials()
    assert {"complete", "failed", "pruned"} <= {trial.state for trial in trials}
    for trial in trials:
        assert trial.wall == pytest.approx(accounted(trial.ledger) + trial.unaccounted)
        assert min(trial.ledger.values()) >= 0 and trial.ledger["start"] > 0 and trial.ledger["tracking"] > 0
        # Trials here last a tenth of a second, in which a busy machine may keep the driver waiting between two clocks.
        assert abs(trial.unaccounted) < 0.05 + 0.02 * trial.wall, trial.ledger
        if trial.state == "failed":
            assert trial.ledger["idle/failed"] > 0.02
        else:
            trained = [stage for stage in trial.stages if stage.name in ("dcr", "sft")]
            assert trial.ledger["forward_backward"] == pytest.approx(0.02 * len(trained))
            assert {stage.worker for stage in trained} == {"train"}
    assert sum(trial.unaccounted for trial in trials) < 0.02 * sum(trial.wall for trial in trials)


def test_a_trial_that_waits_for_anothers_stage_says_so_in_its_queue(tmp_path, cluster):
    space = {"sft.learning_rate": {"choices": [1e-5, 2e-5, 3e-5]}}
    spec = spec_with("awaits", space=space, search={"sampler": "grid", "trials": 3, "concurrent": 4})
    trials = run(spec, tmp_path, cluster)[0].journal.trials()
    shared = [trial for trial in trials if any(stage.name == "dcr" and stage.cached for stage in trial.stages)]
    assert len(shared) == 2
    for trial in shared:
        assert trial.ledger["forward_backward"] == pytest.approx(0.02)
        awaited, looked_up = trial.ledger.get("queue/awaited", 0.0), trial.ledger.get("idle/cache", 0.0)
        assert (awaited > 0) != (looked_up > 0) and trial.ledger["queue"] >= awaited


def test_tune_begins_anew_and_goes_on_with_the_same_search(tmp_path, cluster):
    space = {"dcr.layer_depth": {"low": 0.1, "high": 0.9}}
    spec = spec_with("rounds", space=space, search={"trials": 6, "concurrent": 2, "sampler": "random"})
    search, ended, _, _ = run(spec, tmp_path, cluster, round_trials=3)
    assert sorted(ended) == ["stl", *(f"t{i:03d}" for i in range(6))]
    assert [trial.state for trial in search.journal.trials()] == ["complete"] * 7
    assert not list((tmp_path / "tune").iterdir()), "what Tune left of each round is gone"


def test_a_trial_whose_stages_are_all_there_asks_no_worker(tmp_path, cluster):
    space = {"sft.learning_rate": {"choices": [1e-5, 2e-5, 3e-5]}}
    search = {"sampler": "grid", "trials": 3, "concurrent": 2}
    run(spec_with("filled", space=space, search=search), tmp_path, cluster)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "cache").symlink_to(tmp_path / "cache")
    second, _, served, events = run(spec_with("again", space=space, search=search), tmp_path / "again", cluster)
    assert served == [0, 0]
    assert {event["event"] for event in events} == {"cached"} and len(events) == 3 * 3 + 2
    assert all(stage.cached for trial in second.journal.trials() for stage in trial.stages)
