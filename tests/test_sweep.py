"""A whole sweep on real parts: Ray Train with DeepSpeed, vLLM, Tune, Optuna and MLflow, on a tiny model.

Its driver is killed with SIGKILL at three different stages, the same command is given again each time, and the last
run is left to end. Everything else is asserted of what is then there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from dcr_ray.cache import StageCache
from dcr_ray.time_ledger import PARTS
from dcr_ray.weights.tiny import build_tiny_model

SPEC = {
    "study": "tiny",
    "data": {
        "train": {
            "seemingly_toxic": {"set": "builtin-seemingly-toxic", "limit": 16},
            "toxic": {"set": "builtin-toxic", "limit": 16},
            "general": {"set": "builtin-instructions", "limit": 24},
            "safety": {"set": "builtin-refusals", "limit": 8},
        },
        "evaluate": {
            "compliance": {"set": "builtin-seemingly-toxic", "limit": 12},
            "defense": {"set": "builtin-toxic", "limit": 12},
            "capability": {"set": "builtin-instructions", "limit": 8},
        },
    },
    "recipe": {"dcr": {"batch_size": 8}, "sft": {"max_tokens": 64, "learning_rate": 1e-3}},
    "space": {"dcr.layer_depth": {"low": 0.3, "high": 0.8}, "dcr.strength": {"low": 1e-3, "high": 1e-1, "log": True}},
    "objectives": {"compliance": "maximize", "defense": "maximize"},
    "constraints": {"perplexity": {"at_most_baseline_times": 5.0}},
    "search": {"trials": 3, "startup_trials": 2, "concurrent": 2},
    "evaluation": {"max_tokens": 8, "max_model_tokens": 512},
}


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "dcr_ray.cli.main", "sweep", str(folder / "tiny.yaml"), "--json"]


def environment(folder: Path) -> dict[str, str]:
    home = folder / "empty-home"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DCR_RAY_"))}
    return kept | {"HOME": str(home), "DCR_RAY_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def run_until(folder: Path, pattern: str, log: Path) -> None:
    """Start the sweep, wait until a line of its log matches, and kill its driver."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=stream, env=environment(folder))
    try:
        deadline = time.monotonic() + 180
        while not re.search(pattern, log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    build_tiny_model(folder / "model")
    places = {"model": str(folder / "model"), "storage": str(folder / "runs"), "reports": str(folder / "reports")}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SPEC | places))
    records: list[dict[str, float]] = []

    def finished_stages() -> dict[str, float]:
        return {
            f"{r.stage}/{r.key}": Path(r.path, "record.json").stat().st_mtime
            for r in StageCache(folder / "runs" / "cache").records()
        }

    # The last kill comes with the first generation of either trial, before the third trial can have been trained.
    for index, pattern in enumerate((r"t000: started", r"stl: sft finished", r"t00\d: (generate finished|complete)")):
        run_until(folder, pattern, folder / f"killed-{index}.log")
        records.append(finished_stages())
    last = subprocess.run(command(folder), capture_output=True, text=True, env=environment(folder), timeout=300)
    records.append(finished_stages())
    assert last.returncode == 0, last.stderr
    return folder, json.loads(last.stdout), records, last.stderr


def test_a_killed_sweep_goes_on_to_the_same_trials_and_ends(study):
    _, document, _, _ = study
    assert document["complete"] and document["stopped"] is None
    assert [trial["name"] for trial in document["trials"]] == ["stl", "t000", "t001", "t002"]
    assert [trial["state"] for trial in document["trials"]] == ["complete"] * 4, document["trials"]


def test_nothing_finished_is_done_twice(study):
    _, _, records, _ = study
    for before, after in zip(records, records[1:]):
        assert before.items() <= after.items()
    stages = [name.split("/")[0] for name in records[-1]]
    assert {stage: stages.count(stage) for stage in set(stages)} == {"dcr": 3, "sft": 4, "generate": 4, "judge": 4}


def test_no_work_of_a_killed_driver_is_left(study):
    folder, *_ = study
    assert not list((folder / "runs" / "cache").glob("*/.*.partial"))


