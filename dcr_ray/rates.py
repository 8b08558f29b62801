"""A Rate: k of n, with unscored outcomes counted apart, and its interval.

It knows nothing of what was counted. Paired comparisons and corrections for judge error are not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist


@dataclass(frozen=True)
class Rate:
    """`hits` of `n` scored outcomes; `unscored` were seen but never enter the share."""

    hits: int
    n: int
    unscored: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n or self.unscored < 0:
            raise ValueError(f"no such rate: {self.hits} of {self.n}, {self.unscored} unscored")

    @property
    def share(self) -> float:
        """hits / n. Raises ZeroDivisionError where nothing was scored: an empty rate is not 0."""
        return self.hits / self.n

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson score interval (Wilson 1927). Raises ZeroDivisionError where nothing was scored."""
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        centre = (self.hits + z * z / 2) / (self.n + z * z)
        half = z / (self.n + z * z) * sqrt(self.hits * (self.n - self.hits) / self.n + z * z / 4)
        return max(0.0, centre - half), min(1.0, centre + half)
