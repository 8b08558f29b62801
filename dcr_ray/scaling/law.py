"""A law for bounded rates over model and data size, with intervals that hold when it is carried further.

    logit p = a_family + b x + g d + h x d + u_checkpoint + e,  x = log10(N / N0), d = log10(D / D0)

The trend in size is estimated from checkpoints, one figure each: within checkpoints the data terms are fitted by least
squares, then the checkpoints' intercepts are regressed on family and size. What is left between checkpoints is the
error of the trend, with as many degrees of freedom as there are checkpoints beyond coefficients. Pooling seeds or
prompts instead gives intervals that cover about half of the time (`naive_interval`, kept to be shown beside).
It knows no asymptote but the judge's (`cells.Link`), and says nothing of sizes at which the trend bends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log10, sqrt
from typing import Any

import numpy as np
from scipy.stats import norm, t

from dcr_ray.errors import InputError, Problem
from dcr_ray.scaling.cells import Array, Cell, Link
from dcr_ray.scaling.checks import law_problems

FEWEST_DOF = 2
"""Below this a forecast is refused: with one degree of freedom an interval of 95 % is 25 standard errors wide."""


@dataclass(frozen=True)
class Law:
    """A fitted law of one metric and arm. Matrices are nested tuples, so that it can be written and read as JSON.

    `coefficients` are the families' intercepts in the order of `families`, then the slope in x; `covariance` is
    (B^T B)^-1 of that fit, to be scaled by `between`, the variance between checkpoints with the averaged noise of their
    cells (None where no checkpoint is left to tell it, as is `between_families` with one family). `data` are the
    coefficients of d and x d, as far as they were identifiable (`terms`), with their covariance. `within` is the
    variance of a single cell about its checkpoint; `intercept_noise` times it is what single cells add to a
    checkpoint's intercept on average.
    """

    metric: str
    arm: str
    families: tuple[str, ...]
    base_parameters: float
    base_data: float
    terms: tuple[str, ...]
    coefficients: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    between: float | None
    dof: int
    data: tuple[float, ...]
    data_covariance: tuple[tuple[float, ...], ...]
    within: float
    within_dof: int
    intercept_noise: float
    between_families: float | None
    link: Link
    largest: float
    checkpoints: int
    left_out: tuple[str, ...]
    residuals: tuple[tuple[str, float], ...] = ()
    """Of each checkpoint's intercept about the trend, in logits."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Law:
        def tuples(value: Any) -> Any:
            return tuple(tuples(each) for each in value) if isinstance(value, list) else value

        return cls(**{key: tuples(value) for key, value in plain.items()} | {"link": Link(**plain["link"])})


@dataclass(frozen=True)
class Prediction:
    """The rate that a new checkpoint's cells would be measured at: median and interval of `level`.

    `decades` is how far the size lies beyond the largest one that was fitted, in powers of ten.
    """

    rate: float
    low: float
    high: float
    level: float
    logit: float
    error: float
    dof: float
    decades: float


def fit_law(cells: Sequence[Cell], link: Link = Link(), *, base_data: float | None = None) -> Law:
    """Fit the law to the cells of one metric and one arm; D0 is the largest data size unless `base_data` says it.

    Terms that the cells cannot tell are left out and named in `left_out`. Raises InputError, with every problem, where
    no trend in size can be told at all.
    """
    problems, left_out = law_problems(cells)
    if problems:
        raise InputError(problems)
    cells = [cell for cell in cells if cell.n]
    families = tuple(sorted({cell.family for cell in cells}))
    models = sorted({(cell.family, cell.model, cell.parameters) for cell in cells})
    place = {model: index for index, (_, model, _) in enumerate(models)}
    sizes = np.array([parameters for *_, parameters in models], dtype=float)
    n0 = float(np.exp(np.log(sizes).mean()))
    d0 = float(base_data or max(cell.data_size for cell in cells))
    z, noise = link.logits(*(np.array([getattr(c, k) for c in cells], dtype=float) for k in ("hits", "n")))
    of_model = np.array([place[cell.model] for cell in cells])
    x = np.log10(sizes / n0)
    d = np.log10(np.array([cell.data_size for cell in cells]) / d0)
    terms = tuple(name for name in ("data", "size x data") if name not in left_out)
    columns = {"data": d, "size x data": d * x[of_model]}

    within_design = np.column_stack([_dummies(of_model, len(models)), *(columns[name] for name in terms)])
    solution, inverse, residual = _least_squares(within_design, z)
    within_dof = len(cells) - within_design.shape[1]
    # A cell scatters by its prompts at the least; without repeated cells that is all that is known.
    scatter = float(residual @ residual / within_dof) if within_dof > 0 else 0.0
    within = max(scatter, float(noise.mean()))
    intercepts, data = solution[: len(models)], solution[len(models) :]

    between_design = np.column_stack([_dummies(np.array([families.index(f) for f, *_ in models]), len(families)), x])
    coefficients, covariance, residual = _least_squares(between_design, intercepts)
    dof = len(models) - between_design.shape[1]
    between = float(residual @ residual / dof) if dof > 0 else None
    spread = float(np.var(coefficients[:-1], ddof=1)) if len(families) > 1 else None
    return Law(
        cells[0].metric,
        cells[0].arm,
        families,
        n0,
        d0,
        terms,
        tuple(map(float, coefficients)),
        _nested(covariance),
        between,
        dof,
        tuple(map(float, data)),
        _nested(within * inverse[len(models) :, len(models) :]),
        within,
        within_dof,
        float(np.diag(inverse)[: len(models)].mean()),
        spread,
        link,
        float(sizes.max()),
        len(models),
        tuple(left_out),
        tuple((model, float(value)) for (_, model, _), value in zip(models, residual, strict=True)),
    )


