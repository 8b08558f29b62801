"""Which cell to run next: the one that narrows the wanted forecast most for its price.

The half-width of a forecast is t times an error whose leverage the places of the cells alone decide, so what a further
cell does to it is known before it is run (V-optimal design, as in Ruan et al., arXiv 2405.10938). A second family and a
larger rung count for more than seeds. It takes the scatter between and within checkpoints as it is now.
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
    target_data: float | None = None,
    level: float = 0.95,
) -> list[Choice]:
    """Candidates by gain per price, the best first; those above `budget` are left out. `target` is (family, N), at
    `target_data` or the law's base. A candidate is run with the ladder's seeds."""
    design = sorted({(c.family, c.model, float(c.parameters), c.data_size, c.seed) for c in cells if c.n})
    seeds = sorted({seed for *_, seed in design})
    data_size = target_data or law.base_data
    now = _half_width(design, law, target, data_size, level)
    choices = []
    for candidate in candidates:
        cost = price(candidate)
        if budget is not None and cost > budget:
            continue
        have = {seed for _, model, _, size, seed in design if (model, size) == (candidate.model, candidate.data_size)}
        # A cell that is there already gets as many further seeds.
        fresh = [max(seeds) + 1 + n for n in range(len(seeds))] if have else seeds
        more = [(candidate.family, candidate.model, float(candidate.parameters), candidate.data_size, s) for s in fresh]
        then = _half_width([*design, *more], law, target, data_size, level)
        choices.append(Choice(candidate, now, then, cost))
    return sorted(choices, key=lambda choice: -choice.gain / max(choice.price, 1e-9))


def _half_width(
    design: Sequence[tuple[str, str, float, int, int]],
    law: Law,
    target: tuple[str, float],
    data_size: float,
    level: float,
) -> float | None:
    """What `law.predict` would give for cells at these places, with the scatter of `law`; None where it refuses."""
    families = sorted({family for family, *_ in design})
    models = sorted({(family, model, size) for family, model, size, *_ in design})
    dof = len(models) - len(families) - 1
    if dof < FEWEST_DOF or target[0] not in families:
        return None
    middle = float(np.mean([log10(size) for *_, size in models]))
    x = np.array([log10(size) - middle for *_, size in models])
    place = {model: number for number, model in enumerate(models)}
    of_model = np.array([place[family, model, size] for family, model, size, *_ in design])
    d = np.array([log10(amount / law.base_data) for *_, amount, _ in design])
    columns = {"data": d, "size x data": d * x[of_model]}
    dummies = (of_model[:, None] == np.arange(len(models))[None, :]).astype(float)
    inner = np.column_stack([dummies, *(columns[name] for name in law.terms)])
    inverse = np.linalg.pinv(inner.T @ inner)
    noise = float(np.diag(inverse)[: len(models)].mean())
    # The checkpoints' own luck stays what it was found to be; the averaged noise of their cells is what cells change.
    spread = law.between if law.between is not None else 1.0
    luck = max(spread - law.intercept_noise * law.within, 0.0)
    outer = np.column_stack([[[float(family == each) for each in families] for family, *_ in models], x])
    x_target = log10(target[1]) - middle
    row = np.array([*(float(target[0] == each) for each in families), x_target])
    leverage = float(row @ np.linalg.pinv(outer.T @ outer) @ row)
    d_target = log10(data_size / law.base_data)
    data_row = np.array([{"data": d_target, "size x data": d_target * x_target}[name] for name in law.terms])
    data_error = float(data_row @ inverse[len(models) :, len(models) :] @ data_row) if len(data_row) else 0.0
    variance = (luck + noise * law.within) * leverage + luck + law.within * (1 + data_error)
    return float(t.ppf(0.5 + level / 2, dof)) * sqrt(variance)
