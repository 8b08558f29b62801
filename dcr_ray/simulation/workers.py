"""Simulated nodes, and the groups and engines on them: they take stages from a real broker, and are taken away.

A node that is preempted gives notice: its stage is checkpointed and goes back to the queue. One that fails does not:
the stage goes back with what its last checkpoint held, and a death is counted. Either comes back after its boot time,
and its workers start anew.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dcr_ray.cache import Record
from dcr_ray.errors import StageFailed
from dcr_ray.pools.broker import Broker
from dcr_ray.stages import Place, StageTask

ASKING_SECONDS = 3600.0
"""How long an idle worker waits before it asks again."""


@dataclass(frozen=True)
class Faults:
    """Expected events of one node in an hour, and how long it is away."""

    preemptions: float = 0.0
    failures: float = 0.0
    boot_seconds: float = 300.0


@dataclass
class Store:
    """Finished stages, in the place of the StageCache: looked up by key, kept by `keep`. Nothing is ever removed."""

    records: dict[str, Record] = field(default_factory=dict)
    keep: Callable[[Record], None] = lambda record: None

    def commit(self, record: Record) -> None:
        self.records[record.key] = record
        self.keep(record)


@dataclass(frozen=True)
class SimulatedStage:
    """A stage as the broker and a worker see it; its `task` is the real one."""

    task: StageTask
    store: Store
    seconds: float
    """Of work, undisturbed."""
    metrics: dict[str, float]
    failure: StageFailed | None = None

    @property
    def stage(self) -> str:
        return self.task.stage

    @property
    def place(self) -> Place:
        return self.task.place

    @property
    def key(self) -> str:
        return self.task.key

    @property
    def trial(self) -> str:
        return self.task.trial

    def record(self) -> Record | None:
        return self.store.records.get(self.key)

    def finished(self, worker: str) -> Record:
        part = {"train": "forward_backward", "generate": "decode", "here": "judge"}[self.place]
        seconds = {part: self.seconds, "total": self.seconds}
        return Record(self.stage, self.key, {}, {"metrics": self.metrics, "seconds": seconds}, {"worker": worker})


@dataclass
class Tally:
    """What happened. Seconds are those of workers, not of GPUs."""

    preemptions: int = 0
    failures: int = 0
    attempts: int = 0
    finished: int = 0
    interrupted: int = 0
    busy_seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "generate": 0.0})
    lost_seconds: float = 0.0
    """Work that had to be done again."""


class Node:
    """One node, and the workers that have a part of it."""

    def __init__(self, name: str):
        self.name, self.up = name, True
        self.workers: list[Worker] = []

    async def live(self, faults: Faults, chance: random.Random, tally: Tally) -> None:
        """Be taken away and come back, for ever."""
        rate = faults.preemptions + faults.failures
        while rate:
            await asyncio.sleep(chance.expovariate(rate / 3600))
            notice = chance.random() * rate < faults.preemptions
            tally.preemptions += notice
            tally.failures += not notice
            self.up = False
            for worker in self.workers:
                worker.take_away(notice)
            await asyncio.sleep(faults.boot_seconds)
            self.up = True
            for worker in self.workers:
                worker.changed.set()


class Worker:
    """A group or an engine over one or more nodes. `saved` holds how far interrupted stages have come, by key."""

    def __init__(
        self,
        name: str,
        place: Place,
        nodes: list[Node],
        start_seconds: float,
        checkpoint_seconds: float,
        saved: dict[str, float],
        tally: Tally,
    ):
        self.name, self.place, self.nodes = name, place, nodes
        self.changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._notice = False
        self._start, self._checkpoint = start_seconds, checkpoint_seconds
        self._saved, self._tally = saved, tally
        for node in nodes:
            node.workers.append(self)

    def take_away(self, notice: bool) -> None:
        self._notice = notice
        self._taken.set()

    async def serve(self, broker: Broker) -> None:
        """Take stages until the broker says stop."""
        while True:
            while not all(node.up for node in self.nodes):
                self.changed.clear()
                await self.changed.wait()
            self._taken.clear()
            if await self._unless_taken(asyncio.sleep(self._start)) is _TAKEN:
                continue
            while not self._taken.is_set():
                stage = await self._unless_taken(broker.next(self.name, self.place, ASKING_SECONDS))
                if stage == "stop":
                    return
                if isinstance(stage, SimulatedStage):
                    await self._run(stage, broker)
            # What it may have been handed in the moment when it was taken goes back.
            await broker.lost(self.name)

    async def _run(self, stage: SimulatedStage, broker: Broker) -> None:
        loop = asyncio.get_running_loop()
        began, before = loop.time(), self._saved.get(stage.key, 0.0)
        self._tally.attempts += 1
        ended = await self._unless_taken(asyncio.sleep(max(0.0, stage.seconds - before)))
        passed = loop.time() - began
        self._tally.busy_seconds[self.place] += passed
        if ended is not _TAKEN:
            self._saved.pop(stage.key, None)
            self._tally.finished += 1
            if stage.failure is not None:
                await broker.failed(self.name, stage.key, stage.failure.kind, stage.failure.reason)
                return
            record = stage.finished(self.name)
            stage.store.commit(record)
            await broker.done(self.name, record)
            return
        self._tally.interrupted += 1
        kept = 0.0
        if self.place == "train":
            whole = before + passed
            kept = whole if self._notice else max(before, whole // self._checkpoint * self._checkpoint)
            self._saved[stage.key] = kept
        self._tally.lost_seconds += before + passed - kept
        if self._notice:
            await broker.give_back(self.name, stage.key, "its node is taken away")
        else:
            await broker.lost(self.name)

    async def _unless_taken(self, doing: Any) -> Any:
        """The result, or _TAKEN where the worker is taken away first; then what was being done is cancelled."""
        work, taken = asyncio.ensure_future(doing), asyncio.ensure_future(self._taken.wait())
        try:
            await asyncio.wait({work, taken}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else _TAKEN
        finally:
            taken.cancel()
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)


_TAKEN = object()
