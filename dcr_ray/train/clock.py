"""Where the seconds of a stage went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dcr_ray.time_ledger import EARLIER


class Clock:
    """Seconds by name, and in all since it was made.

    `seconds` may start with those of an interrupted run, which are then told apart too, as `earlier/NAME`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._earlier: dict[str, float] = {}
        self._start = time.monotonic()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def go_on_from(self, earlier: dict[str, float]) -> None:
        """Add the seconds that an interrupted run of the same stage had taken up to its checkpoint."""
        self._earlier = {name: seconds for name, seconds in earlier.items() if not name.startswith(EARLIER)}
        for name, seconds in self._earlier.items():
            if name != "total":
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """All seconds so far, with `total`."""
        total = self._earlier.get("total", 0.0) + time.monotonic() - self._start
        return {**self.seconds, **{EARLIER + name: value for name, value in self._earlier.items()}, "total": total}
