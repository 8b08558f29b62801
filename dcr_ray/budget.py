"""What a study has used of its budget: hours on the clock, GPU-hours, money, over all runs of it together.

What is reserved counts, not what is busy: groups and engines are paid for while they wait. The count is written as the
study runs, so that a killed driver loses seconds of it. It does not know a provider's bill.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dcr_ray.study import BudgetSpec

USAGE_FILE = "usage.json"
WRITE_SECONDS = 5.0


@dataclass(frozen=True)
class Usage:
    """`money` is 0 where the budget names no price."""

    hours: float = 0.0
    gpu_hours: float = 0.0
    money: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return dict(vars(self))


class UsageMeter:
    """Counts from now on what `gpus` reserved GPUs take, on top of what earlier runs in `study_dir` took."""

    def __init__(self, budget: BudgetSpec, study_dir: Path, gpus: float, clock: Callable[[], float] = time.monotonic):
        self._budget, self._file, self._gpus, self._clock = budget, study_dir / USAGE_FILE, gpus, clock
        self._earlier = read_usage(study_dir)
        self._started = self._written = clock()

    def read(self) -> Usage:
        """The usage by now. It is written down every few seconds; call it often."""
        now = self._clock()
        hours = (now - self._started) / 3600
        price = self._budget.price_per_hour or self._gpus * (self._budget.price_per_gpu_hour or 0.0)
        earlier = self._earlier
        usage = Usage(earlier.hours + hours, earlier.gpu_hours + hours * self._gpus, earlier.money + hours * price)
        if now - self._written >= WRITE_SECONDS:
            self._written = now
            self.write(usage)
        return usage

    def hold(self, gpus: float) -> None:
        """From now on so many GPUs are reserved: on a shared cluster a study's groups come and go."""
        if gpus != self._gpus:
            self._earlier, self._started, self._gpus = self.read(), self._clock(), gpus

    def write(self, usage: Usage | None = None) -> None:
        """Write the usage down, at the end of a run too."""
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps((usage or self.read()).as_dict()))
        os.replace(partial, self._file)


def read_usage(study_dir: Path) -> Usage:
    """What all runs so far have written down; nothing for a study that has not begun."""
    file = study_dir / USAGE_FILE
    return Usage(**json.loads(file.read_text())) if file.is_file() else Usage()


def reached(budget: BudgetSpec, usage: Usage) -> str | None:
    """The sentence that ends a study, naming the limit that is reached; None while none is."""
    for name, unit in _UNITS.items():
        limit, used = getattr(budget, name), getattr(usage, name)
        if limit is not None and used >= limit:
            return f"the budget is used up: {used:.2f} of {limit:g} {unit} (budget.{name})"
    return None


def used(budget: BudgetSpec, usage: Usage) -> list[str]:
    """What is used of each limit, as text: "1.20 of 4 GPU-hours"."""
    return [
        f"{getattr(usage, name):.2f} of {getattr(budget, name):g} {unit}"
        for name, unit in _UNITS.items()
        if getattr(budget, name) is not None
    ]


_UNITS = {"hours": "hours", "gpu_hours": "GPU-hours", "money": "units of money"}
