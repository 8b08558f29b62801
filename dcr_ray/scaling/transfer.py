"""Do settings carry over between sizes? Optimum per size, its drift, and what carrying it over costs.

Coordinates are relative (depth l/L, log of learning rate x gamma, ...), so that "unchanged" means something. An optimum
at the edge of its range is no optimum and is not used. The measure is regret, not distance: a setting far from the
optimum of a flat surface costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10, sqrt

import numpy as np
from scipy.stats import kendalltau, t

from dcr_ray.scaling.cells import Array

EDGE = 0.05
"""Share of a range at its ends within which an optimum counts as being on the edge."""


FEWEST_RANKED = 5
"""Of fewer recipes there are too few different draws for an interval of their agreement."""


@dataclass(frozen=True)
class Tried:
    """One setting at one size: its coordinates, and its figure (a logit, or any that is better the larger it is)."""

    params: Mapping[str, float]
    figure: float


@dataclass(frozen=True)
class Optimum:
    """Where the fitted surface is best along one coordinate, with a bootstrap standard error over trials."""

    coordinate: str
    family: str
    parameters: float
    value: float
    error: float
    on_edge: bool


def optimum(
    tried: Sequence[Tried],
    coordinate: str,
    limits: tuple[float, float],
    *,
    family: str = "",
    parameters: float = 1.0,
    resamples: int = 200,
    seed: int = 0,
) -> Optimum:
    """The vertex of a quadratic in every coordinate without cross terms, along one of them, inside its `limits`.

    Where the surface is not concave there, the better end, flagged as on the edge.
    """
    names = sorted(tried[0].params)
    x = np.array([[trial.params[name] for name in names] for trial in tried])
    y = np.array([trial.figure for trial in tried])
    place = names.index(coordinate)
    best = _vertex(x, y, place, limits)
    generator = np.random.default_rng(seed)
    drawn = [
        _vertex(x[chosen], y[chosen], place, limits)
        for chosen in (generator.integers(len(y), size=len(y)) for _ in range(resamples))
    ]
    margin = EDGE * (limits[1] - limits[0])
    on_edge = best <= limits[0] + margin or best >= limits[1] - margin
    return Optimum(coordinate, family, parameters, best, float(np.std(drawn, ddof=1)), on_edge)


def _vertex(x: Array, y: Array, place: int, limits: tuple[float, float]) -> float:
    middle, scale = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1.0)
    u = (x - middle) / scale
    design = np.column_stack([np.ones(len(y)), u, u**2])
    # A little shrinkage: a resample may hold fewer distinct settings than coefficients.
    solution = np.linalg.solve(design.T @ design + 1e-3 * np.eye(design.shape[1]), design.T @ y)
    slope, bend = solution[1 + place], solution[1 + x.shape[1] + place]
    ends = [(limit - middle[place]) / scale[place] for limit in limits]
    if bend < 0:
        at = float(np.clip(-slope / (2 * bend), *ends))
    else:
        at = max(ends, key=lambda end: slope * end + bend * end**2)
    return float(at * scale[place] + middle[place])


@dataclass(frozen=True)
class Drift:
    """How an optimum moves with size: per decade of parameters, with a t interval. `used` optima were on no edge."""

    coordinate: str
    slope: float
    low: float
    high: float
    used: int

    @property
    def detectable(self) -> bool:
        return not self.low <= 0 <= self.high


def drift(optima: Sequence[Optimum], level: float = 0.95) -> Drift | None:
    """The slope of the optima against log10 N with an intercept a family, weighted by their errors.

    None with fewer than three optima off the edges, or fewer sizes than coefficients: two points always lie on a line.
    """
    used = [each for each in optima if not each.on_edge]
    families = sorted({each.family for each in used})
    dof = len(used) - len(families) - 1
    if len(used) < 3 or dof < 1:
        return None
    x = np.array([[*(float(each.family == f) for f in families), log10(each.parameters)] for each in used])
    y = np.array([each.value for each in used])
    weight = np.array([1 / max(each.error, 1e-9) ** 2 for each in used])
    weight /= weight.mean()
    inverse = np.linalg.pinv(x.T @ (weight[:, None] * x))
    solution = inverse @ x.T @ (weight * y)
    residual = y - x @ solution
    error = sqrt(float(residual @ (weight * residual)) / dof * inverse[-1, -1])
    reach = float(t.ppf(0.5 + level / 2, dof)) * error
    return Drift(
        used[0].coordinate, float(solution[-1]), float(solution[-1] - reach), float(solution[-1] + reach), len(used)
    )


@dataclass(frozen=True)
class Regret:
    """What a policy gives away at the target, in points of rate, with an interval paired by prompt."""

    policy: str
    points: float
    low: float
    high: float


def regret(
    policy: str, best: Sequence[float], carried: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> Regret:
    """The best setting found at the target less the one that was carried there, on the same prompts.

    `best` and `carried` are hits prompt by prompt, or their shares over seeds. The best of many is flattered: give hits
    of a fresh seed or split. Raises ValueError for unequal numbers of prompts.
    """
    if len(best) != len(carried) or not len(best):
        raise ValueError(f"{len(best)} and {len(carried)} prompts cannot be paired")
    difference = np.asarray(best, dtype=float) - np.asarray(carried, dtype=float)
    generator = np.random.default_rng(seed)
    drawn = difference[generator.integers(len(difference), size=(resamples, len(difference)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Regret(policy, 100 * float(difference.mean()), 100 * float(low), 100 * float(high))


@dataclass(frozen=True)
class Agreement:
    """Of recipes run at two sizes: share of pairs in the same order (DataDecide's decision accuracy), Kendall's tau."""

    recipes: int
    pairs_agreeing: float
    tau: float
    low: float
    high: float


def rank_agreement(
    small: Sequence[float], large: Sequence[float], *, resamples: int = 1000, seed: int = 0
) -> Agreement:
    """How alike two sizes rank the same recipes. Tau is Kendall's tau-b; its interval is a bootstrap's over recipes, of
    the draws in which both sizes tell any two recipes apart, and all of [-1, 1] below FEWEST_RANKED recipes.

    Raises ValueError for unequal numbers, fewer than three recipes, or a size at which all recipes measure alike.
    """
    if len(small) != len(large) or len(small) < 3:
        raise ValueError(f"{len(small)} and {len(large)} recipes: three or more, at both sizes, are needed")
    x, y = np.asarray(small, dtype=float), np.asarray(large, dtype=float)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("all recipes measure alike at one of the sizes, so they have no order there")
    order = np.sign(np.subtract.outer(x, x)) * np.sign(np.subtract.outer(y, y))
    counted = order[order != 0]
    generator = np.random.default_rng(seed)
    taus = []
    for _ in range(resamples if len(x) >= FEWEST_RANKED else 0):
        chosen = generator.integers(len(x), size=len(x))
        # NaN where a draw has no two recipes apart.
        taus.append(kendalltau(x[chosen], y[chosen]).statistic)
    low, high = np.nanquantile(taus, [0.025, 0.975]) if taus else (-1.0, 1.0)
    agreeing = float((counted > 0).mean()) if len(counted) else 0.5
    return Agreement(len(x), agreeing, float(kendalltau(x, y).statistic), float(low), float(high))


def warm_starts(
    small: Mapping[str, float],
    default: Mapping[str, float],
    drifts: Mapping[str, Drift],
    steps: Mapping[str, float],
    limits: Mapping[str, tuple[float, float]],
    decades: float,
) -> list[dict[str, float]]:
    """Three to six settings to begin with at a target `decades` larger: unchanged, extrapolated, default, and steps.

    `small` is the optimum at the smaller size. Only drifts that can be told from none move it. `steps` say how far the
    settings beside the extrapolated one lie, coordinate by coordinate. Settings that are the same are given once.
    """

    def within(point: Mapping[str, float]) -> dict[str, float]:
        return {name: float(np.clip(value, *limits[name])) for name, value in point.items()}

    moved = {
        name: value + (drifts[name].slope * decades if name in drifts and drifts[name].detectable else 0.0)
        for name, value in small.items()
    }
    points = [moved, dict(small), dict(default)]
    for name, step in steps.items():
        points += [moved | {name: moved[name] + step}, moved | {name: moved[name] - step}]
    kept: list[dict[str, float]] = []
    for point in map(within, points):
        if not any(all(abs(point[name] - other[name]) < 1e-9 for name in point) for other in kept):
            kept.append(point)
    return kept[:6]
