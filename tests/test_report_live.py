"""A running study on a terminal and in a log."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from dcr_ray.report.events import new_messages
from dcr_ray.report.live import LiveView
from dcr_ray.report.progress import RunningStage, Snapshot, time_left
from tests.report_trials import THREE, TWO, baseline, failed_trial, many_trials, search_trial, stages

TERMINAL_COMMANDS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def running(name: str, done: int = 0):
    return search_trial(
        name, state="running", metrics={}, stages=stages(name)[:done], feasible=None, started=None, ended=None
    )


def log_of(*snapshots: Snapshot, seconds_between: float = 1.0) -> list[str]:
    out, clock = io.StringIO(), Clock()
    with LiveView(Console(file=out, width=80), "quick", 4, TWO, clock=clock) as view:
        for snapshot in snapshots:
            view.update(snapshot)
            clock.now += seconds_between
    assert all(character == "\n" or character.isprintable() for character in out.getvalue())
    return out.getvalue().splitlines()


def test_a_log_has_one_line_for_each_event_of_a_trial():
    waiting = replace(running("t"), state="waiting")
    lines = log_of(
        Snapshot([baseline(), waiting], started=1000),
        Snapshot([baseline(), running("t")], started=1000),
        Snapshot([baseline(), running("t", 1)], started=1000),
        Snapshot([baseline(), running("t", 1)], started=1000),
        Snapshot([baseline(), search_trial("t", 50, 48)], started=1000),
    )
    assert lines == [
        "[0:00:00] 1 trial had already ended; going on from there",
        "[0:00:01] t: started",
        "[0:00:02] t: dcr finished in 40 s",
        "[0:00:04] t: sft finished in 1 min 30 s",
        "[0:00:04] t: generate finished in 30 s",
        "[0:00:04] t: judge finished in 2.0 s",
        "[0:00:04] t: complete, compliance 0.83 [0.72, 0.91] (+0.22 to the baseline), defense 0.80 [0.68, 0.88] (0.00 "
        "to the baseline)",
        "[0:00:05] quick: 2 of 4 trials ended; first on the front: t, compliance 0.83 [0.72, 0.91] (+0.22 to the "
        "baseline), "
        "defense 0.80 [0.68, 0.88] (0.00 to the baseline)",
    ]


def test_cached_stages_failures_pruning_and_broken_constraints_are_said():
    text = "\n".join(
        log_of(
            Snapshot([running("a"), running("b"), running("c")], started=1000),
            Snapshot(
                [
                    failed_trial("a", reason="out of memory\non rank 1"),
                    failed_trial("b", reason="hopeless after dcr", state="pruned"),
                    search_trial("c", stages=stages("c", cached=True), feasible=False),
                ],
                started=1000,
            ),
        )
    )
    assert "a: failed, out of memory on rank 1" in text
    assert "b: pruned, hopeless after dcr" in text
    assert "c: dcr from the cache, 40 s saved" in text
    assert "c: complete (breaks a constraint), compliance" in text


def test_a_log_has_a_heartbeat_every_thirty_seconds_even_when_nothing_else_happens():
    stage = RunningStage("t", "sft", 120, 400, 0.4213, 60)
    snapshots = [Snapshot([running("t")], [stage], started=1000)] * 8
    lines = [line for line in log_of(*snapshots, seconds_between=10) if "trials ended" in line and "running:" in line]
    assert lines == [
        "[0:00:30] 0 of 4 trials ended, time left not known yet; running: t sft 120/400 loss 0.4213",
        "[0:01:00] 0 of 4 trials ended, time left not known yet; running: t sft 120/400 loss 0.4213",
    ]


def test_messages_and_tracking_are_told_once():
    lines = log_of(
        Snapshot(tracking="up to date", messages=["one", "two"], started=1000),
        Snapshot(tracking="4 events behind", messages=["two", "[red]three[/red] \x1b[31m"], started=1000),
        Snapshot(
            tracking="9 events behind: refused, again in 20 s", messages=["[red]three[/red] \x1b[31m"], started=1000
        ),
        Snapshot(
            tracking="9 events behind: refused, again in 19 s", messages=["[red]three[/red] \x1b[31m"], started=1000
        ),
        Snapshot(tracking="up to date", messages=["[red]three[/red] \x1b[31m"], started=1000),
    )
    assert [line.split("] ", 1)[1] for line in lines[:-1]] == [
        "one",
        "two",
        "[red]three[/red]",
        "tracking: 9 events behind: refused, again in 20 s",
        "tracking: up to date",
    ]


def test_new_messages_are_those_after_the_longest_overlap():
    assert new_messages((), ("a", "b")) == ("a", "b")
    assert new_messages(("a", "b", "a"), ("b", "a", "c")) == ("c",)
    assert new_messages(("a",), ("a",)) == ()
    assert new_messages(("a", "b"), ("x", "y")) == ("x", "y")


def test_a_snapshot_does_not_change_with_the_list_it_was_made_of():
    trials = [baseline()]
    snapshot = Snapshot(trials)
    trials.append(search_trial("late"))
    assert len(snapshot.trials) == 1


def full_snapshot() -> Snapshot:
    trials = [*many_trials(20), running("live-1", 1), running("live-2")]
    return Snapshot(
        trials,
        [
            RunningStage("live-1", "sft", 120, 400, 0.4213, 62),
            RunningStage("live-2 [red]with a very long name indeed[/red]", "generate", 3, 0, None, 5),
        ],
        [f"group {place}: busy with sft of live-1" for place in range(9)],
        ["engine 0: idle"],
        "mlflow at sqlite:////somewhere/rather/deep/in/a/file/system/mlflow.db, nothing waiting",
        1000.0,
        ["[bold]not markup[/bold] \x1b[31m", "a long message " * 20],
    )


@pytest.mark.parametrize("objectives", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("height", [24, 40])
def test_the_screen_fits_a_terminal_of_eighty_columns(objectives, height):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=height, legacy_windows=False)
    with LiveView(console, "quick", 40, objectives, 2, clock=lambda: 5000.0) as view:
        view.update(full_snapshot())
    assert "\x1b[" in out.getvalue()
    screen = [line.rstrip() for line in TERMINAL_COMMANDS.sub("", out.getvalue()).replace("\r", "\n").splitlines()]
    assert max(cell_len(line) for line in screen) <= 80
    text = "\n".join(screen)
    for expected in (
        "quick: 21 of 40 trials",
        "so far, about",
        "120/400",
        "0.4213",
        "1 min 02 s",
        "live-2 [red]with a very",
        "best so far (5 of ",
        "stl",
        "9 groups",
        "engine",
        "tracking",
        "[bold]not markup[/bold]",
    ):
        if height == 24 and expected.startswith("["):
            continue
        assert expected in text, expected
    assert len(view._console.render_lines(view.screen(full_snapshot()), pad=False)) <= height


def test_more_running_stages_than_the_terminal_has_lines_are_counted():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=30, legacy_windows=False)
    view = LiveView(console, "quick", 400, TWO, 200, clock=lambda: 5000.0)
    snapshot = Snapshot(
        [baseline()], [RunningStage(f"t{place}", "sft", 1, 2, 0.5, 3) for place in range(200)], started=1000.0
    )
    lines = console.render_lines(view.screen(snapshot), pad=False)
    assert len(lines) <= 30
    assert any(re.search(r"and \d+ more", "".join(segment.text for segment in line)) for line in lines)


def test_an_empty_study_has_a_screen():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    console.print(LiveView(console, "quick", 4, TWO, clock=lambda: 1000.0).screen(Snapshot(started=1000.0)))
    assert "no trial has ended yet" in console.file.getvalue()


def lasting(seconds: int, name: str = "t"):
    return search_trial(
        name, started="2025-03-01T10:00:00+00:00", ended=f"2025-03-01T10:{seconds // 60:02d}:{seconds % 60:02d}+00:00"
    )


def test_time_left_is_unknown_until_a_trial_ended_and_nothing_when_all_did():
    assert time_left([running("t")], 4, [RunningStage("t", "sft")], 1) is None
    assert time_left([baseline(), lasting(100)], 2, [], 1) == 0.0


def test_time_left_shares_the_waiting_trials_among_the_places():
    ended = [lasting(90), lasting(100), lasting(600)]
    assert time_left(ended, 3 + 5, [], 1) == 5 * 100
    assert time_left(ended, 3 + 5, [], 2) == 3 * 100
    assert time_left(ended, 3 + 5, [], 10) == 100


def test_time_left_counts_what_running_trials_have_behind_them():
    ended, under_way = [lasting(200)], running("now", 1)
    assert time_left([*ended, under_way], 2, [RunningStage("now", "sft", since_seconds=60)], 1) == 200 - 40 - 60
    assert time_left([*ended, under_way], 3, [RunningStage("now", "sft", since_seconds=60)], 2) == 200
    assert time_left([*ended, under_way], 2, [RunningStage("now", "sft", since_seconds=900)], 1) == 0.0


def test_time_left_without_times_goes_by_the_stages_that_the_trial_paid_for():
    trial = replace(search_trial("t", stages=stages("t", cached=True)), started=None, ended=None)
    assert time_left([trial], 2, [], 1) == 122.0
