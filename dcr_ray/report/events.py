"""What happened in a study between two snapshots, as plain lines for a log.

It knows nothing of terminals or of time; a line carries no markup and no control character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dcr_ray.pareto import Objectives
from dcr_ray.report.measured import baseline_of, measured
from dcr_ray.report.progress import ENDED, RunningStage, Snapshot
from dcr_ray.report.tally import changed
from dcr_ray.report.wording import counted, duration, one_line
from dcr_ray.trial import Trial


def events(before: Snapshot | None, now: Snapshot, objectives: Objectives) -> list[str]:
    """One line for every trial that started or ended, every stage that finished, every new message and tracking state.

    Without a snapshot before, the trials that had already ended are counted in one line instead of told one by one.
    """
    lines: list[str] = []
    if before is None and now.ended:
        lines.append(f"{counted(now.ended, 'trial')} had already ended; going on from there")
    earlier = before.trials if before else ()
    places = list(changed(earlier, now.trials))
    known = {earlier[place].name: earlier[place] for place in places if place < len(earlier)}
    baseline = baseline_of(now.trials)
    for place in places:
        trial = now.trials[place]
        if before is None and trial.state in ENDED:
            continue
        lines += _trial_events(known.get(trial.name), trial, baseline, objectives)
    trouble, trouble_before = _trouble(now.tracking), _trouble(before.tracking if before else "")
    if trouble != trouble_before:
        lines.append(f"tracking: {one_line(now.tracking)}")
    lines += [one_line(message) for message in new_messages(before.messages if before else (), now.messages)]
    return lines


def _trouble(tracking: str) -> str:
    """Why events are not getting through, without the counts that change all the time; '' while they are."""
    return re.sub(r"\d+", "", tracking.partition(":")[2])


def heartbeat(now: Snapshot, ended: int, total_trials: int, left_seconds: float | None) -> str:
    """One line of progress: trials ended, what is under way, and the estimate of the time left."""
    left = "time left not known yet" if left_seconds is None else f"about {duration(left_seconds)} left"
    under_way = ", ".join(running_words(stage) for stage in now.running[:4])
    more = f", and {len(now.running) - 4} more" if len(now.running) > 4 else ""
    usage = f"; used {', '.join(now.usage)}" if now.usage else ""
    return f"{ended} of {total_trials} trials ended, {left}; running: {under_way or 'nothing'}{more}{usage}"


def running_words(stage: RunningStage) -> str:
    """'trial-3 sft 120/400 loss 0.42'."""
    words = f"{one_line(stage.trial, 40)} {one_line(stage.stage, 20)}"
    if stage.steps > 0:
        words += f" {stage.step}/{stage.steps}"
    return words if stage.loss is None else f"{words} loss {stage.loss:.4g}"


def outcome(trial: Trial, baseline: Trial | None, objectives: Objectives) -> str:
    """A complete trial's objectives, with their differences to the baseline where there is one."""
    parts = []
    for name in objectives:
        value = measured(trial, name)
        reference = None if trial is baseline else measured(baseline, name)
        against = f" ({value.difference(reference)} to the baseline)" if value and reference else ""
        parts.append(f"{one_line(name, 40)} {value or 'missing'}{against}")
    return ", ".join(parts)


def new_messages(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """The messages of `now` that are not yet in `before`, when both are the last ones of the same growing list."""
    for length in range(min(len(before), len(now)), 0, -1):
        if tuple(before[-length:]) == tuple(now[:length]):
            return now[length:]
    return now


def _trial_events(before: Trial | None, now: Trial, baseline: Trial | None, objectives: Objectives) -> list[str]:
    name = one_line(now.name, 40)
    state_before = before.state if before else "waiting"
    lines: list[str] = []
    if state_before not in ("running", *ENDED) and now.state == "running":
        lines.append(f"{name}: started")
    seen = {(stage.name, stage.key) for stage in before.stages} if before else set()
    for stage in now.stages:
        if (stage.name, stage.key) not in seen:
            how = (
                f"from the cache, {duration(stage.seconds)} saved"
                if stage.cached
                else f"finished in {duration(stage.seconds)}"
            )
            lines.append(f"{name}: {one_line(stage.name, 20)} {how}")
    if now.state in ENDED and now.state != state_before:
        if now.state == "complete":
            broken = " (breaks a constraint)" if now.feasible is False else ""
            lines.append(f"{name}: complete{broken}, {outcome(now, baseline, objectives)}")
        else:
            lines.append(f"{name}: {now.state}, {one_line(now.reason or 'no reason was given', 400)}")
    return lines
