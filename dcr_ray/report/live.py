"""A running study on a terminal: one screen that is kept up to date, or plain lines where the output is no terminal.

It is handed snapshots and knows nothing of where they come from. It starts no thread: the screen and the heartbeat move
only when `update` is called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dcr_ray.pareto import Objectives
from dcr_ray.report.events import events, heartbeat, outcome
from dcr_ray.report.measured import measured
from dcr_ray.report.progress import ENDED, RunningStage, Snapshot
from dcr_ray.report.tally import Tally
from dcr_ray.report.wording import counted, duration, one_line
from dcr_ray.trial import Trial

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

HEARTBEAT_SECONDS = 30.0
MOST_FRONT_ROWS = 5
MOST_MESSAGES = 4


class LiveView:
    """Use as a context manager and call `update` about once a second.

    `total_trials` counts the baseline too. `concurrent_trials` is how many run at a time, for the estimate of the time
    left. `clock` tells seconds since the epoch.
    """

    def __init__(
        self,
        console: Console,
        study_name: str,
        total_trials: int,
        objectives: Objectives,
        concurrent_trials: int = 1,
        clock: Callable[[], float] = time.time,
    ):
        self._console = console
        self._study_name = one_line(study_name, 64)
        self._total_trials = total_trials
        self._objectives = objectives
        self._concurrent_trials = concurrent_trials
        self._clock = clock
        self._screen: Live | None = None
        self._last: Snapshot | None = None
        self._tally = Tally(objectives)
        self._heartbeat_at: float | None = None

    def __enter__(self) -> LiveView:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            from rich.live import Live

            self._screen = Live(console=self._console, auto_refresh=False, vertical_overflow="ellipsis")
            self._screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._screen is not None:
            self._screen.stop()
            self._screen = None
        elif self._last is not None:
            self._say(self._summary(), self._last)

    def update(self, snapshot: Snapshot) -> None:
        """Show the study as it stands now. Its trials are in the order of the last call, new ones behind them."""
        if self._screen is not None:
            self._screen.update(self.screen(snapshot), refresh=True)
        else:
            self._write_lines(snapshot)
        self._last = snapshot

    def screen(self, snapshot: Snapshot) -> Group:
        """The whole screen for one snapshot, for a terminal of the console's width and height."""
        self._tally.update(snapshot.trials)
        from rich.console import Group

        states = [("group", snapshot.groups), ("engine", snapshot.engines)]
        below = [self._best(), *(_state_line(kind, lines) for kind, lines in states if lines)]
        if snapshot.usage:
            below.append(_line(f"budget: {', '.join(snapshot.usage)}", "dim"))
        if snapshot.tracking:
            below.append(_line(f"tracking: {one_line(snapshot.tracking)}", "dim"))
        below += [_line(f"> {one_line(message)}", "dim") for message in snapshot.messages[-MOST_MESSAGES:]]
        lines_taken = 2 + 2 + MOST_FRONT_ROWS + 3 + len(below)
        room = max(3, self._console.height - lines_taken)
        return Group(*self._header(snapshot), _running(snapshot.running, room), *below)

    def _header(self, snapshot: Snapshot) -> list[Text]:
        left = self._time_left(snapshot)
        split = ", ".join(f"{self._tally.states[state]} {state}" for state in ENDED if self._tally.states[state])
        estimate = "no trial has ended yet, so no estimate"
        if left is not None:
            estimate = f"about {duration(left)} left, from the median trial and {self._concurrent_trials} at a time"
        counts = f"{self._tally.ended} of {self._total_trials} trials" + (f" ({split})" if split else "")
        return [
            _line(f"{self._study_name}: {counts}", "bold"),
            _line(f"{duration(self._clock() - snapshot.started)} so far, {estimate}"),
        ]

    def _best(self) -> Table | Text:
        from rich.table import Table
        from rich.text import Text

        baseline, front = self._tally.baseline, self._tally.front
        rows = ([baseline] if baseline else []) + front[:MOST_FRONT_ROWS]
        if not rows:
            return _line("best so far: nothing is complete yet", "dim")
        wide = 26 + 27 * len(self._objectives) <= self._console.width
        more = len(front) - MOST_FRONT_ROWS
        title = "best so far" + (f" ({MOST_FRONT_ROWS} of {len(front)})" if more > 0 else "")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column(title, no_wrap=True, overflow="ellipsis", max_width=24)
        for name in self._objectives:
            table.add_column(Text(one_line(name, 24)), no_wrap=True, overflow="ellipsis")
        for trial in rows:
            cells = [_cell(trial, baseline, name, wide) for name in self._objectives]
            table.add_row(
                *(Text(cell) for cell in (one_line(trial.name), *cells)), style="bold" if trial is baseline else "green"
            )
        return table

    def _write_lines(self, snapshot: Snapshot) -> None:
        self._tally.update(snapshot.trials)
        for line in events(self._last, snapshot, self._objectives):
            self._say(line, snapshot)
        now = self._clock()
        if self._heartbeat_at is None:
            self._heartbeat_at = now
        elif now - self._heartbeat_at >= HEARTBEAT_SECONDS:
            self._heartbeat_at = now
            self._say(heartbeat(snapshot, self._tally.ended, self._total_trials, self._time_left(snapshot)), snapshot)

    def _say(self, line: str, snapshot: Snapshot) -> None:
        from rich.text import Text

        elapsed = _clock_face(self._clock() - snapshot.started)
        self._console.print(Text(f"[{elapsed}] {line}"), soft_wrap=True, highlight=False)

    def _summary(self) -> str:
        front, baseline = self._tally.front, self._tally.baseline
        best = (
            f"; first on the front: {one_line(front[0].name, 40)}, {outcome(front[0], baseline, self._objectives)}"
            if front
            else ""
        )
        return f"{self._study_name}: {self._tally.ended} of {counted(self._total_trials, 'trial')} ended{best}"

    def _time_left(self, snapshot: Snapshot) -> float | None:
        return self._tally.time_left(self._total_trials, snapshot.running, self._concurrent_trials)


