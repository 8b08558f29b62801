"""A law for loss-like figures: L = E + A / N^alpha + B / D^beta (Hoffmann et al., arXiv 2203.15556, approach 3).

Fitted as log L = logsumexp(a - alpha log N, b - beta log D, e) by the *sum* of Huber losses of the log residuals from a
grid of starts, since a mean stops the optimiser early (Besiroglu et al., arXiv 2404.10102). Errors are a bootstrap's
over observations: with few sizes they are wide, and rightly so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from dcr_ray.errors import InputError, Problem
from dcr_ray.scaling.cells import Array

HUBER_DELTA = 1e-3
STARTS = {
    "a": (0.0, 5.0, 10.0, 20.0),
    "b": (0.0, 5.0, 10.0, 20.0),
    "e": (-1.0, 0.0, 1.0),
    "alpha": (0.2, 0.5, 1.0),
    "beta": (0.2, 0.5, 1.0),
}
REFINED = 8
"""Of the starts, the best ones that are optimised to their end."""


@dataclass(frozen=True)
class LossLaw:
    """`low` and `high` are the 95 % percentiles of the bootstrap, in the order of the five parameters."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    low: tuple[float, ...]
    high: tuple[float, ...]

    def loss(self, parameters: float, data_size: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / data_size**self.beta


def fit_loss_law(
    parameters: Sequence[float],
    data_sizes: Sequence[float],
    losses: Sequence[float],
    *,
    resamples: int = 100,
    seed: int = 0,
) -> LossLaw:
    """Fit the law to losses in nats. Raises InputError for fewer than six points, or a size that does not vary."""
    n, d, y = (np.log(np.asarray(each, dtype=float)) for each in (parameters, data_sizes, losses))
    problems = []
    if len(y) < 6:
        problems.append(Problem("losses", f"{len(y)} points for 5 parameters", "6 or more"))
    problems += [
        Problem(name, "one value", "two or more, or its exponent cannot be told")
        for name, each in (("model sizes", n), ("data sizes", d))
        if len(set(each)) < 2
    ]
    if problems:
        raise InputError(problems)
    grid = np.array(list(product(*STARTS.values())))
    first = np.array([_objective(start, n, d, y)[0] for start in grid])
    best = min((_refined(start, n, d, y) for start in grid[np.argsort(first)[:REFINED]]), key=lambda found: found.fun).x
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = generator.integers(len(y), size=len(y))
        drawn.append(_plain(_refined(best, n[chosen], d[chosen], y[chosen]).x))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return LossLaw(*map(float, _plain(best)), tuple(map(float, low)), tuple(map(float, high)))


def _objective(theta: Array, n: Array, d: Array, y: Array) -> tuple[float, Array]:
    """Summed Huber loss and its gradient by (a, b, e, alpha, beta)."""
    a, b, e, alpha, beta = theta
    terms = np.stack([a - alpha * n, b - beta * d, np.full_like(y, e)])
    residual = logsumexp(terms, axis=0) - y
    share = softmax(terms, axis=0)
    small = np.abs(residual) <= HUBER_DELTA
    value = np.where(small, 0.5 * residual**2, HUBER_DELTA * (np.abs(residual) - HUBER_DELTA / 2)).sum()
    slope = np.where(small, residual, HUBER_DELTA * np.sign(residual))
    pulled = slope * share
    gradient = np.array(
        [pulled[0].sum(), pulled[1].sum(), pulled[2].sum(), -(pulled[0] * n).sum(), -(pulled[1] * d).sum()]
    )
    return float(value), gradient


def _refined(start: Array, n: Array, d: Array, y: Array):
    return minimize(_objective, start, args=(n, d, y), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})


def _plain(theta: Array) -> tuple[float, ...]:
    """E, A, B, alpha, beta."""
    a, b, e, alpha, beta = theta
    return np.exp(e), np.exp(a), np.exp(b), alpha, beta