def predict(
    law: Law, family: str, parameters: float, data_size: float | None = None, level: float = 0.95, seeds: int = 1
) -> Prediction:
    """The rate at a size, for a new checkpoint and its cells of `seeds` seeds pooled; of a family that was not fitted
    too, with its spread.

    Raises InputError where the law has fewer than FEWEST_DOF degrees of freedom, or the family is new and only one
    family is known.
    """
    if law.dof < FEWEST_DOF:
        found = f"{law.checkpoints} checkpoints for {len(law.coefficients)} coefficients"
        fix = "Add a size, or a family of sizes; more seeds do not help."
        raise InputError([Problem("forecast", found, f"{FEWEST_DOF} more checkpoints than coefficients", fix)])
    x, d = log10(parameters / law.base_parameters), log10((data_size or law.base_data) / law.base_data)
    known = family in law.families
    if not known and len(law.families) < 2:
        raise InputError([Problem("forecast", f"the family '{family}'", f"{law.families[0]}, the only one fitted")])
    share = [float(family == each) if known else 1 / len(law.families) for each in law.families]
    row = np.array([*share, x])
    data_row = np.array([{"data": d, "size x data": d * x}[name] for name in law.terms])
    eta = float(row @ law.coefficients) + (float(data_row @ law.data) if len(data_row) else 0.0)
    # The new checkpoint's own luck is what lies between checkpoints without the averaged noise of their cells; the
    # noise of its own cells comes on top.
    luck = max(law.between - law.intercept_noise * law.within, 0.0)
    parts = [law.between * float(row @ np.array(law.covariance) @ row) + luck, law.within / seeds]
    dofs = [float(law.dof), float(max(law.within_dof, 1))]
    if len(data_row):
        parts[1] += float(data_row @ np.array(law.data_covariance) @ data_row)
    if not known:
        parts.append(law.between_families * (1 + 1 / len(law.families)))
        dofs.append(float(len(law.families) - 1))
    variance = sum(parts)
    # The trend's own error rules; the degrees of freedom of a sum are never taken above the checkpoints'.
    dof = min(float(law.dof), variance**2 / sum(p**2 / f for p, f in zip(parts, dofs, strict=True)))
    reach = float(t.ppf(0.5 + level / 2, dof)) * sqrt(variance)
    rate = law.link.rate
    decades = max(0.0, log10(parameters / law.largest))
    return Prediction(
        float(rate(eta)), float(rate(eta - reach)), float(rate(eta + reach)), level, eta, sqrt(variance), dof, decades
    )


def naive_interval(
    cells: Sequence[Cell], family: str, parameters: float, level: float = 0.95
) -> tuple[float, float, float]:
    """What is to be avoided: cells pooled as if each were evidence of its own, and the interval of their *mean*.

    Rate, low and high at a size, from a line through all cells' logits. It is shown beside the honest one.
    """
    link = Link()
    z, _ = link.logits(*(np.array([getattr(c, k) for c in cells], dtype=float) for k in ("hits", "n")))
    families = sorted({cell.family for cell in cells})
    x = np.log10([cell.parameters for cell in cells])
    design = np.column_stack([_dummies(np.array([families.index(c.family) for c in cells]), len(families)), x])
    solution, inverse, residual = _least_squares(design, z)
    dof = max(1, len(cells) - design.shape[1])
    row = np.array([*(float(family == each) for each in families), log10(parameters)])
    eta = float(row @ solution)
    reach = float(norm.ppf(0.5 + level / 2)) * sqrt(float(residual @ residual) / dof * float(row @ inverse @ row))
    return float(link.rate(eta)), float(link.rate(eta - reach)), float(link.rate(eta + reach))


def _dummies(of: Array, count: int) -> Array:
    return (of[:, None] == np.arange(count)[None, :]).astype(float)


def _least_squares(design: Array, z: Array) -> tuple[Array, Array, Array]:
    """Coefficients, (X^T X)^-1 and residuals."""
    inverse = np.linalg.pinv(design.T @ design)
    solution = inverse @ design.T @ z
    return solution, inverse, z - design @ solution


def _nested(matrix: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in matrix)
