"""A study whose worker group spans Ray nodes of their own on this machine, one of which is killed or taken away."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dcr_ray.weights.tiny import build_tiny_model
from tests.ray_nodes import MARK
from tests.test_sweep import SPEC

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = {
    "study": "nodes",
    "recipe": {"dcr": {"batch_size": 8}, "sft": {"max_tokens": 64, "learning_rate": 1e-3, "epochs": 60}},
    "search": {"trials": 1, "concurrent": 1, "sampler": "random"},
    "shape": {"ranks": 2, "zero_stage": 2, "precision": "fp32", "checkpoint_seconds": 2.0},
    "evaluation": {"max_tokens": 8, "max_model_tokens": 512, "engine": "transformers"},
    "resources": {"worker_groups": 1, "engines": 1},
}


class Nodes:
    """The program of `ray_nodes`, told what to do."""

    def __init__(self, environment: dict[str, str]):
        command = [sys.executable, "-m", "tests.ray_nodes"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.address = self._answer()

    def tell(self, command: str) -> str:
        print(command, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        for line in self.process.stdout:
            if line.startswith(MARK):
                return line.removeprefix(MARK).strip()
        raise AssertionError("the Ray nodes have ended")

    def end(self) -> None:
        print("end", file=self.process.stdin, flush=True)
        self.process.wait(60)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder, environment and nodes."""
    folder = tmp_path_factory.mktemp("n")
    build_tiny_model(folder / "model")
    (folder / "token").write_text(secrets.token_hex(32))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DCR_RAY_"))}
    environment = kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "DCR_RAY_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        # A node that says nothing for so long is dead.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
    }
    nodes = Nodes(environment)
    yield folder, environment, nodes
    nodes.end()


def begin(place, name: str) -> tuple[subprocess.Popen, Path, Path]:
    folder, environment, nodes = place
    (folder / name).mkdir()
    places = {"model": str(folder / "model"), "storage": str(folder / name), "reports": str(folder / name / "reports")}
    file, log, out = folder / name / "study.yaml", folder / name / "log.txt", folder / name / "out.json"
    file.write_text(yaml.safe_dump(SPEC | LONG | places))
    command = [sys.executable, "-m", "dcr_ray.cli.main", "sweep", str(file), "--address", nodes.address, "--json"]
    with open(log, "wb") as errors, open(out, "wb") as stdout:
        return subprocess.Popen(command, stdout=stdout, stderr=errors, env=environment), log, out


def wait_for(process: subprocess.Popen, log: Path, pattern: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not re.search(pattern, log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def ended(process: subprocess.Popen, log: Path, out: Path) -> dict:
    assert process.wait(600) == 0, log.read_text()
    return json.loads(out.read_text())


def found(document: dict) -> dict:
    return {trial["name"]: (trial["state"], trial["recipe"], trial["metrics"]) for trial in document["trials"]}


@pytest.fixture(scope="module")
def undisturbed(place) -> dict:
    process, log, out = begin(place, "undisturbed")
    document = ended(process, log, out)
    # What the group found out about its nodes before its first stage.
    assert re.search(r"group-0: 2 ranks on 2 nodes: all-reduce [\d.]+ GB/s.*storage \d+ MB/s", log.read_text())
    return document


def no_group_is_left(place) -> bool:
    for _ in range(40):
        if set(json.loads(place[2].tell("groups"))) <= {"REMOVED"}:
            return True
        time.sleep(0.5)
    return False


def test_a_study_outlives_the_death_of_a_node(place, undisturbed):
    process, log, out = begin(place, "killed")
    wait_for(process, log, r"(?s)stl: sft started|stl sft \d+/\d+|stl: started")
    wait_for_checkpoint(place[0] / "killed")
    place[2].tell("kill")
    place[2].tell("add")
    document = ended(process, log, out)
    assert "goes back to the queue" in log.read_text()
    assert_same(document, undisturbed)
    assert no_group_is_left(place)


def test_a_stage_moves_to_another_node_when_its_own_is_taken_away(place, undisturbed):
    process, log, out = begin(place, "drained")
    wait_for_checkpoint(place[0] / "drained")
    place[2].tell("add")
    place[2].tell("drain")
    document = ended(process, log, out)
    assert "is taken away" in log.read_text() and "workers died" not in log.read_text()
    assert_same(document, undisturbed)
    assert no_group_is_left(place)


def wait_for_checkpoint(storage: Path) -> None:
    """A stage is in its middle once it has left a checkpoint."""
    deadline = time.monotonic() + 240
    while not list(storage.glob("cache/sft/.*/resume/checkpoint.json")):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def assert_same(document: dict, undisturbed: dict) -> None:
    here, there = found(document), found(undisturbed)
    assert here.keys() == there.keys()
    for name, (state, recipe, metrics) in there.items():
        assert here[name][:2] == (state, recipe)
        assert here[name][2] == pytest.approx(metrics, rel=1e-3, abs=1e-3)
