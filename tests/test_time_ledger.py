"""The time ledger's arithmetic: every second in one part, none in two, and what is left over is told."""

from __future__ import annotations

import time

import pytest

from dcr_ray import time_ledger
from dcr_ray.cache import Record
from dcr_ray.time_ledger import (
    PARTS,
    STAGE_PARTS,
    WITHIN,
    TimeLine,
    accounted,
    full_ledger,
    received,
    stage_ledger,
    stamp,
    summed,
    unaccounted,
)
from dcr_ray.train.clock import Clock


def record(**seconds: float) -> Record:
    return Record("sft", "key", {}, {"seconds": seconds})


class Hands:
    """A clock that is moved by hand, in the place of `time` in the ledger's module."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch):
    clock = Hands()
    monkeypatch.setattr(time_ledger, "time", clock)
    return clock


def test_a_training_stage_is_divided_with_figures_and_export_in_their_parts():
    seconds = {"data": 1.0, "weights_in": 2.0, "figures": 3.0, "forward_backward": 10.0, "optimizer": 4.0}
    ledger = stage_ledger(seconds | {"checkpoint": 0.5, "export": 1.5, "total": 25.0})
    assert ledger == {
        "data": 1.0,
        "weights_in": 2.0,
        "forward_backward": 13.0,
        "optimizer": 4.0,
        "checkpoint": 2.0,
        "idle": 3.0,
    }
    assert accounted(ledger) == 25.0


def test_a_generate_stage_counts_what_is_read_and_not_written_as_prefill():
    seconds = {"weights_to_engine": 1.0, "prefill": 2.0, "decode": 8.0, "refusal_probability": 3.0, "score": 0.5}
    ledger = stage_ledger(seconds | {"data": 0.25, "total": 15.0})
    assert (ledger["prefill"], ledger["decode"], ledger["data"], ledger["idle"]) == (5.5, 8.0, 0.25, 0.25)


def test_undivided_stages_go_to_their_largest_part():
    assert stage_ledger({"load": 5.0, "total": 5.0})["weights_in"] == 5.0
    assert stage_ledger({"generate": 5.0, "total": 5.0})["decode"] == 5.0


def test_names_that_overlap_are_seen_and_not_cut():
    ledger = stage_ledger({"prefill": 6.0, "decode": 6.0, "total": 10.0})
    assert ledger["idle"] == 0.0 and unaccounted(ledger, 10.0) == -2.0


def test_every_name_leads_to_a_part():
    assert set(STAGE_PARTS.values()) == set(PARTS)
    assert {name.split("/")[0] for name in WITHIN} <= set(PARTS)


def test_what_an_interrupted_run_of_a_stage_did_is_left_out():
    read: dict[str, float] = {}
    for _ in range(3):
        began, clock = time.monotonic(), Clock()
        if read:
            clock.go_on_from(read)
        with clock.measure("forward_backward"):
            time.sleep(0.02)
        before, read = read, clock.read()
    assert read["forward_backward"] >= 0.06 and read["total"] >= 0.06
    assert read["earlier/forward_backward"] == before["forward_backward"]
    assert not any(name.count("earlier") > 1 for name in read)
    ledger = stage_ledger(read)
    assert 0.02 <= ledger["forward_backward"] <= accounted(ledger) <= time.monotonic() - began


def test_a_full_ledger_names_every_part_and_only_the_figures_within_that_have_time():
    ledger = full_ledger({"queue": 2.0, "queue/awaited": 0.5, "idle/cache": 0.0})
    assert list(ledger) == [*PARTS, "queue/awaited"]
    assert accounted(ledger) == 2.0 and unaccounted(ledger, 3.0) == 1.0


def test_sums_are_by_part():
    total = summed([{"queue": 1.0, "decode": 2.0}, {"queue": 3.0, "queue/awaited": 3.0}, {}])
    assert (total["queue"], total["decode"], total["queue/awaited"]) == (4.0, 2.0, 3.0)
    assert accounted(summed([])) == 0.0


def test_a_time_line_adds_up_to_the_wall_clock(hands):
    asked = stamp() | {"tracking": 0.5}
    hands.now += 3.0
    line = TimeLine(asked)
    hands.now += 1.0
    line.lap("start")
    hands.now += 10.0  # two of them queued, seven in the stage, half a second for its record, the rest in messages
    seconds = {"forward_backward": 5.0, "optimizer": 1.0, "total": 7.0}
    line.answered({"record": record(**seconds), "cached": False, "queued": 2.0, "worked": 7.5})
    hands.now += 4.0
    line.answered({"record": record(**seconds), "cached": True, "awaited": 3.75})
    hands.now += 0.25
    line.answered({"record": record(**seconds), "cached": True})
    hands.now += 2.0
    line.lap("judge")
    sent = line.sent()
    hands.now += 0.75
    ledger = received(sent, asked)
    assert ledger == {
        "start": 3.5,
        "tracking": 1.25,
        "queue": 6.5,
        "queue/awaited": 3.75,
        "queue/messages": 0.75,
        "forward_backward": 5.0,
        "optimizer": 1.0,
        "idle": 1.75,
        "idle/unnamed": 1.0,
        "idle/handover": 0.5,
        "idle/cache": 0.25,
        "judge": 2.0,
    }
    assert unaccounted(ledger, hands.now - 100.0) == 0.0


def test_a_stage_that_failed_is_idle_for_as_long_as_a_worker_had_it(hands):
    line = TimeLine()
    hands.now += 9.0
    line.answered({"failure": {"kind": "error", "reason": "?"}, "queued": 1.0, "worked": 8.0})
    assert line.seconds == {"queue": 1.0, "idle": 8.0, "idle/failed": 8.0}


def test_a_stage_that_says_it_worked_for_longer_than_it_was_awaited_is_seen(hands):
    line = TimeLine()
    hands.now += 9.0
    line.answered({"record": record(decode=12.0, total=12.0), "cached": False, "queued": 1.0, "worked": 8.0})
    assert unaccounted(line.seconds, 9.0) == -4.0


def test_two_hosts_clocks_are_never_compared(hands, monkeypatch):
    asked = stamp() | {"tracking": 0.5}
    monkeypatch.setattr(time_ledger, "_clock", lambda: "another machine")
    hands.now = 7e6  # that machine has been up for longer
    line = TimeLine(asked)
    assert "start" not in line.seconds
    hands.now += 4.0
    line.lap("judge")
    sent = line.sent()
    monkeypatch.undo()
    monkeypatch.setattr(time_ledger, "time", hands)
    hands.now = 110.0
    ledger = received(sent, asked)
    assert ledger == {"tracking": 0.5, "start": 5.5, "judge": 4.0}
    assert unaccounted(ledger, 10.0) == 0.0
