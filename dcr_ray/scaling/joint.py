"""How likely a size reaches several thresholds at once, since a checkpoint's luck is shared by its benchmarks.

Each metric is drawn from its own law's predictive t distribution; what ties them is the correlation of the checkpoints'
residuals, with checkpoints, not benchmarks, resampled for every draw, so that a correlation of few checkpoints is not
taken for known. With fewer than four checkpoints it is not estimated: the bounds of any dependence are all there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, t

from dcr_ray.scaling.law import Law, predict

FEWEST_CHECKPOINTS = 4


@dataclass(frozen=True)
class Joint:
    """P(all metrics >= their thresholds). `low` and `high` are Frechet's bounds, which hold for any dependence."""

    probability: float | None
    low: float
    high: float
    alone: dict[str, float]
    correlation: float | None
    checkpoints: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def joint_probability(
    laws: Mapping[str, Law],
    thresholds: Mapping[str, float],
    family: str,
    parameters: float,
    data_size: float | None = None,
    *,
    draws: int = 4000,
    seed: int = 0,
) -> Joint:
    """For the metrics that `thresholds` names, rates in (0, 1). `correlation` is that of the first two.

    Raises InputError as `predict` does, KeyError for a metric without a law.
    """
    names = list(thresholds)
    found = {name: predict(laws[name], family, parameters, data_size) for name in names}
    wanted, alone = [], {}
    for name in names:
        link = laws[name].link
        share = (thresholds[name] - link.floor) / (link.ceiling - link.floor)
        bar = -np.inf if share <= 0 else np.inf if share >= 1 else np.log(share / (1 - share))
        score = (bar - found[name].logit) / found[name].error
        wanted.append(score)
        alone[name] = float(t.sf(score, found[name].dof))
    low = max(0.0, sum(alone.values()) - (len(names) - 1))
    high = min(alone.values())
    residuals = {name: dict(laws[name].residuals) for name in names}
    shared = sorted(set.intersection(*(set(each) for each in residuals.values())))
    if len(shared) < FEWEST_CHECKPOINTS or len(names) < 2:
        return Joint(alone[names[0]] if len(names) == 1 else None, low, high, alone, None, len(shared))
    rows = np.array([[residuals[name][model] for name in names] for model in shared])
    generator = np.random.default_rng(seed)
    scores = np.empty((draws, len(names)))
    for draw in range(draws):
        chosen = rows[generator.integers(len(rows), size=len(rows))]
        scores[draw] = _root(_correlation(chosen)) @ generator.standard_normal(len(names))
    # A Gaussian copula carries the correlation; each margin keeps its own t, hence its own interval.
    uniform = norm.cdf(scores)
    drawn = np.column_stack([t.ppf(uniform[:, k], found[name].dof) for k, name in enumerate(names)])
    probability = float((drawn >= np.array(wanted)).all(1).mean())
    correlation = float(_correlation(rows)[0, 1])
    return Joint(float(np.clip(probability, low, high)), low, high, alone, correlation, len(shared))


def _correlation(rows: np.ndarray) -> np.ndarray:
    """Of the columns; none where a resample has no spread."""
    spread = rows.std(0)
    if (spread < 1e-12).any():
        return np.eye(rows.shape[1])
    return np.corrcoef(rows.T)


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.clip(values, 0.0, None))
