"""The time ledger: the named parts that a trial's wall clock is made of, and how they are counted.

A trial's wall runs from the moment when the search asks for it until the search tells how it ended, by the driver's
clock alone. The parts come from elsewhere: pauses and round trips from the coordinator's clock, the queue and a
worker's hold of a stage from the broker's, the work from the stage's own. So their sum is a check of the whole: what is
missing is `unaccounted`, and so, below zero, is what was counted twice or does not fit into what encloses it.

Only durations within one process are taken: a stage lies within its worker's hold, that within the round trip, and
what a longer one has beyond the shorter is a figure of its own (`idle/handover`, `queue/messages`). The way from the
driver to the coordinator and back lies between two processes; on one host they read the same monotonic clock. On two
hosts neither way can be told alone, so `start` is then the driver's duration less the coordinator's, with the way back
in it.

A stage's figures on held-out data count as `forward_backward`, its export as `checkpoint`; scored pairs and refusal
probabilities as `prefill`. A trial that a killed driver left has the wall and the parts of the driver that ended it;
what an earlier run of a stage did up to its checkpoint is left out.

It does not know what a stage computes, nor which worker did.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

PARTS = {
    "start": "from the ask until the first stage is asked for: sampling, Tune, the coordinator's process",
    "queue": "waiting for the broker and for a free worker, and for attempts of a worker that died",
    "data": "tokens and batch plans",
    "weights_in": "the model built, base weights and trunk put in, the training engine made",
    "forward_backward": "forward and backward passes, and the forward passes of held-out figures",
    "optimizer": "optimizer steps",
    "checkpoint": "checkpoints to resume from, and the finished weights with their canary",
    "weights_to_engine": "new weights handed to the generation engine and proved to be live",
    "prefill": "prompts read by the engine; scored pairs and refusal beginnings, which are read and not written",
    "decode": "answers written token by token",
    "judge": "verdicts on the answers",
    "tracking": "telling Tune, the scheduler and MLflow, and waiting for the driver to take it in",
    "idle": "pauses between stages, looking into the cache, and what a stage leaves unnamed",
}
"""Every part and what it is. They do not overlap; their order is about that of a trial."""

WITHIN = {
    "queue/awaited": "a stage that another trial had under way",
    "queue/messages": "a stage's way to the broker and back, and the broker's being busy",
    "idle/cache": "looking up stages that were finished",
    "idle/failed": "a stage that ended without a result; its own clock was lost with it",
    "idle/unnamed": "what a stage's own clock saw and gave no name",
    "idle/handover": "a worker had the stage while the stage's own clock did not run: its record, messages",
    "idle/held": "a finished trial that waits for the baseline's figures",
}
"""Figures of which a part's seconds are the whole; they are named where they are not zero."""

STAGE_PARTS = {name: name for name in PARTS} | {
    "load": "weights_in",
    "figures": "forward_backward",
    "export": "checkpoint",
    "generate": "decode",
    "score": "prefill",
    "refusal_probability": "prefill",
}
"""The part that each of a stage's own names for its seconds belongs to."""

EARLIER = "earlier/"
"""Before a name of a stage's seconds: how much of them an interrupted run had taken, which this trial did not wait."""

Ledger = dict[str, float]
"""Seconds by part; names with a slash are `WITHIN` their part."""


def stage_ledger(seconds: Mapping[str, float]) -> Ledger:
    """A stage's seconds as parts, those of this run alone. What `total` has beyond the named ones is `idle`.

    Names that overlap, so that their sum is more than the total, leave no idle and show up as a negative `unaccounted`.
    """
    own = {
        name: value - seconds.get(EARLIER + name, 0.0)
        for name, value in seconds.items()
        if not name.startswith(EARLIER)
    }
    total = own.pop("total", 0.0)
    ledger: Ledger = {}
    for name, value in own.items():
        if part := STAGE_PARTS.get(name):
            ledger[part] = ledger.get(part, 0.0) + value
    ledger["idle"] = ledger.get("idle", 0.0) + max(0.0, total - sum(ledger.values()))
    return ledger


def full_ledger(seconds: Mapping[str, float]) -> Ledger:
    """All parts, those without time too, and of the figures within them those with time; rounded to 0.1 ms."""
    within = {name: round(seconds[name], 4) for name in WITHIN if seconds.get(name)}
    return {part: round(seconds.get(part, 0.0), 4) for part in PARTS} | within