def test_every_trial_has_rates_with_intervals_and_its_stages(study):
    _, document, _, _ = study
    for trial in document["trials"]:
        metrics = trial["metrics"]
        for rate in ("compliance", "defense"):
            assert metrics[f"{rate}/n"] == 12
            assert metrics[f"{rate}/low"] <= metrics[rate] <= metrics[f"{rate}/high"]
            assert {
                f"{rate}/degenerate_share",
                f"{rate}/cut_share",
                f"{rate}/first_token_refusal_probability",
            } <= metrics.keys()
        assert metrics["perplexity"] > 1
        wanted = ["sft", "generate", "judge"] if trial["role"] == "baseline" else ["dcr", "sft", "generate", "judge"]
        assert [stage["name"] for stage in trial["stages"]] == wanted


def test_the_parts_of_every_trials_time_add_up_to_its_wall_clock(study):
    _, document, _, _ = study
    for trial in document["trials"]:
        ledger, wall = trial["ledger"], trial["wall"]
        assert min(ledger.values()) >= 0
        # A trial of a few seconds is judged by 0.3 s: on a busy machine the driver alone may be kept waiting for that.
        tolerance = max(0.02 * wall, 0.3)
        assert abs(wall - sum(ledger[part] for part in PARTS)) < tolerance, ledger
        # What a stage's own clock does not see is a figure of its own, and has to be small too.
        assert ledger.get("idle/handover", 0.0) + ledger.get("queue/messages", 0.0) < 0.05 * wall + 0.5, ledger
        passed = datetime.fromisoformat(trial["ended"]) - datetime.fromisoformat(trial["started"])
        # A trial that a killed driver left began before its last driver asked for it again.
        assert wall < passed.total_seconds() + 2


def test_trials_of_the_last_driver_have_every_part_of_their_work(study):
    _, document, _, _ = study
    ledger = document["trials"][-1]["ledger"]
    for part in ("start", "weights_in", "forward_backward", "optimizer", "checkpoint", "weights_to_engine", "decode"):
        assert ledger[part] > 0, part
    assert ledger["judge"] > 0 and ledger["tracking"] > 0


def test_a_checkpoint_is_ready_for_transformers(study):
    folder, *_ = study
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dcr_ray import Study

    results = Study.from_yaml(folder / "tiny.yaml").results()
    best = results.best()
    assert best is not None and best.role == "search"
    model = AutoModelForCausalLM.from_pretrained(results.checkpoint(best))
    tokens = AutoTokenizer.from_pretrained(results.checkpoint(best))("Hello there", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=4, do_sample=False).shape[1] > tokens["input_ids"].shape[1]


def test_results_are_a_frame(study):
    folder, *_ = study
    from dcr_ray import Study

    results = Study.from_yaml(folder / "tiny.yaml").results()
    frame = results.to_frame()
    assert list(frame["name"]) == ["stl", "t000", "t001", "t002"] and results.complete
    assert {"params.dcr.layer_depth", "metrics.compliance", "seconds.sft", "checkpoint"} <= set(frame.columns)
    assert {"wall", "unaccounted", "ledger.queue", "ledger.forward_backward", "ledger.decode"} <= set(frame.columns)
    assert all(trial.role == "search" for trial in results.pareto())


def test_mlflow_has_one_run_for_the_study_each_trial_and_each_stage(study):
    folder, *_ = study
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'tiny' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    by_uid = {run.data.tags["dcr.uid"]: run for run in runs}
    assert len(by_uid) == len(runs)
    trials = [uid for uid in by_uid if re.fullmatch(r"stl|t\d+", uid)]
    assert sorted(trials) == ["stl", "t000", "t001", "t002"]
    parent = {uid: run.data.tags.get("mlflow.parentRunId") for uid, run in by_uid.items()}
    assert len({parent[trial] for trial in trials}) == 1
    assert parent["t001/sft"] == by_uid["t001"].info.run_id
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert by_uid["t001"].data.metrics["compliance/low"] >= 0
    times = by_uid["t001"].data.metrics
    assert times["time/wall"] == pytest.approx(sum(times[f"time/{part}"] for part in (*PARTS, "unaccounted")))
    whole = by_uid["study"].data.metrics
    assert whole["time/decode"] == pytest.approx(sum(by_uid[uid].data.metrics["time/decode"] for uid in trials))
    artifacts = {entry.path for entry in client.list_artifacts(by_uid["t001"].info.run_id)}
    assert "generations.md" in artifacts


