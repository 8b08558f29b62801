"""Which cell to run next: the one that narrows the wanted forecast most for its price.

The half-width of a forecast is t times the error between checkpoints times a leverage that the sizes alone decide, so
what a further cell does to it is known before it is run (V-optimal design, as in Ruan et al., arXiv 2405.10938). A
second family and a larger rung count for more than seeds. It takes the scatter between checkpoints as it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import log10, sqrt
from typing import Any

import numpy as np
from scipy.stats import t

from dcr_ray.scaling.cells import Cell
from dcr_ray.scaling.law import FEWEST_DOF, Law


@dataclass(frozen=True)
class Candidate:
    """A model that could be run next, at a data size. A model that has cells already adds seeds or data, no size."""

    model: str
    family: str
    parameters: int
    data_size: int


@dataclass(frozen=True)
class Choice:
    """What a candidate would do: half-width of the forecast in logits now (None: refused) and then, and its price."""

    candidate: Candidate
    now: float | None
    then: float | None
    price: float

    @property
    def gain(self) -> float:
        """Logits of half-width saved; infinite for the first that makes a forecast possible."""
        if self.then is None:
            return 0.0
        return float("inf") if self.now is None else self.now - self.then

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"gain": self.gain if np.isfinite(self.gain) else None}


def next_cells(
    cells: Sequence[Cell],
    law: Law,
    target: tuple[str, float],
    candidates: Sequence[Candidate],
    price: Callable[[Candidate], float],
    *,
    budget: float | None = None,
    level: float = 0.95,
) -> list[Choice]:
    """Candidates by gain per price, the best first; those above `budget` are left out. `target` is (family, N)."""
    ladder = sorted({(cell.family, cell.model, cell.parameters) for cell in cells if cell.n})
    spread = sqrt(law.between) if law.between is not None else 1.0
    now = _half_width([(f, n) for f, _, n in ladder], target, spread, level)
    choices = []
    for candidate in candidates:
        cost = price(candidate)
        if budget is not None and cost > budget:
            continue
        known = any(model == candidate.model for _, model, _ in ladder)
        more = [] if known else [(candidate.family, float(candidate.parameters))]
        then = _half_width([(f, n) for f, _, n in ladder] + more, target, spread, level)
        choices.append(Choice(candidate, now, then, cost))
    return sorted(choices, key=lambda choice: -choice.gain / max(choice.price, 1e-9))


def _half_width(
    ladder: Sequence[tuple[str, float]], target: tuple[str, float], spread: float, level: float
) -> float | None:
    families = sorted({family for family, _ in ladder})
    dof = len(ladder) - len(families) - 1
    if dof < FEWEST_DOF or target[0] not in families:
        return None
    middle = float(np.mean([log10(n) for _, n in ladder]))
    design = np.array([[*(float(f == each) for each in families), log10(n) - middle] for f, n in ladder])
    row = np.array([*(float(target[0] == each) for each in families), log10(target[1]) - middle])
    leverage = float(row @ np.linalg.pinv(design.T @ design) @ row)
    return float(t.ppf(0.5 + level / 2, dof)) * spread * sqrt(1 + leverage)