def accounted(ledger: Mapping[str, float]) -> float:
    """The sum of the parts, in seconds."""
    return sum(ledger.get(part, 0.0) for part in PARTS)


def unaccounted(ledger: Mapping[str, float], wall: float) -> float:
    """Seconds of the wall clock that no part names; negative where parts were counted twice."""
    return wall - accounted(ledger)


def summed(ledgers: Iterable[Mapping[str, float]]) -> Ledger:
    """The ledger of several trials together."""
    total: Ledger = {}
    for ledger in ledgers:
        for name, seconds in ledger.items():
            total[name] = total.get(name, 0.0) + seconds
    return full_ledger(total)


class TimeLine:
    """What one trial's coordinator notes, lap after lap: a lap belongs to one part, or to a stage's round trip.

    `asked` is the driver's stamp of the ask, with the seconds of `tracking` that the driver has spent since.
    """

    def __init__(self, asked: Mapping[str, Any] | None = None, clock: Callable[[], float] | None = None):
        self.seconds: Ledger = {}
        self._now = clock or time.monotonic
        self._began = self._lap_began = self._now()
        if asked is not None:
            self.add("tracking", asked["tracking"])
            if (waited := since(asked)) is not None:
                self.add("start", waited - asked["tracking"])

    def add(self, name: str, seconds: float) -> None:
        """Seconds of a part, or of a figure within one, which are the part's too."""
        for each in {name, name.split("/")[0]}:
            self.seconds[each] = self.seconds.get(each, 0.0) + seconds

    def lap(self, name: str | None = None) -> float:
        """End a lap and add it to a part; without a name it is only measured."""
        now = self._now()
        passed, self._lap_began = now - self._lap_began, now
        if name is not None:
            self.add(name, passed)
        return passed

    def answered(self, answer: Mapping[str, Any]) -> None:
        """End the lap of a stage's round trip, and divide it by what the broker's answer says of it.

        `answer` has `queued` and `worked` seconds where this trial's submission was the first, `awaited` seconds where
        another's was under way, and none of them where the stage was finished; `record`, if there is one.
        """
        passed = self.lap()
        if "awaited" in answer:
            self.add("queue/awaited", answer["awaited"])
            self._messages(passed - answer["awaited"])
        elif "queued" in answer:
            self.add("queue", answer["queued"])
            self._messages(passed - answer["queued"] - answer["worked"])
            if "record" in answer:
                ledger = stage_ledger(answer["record"].results.get("seconds", {}))
                self.add("idle/handover", max(0.0, answer["worked"] - accounted(ledger)))
                self.add("idle/unnamed", ledger.pop("idle"))
                for part, seconds in ledger.items():
                    self.add(part, seconds)
            else:
                self.add("idle/failed", answer["worked"])
        elif "record" in answer:
            self.add("idle/cache", passed)

    def _messages(self, seconds: float) -> None:
        if seconds > 0:
            self.add("queue/messages", seconds)

    def sent(self) -> dict[str, Any]:
        """What goes to the driver: the seconds so far, the coordinator's own duration, and when this was."""
        return {"seconds": dict(self.seconds), "own": self._now() - self._began, "at": stamp()}


def received(sent: Mapping[str, Any], asked: Mapping[str, Any]) -> Ledger:
    """The driver's end of a coordinator's time line: the way back in `tracking`, or both ways in `start`."""
    seconds = dict(sent["seconds"])
    if (back := since(sent["at"])) is not None:
        seconds["tracking"] = seconds.get("tracking", 0.0) + back
    else:
        both_ways = time.monotonic() - asked["seconds"] - asked["tracking"] - sent["own"]
        seconds["start"] = seconds.get("start", 0.0) + both_ways
    return seconds


def stamp() -> dict[str, Any]:
    """A moment of this host's monotonic clock, in seconds, and which clock that is."""
    return {"clock": _clock(), "seconds": time.monotonic()}


def since(moment: Mapping[str, Any]) -> float | None:
    """Seconds since a stamp; None where it is of another host's clock."""
    return time.monotonic() - moment["seconds"] if moment["clock"] == _clock() else None


@cache
def _clock() -> str:
    """One name for each monotonic clock: it runs from the machine's start, in containers too."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else platform.node()
