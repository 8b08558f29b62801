"""Trials that are asked for before they are wanted, one after another in one thread. It knows nothing of Optuna."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Asked = TypeVar("Asked")


class AskedAhead(Generic[Asked]):
    """`ask` is told whether it is called ahead and gives a trial, or None when there are no more.

    All calls of `ask` come from one thread, or from the taker's where `count` is 0, so that it needs no lock of its
    own. What `ask` raises ahead is raised when its trial is taken.
    """

    def __init__(self, ask: Callable[[bool], Asked | None], count: int):
        self._ask = ask
        self._count = count
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ask") if count else None
        self._waiting: deque[Future[Asked | None]] = deque()

    def take(self) -> Asked | None:
        """The next trial: one that waits, or the one that is being asked for, or a new one. None when all are taken."""
        if self._thread is None:
            return self._ask(False)
        taken = self._waiting.popleft() if self._waiting else self._thread.submit(self._ask, False)
        while len(self._waiting) < self._count:
            self._waiting.append(self._thread.submit(self._ask, True))
        return taken.result()

    def settle(self) -> None:
        """Returns when all that is to wait does."""
        wait(self._waiting)

    def close(self) -> None:
        """Returns when nothing is being asked for any more. What waits is not taken by anyone."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
