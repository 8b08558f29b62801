"""One metric of one trial as a person reads it: the value, its 95 % interval, and its difference to the baseline.

It knows nothing of how a metric was counted; the interval is the one that the trial carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import NormalDist

from dcr_ray.trial import Trial


@dataclass(frozen=True)
class Measured:
    """A finite value; `low` and `high` bound its 95 % interval and `n` is its count, where the trial has them."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None

    def __str__(self) -> str:
        if not self.has_interval:
            return f"{self.value:.4g}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def difference(self, baseline: Measured) -> str:
        """'+0.12' or '-0.05': this value less the baseline's, whichever of the two is better."""
        change = self.value - baseline.value
        text = f"{change:+.2f}" if self.has_interval else f"{change:+.3g}"
        return text.replace("+", "").replace("-", "") if float(text) == 0 else text

    def overlaps(self, other: Measured) -> bool | None:
        """Whether the two 95 % intervals share a point; None where one has no interval."""
        if not (self.has_interval and other.has_interval):
            return None
        return self.low <= other.high and other.low <= self.high


def measured(trial: Trial | None, metric: str) -> Measured | None:
    """The metric as the trial carries it, or None where there is no such trial, no such metric or no finite value."""
    if trial is None or (value := _finite(trial, metric)) is None:
        return None
    low, high, count = (_finite(trial, f"{metric}/{part}") for part in ("low", "high", "n"))
    if low is None or high is None:
        low = high = None
    return Measured(value, low, high, None if count is None else int(count))


def baseline_of(trials: Sequence[Trial]) -> Trial | None:
    """The first complete trial with the role of the baseline, or None: an unfinished baseline compares with nothing."""
    return next((trial for trial in trials if trial.role == "baseline" and trial.state == "complete"), None)


def layer_depth(trial: Trial) -> float | None:
    """l/L of the trial's DCR stage; None for a recipe without one."""
    return None if trial.recipe.dcr is None else trial.recipe.dcr.layer_depth


def smallest_visible_difference(share: float, n: int, power: float = 0.8, significance: float = 0.05) -> float:
    """The difference of two independent rates of `n` prompts each that a two-sided test would find with this power.

    (z_{1-a/2} + z_{power}) sqrt(2 p (1 - p) / n), the normal approximation of Fleiss, Levin and Paik (2003), chapter 4,
    with p = (share n + 2) / (n + 4) after Agresti and Coull (1998), because a share of 0 or 1 would give no noise at
    all. At most 1. Raises ValueError where n is not positive.
    """
    if n < 1:
        raise ValueError(f"a rate needs at least one prompt, not {n}")
    normal = NormalDist()
    p = (share * n + 2) / (n + 4)
    return min(1.0, (normal.inv_cdf(1 - significance / 2) + normal.inv_cdf(power)) * sqrt(2 * p * (1 - p) / n))


def _finite(trial: Trial, metric: str) -> float | None:
    value = trial.metrics.get(metric)
    return None if value is None or not isfinite(value) else float(value)
