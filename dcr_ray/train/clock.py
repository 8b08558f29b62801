"""Where the seconds of a stage went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds by name, and in all since it was made. `seconds` may start with those of an interrupted run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._earlier = 0.0
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
        self._earlier += earlier["total"]
        for name, seconds in earlier.items():
            if name != "total":
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """All seconds so far, with `total`."""
        return {**self.seconds, "total": self._earlier + time.monotonic() - self._start}
