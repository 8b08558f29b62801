"""The most memory that a rank held since a stage began: resident on the host, reserved on its GPU.

Linux counts a process's peak over its whole life; the count is set back where the kernel lets us. Where it does not (a
container that forbids writing to /proc), the host's figure is of the process and not of the stage, and is left out.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dcr_ray.train.world import World


class PeakMemory:
    """Made at a stage's beginning, read at its end, on every rank."""

    def __init__(self, world: World):
        self._world = world
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._before: int | None = _status("VmRSS")
        except OSError:
            self._before = None

    def read(self) -> dict[str, int]:
        """Bytes of the rank that held most: `host` (what was there before the stage included), `host_growth` over that,
        and `device` on GPUs."""
        found: dict[str, int] = {}
        if not self._world.any(self._before is None):
            peak = _status("VmHWM")
            found["host"] = self._world.largest(peak)
            found["host_growth"] = self._world.largest(peak - (self._before or 0))
        if self._world.device.type == "cuda":
            found["device"] = self._world.largest(torch.cuda.max_memory_reserved(self._world.device))
        return found


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])
