"""The broker's rules, on its own event loop: no stage twice at once, none lost with a worker, none handed to two."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dcr_ray.cache import stage_key
from dcr_ray.pools.broker import MAX_DEATHS, Broker
from dcr_ray.pools.finishing import Finishing
from dcr_ray.stages import StageTask


@pytest.fixture
def make_task(tmp_path):
    def make(name: str = "one", trial: str = "t000", place: str = "train") -> StageTask:
        identity = {"name": name}
        key = stage_key("sft", identity)
        return StageTask("sft", place, key, name, identity, None, trial, "study", str(tmp_path))

    return make


def finished(task: StageTask):
    return task.commit({"metrics": {"loss": 1.0}, "seconds": {"total": 1.5}}, {})


def test_a_stage_is_handed_to_one_worker_and_its_record_to_everybody_who_waits(make_task):
    async def scenario():
        broker = Broker()
        waiting = [asyncio.create_task(broker.submit(make_task(trial=name))) for name in ("t000", "t001")]
        task = await broker.next("group", "train")
        assert await broker.next("other group", "train", wait_seconds=0.01) is None
        await broker.done("group", finished(task))
        first, second = await asyncio.gather(*waiting)
        assert first["record"] == second["record"]
        assert (first["cached"], second["cached"]) == (False, True)

    asyncio.run(scenario())


def test_a_finished_stage_comes_from_the_cache(make_task):
    async def scenario():
        broker = Broker()
        task = make_task()
        record = finished(task)
        assert await broker.submit(task) == {"record": record, "cached": True}
        assert await broker.next("group", "train", wait_seconds=0.01) is None

    asyncio.run(scenario())


def test_a_worker_that_comes_back_without_its_stage_gets_it_first_again(make_task):
    async def scenario():
        broker = Broker()
        waiting = [asyncio.create_task(broker.submit(make_task(name, name))) for name in ("one", "two")]
        assert (await broker.next("group", "train")).slug == "one"
        again = await broker.next("group", "train")
        assert again.slug == "one"
        await broker.done("group", finished(again))
        assert (await broker.next("group", "train")).slug == "two"
        assert "record" in await waiting[0]
        waiting[1].cancel()

    asyncio.run(scenario())


def test_a_stage_that_kills_its_workers_fails_in_the_end(make_task):
    async def scenario():
        broker = Broker()
        waiting = asyncio.create_task(broker.submit(make_task()))
        for _ in range(MAX_DEATHS):
            assert (await broker.next("group", "train", wait_seconds=0.01)) is not None
        assert await broker.next("group", "train", wait_seconds=0.01) is None
        outcome = await waiting
        assert "workers died" in outcome["failure"]["reason"]

    asyncio.run(scenario())


def test_a_worker_that_still_writes_a_stages_files_takes_the_next_stage(make_task):
    async def scenario():
        broker = Broker()
        waiting = [asyncio.create_task(broker.submit(make_task(slug))) for slug in ("one", "two")]
        first = await broker.next("group", "train")
        second = await broker.next("group", "train", finishing=(first.key,))
        assert (first.slug, second.slug) == ("one", "two")
        await broker.done("group", finished(first))
        assert (await waiting[0])["record"].key == first.key
        # Without a word about what it held, it has died and come back.
        assert (await broker.next("group", "train")).slug == "two"
        waiting[1].cancel()

    asyncio.run(scenario())


def test_files_are_written_beside_the_next_stage_and_the_record_comes_last(make_task):
    told, let_go = [], threading.Event()
    finishing = Finishing(lambda record: told.append(record), lambda key, reason: told.append((key, reason)))
    task, results = make_task(), {"seconds": {"total": 1.0}}
    finishing.start(task, results, {"worker": "group"}, lambda: let_go.wait(30))
    assert finishing.held == (task.key,) and task.record() is None and not told
    let_go.set()
    finishing.wait()
    assert finishing.held == () and told == [task.record()]
    assert told[0].seconds > 1.0
    assert told[0].seconds == pytest.approx(1.0 + told[0].results["seconds"]["export"])


def test_files_that_cannot_be_written_fail_their_stage(make_task):
    told = []
    finishing = Finishing(lambda record: told.append(record), lambda key, reason: told.append((key, reason)))
    task = make_task()

    def write():
        raise OSError("no space left on device")

    finishing.start(task, {"seconds": {}}, {}, write)
    finishing.wait()
    assert told == [(task.key, "OSError: no space left on device")] and task.record() is None


def test_workers_get_only_stages_of_their_kind(make_task):
    async def scenario():
        broker = Broker()
        waiting = asyncio.create_task(broker.submit(make_task(place="generate")))
        await asyncio.sleep(0)
        assert await broker.next("group", "train", wait_seconds=0.01) is None
        assert (await broker.next("engine", "generate")).place == "generate"
        waiting.cancel()

    asyncio.run(scenario())


def test_closing_tells_workers_to_stop_and_waiters_why(make_task):
    async def scenario():
        broker = Broker()
        waiting = asyncio.create_task(broker.submit(make_task()))
        asking = asyncio.create_task(broker.next("engine", "generate"))
        await asyncio.sleep(0.01)
        await broker.close("the study was stopped")
        assert await asking == "stop"
        assert (await waiting)["failure"]["reason"] == "the study was stopped"
        assert "failure" in await broker.submit(make_task("late"))

    asyncio.run(scenario())


def test_what_happens_to_a_stage_is_told_once(make_task):
    async def scenario():
        broker = Broker()
        waiting = asyncio.create_task(broker.submit(make_task()))
        task = await broker.next("group", "train")
        await broker.progress("group", task.key, {"step": 3, "steps": 9, "loss": 0.5})
        (under_way,) = await broker.under_way()
        assert (under_way["step"], under_way["loss"]) == (3, 0.5)
        await broker.done("group", finished(task))
        await waiting
        assert [event["event"] for event in await broker.events()] == ["started", "progress", "finished"]
        assert await broker.events() == []

    asyncio.run(scenario())


def test_who_brought_a_stage_is_told_how_long_it_queued_and_who_found_it_how_long_it_awaited_it(make_task):
    async def scenario():
        broker = Broker()
        first = asyncio.create_task(broker.submit(make_task(trial="t000")))
        await asyncio.sleep(0.1)
        task = await broker.next("group", "train")
        await asyncio.sleep(0.1)
        second = asyncio.create_task(broker.submit(make_task(trial="t001")))
        await asyncio.sleep(0.1)
        await broker.done("group", finished(task))
        brought, found = await first, await second
        assert brought["queued"] >= 0.1 and brought["worked"] >= 0.2 and "awaited" not in brought
        assert 0.1 <= found["awaited"] < brought["queued"] + brought["worked"]
        late = await broker.submit(make_task(trial="t002"))
        assert late["cached"] and not late.keys() & {"queued", "worked", "awaited"}

    asyncio.run(scenario())


def test_the_attempt_of_a_worker_that_died_counts_as_queueing(make_task):
    async def scenario():
        broker = Broker()
        waiting = asyncio.create_task(broker.submit(make_task()))
        assert await broker.next("group", "train", wait_seconds=0.01) is not None
        await asyncio.sleep(0.2)
        task = await broker.next("group", "train", wait_seconds=0.01)
        await broker.failed("group", task.key, "diverged", "the loss is not finite")
        outcome = await waiting
        assert outcome["queued"] >= 0.2 and 0 <= outcome["worked"] < outcome["queued"]

    asyncio.run(scenario())
