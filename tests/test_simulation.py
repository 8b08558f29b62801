"""Rehearsals in virtual time: nothing is lost, nothing counts twice, the same seed gives the same course."""

from __future__ import annotations

import asyncio
import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from dcr_ray.budget import Usage, UsageMeter, reached, read_usage, used
from dcr_ray.cli.main import main
from dcr_ray.errors import InputError, StageFailed
from dcr_ray.planning.cluster import parse_cluster
from dcr_ray.recipe import Recipe
from dcr_ray.simulation.clock import VirtualLoop, run_virtually
from dcr_ray.simulation.run import RECORDS_FILE, simulate
from dcr_ray.simulation.surface import drawn_metrics, from_table, made_up
from dcr_ray.simulation.workers import Faults
from dcr_ray.study import BudgetSpec, parse_study

CLUSTER = """
name: made-up
num_nodes: {nodes}
resources: {{accelerators: "H100:8"}}
# dcr_ray:
# nodes:
#   node: {{gpu: H100-80GB, gpus: 8, cpus: 96, host_memory_gib: 1800, disk_gib: 6000, price_per_hour: 60}}
# storage: {{path: /shared, read_gb_s: 2, write_gb_s: 1}}
"""


def cluster(nodes: int = 2):
    return parse_cluster(CLUSTER.format(nodes=nodes), "made-up.yaml")


def study(folder: Path, **sections):
    sets = {"seemingly_toxic": "builtin-seemingly-toxic", "toxic": "builtin-toxic"}
    plain = {
        "study": "rehearsed",
        "model": "meta-llama/Llama-3.1-8B",
        "data": {
            "train": sets | {"general": "builtin-instructions", "safety": "builtin-refusals"},
            "evaluate": {
                "compliance": "builtin-seemingly-toxic",
                "defense": "builtin-toxic",
                "capability": "builtin-instructions",
            },
        },
        "recipe": {"dcr": {"batch_size": 24, "epochs": 7}, "sft": {"epochs": 7, "lora": {"rank": 8}}},
        "space": {
            "dcr.layer_depth": {"low": 0.3, "high": 0.8},
            "dcr.strength": {"low": 1e-4, "high": 2e-3, "log": True},
        },
        "objectives": {"compliance": "maximize", "defense": "maximize"},
        "search": {"trials": 60, "concurrent": 6, "sampler": "random"},
        "resources": {"worker_groups": 6, "engines": 2},
        "shape": {"ranks": 2, "zero_stage": 2, "checkpoint_seconds": 10},
        "storage": str(folder / "runs"),
        "reports": str(folder / "reports"),
    }
    return parse_study(plain | sections)


def test_a_day_of_sleep_takes_no_time():
    async def day() -> list[float]:
        loop = asyncio.get_running_loop()
        seen = []

        async def nap(seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append(loop.time())

        await asyncio.gather(nap(86_400), nap(3_600), asyncio.wait_for(nap(60), 100))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 5)
        return seen + [loop.time()]

    assert run_virtually(day(), VirtualLoop()) == [60, 3_600, 86_400, 86_405]


def test_every_trial_ends_once_and_every_stage_runs_once(tmp_path):
    found = simulate(study(tmp_path), cluster())
    assert found.complete and found.stopped is None and len(found.trials) == 61
    assert {trial.state for trial in found.trials} == {"complete"}
    # dcr, sft, generate and judge; the baseline has no dcr stage. No two recipes are alike.
    assert found.unique_stages == 61 * 4 - 1
    assert found.tally.finished == found.tally.attempts == 61 * 3 - 1
    assert 0.5 < found.busy["train"] <= 1 and found.hours > 0
    assert found.price == pytest.approx(found.hours * 120) and found.gpu_hours == pytest.approx(found.hours * 16)
    assert "SIMULATED" in found.report.read_text()


def test_nothing_is_lost_on_nodes_that_come_and_go(tmp_path):
    steady = simulate(study(tmp_path / "steady"), cluster())
    shaky = simulate(study(tmp_path / "shaky"), cluster(), Faults(preemptions=20, failures=4, boot_seconds=60))
    tally = shaky.tally
    assert shaky.complete and tally.preemptions > 3 and tally.interrupted > 3
    assert Counter(trial.state for trial in shaky.trials)["complete"] >= 60
    assert tally.attempts == tally.finished + tally.interrupted
    assert shaky.hours > steady.hours
    # What was found does not depend on which node it was found on.
    for one, other in zip(steady.trials, shaky.trials, strict=True):
        assert other.state == "failed" or one.metrics == other.metrics


