"""Who gives a worker group to whom, by the rules alone; and two real studies on one small Ray."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcr_ray.budget import UsageMeter
from dcr_ray.pools.broker import Broker
from dcr_ray.pools.fair_share import fits
from dcr_ray.pools.shared_cluster import EXPIRE_SECONDS, SETTLE_SECONDS, SharedCluster, Standing
from dcr_ray.study import BudgetSpec
from tests.test_cluster_submit import ROOT, Head, ray_head, write_small_study


class Cluster:
    """Studies on `slots` places for groups, which do what they are told, every two seconds of a clock that we set."""

    def __init__(self, slots: int):
        self.now = 0.0
        self.slots = slots
        self.actor = SharedCluster(lambda: self.now)
        self.up: dict[str, int] = {}
        self.placed: dict[str, int] = {}
        self.wanted: dict[str, int] = {}
        self.told: list[str] = []

    def begin(self, study: str, wanted: int) -> None:
        self.wanted[study] = wanted
        self.placed[study] = 0
        self.up[study] = self.actor.tell(Standing(study, study, wanted, 1.0)).groups

    def end(self, study: str) -> None:
        for of in (self.up, self.placed, self.wanted):
            del of[study]
        self.actor.leave(study, study)

    def beat(self, seconds: float = 2.0, stages_end: bool = True) -> dict[str, int]:
        """Ray places what waits, in the order in which it came; then every study tells and is told."""
        self.now += seconds
        for study in self.up:
            free = self.slots - sum(self.placed.values())
            self.placed[study] += max(0, min(free, self.up[study] - self.placed[study]))
        for study in self.up:
            room = sum(self.placed.values()) < self.slots
            up, placed = self.up[study], self.placed[study]
            standing = Standing(study, study, self.wanted[study], 1.0, 1, up, placed, up - placed, 0, room)
            share = self.actor.tell(standing)
            if share.groups > self.up[study]:
                self.up[study] = share.groups
            elif share.groups < self.up[study] and stages_end:
                self.told.append(f"{study} gives to {share.giving_to}")
                self.up[study] = share.groups
                self.placed[study] = min(self.placed[study], share.groups)
        return dict(self.placed)

    def beats(self, count: int) -> dict[str, int]:
        for _ in range(count):
            self.beat()
        return dict(self.placed)


def test_a_study_that_is_alone_has_all_the_groups_it_wants():
    cluster = Cluster(4)
    cluster.begin("a", 4)
    assert cluster.beats(3) == {"a": 4}


def test_a_study_with_several_groups_gives_one_to_a_study_that_has_none_and_takes_it_back_when_there_is_room():
    cluster = Cluster(2)
    cluster.begin("a", 2)
    cluster.beats(2)
    cluster.begin("b", 2)
    assert cluster.beats(10) == {"a": 1, "b": 1}
    assert cluster.told == ["a gives to b"]
    assert cluster.beats(60) == {"a": 1, "b": 1} and len(cluster.told) == 1
    cluster.end("b")
    assert cluster.beats(3) == {"a": 2}


def test_groups_are_evened_out_and_then_stay_where_they_are():
    cluster = Cluster(6)
    cluster.begin("a", 6)
    cluster.beats(2)
    cluster.begin("b", 6)
    assert cluster.beats(60) == {"a": 3, "b": 3}
    cluster.begin("c", 1)
    assert cluster.beats(60) == {"a": 3, "b": 2, "c": 1} or cluster.placed == {"a": 2, "b": 3, "c": 1}
    told = len(cluster.told)
    cluster.beats(200)
    assert len(cluster.told) == told
    cluster.end("a")
    assert cluster.beats(60) == {"b": 5, "c": 1}


def test_nobody_gives_its_only_group_and_a_stage_that_lasts_is_waited_for():
    cluster = Cluster(1)
    cluster.begin("a", 1)
    cluster.beats(2)
    cluster.begin("b", 1)
    assert cluster.beats(20) == {"a": 1, "b": 0}
    cluster.end("a")
    assert cluster.beats(2) == {"b": 1}
    long = Cluster(2)
    long.begin("a", 2)
    long.beats(2)
    long.begin("b", 1)
    for _ in range(1000):
        long.beat(stages_end=False)
    # Asked once, for one group.
    assert long.beats(2) == {"a": 1, "b": 1} and long.told == ["a gives to b"]


def test_a_study_that_is_no_longer_heard_of_has_ended_and_its_name_is_free_again():
    now = [0.0]
    cluster = SharedCluster(lambda: now[0])
    cluster.tell(Standing("a", "one", 2, 1.0))
    now[0] = EXPIRE_SECONDS - 1
    assert cluster.tell(Standing("a", "two", 2, 1.0)).holder == "one"
    assert cluster.tell(Standing("b", "three", 2, 1.0)).groups == 1
    now[0] = EXPIRE_SECONDS + 1
    assert cluster.tell(Standing("a", "two", 2, 1.0)).holder is None
    assert cluster.leave("a", "one") is False and cluster.leave("a", "two") is False
    assert cluster.leave("b", "three") is True


def test_room_is_kept_for_a_study_whose_first_group_is_yet_to_ask_for_it():
    now = [100.0]
    cluster = SharedCluster(lambda: now[0])
    cluster.tell(Standing("a", "a", 2, 1.0, up=1, placed=1))
    starting = Standing("b", "b", 1, 1.0, up=1)
    for _ in range(20):
        now[0] += 2
        assert cluster.tell(Standing("a", "a", 2, 1.0, up=1, placed=1, room=True)).groups == 1
        cluster.tell(starting)
    cluster.tell(Standing("b", "b", 1, 1.0, up=1, placed=1))
    assert cluster.tell(Standing("a", "a", 2, 1.0, up=1, placed=1, room=True)).groups == 2


def test_where_room_that_was_given_back_is_lost_another_group_is_given_back_after_a_while():
    cluster = Cluster(3)
    cluster.begin("a", 3)
    cluster.beats(2)
    cluster.begin("b", 1)
    cluster.slots = 2  # a node goes in the same moment
    cluster.beats(4)
    assert cluster.told == ["a gives to b"] and cluster.placed == {"a": 2, "b": 0}
    assert cluster.beats(2 + int(SETTLE_SECONDS / 2)) == {"a": 1, "b": 1}


def test_an_actor_that_was_started_anew_takes_studies_as_they_are():
    cluster = Cluster(4)
    cluster.begin("a", 4)
    cluster.beats(2)
    cluster.begin("b", 4)
    before = cluster.beats(60)
    cluster.actor = SharedCluster(lambda: cluster.now)
    told = len(cluster.told)
    assert cluster.beats(20) == before and len(cluster.told) == told


def test_bundles_fit_where_a_node_has_room_for_each():
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0}]
    assert fits({"CPU": 2.0}, 2, nodes) and not fits({"CPU": 2.0}, 3, nodes)
    assert fits({"CPU": 1.0, "GPU": 1.0}, 1, nodes) and not fits({"CPU": 1.0, "GPU": 1.0}, 2, nodes)


def test_a_budget_counts_what_a_study_holds_and_not_what_it_would_like_to_hold(tmp_path):
    now = [0.0]
    meter = UsageMeter(BudgetSpec(gpu_hours=100), tmp_path, gpus=8, clock=lambda: now[0])
    for gpus, usage in ((0, 0.0), (4, 4.0), (4, 8.0), (8, 16.0)):
        meter.hold(gpus)
        now[0] += 3600
        assert meter.read().gpu_hours == pytest.approx(usage)
    assert meter.read().hours == pytest.approx(4)


def test_the_broker_releases_an_idle_worker_and_never_the_only_one_at_work():
    async def scenario() -> None:
        broker = Broker()
        await broker.next("one", "train", 0.01)
        assert await broker.release(["one", "pending"]) is None
        await broker.next("two", "train", 0.01)
        assert await broker.release(["one", "two", "pending"]) == "two"
        assert await broker.next("two", "train", 5.0) == "stop"
        assert await broker.next("one", "train", 0.01) is None

    asyncio.run(scenario())


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(cpus=3) as started:
        yield started


def sweep(head: Head, spec: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "dcr_ray.cli.main", "sweep", str(spec), "--address", head.gcs, "--json"]
    log = open(spec.with_suffix(".log"), "w")
    # Tests that run in a shell's background have Ctrl-C ignored, and their children would inherit that.
    return subprocess.Popen(
        command,
        env=head.environment,
        cwd=ROOT,
        stdout=open(spec.with_suffix(".json"), "w"),
        stderr=log,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_line(spec: Path, text: str, process: subprocess.Popen, seconds: float = 90) -> str:
    deadline = time.monotonic() + seconds
    while text not in (log := spec.with_suffix(".log").read_text()):
        assert process.poll() is None and time.monotonic() < deadline, log
        time.sleep(0.2)
    return log


def in_ray(head: Head, program: str) -> subprocess.Popen:
    begin = f"import json, sys, ray\nray.init({head.gcs!r}, log_to_driver=False, logging_level='ERROR')\n"
    command = [sys.executable, "-c", begin + textwrap.dedent(program)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=head.environment, cwd=ROOT, **pipes)


def what_is_left(head: Head) -> dict:
    program = """
        from ray.util.state import list_actors
        table = ray.util.placement_group_table().values()
        print(json.dumps({
            "groups": [g["state"] for g in table if g["state"] != "REMOVED"],
            # Ray Train leaves an actor of its own.
            "actors": [a.class_name for a in list_actors(HEAD) if a.state != "DEAD" and a.class_name[0] != "_"],
            "cpus": ray.available_resources().get("CPU"),
        }))
    """
    # Other Rays may run on this machine.
    out, _ = in_ray(head, program.replace("HEAD", repr(head.gcs))).communicate(timeout=60)
    return json.loads(out.splitlines()[-1])


NOTHING = {"groups": [], "actors": [], "cpus": 3.0}


@pytest.mark.slow
def test_two_studies_on_one_small_cluster_both_end_and_leave_nothing(head, tmp_path):
    """2.5 of 3 CPUs are the first one's; the second one needs 1.5."""
    half = {"engines": 1, "cpus_per_engine": 0.5}
    search = {"trials": 60, "startup_trials": 60, "concurrent": 2}
    first = write_small_study(tmp_path / "one", "first", search=search, resources=half | {"worker_groups": 2})
    second = write_small_study(tmp_path / "other", "second", resources=half | {"worker_groups": 1})
    placed = """
        import time
        while sum(g["state"] == "CREATED" for g in ray.util.placement_group_table().values()) < 2:
            time.sleep(0.5)
    """
    with sweep(head, first) as a:
        in_ray(head, placed).communicate(timeout=120)
        with sweep(head, second) as b:
            b.wait(240)
            during = first.with_suffix(".log").read_text()
        a.wait(240)
    assert (a.returncode, b.returncode) == (0, 0), during
    assert "is given back after its stage: study second waits for room" in during
    for spec, trials in ((first, 61), (second, 3)):
        document = json.loads(spec.with_suffix(".json").read_text())
        assert [trial["state"] for trial in document["trials"]] == ["complete"] * trials
    assert what_is_left(head) == NOTHING


@pytest.mark.slow
def test_a_study_that_finds_no_room_waits_says_for_what_and_ends_on_control_c(head, tmp_path):
    spec = write_small_study(tmp_path, "waiting")
    hold = """
        @ray.remote(num_cpus=3)
        class Hold:
            def held(self): return True
        hold = Hold.remote()
        ray.get(hold.held.remote())
        print("held", flush=True)
        sys.stdin.read()
    """
    with in_ray(head, hold) as holder:
        assert holder.stdout.readline() == "held\n"
        with sweep(head, spec) as process:
            log = wait_for_line(spec, "waits for room", process)
            assert "waits for room for a group of 1 x 1 CPU and an engine; no other study runs here" in log
            process.send_signal(signal.SIGINT)
            process.wait(60)
        assert process.returncode == 1
        assert what_is_left(head) == {"groups": [], "actors": ["Hold"], "cpus": None}
