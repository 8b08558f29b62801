"""Where the time went, as a section of the study's report: the time ledger of all trials, and how busy each worker was.

It knows what trials say of themselves; a stage that another study left in the cache is nobody's work here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcr_ray.report.progress import moment, own_seconds
from dcr_ray.report.time_chart import draw_time
from dcr_ray.report.wording import counted, duration, escape_markdown
from dcr_ray.time_ledger import PARTS, WITHIN, summed, unaccounted
from dcr_ray.trial import Trial


def time_section(trials: Sequence[Trial], chart: Path) -> list[str]:
    """Paragraphs in Markdown; the chart is written to `chart` where there is something to show."""
    saved = sum(stage.seconds for trial in trials for stage in trial.stages if stage.cached)
    worked = sum(own_seconds(trial) for trial in trials)
    lines = [f"Stages worked {duration(worked)} in all; the cache saved another {duration(saved)}."]
    if table := _table(trials):
        lines += table
    elif trials:
        lines.append("No trial has a time ledger.")
    if draw_time(trials, chart):
        lines.append(f"![Where each trial's wall clock went]({chart.name})")
    lines += _workers(trials)
    return lines


def busy_seconds(trials: Sequence[Trial]) -> dict[str, float]:
    """Seconds of stages by worker group and engine, without what the cache had. A replaced engine keeps its seat."""
    busy: dict[str, float] = {}
    for trial in trials:
        for stage in trial.stages:
            if stage.worker and not stage.cached:
                seat = stage.worker.split(".")[0]
                busy[seat] = busy.get(seat, 0.0) + stage.seconds
    return dict(sorted(busy.items()))


def study_span(trials: Sequence[Trial]) -> float | None:
    """Seconds from the first trial's start to the last one's end, interruptions included; None before any has ended."""
    starts = [moment(trial.started) for trial in trials if trial.started]
    ends = [moment(trial.ended) for trial in trials if trial.ended]
    return (max(ends) - min(starts)).total_seconds() if starts and ends else None


def _table(trials: Sequence[Trial]) -> list[str]:
    ended = [trial for trial in trials if trial.wall]
    if not ended:
        return []
    ledger, wall = summed(trial.ledger for trial in ended), sum(trial.wall for trial in ended)
    worst = max(ended, key=lambda trial: abs(trial.unaccounted) / trial.wall)
    rows = ["| part | seconds | share | what it is |", "|---|--:|--:|---|"]
    for part, meaning in PARTS.items():
        rows.append(_row(part, ledger[part], wall, meaning))
        rows += [
            _row(f"... of it {name.split('/')[1]}", ledger[name], wall, WITHIN[name])
            for name in WITHIN
            if name.startswith(f"{part}/") and name in ledger
        ]
    rows.append(_row("unaccounted", unaccounted(ledger, wall), wall, "what the parts leave of the wall clock"))
    rows.append(_row("wall clock", wall, wall, f"{counted(len(ended), 'trial')}, each from its ask to its end"))
    return [
        "\n".join(rows),
        f"Largest unaccounted share of a trial: {worst.unaccounted / worst.wall:z.1%} of {duration(worst.wall)}, "
        f"{escape_markdown(worst.name)}. Trials overlap, so these seconds are more than the study's own.",
    ]


def _workers(trials: Sequence[Trial]) -> list[str]:
    span = study_span(trials)
    if not span:
        return []
    started = min(moment(trial.started) for trial in trials if trial.started)
    ended = max(moment(trial.ended) for trial in trials if trial.ended)
    lines = [
        f"From the first start ({started:%Y-%m-%d %H:%M %Z}) to the last end ({ended:%Y-%m-%d %H:%M %Z}) "
        f"{duration(span)} passed, interruptions included."
    ]
    if busy := busy_seconds(trials):
        rows = ["| worker | stages' seconds | share of the time that passed |", "|---|--:|--:|"]
        rows += [
            f"| {escape_markdown(name)} | {seconds:.1f} | {seconds / span:.1%} |" for name, seconds in busy.items()
        ]
        lines.append("\n".join(rows))
    return lines


def _row(name: str, seconds: float, wall: float, meaning: str) -> str:
    return f"| {name} | {seconds:z.1f} | {seconds / wall:z.1%} | {meaning} |"
