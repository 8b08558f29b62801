"""Nodes that are about to be taken away: spot nodes with notice, or nodes that somebody drains.

Ray is told by its autoscaler, or by `ray drain-node`; a cloud's notice that nobody passes on to Ray is not known here.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from dcr_ray.errors import DcrError

ASKING_SECONDS = 2.0


class NodeDrained(DcrError):
    """A worker ends because its node is taken away; it is to be started elsewhere, and nothing is wrong with it."""


class DrainWatch:
    """Asks Ray, every few seconds at most, whether one of these nodes (by id) is about to go."""

    def __init__(self, nodes: Collection[str]):
        self._nodes = frozenset(nodes)
        self._asked, self._leaving = 0.0, False

    def leaving(self) -> bool:
        import ray

        if time.monotonic() - self._asked >= ASKING_SECONDS:
            self._asked = time.monotonic()
            self._leaving = bool(self._nodes & set(ray._private.state.state.get_draining_nodes() or ()))
        return self._leaving
