"""Submitting studies, with a real Ray head that asks for a token and lies on ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcr_ray.cli.main import main
from dcr_ray.cluster.sent_files import files_to_send, lay_out, most_bytes
from dcr_ray.cluster.submit import passed_environment, portable, storage_of
from dcr_ray.errors import InputError
from dcr_ray.study import StudySpec, load_study
from dcr_ray.weights.tiny import build_tiny_model

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "search_spaces" / "quickstart.yaml"
# A study that its preflight refuses, and that without fetching a model: the command runs, and soon ends.
REFUSED = ["--set", "data.root=/nowhere", "--set", "data.train.toxic=advbench", "--set", "model=nobody/nothing"]


@dataclass(frozen=True)
class Head:
    """A Ray head. `environment` is what its clients need, and what it was itself started with."""

    url: str
    gcs: str
    home: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as started:
        yield started


@contextlib.contextmanager
def ray_head(cpus: int = 3) -> Iterator[Head]:
    # Not below pytest's folder: the paths of Ray's sockets may have 107 characters at most.
    home = Path(tempfile.mkdtemp(prefix="dcr-", dir="/tmp"))
    (home / "token").write_text(secrets.token_hex(16))
    names = (
        "--port",
        "--dashboard-port",
        "--ray-client-server-port",
        "--dashboard-agent-listen-port",
        "--dashboard-agent-grpc-port",
        "--runtime-env-agent-port",
        "--metrics-export-port",
    )
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DCR_RAY_"))}
    environment = kept | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        "ray",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        f"--num-cpus={cpus}",
        '--resources={"TRAIN_DRIVER_RESOURCE": 1}',
        f"--temp-dir={home}/r",
        "--object-store-memory=80000000",
        *(f"{name}={port}" for name, port in ports.items()),
    ]
    with open(home / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{ports['--dashboard-port']}"
        wait_for(url, (home / "token").read_text(), process, home / "log")
        yield Head(url, f"{socket.gethostbyname(socket.gethostname())}:{ports['--port']}", home, environment)
    finally:
        # Never `ray stop`, which ends every Ray of the machine.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


def wait_for(url: str, token: str, process: subprocess.Popen, log: Path) -> None:
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"})
    for _ in range(240):
        try:
            urllib.request.urlopen(request, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(log.read_text())


def dcr_ray(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dcr_ray.cli.main", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90)


def in_client(head: Head, program: str) -> dict:
    """What the program prints last, as JSON, when it is run where `client` is connected to the head."""
    begin = f"import asyncio, io, json, sys\nfrom dcr_ray.cluster.submit import *\nclient = connect({head.url!r})\n"
    command = [sys.executable, "-c", begin + textwrap.dedent(program)]
    done = subprocess.run(command, env=head.environment, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_submitted_study_runs_in_the_job_and_its_log_is_followed_to_the_end(head):
    # RAY_ADDRESS names another Ray; the command line goes before it.
    environment = head.environment | {"RAY_ADDRESS": "http://127.0.0.1:9"}
    name = ["--set", "study=followed"]
    done = dcr_ray("submit", str(SPEC), "--address", head.url, *REFUSED, *name, "--json", environment=environment)
    document = json.loads(done.stdout)
    assert done.returncode == 1
    assert document["submission_id"] == "dcr-followed-1"
    assert document["address"] == head.url
    assert document["status"] == "FAILED"
    assert document["folder"] == "~/dcr_ray_runs/followed"
    # The preflight that refused the study was the one in the job, with the spec's overrides applied.
    assert "/nowhere/harmful/advbench.csv" in done.stderr
    assert (head.home / "dcr_ray_runs" / "followed").is_dir()


SLOW_TO_END = """
import signal, sys, time
def end(number, frame):
    print("asked to end", flush=True)
    time.sleep(4)
    print("ended in order", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("begun", flush=True)
time.sleep(60)
"""


def test_a_job_that_is_stopped_may_end_in_its_own_time_and_the_next_try_has_the_next_number(head):
    found = in_client(
        head,
        f"""
        class Stopping(io.StringIO):
            stopped = False
            def write(self, text):
                super().write(text)
                if "begun" in text and not self.stopped:
                    self.stopped = client.stop_job(job)

        folder = Path(tempfile.mkdtemp())
        (folder / "slow.py").write_text({SLOW_TO_END!r})
        job = submit_job(client, "a.b", "exec python slow.py", folder, {{}})
        try:
            submit_job(client, "a.b", "true", folder, {{}})
        except InputError as error:
            refused = str(error)
        log = Stopping()
        ended = asyncio.run(follow(client, job, log))
        print(json.dumps([job, refused, ended.status, log.getvalue(), submit_job(client, "a.b", "true", folder, {{}})]))
    """,
    )
    job, refused, status, log, again = found
    assert (job, again) == ("dcr-a.b-1", "dcr-a.b-2")
    assert "which runs as job dcr-a.b-1" in refused
    assert status == "STOPPED"
    # Ray's own wait of 3 seconds would have cut it off.
    assert log.count("begun") == log.count("asked to end") == log.count("ended in order") == 1


def test_control_c_leaves_the_job_running_and_says_how_to_stop_it(head):
    arguments = ["submit", str(SPEC), "--address", head.url, *REFUSED, "--set", "study=left"]
    command = [sys.executable, "-m", "dcr_ray.cli.main", *arguments]
    options = {"env": head.environment, "cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Tests that run in a shell's background have Ctrl-C ignored, and their children would inherit that.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **options) as process:
        assert process.stdout.readline().startswith("Job       dcr-left-1 at")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"dcr-ray stop left --address {head.url}" in errors
    # The job refuses its study, so by now it may have failed by itself; a Ctrl-C that reached it would have STOPPED it.
    status = in_client(head, "print(json.dumps(client.get_job_status('dcr-left-1').value))")
    assert status in ("PENDING", "RUNNING", "FAILED")


def test_ray_job_submit_alone_attaches_the_sweep_to_the_cluster_and_keeps_results_out_of_the_copy(head, tmp_path):
    shutil.copy(SPEC, tmp_path / "spec.yaml")
    (tmp_path / "probe.py").write_text(
        textwrap.dedent("""
        import json
        from pathlib import Path
        from dcr_ray.preflight import in_ray_job, machine_for, report_folder, storage_root
        from dcr_ray.runtime import start_ray
        from dcr_ray.study import load_study
        spec = load_study("spec.yaml")
        cluster = start_ray(None, 4, spec.study, Path("study").absolute(), Path("cache").absolute())
        print("found " + json.dumps({
            "in_ray_job": in_ray_job(), "own": cluster.own, "cpus": cluster.cpus, "checked_here": machine_for(None),
            "storage": str(storage_root(spec)), "report": str(report_folder(spec))}))
    """)
    )
    command = ["ray", "job", "submit", "--address", head.url, "--working-dir", ".", "--", "python", "probe.py"]
    done = subprocess.run(command, env=head.environment, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("found "))
    runs = head.home / "dcr_ray_runs"
    assert json.loads(line.removeprefix("found ")) == {
        "in_ray_job": True,
        "own": False,
        "cpus": 3.0,
        "checked_here": None,
        "storage": str(runs),
        "report": str(runs / "quickstart" / "report"),
    }


def write_small_study(folder: Path, name: str, **more: Any) -> Path:
    """A study on a model of a few thousand weights, which is quick, and lasts long enough to be stopped."""
    folder.mkdir(exist_ok=True)
    build_tiny_model(folder / "model")
    sets = {
        "train": {
            "seemingly_toxic": {"set": "builtin-seemingly-toxic", "limit": 8},
            "toxic": {"set": "builtin-toxic", "limit": 8},
            "general": {"set": "builtin-instructions", "limit": 8},
            "safety": {"set": "builtin-refusals", "limit": 8},
        },
        "evaluate": {
            "compliance": {"set": "builtin-seemingly-toxic", "limit": 4},
            "defense": {"set": "builtin-toxic", "limit": 4},
            "capability": {"set": "builtin-instructions", "limit": 4},
        },
    }
    plain = {
        "study": name,
        "model": str(folder / "model"),
        "storage": str(folder / "runs"),
        "data": sets,
        "recipe": {"dcr": {"batch_size": 8}, "sft": {"max_tokens": 32}},
        "space": {"dcr.layer_depth": {"low": 0.3, "high": 0.8}},
        "objectives": {"compliance": "maximize"},
        "search": {"trials": 2, "startup_trials": 2, "concurrent": 1},
        "evaluation": {"engine": "transformers", "max_tokens": 4, "max_model_tokens": 512},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain | more))
    return folder / f"{name}.yaml"


def test_a_study_is_stopped_at_the_head_submitted_again_and_goes_on_to_its_end(head, tmp_path):
    spec = str(write_small_study(tmp_path, "small"))

    def ask(*arguments: str) -> subprocess.CompletedProcess:
        done = dcr_ray(*arguments, "--address", head.url, environment=head.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def states() -> dict[str, str]:
        document = json.loads(ask("status", "small", "--json").stdout)
        assert "no_trials" not in document or document["status"] != "STOPPED", document
        return {trial["name"]: trial["state"] for trial in document.get("trials", [])}

    submitted = ask("submit", spec, "--detach", "--env", "NOTE=to be kept out of sight")
    assert "TRAIN_DRIVER_RESOURCE" in submitted.stdout and "out of sight" not in submitted.stdout
    deadline = time.monotonic() + 120
    while states().get("stl") != "complete":
        assert time.monotonic() < deadline, ask("logs", "small").stdout
    assert "submitting small again goes on" in ask("stop", "small").stdout
    assert "not running" in ask("stop", "small").stdout
    assert states()["stl"] == "complete"
    cache = tmp_path / "runs" / "cache"
    before = {file: file.stat().st_mtime for file in cache.glob("*/*/record.json")}
    assert before

    again = ask("submit", spec)
    assert "Job       dcr-small-2 SUCCEEDED" in again.stdout
    assert states() == dict.fromkeys(("stl", "t000", "t001"), "complete")
    assert before.items() <= {file: file.stat().st_mtime for file in cache.glob("*/*/record.json")}.items()
    document = json.loads(ask("status", "small", "--job-only", "--json").stdout)
    assert [attempt["status"] for attempt in document["attempts"]] == ["STOPPED", "SUCCEEDED"]
    assert document["attempts"][1]["seconds"] > 0 and "trials" not in document
    listed = {row["study"]: row for row in json.loads(ask("status", "--json").stdout)}
    assert listed["small"]["attempts"] == 2

    whole = ask("logs", "small").stdout
    assert whole.endswith(ask("logs", "small", "--tail", "2").stdout)
    assert len(ask("logs", "small", "--follow", "--tail", "2").stdout.splitlines()) == 2
    assert ask("logs", "small", "--attempt", "1").stdout != whole
    # What the head displays: neither overrides nor values of variables are in the command.
    jobs = in_client(head, "print(json.dumps({j.submission_id: j.entrypoint for j in client.list_jobs()}))")
    assert jobs["dcr-small-1"] == "dcr-ray sweep submitted-study.yaml"
    # The jobs that asked for the trials are taken off the head's list, all but the last one or two.
    assert len([name for name in jobs if name.startswith("ask-")]) <= 2


def test_a_study_that_the_head_has_not_had_is_bad_input_with_the_nearest_name(head):
    for command in ("status", "logs", "stop"):
        done = dcr_ray(command, "folowed", "--address", head.url, environment=head.environment)
        assert done.returncode == 2 and "Did you mean 'followed'?" in done.stderr, done.stderr


def test_code_and_data_of_a_folder_are_sent_and_found_by_the_job(head, tmp_path):
    # The set is read where the job runs: it fails on its row, which it can only have seen there.
    (tmp_path / "mine.jsonl").write_text('{"no_prompt": 1}\n')
    (tmp_path / "weights.safetensors").write_bytes(b"0" * 1000)
    (tmp_path / "spec.yaml").write_text(SPEC.read_text())
    arguments = ["submit", "spec.yaml", "--address", head.url, "--working-dir", ".", "--json", "--set", "study=sent"]
    arguments += ["--set", "data.train.toxic=mine.jsonl", "--set", "model=nobody/nothing"]
    command = [sys.executable, "-m", "dcr_ray.cli.main", *arguments]
    environment = head.environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert json.loads(done.stdout)["status"] == "FAILED"
    assert "mine.jsonl" in done.stderr and "no_prompt" in done.stderr and str(tmp_path) not in done.stderr


def test_a_wrong_token_is_bad_input_and_the_variables_are_named(head, tmp_path):
    (tmp_path / "other").write_text("no token of this head")
    environment = head.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    done = dcr_ray("submit", str(SPEC), "--address", head.url, environment=environment)
    assert done.returncode == 2
    assert "asks for a token" in done.stderr and "RAY_AUTH_TOKEN_PATH" in done.stderr


def test_a_token_in_the_home_folder_is_offered_without_being_asked_for(head, tmp_path):
    (tmp_path / ".ray").mkdir()
    shutil.copy(head.home / "token", tmp_path / ".ray" / "auth_token")
    environment = {name: value for name, value in head.environment.items() if not name.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    arguments = ["submit", str(SPEC), "--address", head.url, "--detach", "--json", "--set", "study=home", *REFUSED]
    done = dcr_ray(*arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["submission_id"] == "dcr-home-1"
    assert document["stop"] == f"dcr-ray stop home --address {head.url}"


def test_the_doctor_asks_a_ray_by_either_address_and_its_nodes_through_a_job(head, tmp_path):
    for address, storage in ((head.url, tmp_path / "runs"), (head.gcs, Path("/proc/no"))):
        began = time.monotonic()
        done = dcr_ray(
            *("doctor", "--address", address, "--storage", str(storage), "--tracking", f"sqlite:///{tmp_path}/m.db"),
            "--json",
            environment=head.environment,
        )
        assert time.monotonic() - began < 60
        checks = {check["name"]: check for check in json.loads(done.stdout)}
        assert checks["Ray"]["status"] == "ok", checks["Ray"]
        assert checks["Ray's State API"]["status"] == "ok"
        assert checks["Ray's resources"]["found"].startswith("1 nodes, 3 CPUs, 0 GPUs")
        assert "this machine" not in checks
        alike = ("nodes", "torch on the nodes", "dcr-ray on the nodes", "GPUs of the nodes", "MLflow from the head")
        assert {checks[name]["status"] for name in (*alike, "clocks")} == {"ok"}, checks
        assert checks["shared storage"]["status"] == ("ok" if storage == tmp_path / "runs" else "fails")
    assert not list((tmp_path / "runs").glob(".doctor-*"))


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.222"])  # nobody listens; nobody is there (RFC 5737)
def test_an_address_that_does_not_answer_is_bad_input_within_seconds(host):
    began = time.monotonic()
    done = dcr_ray("submit", str(SPEC), "--address", f"http://{host}:9", environment=dict(os.environ))
    assert done.returncode == 2
    assert f"--address: found http://{host}:9" in done.stderr
    assert time.monotonic() - began < 20  # 4 s of waiting, and a slow machine's imports


def test_an_address_that_is_no_url_of_a_head_is_bad_input():
    done = dcr_ray("submit", str(SPEC), "--address", "ray://head:10001", environment=dict(os.environ))
    assert done.returncode == 2
    assert "http://HEAD:8265" in done.stderr


def spec(*overrides: str) -> StudySpec:
    return load_study(SPEC, list(overrides))


def test_a_study_that_names_no_paths_is_sent_as_it_is():
    assert portable(spec()) == spec()


def test_relative_paths_that_are_here_are_sent_as_absolute_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "sets", "model"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a"}\n')
    sets = "data.train.toxic=[mine.jsonl, other.csv, advbench]"
    sent = portable(spec("storage=runs", "data.root=sets", "model=model", sets))
    assert sent.storage == str(tmp_path / "runs")
    assert sent.data.root == str(tmp_path / "sets")
    assert sent.model == str(tmp_path / "model")
    # The second file is one below data.root.
    assert [choice.set for choice in sent.data.train.toxic] == [str(tmp_path / "mine.jsonl"), "other.csv", "advbench"]


def test_paths_of_the_cluster_need_not_be_here():
    sent = spec("storage=~/runs", "data.root=/shared/sets", "model=/shared/model")
    assert portable(sent) == sent


def test_relative_paths_that_are_not_here_are_refused_all_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        portable(spec("storage=a", "data.root=b", "model=./c", "search.storage=sqlite:///d.db"))
    assert [problem.where for problem in caught.value.problems] == ["storage", "data.root", "model", "search.storage"]


def test_a_folder_is_sent_without_results_weights_and_caches(tmp_path):
    for name in ("code/own.py", "code/__pycache__/own.pyc", "runs/a/study.yaml", "sets/a.jsonl", "model/m.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12345")
    (tmp_path / ".gitignore").write_text("sets")
    assert files_to_send(tmp_path) == {"code/own.py": 5, "sets/a.jsonl": 5}
    assert files_to_send(tmp_path, ["sets/"]) == {"code/own.py": 5}
    into = tmp_path / "into"
    into.mkdir()
    assert lay_out(tmp_path / "sets", [], into) == 5
    assert (into / "a.jsonl").read_text() == "12345"


def test_a_folder_with_more_than_ray_takes_is_refused_with_its_largest_files(tmp_path):
    (tmp_path / "small.txt").write_text("1")
    with open(tmp_path / "large.jsonl", "wb") as file:
        file.truncate(most_bytes())  # a hole: it takes no room on the disk
    with pytest.raises(InputError, match="large.jsonl 512 MiB") as caught:
        lay_out(tmp_path, [], tmp_path)
    assert "--exclude" in str(caught.value)
    with pytest.raises(InputError, match="a folder that is here"):
        lay_out(tmp_path / "nothing", [], tmp_path)


def test_data_of_the_folder_that_is_sent_are_named_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sent" / "sets").mkdir(parents=True)
    for name in ("sent/mine.jsonl", "other.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a"}\n')
    sets = "data.train.toxic=[sent/mine.jsonl, other.jsonl]"
    sent = portable(spec("storage=/shared/runs", "data.root=sent/sets", sets), tmp_path / "sent")
    assert sent.data.root == "sets"
    assert [choice.set for choice in sent.data.train.toxic] == ["mine.jsonl", str(tmp_path / "other.jsonl")]


def test_variables_are_passed_on_by_value_or_by_name_and_all_that_cannot_be_are_named(monkeypatch):
    for name in ("DCR_RAY_STORAGE", "DCR_RAY_CACHE", "UNSET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HERE", "secret")
    assert passed_environment(["A=1=2", "HERE", "EMPTY="]) == {"A": "1=2", "HERE": "secret", "EMPTY": ""}
    with pytest.raises(InputError) as caught:
        passed_environment(["UNSET", "1A=hidden", "RAY_JOB_STOP_SIGNAL=SIGKILL"])
    assert len(caught.value.problems) == 3 and "hidden" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "b"}', '{"a": 0}', '{"GPU": 1}'])
def test_resources_for_the_driver_are_checked(text):
    arguments = ["submit", str(SPEC), "--address", "http://127.0.0.1:9", "--entrypoint-resources", text]
    assert main(arguments) == 2


def test_the_job_keeps_the_study_where_the_spec_or_the_environment_says(monkeypatch):
    monkeypatch.setenv("DCR_RAY_STORAGE", "/shared/runs")
    monkeypatch.delenv("DCR_RAY_CACHE", raising=False)
    environment = passed_environment()
    assert environment == {"DCR_RAY_STORAGE": "/shared/runs"}
    assert storage_of(spec(), environment) == "/shared/runs/quickstart"
    assert storage_of(spec("storage=/other"), environment) == "/other/quickstart"
    assert storage_of(spec(), {}) == "~/dcr_ray_runs/quickstart"