def _running(running: Sequence[RunningStage], room: int) -> Table | Text:
    """The stages under way, as many as there is room for."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if not running:
        return _line("running: nothing", "dim")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("running", no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column("stage", no_wrap=True, overflow="ellipsis", max_width=10)
    table.add_column("", width=12, no_wrap=True)
    for title in ("step", "loss", "for"):
        table.add_column(title, justify="right", no_wrap=True, overflow="ellipsis")
    for stage in running[:room]:
        known = stage.steps > 0
        table.add_row(
            Text(one_line(stage.trial)),
            Text(one_line(stage.stage)),
            ProgressBar(total=stage.steps, completed=min(stage.step, stage.steps), width=12) if known else Text(""),
            Text(f"{stage.step}/{stage.steps}" if known else ""),
            Text("" if stage.loss is None else f"{stage.loss:.4g}"),
            Text(duration(stage.since_seconds)),
        )
    if len(running) > room:
        table.add_row(Text(f"and {len(running) - room} more", style="dim"))
    return table


def _state_line(kind: str, lines: Sequence[str]) -> Text:
    return _line(f"{counted(len(lines), kind)}: {'; '.join(one_line(line) for line in lines)}", "dim")


def _cell(trial: Trial, baseline: Trial | None, name: str, wide: bool) -> str:
    value = measured(trial, name)
    if value is None:
        return ""
    text = str(value) if wide else str(value).split(" ")[0]
    reference = measured(baseline, name)
    return text if reference is None or trial is baseline else f"{text} {value.difference(reference)}"


def _line(text: str, style: str = "") -> Text:
    """One line of the screen that is cut, never wrapped. A Text is not read as markup."""
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _clock_face(seconds: float) -> str:
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