def test_the_report_and_its_plots_are_written(study):
    folder, *_ = study
    report = folder / "reports" / "tiny"
    assert "t001" in (report / "report.md").read_text()
    assert "Largest unaccounted share of a trial" in (report / "report.md").read_text()
    for plot in ("pareto.png", "layer_depth.png", "time.png"):
        assert (report / plot).stat().st_size > 5000


def test_the_log_is_plain_lines_where_there_is_no_terminal(study):
    *_, log = study
    assert "\x1b" not in log and "\r" not in log
    assert re.search(r"t002: complete, compliance", log)


def test_harmful_prompts_are_in_no_log(study):
    folder, *_ = study
    from dcr_ray.data.load import load_prompts

    texts = [prompt.text for split in ("train", "search") for prompt in load_prompts("builtin-toxic", split=split)]
    logs = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".log", ".md", ".txt", ".jsonl")]
    assert logs
    for path in logs:
        content = path.read_text(errors="replace")
        assert not any(text in content for text in texts), path


def test_a_finished_sweep_starts_nothing_again(study):
    folder, *_ = study
    started = time.monotonic()
    again = subprocess.run(command(folder), capture_output=True, text=True, env=environment(folder), timeout=120)
    assert again.returncode == 0 and json.loads(again.stdout)["complete"]
    assert "Ray started" not in again.stderr
    assert time.monotonic() - started < 60


@pytest.fixture(scope="module")
def confirmed(study):
    folder, *_ = study
    asked = ["confirm", "tiny", "--storage", str(folder / "runs"), "--top", "1", "--seeds", "2", "--json"]
    run = [sys.executable, "-m", "dcr_ray.cli.main", *asked]
    done = subprocess.run(run, capture_output=True, text=True, env=environment(folder), timeout=400, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), run


def test_the_finalist_and_the_baseline_are_trained_anew_and_compared_on_the_test_split(confirmed):
    folder, document, _ = confirmed
    assert document["seeds"] == [1, 2] and len(document["finalists"]) == 1
    assert {(row["field"], row["scope"]) for row in document["comparisons"]} >= {
        ("compliance", "all"),
        ("defense", "all"),
    }
    assert all(row["rate"]["n"] == 42 for row in document["comparisons"] if row["scope"] == "all")
    assert len(document["openings"]) == 1 and document["openings"][0]["finished"]
    assert (folder / "reports" / "tiny" / "confirmation.md").is_file()


def test_the_test_split_is_opened_for_no_other_finalists_and_the_same_ones_train_nothing_anew(confirmed):
    folder, document, run = confirmed
    others = subprocess.run(
        [*run[:-1], "--seeds", "3"], capture_output=True, text=True, env=environment(folder), timeout=100, cwd=folder
    )
    assert others.returncode == 2 and "opened on" in others.stderr
    started = time.monotonic()
    again = subprocess.run(run, capture_output=True, text=True, env=environment(folder), timeout=100, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["comparisons"] == document["comparisons"]
    assert "Ray" not in again.stderr and time.monotonic() - started < 60


def test_a_second_judge_is_asked_about_the_answers_that_are_there(confirmed):
    folder, *_ = confirmed
    (folder / "judges.yaml").write_text("- {kind: string, name: second}\n")
    asked = [
        "judge",
        "run",
        "tiny",
        "--storage",
        str(folder / "runs"),
        "--judges",
        str(folder / "judges.yaml"),
        "--json",
    ]
    run = [sys.executable, "-m", "dcr_ray.cli.main", *asked]
    done = subprocess.run(run, capture_output=True, text=True, env=environment(folder), timeout=100, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    by_judge = {judge: [row["hits"] for row in rows if row["judge"] == judge] for judge in ("string", "second")}
    assert by_judge["string"] == by_judge["second"] and len(by_judge["string"]) == 8
