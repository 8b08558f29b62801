"""A finished model's files, written by rank 0 in a thread while its group trains the next stage.

The stage counts as finished when they are there: only then it gets its record and the broker is told. One model at a
time is held for this; the next one waits. It does not know what is in the files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from dcr_ray.stages import StageTask


class Finishing:
    """`done` and `failed` tell the broker: of a record, or of a key and a reason."""

    def __init__(self, done: Callable[[Any], None], failed: Callable[[str, str], None]):
        self._done, self._failed = done, failed
        self._thread: threading.Thread | None = None
        self._key: str | None = None

    @property
    def held(self) -> tuple[str, ...]:
        """Keys of stages whose files are still being written."""
        return (self._key,) if self._thread is not None and self._thread.is_alive() else ()

    def start(self, task: StageTask, results: dict[str, Any], ran: dict[str, Any], write: Callable[[], None]) -> None:
        """Write in a thread and finish the stage there; returns at once, unless the one before is not ready yet."""
        self.wait()
        self._key = task.key
        self._thread = threading.Thread(target=self._run, args=(task, results, ran, write), name="finishing")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is left to write."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, task: StageTask, results: dict[str, Any], ran: dict[str, Any], write: Callable[[], None]) -> None:
        import torch

        # The cores belong to the stage that trains meanwhile. OpenMP counts threads for each thread that starts some.
        torch.set_num_threads(1)
        started = time.monotonic()
        try:
            write()
            passed = time.monotonic() - started
            for part in ("export", "total"):
                results["seconds"][part] = results["seconds"].get(part, 0.0) + passed
            record = task.commit(results, ran)
        except Exception as error:  # told to the broker, which fails the stage; the thread has nobody to raise to
            self._failed(task.key, f"{type(error).__name__}: {error}"[:2000])
        else:
            self._done(record)