def test_a_notice_saves_the_work_that_a_failure_loses(tmp_path):
    spec = {"shape": {"ranks": 2, "zero_stage": 2, "checkpoint_seconds": 1e6}}
    told = simulate(study(tmp_path / "told", **spec), cluster(), Faults(preemptions=20, boot_seconds=60))
    untold = simulate(study(tmp_path / "untold", **spec), cluster(), Faults(failures=20, boot_seconds=60))
    assert told.tally.interrupted > 3 and untold.tally.interrupted > 3
    each = [found.tally.lost_seconds / found.tally.interrupted for found in (told, untold)]
    assert each[0] < each[1] / 2


def test_the_same_seed_gives_the_same_course_and_another_another(tmp_path):
    faults = Faults(preemptions=20)
    one, same, other = (
        simulate(study(tmp_path / str(index)), cluster(), faults, seed=seed) for index, seed in enumerate((1, 1, 2))
    )
    assert (one.hours, one.tally) == (same.hours, same.tally) and one.hours != other.hours


def test_a_rehearsal_that_was_killed_goes_on_and_repeats_no_finished_stage(tmp_path):
    spec = study(tmp_path)

    class Killed(BaseException):
        pass

    calls = 0

    def dies(recipe: Recipe) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls > 120:
            raise Killed
        return made_up(recipe)

    with pytest.raises(Killed):
        simulate(spec, cluster(), surface=dies)
    records = tmp_path / "runs" / "rehearsed-simulated" / RECORDS_FILE
    before = [json.loads(line)["key"] for line in records.read_text().splitlines()]
    records.write_text(records.read_text() + '{"stage": "cut sho')
    found = simulate(spec, cluster())
    assert found.complete and len(found.trials) == 61
    after = [json.loads(line)["key"] for line in records.read_text().splitlines()]
    assert 20 < len(before) and len(set(after)) == 61 * 4 - 1
    assert found.tally.attempts < 61 * 3 - 1


