"""What this machine has: cores, memory, GPUs. Reads the operating system only; imports no torch and starts nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """`memory_bytes` is what can still be had, not what is built in."""

    cores: int
    memory_bytes: int
    gpus: int


def this_machine() -> Machine:
    """Cores this process may use, memory available (within a container's limit), NVIDIA GPUs by their device files."""
    return Machine(len(os.sched_getaffinity(0)), _available_bytes(), len(list(Path("/dev").glob("nvidia[0-9]*"))))


def _available_bytes() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available
