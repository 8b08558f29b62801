"""What groups and engines need of their nodes: a place, a model, storage that is shared, notice before they go."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dcr_ray.errors import DcrError
from dcr_ray.pools.broker import Broker
from dcr_ray.pools.local_model import local_model
from dcr_ray.pools.probe import FILE_BYTES, probe
from dcr_ray.pools.worker_group import of_lost_peer
from dcr_ray.runtime import network_environment
from dcr_ray.sweep import placement_problems
from dcr_ray.weights.identity import model_identity
from dcr_ray.weights.tiny import build_tiny_model

NODE = {"CPU": 96.0, "GPU": 8.0}


def test_a_gang_over_whole_nodes_and_an_engine_on_one_have_a_place():
    rank, engine = {"CPU": 1, "GPU": 1.0}, {"CPU": 1, "GPU": 1.0}
    assert placement_problems(rank, 28, engine, 4, [{"CPU": 16.0}, NODE, NODE, NODE, NODE]) == []


def test_what_no_single_node_holds_is_told_with_the_nodes_numbers():
    # As many CPUs and GPUs in all as are asked for, and none of it in one place.
    problems = placement_problems({"CPU": 64, "GPU": 1.0}, 4, {"CPU": 1, "GPU": 1.0}, 16, [NODE, NODE])
    ranks, engine = map(str, problems)
    assert "4 ranks of 64 CPUs, 1 GPUs each, of which the nodes hold 2" in ranks and "96 CPUs, 8 GPUs" in ranks
    assert "an engine of 16 CPUs, 16 GPUs on one node" in engine


def test_the_networks_variables_are_passed_on_and_no_others(monkeypatch):
    for name in ("NCCL_IB_HCA", "FI_PROVIDER", "GLOO_SOCKET_IFNAME", "SECRET_TOKEN"):
        monkeypatch.setenv(name, "x")
    passed = network_environment()
    assert {"NCCL_IB_HCA", "FI_PROVIDER", "GLOO_SOCKET_IFNAME"} <= passed.keys() and "SECRET_TOKEN" not in passed


class Stage(SimpleNamespace):
    def record(self):
        return None


def test_a_stage_that_is_given_back_is_next_and_counts_no_death():
    async def course() -> list[str]:
        broker = Broker()
        first, second = (Stage(key=key, trial=key, stage="sft", place="train") for key in ("a", "b"))
        waiting = [asyncio.ensure_future(broker.submit(stage)) for stage in (first, second)]
        await asyncio.sleep(0)
        taken = []
        # More often than a stage may kill its workers.
        for _ in range(5):
            taken.append((await broker.next("group-0", "train")).key)
            await broker.give_back("group-0", "a", "its node is taken away")
        events = await broker.events()
        assert [event["event"] for event in events].count("given_back") == 5
        assert not any(task.done() for task in waiting)
        await broker.close("over")
        await asyncio.gather(*waiting)
        return taken

    assert asyncio.run(course()) == ["a"] * 5


def test_whoever_stops_waiting_leaves_its_stage_to_another():
    async def course() -> str:
        broker = Broker()
        gone, there = (asyncio.ensure_future(broker.next(name, "train", 30)) for name in ("gone", "there"))
        await asyncio.sleep(0.01)
        submitted = asyncio.ensure_future(broker.submit(Stage(key="a", trial="a", stage="sft", place="train")))
        await asyncio.sleep(0)
        gone.cancel()
        (left,) = await asyncio.gather(gone, return_exceptions=True)
        if isinstance(left, Stage):
            # It had been handed the stage already: asyncio then takes no notice of the cancellation.
            await broker.give_back("gone", "a", "it has left")
        taken = await asyncio.wait_for(there, 5)
        submitted.cancel()
        return taken.key

    assert asyncio.run(course()) == "a"


def test_a_broken_exchange_is_told_from_an_error_of_ones_own():
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:60593"
    assert of_lost_peer(RuntimeError(gloo)) and of_lost_peer(torch.distributed.DistBackendError("NCCL error"))
    assert not of_lost_peer(RuntimeError("shapes do not match")) and not of_lost_peer(ValueError(gloo))


def test_a_node_that_does_not_see_the_drivers_model_takes_its_own(tmp_path, monkeypatch):
    build_tiny_model(tmp_path / "driver" / "model")
    build_tiny_model(tmp_path / "node" / "models" / "mine")
    build_tiny_model(tmp_path / "other" / "models" / "mine", seed=1)
    seen = str(tmp_path / "driver" / "model")
    identity = model_identity(seen)
    assert local_model("mine", seen, identity) == seen
    monkeypatch.setattr(
        "dcr_ray.pools.local_model.resolve", lambda name, cache_dir, offline: cache_dir / "models" / name
    )
    monkeypatch.setenv("DCR_RAY_CACHE", str(tmp_path / "node"))
    assert local_model("mine", "/not/here", identity) == str(tmp_path / "node" / "models" / "mine")
    monkeypatch.setenv("DCR_RAY_CACHE", str(tmp_path / "other"))
    with pytest.raises(DcrError, match="is not the mine that the study's driver has"):
        local_model("mine", "/not/here", identity)


def rank_main(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group, cpu = torch.distributed.group.WORLD, torch.device("cpu")
    found = probe(folder / "shared", ["a", "b"], group, cpu)
    assert found.ranks == found.nodes == 2 and found.bus_bytes_per_second > 0
    assert found.write_bytes_per_second > FILE_BYTES / 60 and "all-reduce" in str(found)
    try:
        probe(folder / f"own-{rank}", ["a", "b"], group, cpu)
    except DcrError as error:
        (folder / f"rank{rank}").write_text(str(error))


def test_a_probe_measures_the_network_and_finds_storage_that_is_not_shared(tmp_path):
    torch.multiprocessing.spawn(rank_main, (tmp_path,), nprocs=2)
    for rank in (0, 1):
        assert "is not shared" in (tmp_path / f"rank{rank}").read_text()
    assert list((tmp_path / "shared").iterdir()) == []


PARALLEL = """
import sys
from dcr_ray.evaluate.canary import next_token_logprobs, write_canary
from transformers import AutoModelForCausalLM, AutoTokenizer
from dcr_ray.evaluate.vllm_engine import VllmEngine

def main():
    one, other = sys.argv[1:]
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    expected = {}
    for folder in (one, other):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        write_canary(folder, next_token_logprobs(model, prompts))
        expected[folder] = model
    engine = VllmEngine(one, max_model_len=64, tensor_parallel_size=2, kv_cache_bytes=32 * 2**20)
    import torch
    for folder in (one, other, one):
        engine.load(folder)
        assert engine.prove_live(folder) < 1e-3
        answers = engine.generate(prompts, max_tokens=4)
        for prompt, answer in zip(prompts, answers):
            ids = torch.tensor([prompt])
            first = expected[folder](ids).logits[0, -1].log_softmax(-1)
            best = max(answer.first_token_logprobs, key=answer.first_token_logprobs.get)
            assert best == int(first.argmax())
    engine.close()
    print("alike")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_an_engine_over_two_devices_serves_the_weights_that_it_is_handed(tmp_path):
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 32, "hidden": 128}
    for seed, name in enumerate(("one", "other")):
        build_tiny_model(tmp_path / name, seed=seed, **shape)
    (tmp_path / "parallel.py").write_text(PARALLEL)
    command = [sys.executable, str(tmp_path / "parallel.py"), str(tmp_path / "one"), str(tmp_path / "other")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "alike", done.stderr[-3000:]