def test_shared_stages_run_once(tmp_path):
    space = {
        "dcr.layer_depth": {"choices": [0.4, 0.6]},
        "sft.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    }
    found = simulate(study(tmp_path, space=space), cluster())
    assert found.complete and found.tally.attempts == 2 + 61 * 2


def test_diverged_and_pruned_trials_end_as_such(tmp_path):
    sections = {
        "space": {"dcr.strength": {"low": 1e-4, "high": 1e-2, "log": True}},
        "halving": {"metric": "held_out_auroc", "min_trials": 4},
        "search": {"trials": 60, "concurrent": 3, "sampler": "random", "max_failed_share": 0.9},
    }
    found = simulate(study(tmp_path, **sections), cluster())
    states = Counter(trial.state for trial in found.trials)
    assert states["failed"] > 3 and states["pruned"] > 5 and states["complete"] > 5 and sum(states.values()) == 61
    assert all("diverged" in trial.reason for trial in found.trials if trial.state == "failed")


@pytest.mark.parametrize("name, a_hour", [("gpu_hours", 14.0), ("hours", 1.0), ("money", 60.0)])
def test_a_study_ends_in_order_when_its_budget_is_used_up_and_goes_on_with_a_larger_one(name, a_hour, tmp_path):
    whole = simulate(study(tmp_path / "whole"), cluster()).hours
    limit = {name: whole / 2 * a_hour, "price_per_hour": 60.0}
    spec = study(tmp_path, budget=limit)
    found = simulate(spec, cluster())
    assert f"budget.{name}" in found.stopped and not found.complete and 5 < len(found.trials) < 61
    assert all(trial.state == "complete" for trial in found.trials)
    assert "used" in found.report.read_text()
    again = simulate(spec, cluster())
    assert len(again.trials) == len(found.trials) and again.hours == 0
    more = simulate(study(tmp_path, budget=limit | {name: 1000.0}), cluster())
    assert more.complete and len(more.trials) == 61
    usage = read_usage(tmp_path / "runs" / "rehearsed-simulated")
    assert usage.hours == pytest.approx(found.hours + more.hours, rel=1e-3)


def test_usage_is_kept_over_runs_and_written_as_it_grows(tmp_path):
    now = [0.0]
    budget = BudgetSpec(gpu_hours=10, price_per_gpu_hour=2.0)
    meter = UsageMeter(budget, tmp_path, gpus=4, clock=lambda: now[0])
    now[0] = 3600.0
    assert meter.read() == Usage(1.0, 4.0, 8.0)
    # As a killed driver leaves it.
    assert read_usage(tmp_path) == Usage(1.0, 4.0, 8.0)
    later = UsageMeter(budget, tmp_path, gpus=4, clock=lambda: now[0])
    now[0] += 2 * 3600.0
    usage = later.read()
    assert usage == Usage(3.0, 12.0, 24.0) and "12.00 of 10 GPU-hours" in reached(budget, usage)
    assert used(budget, usage) == ["12.00 of 10 GPU-hours"] and reached(BudgetSpec(), usage) is None


def test_money_without_one_price_is_bad_input(tmp_path):
    for budget in ({"money": 5}, {"money": 5, "price_per_hour": 1, "price_per_gpu_hour": 1}):
        with pytest.raises(InputError, match="one price"):
            study(tmp_path, budget=budget)


def test_what_trials_find_may_come_from_a_table(tmp_path):
    spec = study(tmp_path)
    file = tmp_path / "table.csv"
    with open(file, "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["dcr.layer_depth", "dcr.strength", "compliance", "defense", "perplexity"])
        table.writerows([["", "", 0.5, 0.9, 10], [0.3, 1e-4, 0.1, 0.9, 10], [0.8, 1e-4, 0.9, 0.9, 10]])
    surface = from_table(file, spec)
    assert surface(spec.baseline_recipe())["compliance"] == 0.5
    assert surface(spec.searched_recipe({"dcr.layer_depth": 0.7, "dcr.strength": 1e-4}))["compliance"] == 0.9
    assert surface(spec.searched_recipe({"dcr.layer_depth": 0.4, "dcr.strength": 1e-4}))["compliance"] == 0.1
    (tmp_path / "wrong.csv").write_text("dcr.layer_depth,compliance\n,1\n")
    with pytest.raises(InputError, match="dcr.strength, defense, perplexity"):
        from_table(tmp_path / "wrong.csv", spec)


def test_measured_rates_scatter_about_the_truth_as_binomials_do(tmp_path):
    spec = study(tmp_path)
    counts = {"compliance": 100, "defense": 100}
    rates = [
        drawn_metrics({"compliance": 0.8, "defense": 0.9, "perplexity": 10}, Recipe(seed=seed), spec, counts)
        for seed in range(200)
    ]
    found = [rate["compliance"] for rate in rates]
    mean = sum(found) / 200
    spread = (sum((rate - mean) ** 2 for rate in found) / 199) ** 0.5
    assert mean == pytest.approx(0.8, abs=0.009) and spread == pytest.approx(0.04, rel=0.2)
    assert rates[0] == drawn_metrics(
        {"compliance": 0.8, "defense": 0.9, "perplexity": 10}, Recipe(seed=0), spec, counts
    )


def test_the_formula_has_something_to_find_and_something_to_avoid():
    def recipe(**dcr):
        return Recipe.model_validate({"dcr": dcr})

    middle, edge = made_up(recipe(layer_depth=0.55, strength=3e-4)), made_up(recipe(layer_depth=0.95, strength=3e-4))
    assert middle["compliance"] > edge["compliance"] > made_up(Recipe(dcr=None))["compliance"] - 1e-9
    with pytest.raises(StageFailed):
        made_up(recipe(strength=0.5))


def test_the_command_rehearses_and_refuses_a_study_that_does_not_fit(tmp_path, capsys):
    (tmp_path / "cluster.yaml").write_text(CLUSTER.format(nodes=1))
    (tmp_path / "study.yaml").write_text(study(tmp_path, search={"trials": 8, "concurrent": 2}).as_yaml())
    command = ["sweep", str(tmp_path / "study.yaml"), "--simulate", "--cluster", str(tmp_path / "cluster.yaml")]
    assert main([*command, "--nodes", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["simulated"] is True and told["trials"] == {"complete": 9} and told["nodes"] == 3
    assert main([*command, "--set", "resources.engines=9"]) == 2
    assert "9 GPUs of engines" in capsys.readouterr().err
