"""Virtual time: an asyncio loop whose clock jumps to the next timer instead of waiting for it.

Coroutines that sleep and wait run as they would, in their order, and a day of them takes as long as their own work.
Nothing in them may wait for the real world.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time` is seconds since the loop was made, and moves only when nothing else is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        # A timer that was cancelled is nobody's next event.
        while self._scheduled and self._scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(self._scheduled)._scheduled = False
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0].when())
        super()._run_once()


def run_virtually(main: Coroutine[Any, Any, T], loop: VirtualLoop) -> T:
    """Run a coroutine to its end in virtual time, and cancel what it left running."""
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(_cancel_all_others())
        loop.close()


async def _cancel_all_others() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
