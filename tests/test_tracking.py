"""Tracking, with real MLflow on SQLite: what is told arrives once, in its place, whatever dies in between."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from dcr_ray.errors import DcrError, InputError
from dcr_ray.tracking import STUDY_UID, Tracker, check_tracking_uri, default_tracking_uri, sync
from dcr_ray.tracking.cursor import Cursor, load_cursor
from dcr_ray.tracking.entries import finite_metrics, flat_params, mlflow_name
from dcr_ray.tracking.sender import Assignment, Sender
from dcr_ray.tracking.spool import Spool, read_spool, spool_path

ROOT = Path(__file__).resolve().parents[1]
CLOSED_PORT = "http://127.0.0.1:9"


def patient(study_dir: Path) -> Tracker:
    """A tracker that a busy machine cannot hurry."""
    return Tracker(study_dir, default_tracking_uri(study_dir), "layers", close_seconds=120)


def tell_study(tracker: Tracker, trials: int = 2, end: bool = True) -> None:
    tracker.study("layers", {"budget": {"trials": trials}}, {"git": "abc"})
    for number in range(trials):
        trial = f"trial-{number}"
        tracker.trial(trial, trial, {"recipe": {"dcr": {"margin": 0.25}}}, {"state": "running"})
        for stage in ("dcr", "sft"):
            uid = f"{trial}/{stage}"
            tracker.stage(uid, trial, stage, {"key": f"{number}-{stage}"}, {"cached": False})
            for step in range(3):
                tracker.metrics(uid, {"loss": 1.0 / (1 + step)}, step)
            tracker.end(uid, "finished")
        tracker.metrics(trial, {"compliance": 0.5 + number / 10})
        tracker.end(trial, "finished")
    if end:
        tracker.end(STUDY_UID, "finished")


def client_of(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs_by_uid(uri: str) -> dict:
    client = client_of(uri)
    experiment = client.get_experiment_by_name("layers")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert max(Counter(run.data.tags["dcr.uid"] for run in runs).values()) == 1
    return {run.data.tags["dcr.uid"]: run for run in runs}


def losses(uri: str, run) -> list[float]:
    return [metric.value for metric in client_of(uri).get_metric_history(run.info.run_id, "loss")]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Path:
    study_dir = tmp_path_factory.mktemp("told")
    (study_dir / "report.html").write_text("<p>report</p>")
    with patient(study_dir) as tracker:
        tell_study(tracker)
        tracker.metrics("trial-0", {"harm": float("nan"), "capability": float("inf"), "a+b": 1.0})
        tracker.artifact(STUDY_UID, study_dir / "report.html")
        tracker.artifact(STUDY_UID, study_dir / "gone.html")
        tracker.text("trial-0", "reason \0 \ud800", "notes/reason.txt")
    assert (tracker.pending(), tracker.state()) == (0, "up to date")
    return study_dir


def test_importing_and_opening_tracking_does_not_import_mlflow(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from dcr_ray.tracking import Tracker\n"
        f"tracker = Tracker(Path({str(tmp_path)!r}), {CLOSED_PORT!r}, 'layers', close_seconds=0.0)\n"
        "os._exit(any(name.split('.')[0] == 'mlflow' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=30)


def test_stages_lie_under_trials_and_trials_under_the_study(told):
    runs = runs_by_uid(default_tracking_uri(told))
    parents = {uid: run.data.tags.get("mlflow.parentRunId") for uid, run in runs.items()}
    assert parents == {STUDY_UID: None} | {f"trial-{n}": runs[STUDY_UID].info.run_id for n in range(2)} | {
        f"trial-{n}/{stage}": runs[f"trial-{n}"].info.run_id for n in range(2) for stage in ("dcr", "sft")
    }
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_params_metrics_and_tags_arrive(told):
    uri = default_tracking_uri(told)
    runs = runs_by_uid(uri)
    assert runs["trial-1"].data.params == {"recipe.dcr.margin": "0.25"}
    assert runs["trial-1"].data.metrics == {"compliance": 0.6}
    assert runs["trial-1/sft"].data.tags["cached"] == "false"
    assert losses(uri, runs["trial-1/sft"]) == [1.0, 0.5, 1.0 / 3]


def test_a_value_that_is_not_finite_is_a_tag_and_never_a_zero(told):
    data = runs_by_uid(default_tracking_uri(told))["trial-0"].data
    assert data.metrics == {"compliance": 0.5, mlflow_name("a+b"): 1.0}
    assert (data.tags["dcr.dropped.harm"], data.tags["dcr.dropped.capability"]) == ("NaN", "Infinity")


def test_artifacts_lie_beside_the_study_and_a_missing_one_is_named(told):
    run = runs_by_uid(default_tracking_uri(told))[STUDY_UID]
    assert run.data.tags["dcr.missing_artifact.gone.html"] == "gone.html"
    assert [path.name for path in (told / "mlartifacts").rglob("report.html")] == ["report.html"]
    assert next((told / "mlartifacts").rglob("reason.txt")).read_text() == "reason \ufffd ?"


def test_telling_a_study_again_goes_on_with_its_runs(told):
    uri = default_tracking_uri(told)
    before = runs_by_uid(uri)
    with patient(told) as tracker:
        tracker.study("layers", {"budget": {"trials": 3}}, {})
        tracker.trial("trial-1", "trial-1", {"recipe": {"dcr": {"margin": 0.25}}}, {})
        tracker.trial("trial-2", "trial-2", {"recipe": {"dcr": {"margin": 0.3}}}, {})
    during = runs_by_uid(uri)
    assert {uid for uid, run in during.items() if run.info.status == "RUNNING"} == {STUDY_UID, "trial-1", "trial-2"}
    assert {during[uid].info.run_id for uid in before} == {run.info.run_id for run in before.values()}
    assert during[STUDY_UID].data.params == {"budget.trials": "2"}
    assert json.loads(during[STUDY_UID].data.tags["dcr.changed_params"]) == {"budget.trials": "3"}
    with patient(told) as tracker:
        for uid, state in {"trial-1": "finished", "trial-2": "failed", STUDY_UID: "finished"}.items():
            tracker.end(uid, state)
    after = {uid: run.info.status for uid, run in runs_by_uid(uri).items()}
    assert (after["trial-1"], after["trial-2"], after[STUDY_UID]) == ("FINISHED", "FAILED", "FINISHED")


def test_a_replay_from_the_beginning_changes_nothing(told):
    uri = default_tracking_uri(told)
    before = runs_by_uid(uri)
    (told / "tracking.cursor.json").unlink()
    result = sync(told)
    assert result.sent == len(spool_path(told).read_bytes().splitlines()) and result.refused == 0
    after = runs_by_uid(uri)
    assert {uid: run.info.run_id for uid, run in after.items()} == {uid: run.info.run_id for uid, run in before.items()}
    assert losses(uri, after["trial-1/sft"]) == [1.0, 0.5, 1.0 / 3]


def test_a_study_goes_to_another_mlflow_from_its_beginning(told):
    other = f"sqlite:///{told}/elsewhere/other.db"
    assert sync(told, other).sent > 0
    assert runs_by_uid(other).keys() == runs_by_uid(default_tracking_uri(told)).keys()


def tell_and_be_killed(study_dir: Path) -> None:
    """Dies in the middle of a study, and its sender with it in the middle of sending."""
    tracker = patient(study_dir)
    tell_study(tracker, trials=4, end=False)
    while runs_in_database(study_dir / "mlflow.db") < 5:
        time.sleep(0.01)
    os.kill(tracker._sender._process.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def runs_in_database(path: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute("select count(*) from runs").fetchone()[0]
    except sqlite3.OperationalError:  # not there yet
        return 0


def test_a_study_and_sender_killed_in_the_middle_lose_nothing_that_was_told(tmp_path):
    program = "import sys; from tests.test_tracking import *; tell_and_be_killed(Path(sys.argv[1]))"
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert 5 <= runs_in_database(tmp_path / "mlflow.db") < 13
    assert 0 < sync(tmp_path).sent <= 54
    uri = default_tracking_uri(tmp_path)
    runs = runs_by_uid(uri)
    assert len(runs) == 13 and runs[STUDY_UID].info.status == "RUNNING"
    assert all(len(losses(uri, run)) == 3 for uid, run in runs.items() if "/" in uid)


def test_a_server_that_is_down_neither_slows_nor_stops_a_study(tmp_path):
    address = CLOSED_PORT.replace("//", "//user:secret@")
    tracker = Tracker(tmp_path, address, "layers", close_seconds=10)
    durations = []
    for step in range(200):
        start = time.perf_counter()
        tracker.metrics("trial-0", {"loss": 1.0}, step)
        durations.append(time.perf_counter() - start)
    # The median bounds what a call costs; a single one may be held up by other work on the machine.
    assert sorted(durations)[100] < 0.001 and sorted(durations)[190] < 0.010
    until = time.monotonic() + 15
    while "refused" not in tracker.state() and time.monotonic() < until:
        time.sleep(0.1)
    assert tracker.state().startswith("201 events behind: Connection refused, trying again in ")
    start = time.monotonic()
    tracker.close()
    assert time.monotonic() - start < 12
    assert tracker.pending() == 201
    with pytest.raises(DcrError, match=r"201 events are not sent to http://user:\*\*\*@127.0.0.1:9: Connection ref"):
        sync(tmp_path, address)
    with pytest.raises(InputError, match="the address with its password, which is never kept"):
        sync(tmp_path)
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.iterdir())
    uri = default_tracking_uri(tmp_path)
    assert sync(tmp_path, uri).sent == 201
    runs = runs_by_uid(uri)
    assert len(losses(uri, runs["trial-0"])) == 200
    assert runs["trial-0"].data.tags["mlflow.parentRunId"] == runs[STUDY_UID].info.run_id


def test_a_server_that_never_answers_does_not_hold_up_the_end(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = Tracker(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", "layers", close_seconds=1)
        tracker.study("layers", {}, {})
        start = time.monotonic()
        tracker.close()
        assert time.monotonic() - start < 5
    assert tracker.pending() == 2


def copied(told: Path, study_dir: Path) -> str:
    """Copies a study with its database, and says where that now is."""
    for name in ("tracking.jsonl", "mlflow.db"):
        shutil.copy(told / name, study_dir / name)
    cursor = (told / "tracking.cursor.json").read_text()
    (study_dir / "tracking.cursor.json").write_text(cursor.replace(str(told), str(study_dir)))
    return default_tracking_uri(study_dir)


def test_a_deleted_run_is_refused_and_the_rest_arrives(told, tmp_path):
    uri = copied(told, tmp_path)
    client_of(uri).delete_run(runs_by_uid(uri)["trial-0"].info.run_id)
    with patient(tmp_path) as tracker:
        tracker.tags("trial-0", {"pareto": True})
        tracker.tags("trial-1", {"pareto": True})
    assert tracker.state() == "up to date; 1 refused by MLflow, the reasons are in tracking.log"
    assert runs_by_uid(uri)["trial-1"].data.tags["pareto"] == "true"


def test_a_database_that_was_deleted_is_filled_again(told, tmp_path):
    uri = copied(told, tmp_path)
    (tmp_path / "mlflow.db").unlink()
    with patient(tmp_path) as tracker:
        tracker.tags("trial-1", {"pareto": True})
    assert len(runs_by_uid(uri)) >= 7
    assert tracker.state() == "up to date"


def test_runs_that_a_killed_process_left_open_are_known_to_the_next(tmp_path):
    with patient(tmp_path) as tracker:
        assert tracker.left_open == frozenset()
        tell_study(tracker, trials=1)
        tracker.trial("late", "late", {}, {})
        tracker.trial("trial-0", "trial-0", {}, {"event": "end"})
    with open(spool_path(tmp_path), "a") as spool:
        spool.write('{"event": "end", "uid": "la')
    with patient(tmp_path) as tracker:
        assert tracker.left_open == {"late", "trial-0"}


def test_one_study_has_one_writer(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(InputError, match="another process is running"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_a_second_sender_waits_for_the_first_and_then_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr("dcr_ray.tracking.sender.LOCK_ATTEMPTS_WHEN_CLOSING", 2)
    assignment = Assignment(str(tmp_path), CLOSED_PORT, "layers", "lineage", close_seconds=None)
    study_is_over = threading.Event()
    study_is_over.set()
    with open(tmp_path / "tracking.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not Sender(assignment).run(study_is_over)
    assert not (tmp_path / "tracking.cursor.json").exists()


def test_a_running_study_is_not_sent_a_second_time(tmp_path):
    spool = Spool(tmp_path)
    spool.append({"event": "opened", "lineage": "a", "experiment": "layers", "destination": CLOSED_PORT})
    with pytest.raises(InputError, match="another process is running"):
        sync(tmp_path)
    spool.close()


def test_a_torn_last_line_costs_only_itself(tmp_path):
    spool = Spool(tmp_path)
    for value in range(2):
        spool.append({"event": "tags", "value": value})
    spool.close()
    with open(spool_path(tmp_path), "ab") as file:
        file.write(b'{"sequence": 2, "event": "ta')
    assert [entry.event["value"] for entry in read_spool(tmp_path)] == [0, 1]
    spool = Spool(tmp_path)
    spool.append({"event": "tags", "value": 3})
    spool.close()
    entries = list(read_spool(tmp_path))
    assert [entry.event and entry.event["sequence"] for entry in entries] == [0, 1, None, 3]
    resumed = list(read_spool(tmp_path, entries[1].line + 1, entries[1].end_bytes))
    assert [entry.line for entry in resumed] == [2, 3]


def test_a_cursor_beyond_the_spool_starts_over(tmp_path):
    (tmp_path / "tracking.jsonl").write_bytes(b'{"event": "tags"}\n')
    state = {"lineage": "a", "destinations": {"here": {"lines": 9, "end_bytes": 900}}}
    (tmp_path / "tracking.cursor.json").write_text(json.dumps(state))
    assert load_cursor(tmp_path, "a", "here") == Cursor()


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("", "an empty address"),
        ("./mlruns", "the file store './mlruns'"),
        ("mlruns", "the file store 'mlruns'"),
        ("file:///data/mlruns", "the file store 'file:///data/mlruns'"),
        ("sqlite:///mlflow.db", "the relative path 'mlflow.db'"),
        ("sqlite:///../mlflow.db", "the relative path '../mlflow.db'"),
        ("sqlite://", "a database without a file"),
        ("sqlite:///:memory:", "a database without a file"),
        ("http://", "names no host"),
        ("http://[half", "cannot be read"),
        ("postgres://db/mlflow", "'postgres://db/mlflow'"),
        ("databricks", "the file store 'databricks'"),
    ],
)
def test_a_bad_tracking_address_is_refused(tmp_path, uri, found):
    assert [found in problem.found for problem in check_tracking_uri(uri)] == [True]
    with pytest.raises(InputError):
        Tracker(tmp_path, uri, "layers")
    assert not spool_path(tmp_path).exists()


def test_a_bad_tracking_address_comes_with_the_right_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"sqlite:///{tmp_path}/mlflow.db" in str(check_tracking_uri("./mlruns")[0])
    assert f"sqlite:///{tmp_path}/here.db" in str(check_tracking_uri("sqlite:///here.db")[0])
    assert "'postgresql'" in check_tracking_uri("postgres://db/mlflow")[0].fix


def test_good_tracking_addresses_are_accepted(tmp_path):
    for uri in (default_tracking_uri(tmp_path), "http://mlflow:5000", "https://user:secret@mlflow/base"):
        assert check_tracking_uri(uri) == []


def test_all_that_is_wrong_with_an_address_is_said_at_once():
    problems = check_tracking_uri("mysql+nosuchdriver:///mlflow")
    assert "names no host" in problems[0].found and "nosuchdriver" in problems[1].allowed


def test_names_that_mlflow_refuses_are_mapped_without_collisions():
    from mlflow.utils.validation import _validate_metric_name

    refused = ["a+b", "a*b", "a//b", "/a", "../a", "a/./b", "", "x" * 300, "a\nb", "p@1"]
    mapped = [mlflow_name(name) for name in refused]
    assert len(set(mapped)) == len(refused) and max(map(len, mapped)) <= 250
    for name in mapped:
        _validate_metric_name(name)
    assert mlflow_name("compliance/low") == "compliance/low"


def test_params_are_flat_texts_of_limited_length():
    flat = flat_params({"a": {"b": {"c": 1e-4}, "none": None, "empty": {}}, "list": [1, "x"], "long": "y" * 7000})
    long = flat.pop("long")
    assert flat == {"a.b.c": "0.0001", "a.none": "null", "a.empty": "{}", "list": '[1, "x"]'}
    assert len(long) == 6000 and long.endswith(" ... (cut from 7000 characters)")


def test_a_metric_that_is_no_number_is_dropped_with_its_value():
    finite, dropped = finite_metrics({"a": 1, "b": None, "c": "x"})
    assert (finite, dropped) == ({"a": 1.0}, {"dcr.dropped.b": "null", "dcr.dropped.c": "x"})
