"""How many worker groups each of the studies on one cluster may have: a few rules over what they say of themselves.

The unit is one group. A running study keeps at least one; one that has several gives one back when another study has
none, or so many fewer that it would still have no more after the exchange. Room that nobody waits for goes to the
study with the least. One exchange at a time, so that its effect is seen before the next. A study that is not heard of
for a while has ended, however it ended.

In a cluster the class is one actor for all studies, by a name that all know; the class itself knows no Ray. It moves
nothing: the studies ask, and do it themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

EXPIRE_SECONDS = 15.0
PATIENCE_SECONDS = 5.0
"""For how long a study's groups or engines may be without a place before others give room: Ray needs a moment."""

SETTLE_SECONDS = 30.0
"""For how long room that became free is kept for the one it was meant for."""


@dataclass(frozen=True)
class Standing:
    """What a study says of itself. `weight` is what one group takes (GPUs, or CPUs where there are none).

    `up` counts the groups that it has started, `placed` those for which Ray has found a place, `pending` those for
    which Ray has been asked for one in vain so far; a group that was just started is neither. `engines_pending`
    likewise. `room` says whether one more of its groups would fit into what is free now.
    """

    study: str
    driver: str
    wanted: int
    weight: float
    engines: int = 1
    up: int = 0
    placed: int = 0
    pending: int = 0
    engines_pending: int = 0
    room: bool = False

    @property
    def lacks(self) -> bool:
        """Whether it cannot work at all for want of a place."""
        return (self.placed == 0 and self.pending > 0) or 0 < self.engines == self.engines_pending

    def __str__(self) -> str:
        def count(number: int, noun: str) -> str:
            return f"{number} {noun}{'' if number == 1 else 's'}"

        return f"{self.study} ({count(self.placed, 'group')}, {count(self.engines - self.engines_pending, 'engine')})"


@dataclass(frozen=True)
class Share:
    """What a study is told: how many groups it may have, for whom it gives one back, and who else is there.

    `holder` is the driver that runs a study of this name already; nothing else counts then.
    """

    groups: int
    giving_to: str | None = None
    others: tuple[str, ...] = ()
    holder: str | None = None


@dataclass
class _Member:
    standing: Standing
    groups: int
    heard: float
    since: float
    lacking_since: float | None = None
    giving_to: str | None = None


@dataclass
class _Move:
    """A group on its way: from one study to another, or into free room (`giver` is None)."""

    giver: str | None
    taker: str
    taker_had: int
    lacked: bool
    left: int = 0
    freed: float | None = None


class SharedCluster:
    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._born = clock()
        self._members: dict[str, _Member] = {}
        self._move: _Move | None = None

    def tell(self, standing: Standing) -> Share:
        """A study's standing; to be told every few seconds. Returns its share as it is now."""
        now = self._clock()
        self._members = {name: each for name, each in self._members.items() if now - each.heard < EXPIRE_SECONDS}
        member = self._members.get(standing.study)
        if member is not None and member.standing.driver != standing.driver:
            return Share(0, holder=member.standing.driver)
        if member is None:
            groups = standing.up or (1 if self._members else standing.wanted)
            member = self._members[standing.study] = _Member(standing, groups, now, now)
        member.standing, member.heard = standing, now
        self._decide(now)
        others = tuple(str(each.standing) for name, each in sorted(self._members.items()) if name != standing.study)
        return Share(member.groups, member.giving_to, others)

    def leave(self, study: str, driver: str) -> bool:
        """The study has ended. True when no study is left."""
        if study in self._members and self._members[study].standing.driver == driver:
            del self._members[study]
        return not self._members

    def _decide(self, now: float) -> None:
        members = self._members
        for each in members.values():
            each.lacking_since = (each.lacking_since or now) if each.standing.lacks else None
        if len(members) == 1:
            only = next(iter(members.values()))
            self._move = None
            # An actor that was started anew has not heard of the other studies yet.
            if not only.standing.up or now - self._born > EXPIRE_SECONDS:
                only.groups, only.giving_to = only.standing.wanted, None
            return
        if self._move is not None:
            if not self._over(self._move, now):
                return
            self._move = None
        if (taker := self._poorest(now)) is not None and (giver := self._giver(taker)) is not None:
            giver.groups = giver.standing.up - 1
            giver.giving_to = taker.standing.study
            had, lacked = taker.standing.placed, taker.standing.lacks
            self._move = _Move(giver.standing.study, taker.standing.study, had, lacked, left=giver.groups)
            return
        # What is free belongs to groups that were started already, if there are any without a place.
        if all(each.standing.placed == each.standing.up for each in members.values()):
            self._grow()

    def _poorest(self, now: float) -> _Member | None:
        """Who is short of a group: first the study that has waited longest without any."""
        lacking = [each for each in self._members.values() if each.lacking_since is not None]
        if lacking:
            first = min(lacking, key=lambda each: (each.lacking_since, each.since))
            return first if now - first.lacking_since >= PATIENCE_SECONDS else None
        short = [
            each
            for each in self._members.values()
            if each.standing.placed + each.standing.pending == each.standing.up
            and each.standing.placed < each.standing.wanted
            and not each.standing.room
        ]
        return min(short, key=lambda each: each.standing.placed * each.standing.weight, default=None)

    def _giver(self, taker: _Member) -> _Member | None:
        """The study with the most that can spare a group for this one."""

        def can_spare(each: _Member) -> bool:
            standing, other = each.standing, taker.standing
            if each is taker or standing.placed < 2 or standing.up < 2:
                return False
            left, then = (standing.placed - 1) * standing.weight, (other.placed + 1) * other.weight
            return other.lacks or left >= then

        able = [each for each in self._members.values() if can_spare(each)]
        return max(able, key=lambda each: (each.standing.placed * each.standing.weight, each.since), default=None)

    def _grow(self) -> None:
        able = [
            each
            for each in self._members.values()
            if each.standing.room and each.standing.up == each.groups < each.standing.wanted
        ]
        taker = min(able, key=lambda each: (each.standing.placed * each.standing.weight, each.since), default=None)
        if taker is not None:
            taker.groups, taker.giving_to = taker.groups + 1, None
            self._move = _Move(None, taker.standing.study, taker.standing.placed, False, freed=self._clock())

    def _over(self, move: _Move, now: float) -> bool:
        taker = self._members.get(move.taker)
        giver = self._members.get(move.giver) if move.giver else None
        if taker is None or (move.giver and giver is None):
            return True
        if giver is not None and move.freed is None and giver.standing.up <= move.left:
            move.freed = now
            if not taker.standing.lacks:
                # One that lacks a place has asked Ray for it already.
                taker.groups, taker.giving_to = taker.standing.up + 1, None
        if move.freed is None:
            return False  # the giver's stage is not done
        served = taker.standing.placed > move.taker_had or (move.lacked and not taker.standing.lacks)
        return served or now - move.freed > SETTLE_SECONDS
