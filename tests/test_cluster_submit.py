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

import pytest

from dcr_ray.cluster.submit import passed_environment, portable, storage_of
from dcr_ray.errors import InputError
from dcr_ray.study import StudySpec, load_study

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
def ray_head() -> Iterator[Head]:
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
        "--num-cpus=1",
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

        job = submit_job(client, "a.b", "exec python slow.py", {{"slow.py": {SLOW_TO_END!r}}}, {{}})
        try:
            submit_job(client, "a.b", "true", {{}}, {{}})
        except InputError as error:
            refused = str(error)
        log = Stopping()
        ended = asyncio.run(follow(client, job, log))
        print(json.dumps([job, refused, ended.status, log.getvalue(), submit_job(client, "a.b", "true", {{}}, {{}})]))
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
    assert f"ray job stop dcr-left-1 --address {head.url}" in errors
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
        "cpus": 1.0,
        "checked_here": None,
        "storage": str(runs),
        "report": str(runs / "quickstart" / "report"),
    }


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
    assert document["stop"].startswith("RAY_AUTH_MODE=token ray job stop dcr-home-1 ")


def test_the_doctor_asks_a_ray_by_either_address(head):
    for address in (head.url, head.gcs):
        done = dcr_ray("doctor", "--address", address, "--json", environment=head.environment)
        checks = {check["name"]: check for check in json.loads(done.stdout)}
        assert checks["Ray"]["status"] == "ok", checks["Ray"]
        assert checks["Ray's State API"]["status"] == "ok"
        assert checks["Ray's resources"]["found"].startswith("1 nodes, 1 CPUs, 0 GPUs")
        assert "this machine" not in checks


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


def test_the_job_keeps_the_study_where_the_spec_or_the_environment_says(monkeypatch):
    monkeypatch.setenv("DCR_RAY_STORAGE", "/shared/runs")
    monkeypatch.delenv("DCR_RAY_CACHE", raising=False)
    environment = passed_environment()
    assert environment == {"DCR_RAY_STORAGE": "/shared/runs"}
    assert storage_of(spec(), environment) == "/shared/runs/quickstart"
    assert storage_of(spec("storage=/other"), environment) == "/other/quickstart"
    assert storage_of(spec(), {}) == "~/dcr_ray_runs/quickstart"
