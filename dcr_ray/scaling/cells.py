"""Cells of a scaling study: one rate of one trained model each, and the logits that laws are fitted to.

Nothing is left out silently: a rate of 0 or n of n stays in with half a count added to both sides, and what no judge
scored is counted beside. It does not know how a cell was run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """`hits` of `n` scored prompts for one base model, data size, arm and seed.

    `model` names the pretrained checkpoint, which is the unit of evidence for a trend in size: seeds and prompts of one
    checkpoint share its luck. `parameters` are those of the ModelCard. `params` are the recipe's searched coordinates.
    """

    family: str
    model: str
    parameters: int
    data_size: int
    arm: str
    seed: int
    metric: str
    hits: int
    n: int
    unscored: int = 0
    params: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Of the scored prompts; NaN where there are none."""
        return self.hits / self.n if self.n else float("nan")

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self)) | {"params": dict(self.params)}


@dataclass(frozen=True)
class Link:
    """Between a measured rate and a logit: rate = floor + (ceiling - floor) sigmoid(logit).

    A judge of sensitivity se and specificity sp measures 1 - sp where nothing is a hit and se where all is (Rogan and
    Gladen 1978), so these are the floor and the ceiling of what it can show. They are measured, never fitted: from six
    sizes an asymptote cannot be told from a slope.
    """

    floor: float = 0.0
    ceiling: float = 1.0

    @classmethod
    def of_judge(cls, sensitivity: float, specificity: float) -> Link:
        """Raises ValueError for a judge that is no better than chance."""
        if sensitivity + specificity <= 1:
            raise ValueError(f"sensitivity {sensitivity} and specificity {specificity} tell nothing")
        return cls(1 - specificity, sensitivity)

    def logits(self, hits: Array, n: Array) -> tuple[Array, Array]:
        """Empirical logits and their binomial variances (Haldane and Anscombe: half a count on both sides).

        A rate beyond floor or ceiling is taken for half a count inside it.
        """
        span = self.ceiling - self.floor
        inside = (hits - self.floor * n) / span
        k = np.clip(inside, 0.0, n) + 0.5
        rest = n - np.clip(inside, 0.0, n) + 0.5
        return np.log(k / rest), (1 / k + 1 / rest) / span**2

    def rate(self, logit: Array | float) -> Any:
        return self.floor + (self.ceiling - self.floor) / (1 + np.exp(-np.asarray(logit, dtype=float)))


def counted(cells: Sequence[Cell]) -> dict[str, int]:
    """What there is, and what is at the ends of the scale: cells, checkpoints, 0 of n, n of n, without a scored prompt,
    and unscored responses."""
    return {
        "cells": len(cells),
        "checkpoints": len({cell.model for cell in cells}),
        "families": len({cell.family for cell in cells}),
        "none_of_n": sum(cell.n > 0 and cell.hits == 0 for cell in cells),
        "all_of_n": sum(cell.n > 0 and cell.hits == cell.n for cell in cells),
        "without_scored": sum(cell.n == 0 for cell in cells),
        "unscored_responses": sum(cell.unscored for cell in cells),
    }
