"""The Broker: one queue of stages for each kind of worker, and who waits for which stage.

Trials submit stages and wait; WorkerGroups and Engines ask for the next one. A stage that is under way is awaited, not
repeated, and one whose worker died goes back to the head of its queue. The broker is a Ray actor in a study; the class
itself knows no Ray, so that its rules are tested without one. It does not know what a stage computes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dcr_ray.cache import Record
from dcr_ray.errors import StageFailed
from dcr_ray.stages import Place, StageTask, Submit, run_here
from dcr_ray.time_ledger import TimeLine

MAX_DEATHS = 3
"""Workers that may die on a stage before the stage is held to be the cause."""

Outcome = dict[str, Any]
"""`{"record": Record, "cached": bool}`, or `{"failure": {"kind": ..., "reason": ...}}`.

With either, where the stage was not finished before: `queued` (seconds until the worker took it that ended it) and
`worked` (seconds since then) for the trial that brought it, `awaited` seconds for a trial that found it under way.
"""


@dataclass
class _Flight:
    task: StageTask
    future: asyncio.Future
    trials: list[str]
    submitted: float  # seconds of the monotonic clock, as is `started`
    worker: str | None = None
    started: float | None = None
    deaths: int = 0
    progress: dict[str, Any] = field(default_factory=dict)


class Broker:
    """All methods are coroutines of one event loop, so each runs undisturbed up to its next await."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, watched: bool = True) -> None:
        """`clock` tells seconds that only grow. Events are kept for `events` unless nobody has `watched` them."""
        self._queues: dict[Place, deque[str]] = {"train": deque(), "generate": deque()}
        self._flights: dict[str, _Flight] = {}
        self._held: dict[str, set[str]] = {}
        self._events: list[dict[str, Any]] = []
        self._waiting = {place: asyncio.Condition() for place in self._queues}
        self._closed: str | None = None
        self._seen: set[str] = set()
        self._released: set[str] = set()
        self._clock, self._watched = clock, watched

    async def submit(self, task: StageTask) -> Outcome:
        """Wait until the stage is finished, by the cache, by a flight that is under way, or by a worker."""
        record = task.record()
        if record is not None:
            await self.cached(task.trial, task.stage, task.key, record.seconds)
            return {"record": record, "cached": True}
        if self._closed is not None:
            return _failure("error", self._closed)
        flight = self._flights.get(task.key)
        if flight is not None:
            flight.trials.append(task.trial)
            found = self._clock()
            outcome = await asyncio.shield(flight.future)
            awaited = {"awaited": self._clock() - found}
            return outcome | awaited | ({"cached": True} if "record" in outcome else {})
        flight = _Flight(task, asyncio.get_running_loop().create_future(), [task.trial], self._clock())
        self._flights[task.key] = flight
        self._queues[task.place].append(task.key)
        await self._wake(task.place)
        return await asyncio.shield(flight.future)

    async def cached(self, trial: str, stage: str, key: str, seconds: float) -> None:
        """A trial took a stage from the cache; only for whoever watches."""
        self._happened("cached", trial, stage, key, seconds=seconds)

    async def next(
        self, worker: str, place: Place, wait_seconds: float = 20.0, finishing: tuple[str, ...] = ()
    ) -> StageTask | str | None:
        """The next stage for this worker; None when there was none in time, "stop" when it is needed no more.

        A worker that asks holds nothing but what it is `finishing`, by keys. If it holds more all the same, it has died
        and come back.
        """
        await self.lost(worker, finishing)
        self._seen.add(worker)
        deadline = self._clock() + wait_seconds
        while True:
            if self._closed is not None or worker in self._released:
                return "stop"
            if self._queues[place]:
                flight = self._flights[self._queues[place].popleft()]
                flight.worker, flight.started = worker, self._clock()
                self._held.setdefault(worker, set()).add(flight.task.key)
                self._note("started", flight.task, worker=worker, queued_seconds=flight.started - flight.submitted)
                return flight.task
            remaining = deadline - self._clock()
            if remaining <= 0:
                return None
            async with self._waiting[place]:
                try:
                    await asyncio.wait_for(self._waiting[place].wait(), remaining)
                except TimeoutError:
                    if not self._queues[place]:
                        return None
                except asyncio.CancelledError:
                    # Whoever leaves may have been the one that was woken for a stage.
                    self._waiting[place].notify(1)
                    raise

    async def progress(self, worker: str, key: str, values: dict[str, Any]) -> None:
        """Figures of a stage that is under way, for the live view and the metric curves."""
        flight = self._flights.get(key)
        if flight is not None and flight.worker == worker:
            flight.progress = values
            self._note("progress", flight.task, values=values)

    async def done(self, worker: str, record: Record) -> None:
        """The stage is finished and its record is in the cache."""
        flight = self._land(record.key)
        if flight is not None:
            self._note(
                "finished",
                flight.task,
                worker=worker,
                seconds=record.seconds,
                metrics=record.results.get("metrics", {}),
            )
            flight.future.set_result({"record": record, "cached": False} | self._times(flight))

    async def failed(self, worker: str, key: str, kind: str, reason: str) -> None:
        """The stage ended without a result."""
        flight = self._land(key)
        if flight is not None:
            self._note("failed", flight.task, worker=worker, failure=kind, reason=reason)
            flight.future.set_result(_failure(kind, reason) | self._times(flight))

    async def lost(self, worker: str, finishing: tuple[str, ...] = ()) -> None:
        """The worker died: what it held goes back to the head of the queue, or fails when it has killed too many.

        What it is `finishing` it still holds.
        """
        for key in self._held.get(worker, set()) - set(finishing):
            flight = self._flights[key]
            flight.deaths += 1
            if flight.deaths >= MAX_DEATHS:
                reason = (
                    f"{flight.deaths} workers died while they ran this stage (out of memory?); see the study's logs"
                )
                await self.failed(worker, key, "error", reason)
            else:
                await self._requeue(flight, "requeued", deaths=flight.deaths)

    async def give_back(self, worker: str, key: str, reason: str) -> None:
        """The worker ends before the stage does, through no fault of the stage: its node is taken away. The stage goes
        back to the head of the queue, and no death is counted."""
        flight = self._flights.get(key)
        if flight is not None and flight.worker == worker:
            await self._requeue(flight, "given_back", reason=reason)

    async def _requeue(self, flight: _Flight, event: str, **values: Any) -> None:
        self._note(event, flight.task, worker=flight.worker, **values)
        self._held[flight.worker].discard(flight.task.key)
        flight.worker, flight.started, flight.progress = None, None, {}
        self._queues[flight.task.place].appendleft(flight.task.key)
        await self._wake(flight.task.place)

    def _land(self, key: str) -> _Flight | None:
        """Take a flight out of all books, wherever it was."""
        flight = self._flights.pop(key, None)
        if flight is not None:
            self._held.get(flight.worker or "", set()).discard(key)
            if flight.worker is None and key in self._queues[flight.task.place]:
                self._queues[flight.task.place].remove(key)
        return flight

    def _times(self, flight: _Flight) -> dict[str, float]:
        now = self._clock()
        started = flight.started or now
        return {"queued": started - flight.submitted, "worked": now - started}

    async def release(self, workers: list[str]) -> str | None:
        """One of these workers is told to stop when it asks next: one that holds no stage, if there is one.

        Returns its name; None where fewer than two of them have asked for a stage so far.
        """
        at_work = [worker for worker in workers if worker in self._seen]
        if len(at_work) < 2:
            return None
        chosen = next((worker for worker in reversed(at_work) if not self._held.get(worker)), at_work[-1])
        self._released.add(chosen)
        await self._wake_all()
        return chosen

    async def close(self, reason: str) -> None:
        """No further stage is handed out; whoever waits is told why."""
        self._closed = reason
        for key in list(self._flights):
            await self.failed("", key, "error", reason)
        await self._wake_all()

    async def give_up(self, place: Place, reason: str) -> None:
        """No worker of this kind is left: all stages that need one fail, now and later."""
        self._closed = reason
        for key, flight in list(self._flights.items()):
            if flight.task.place == place:
                await self.failed("", key, "error", reason)
        await self._wake_all()

    async def tell(self, worker: str, message: str, values: dict[str, Any]) -> None:
        """What a worker has found out about its place, for whoever watches."""
        self._happened("told", "", "", "", worker=worker, message=message, values=values)

    async def under_way(self) -> list[dict[str, Any]]:
        """Every stage that waits or runs, for the live view."""
        return [
            {
                "trial": flight.trials[0],
                "stage": flight.task.stage,
                "worker": flight.worker,
                "since": time.time() - (self._clock() - (flight.started or flight.submitted)),
                **{name: flight.progress.get(name) for name in ("step", "steps", "loss")},
            }
            for flight in self._flights.values()
        ]

    async def events(self) -> list[dict[str, Any]]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def _note(self, event: str, task: StageTask, **values: Any) -> None:
        self._happened(event, task.trial, task.stage, task.key, **values)

    def _happened(self, event: str, trial: str, stage: str, key: str, **values: Any) -> None:
        if not self._watched:
            return
        self._events.append({"event": event, "time": time.time(), "trial": trial, "stage": stage, "key": key, **values})

    async def _wake(self, place: Place) -> None:
        """One stage more wants one worker; waking all of a thousand for it would cost more than the stage."""
        async with self._waiting[place]:
            self._waiting[place].notify(1)

    async def _wake_all(self) -> None:
        for waiting in self._waiting.values():
            async with waiting:
                waiting.notify_all()


def submit_through(broker: Any, line: TimeLine | None = None) -> Submit:
    """Runs a trial's stages through this broker's actor, a judge stage in the process that asks.

    Where its time goes is noted in `line`.
    """
    import ray

    line = line or TimeLine()

    def submit(task: StageTask) -> tuple[Record, bool]:
        line.lap("idle")
        if task.place == "here":
            cached = False
            try:
                record, cached = run_here(task)
            finally:
                line.lap("idle/cache" if cached else "judge")
            return record, cached
        record = task.record()
        if record is not None:
            # A task holds all of the study's data, which need not travel for a stage that is there.
            broker.cached.remote(task.trial, task.stage, task.key, record.seconds)
            line.lap("idle/cache")
            return record, True
        answer = ray.get(broker.submit.remote(task))
        line.answered(answer)
        if "failure" in answer:
            raise StageFailed(answer["failure"]["kind"], answer["failure"]["reason"])
        return answer["record"], answer["cached"]

    return submit


def _failure(kind: str, reason: str) -> Outcome:
    return {"failure": {"kind": kind, "reason": reason}}
