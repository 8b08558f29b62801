"""How far a study is at one moment, and how long it is likely to go on.

It knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dcr_ray.trial import Trial

ENDED = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class RunningStage:
    """A stage under way: which trial's, how many optimizer steps or prompts of how many, its last loss, its age.

    `steps` is 0 where the number is not known yet; `loss` is None where the stage has none or has not reported one.
    """

    trial: str
    stage: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    since_seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """A study as it stands. `started` is in seconds since the epoch; sequences are copied, so it cannot change later.

    `groups` and `engines` hold one line of state each, `tracking` one in all, `usage` what is used of each limit of the
    budget; `messages` are the last ones, newest last.
    """

    trials: Sequence[Trial] = ()
    running: Sequence[RunningStage] = ()
    groups: Sequence[str] = ()
    engines: Sequence[str] = ()
    tracking: str = ""
    started: float = 0.0
    messages: Sequence[str] = ()
    usage: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("trials", "running", "groups", "engines", "usage", "messages"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def ended(self) -> int:
        return sum(trial.state in ENDED for trial in self.trials)


def wall_seconds(trial: Trial) -> float | None:
    """Seconds from the trial's start to its end, or None where one is missing. A time without zone is read as UTC."""
    if not trial.started or not trial.ended:
        return None
    return max(0.0, (moment(trial.ended) - moment(trial.started)).total_seconds())


def moment(text: str) -> datetime:
    """An ISO 8601 time. Raises ValueError for anything else."""
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def own_seconds(trial: Trial) -> float:
    """Seconds of work that this trial paid for itself: its stages without those that the cache had."""
    return sum(stage.seconds for stage in trial.stages if not stage.cached)


def time_left(trials: Sequence[Trial], total: int, running: Sequence[RunningStage], concurrent: int) -> float | None:
    """Seconds until the last of `total` trials ends, or None while no trial has ended.

    A trial is taken to last the median of those that ended, in whatever way, since the ones to come will be stopped or
    fail about as often. Its time is from start to end, or the seconds of its own stages where it has no times. A
    running trial has what the median leaves after its finished stages and the age of its current one, at least nothing.
    The trials not yet begun are handed, one median each, to whichever of the `concurrent` places is free first; the
    answer is when the last place is free. The median does not feel the slow first trial of a study, nor that later ones
    find more in the cache.
    """
    ended = [trial for trial in trials if trial.state in ENDED]
    lengths = sorted(length for trial in ended if (length := length_seconds(trial)) > 0)
    under_way = [trial for trial in trials if trial.state == "running"]
    return left_of(lengths, len(ended), under_way, total, running, concurrent)


def length_seconds(trial: Trial) -> float:
    """How long a trial that ended lasted, by its times, or by its own stages where it has none."""
    wall = wall_seconds(trial)
    return own_seconds(trial) if wall is None else wall


def left_of(
    lengths: Sequence[float],
    ended: int,
    under_way: Sequence[Trial],
    total: int,
    running: Sequence[RunningStage],
    concurrent: int,
) -> float | None:
    """`time_left` from the sorted positive lengths of the trials that ended, their number, and the running ones."""
    if ended >= total:
        return 0.0
    if not lengths:
        return None
    middle = len(lengths) // 2
    typical = lengths[middle] if len(lengths) % 2 else (lengths[middle - 1] + lengths[middle]) / 2
    ages: dict[str, float] = {trial.name: own_seconds(trial) for trial in under_way}
    for stage in running:
        ages[stage.trial] = ages.get(stage.trial, 0.0) + stage.since_seconds
    places = [max(0.0, typical - age) for age in ages.values()]
    places += [0.0] * (max(1, concurrent) - len(places))
    places.sort()
    # No place is free later than one median from now, so the trials to come go round the places in their order.
    rounds, further = divmod(max(0, total - ended - len(ages)), len(places))
    return rounds * typical + (places[further - 1] + typical if further else places[-1])
