"""What a law would have foretold: each of the largest sizes held out in turn, against two baselines that need no law.

Skill is one less the ratio of summed absolute errors. A law that does not beat the rate of the largest size so far of
the same family has no predictive value here, and that is said in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dcr_ray.errors import InputError
from dcr_ray.scaling.cells import Cell, Link
from dcr_ray.scaling.forecast import Forecast
from dcr_ray.scaling.law import Prediction, fit_law, predict

UNTELLING = 0.6
"""Width of an interval from which on it is no evidence that a rate lies in it."""


@dataclass(frozen=True)
class HeldOut:
    """One held-out checkpoint: what was foretold of its cells' pooled rate, and what became of it.

    `persistence` is the rate at the family's largest smaller size, `family_mean` the mean of all of the family's
    smaller sizes. `interval_score` is width plus 2/alpha times the miss (Gneiting and Raftery 2007, equation 43): lower
    is better.
    """

    model: str
    family: str
    parameters: int
    data_size: int
    predicted: float
    low: float
    high: float
    observed: float
    persistence: float
    family_mean: float
    interval_score: float
    fitted_on: int

    @property
    def covered(self) -> bool:
        return self.low <= self.observed <= self.high

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"covered": self.covered}


@dataclass(frozen=True)
class Backtest:
    """All held-out checkpoints. `skill` is against persistence, None without any; `refused` says what could not be."""

    held_out: tuple[HeldOut, ...]
    skill: float | None
    skill_against_mean: float | None
    coverage: float | None
    refused: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """In words, for a report."""
        if self.skill is None:
            return "No size could be held out: " + "; ".join(self.refused)
        count = len(self.held_out)
        sizes = f"{count} held-out checkpoint{'s' if count != 1 else ''}"
        width = float(np.median([each.high - each.low for each in self.held_out]))
        covered = f" {sum(each.covered for each in self.held_out)} of {count} lie in its interval"
        covered += (
            f", which is {100 * width:.0f} points wide: that says nothing."
            if width > UNTELLING
            else f" of {100 * width:.0f} points."
        )
        if self.skill <= 0:
            return (
                f"The law has no predictive value here: over {sizes} its errors are {1 - self.skill:.2f} times those "
                "of taking the rate of the largest smaller size of the family. Use that rate, with the law's interval."
                + covered
            )
        return (
            f"Over {sizes} the law's errors are {1 - self.skill:.2f} times those of the rate of the size before."
            + covered
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "held_out": [each.as_dict() for each in self.held_out],
            "skill": self.skill,
            "skill_against_mean": self.skill_against_mean,
            "coverage": self.coverage,
            "refused": list(self.refused),
            "verdict": self.verdict,
        }


def backtest(cells: Sequence[Cell], link: Link = Link(), *, holds: int = 3, level: float = 0.95) -> Backtest:
    """Hold out each of the `holds` largest checkpoints in turn, and fit on all that are smaller than it.

    Its cells at the largest data size are pooled to what was observed. Held-out sizes for which too few smaller ones
    are there are named in `refused`.
    """
    scored = [cell for cell in cells if cell.n]
    models = sorted({(cell.parameters, cell.model, cell.family) for cell in scored}, reverse=True)[:holds]
    found, refused = [], []
    for parameters, model, family in reversed(models):
        smaller = [cell for cell in scored if cell.parameters < parameters]
        own = [cell for cell in scored if cell.model == model]
        largest = max(cell.data_size for cell in own)
        of_family = [cell for cell in smaller if cell.family == family]
        if not of_family:
            refused.append(f"{model} is the smallest of its family")
            continue
        held = [cell for cell in own if cell.data_size == largest]
        try:
            law = fit_law(smaller, link, base_data=largest)
            prediction = predict(law, family, parameters, largest, level, len(held))
        except InputError as error:
            refused.append(f"{model}: {error.problems[0].found}")
            continue
        observed = _pooled(held)
        before = max(cell.parameters for cell in of_family)
        miss = max(prediction.low - observed, observed - prediction.high, 0.0)
        found.append(
            HeldOut(
                model, family, parameters, largest, prediction.rate, prediction.low, prediction.high, observed,
                _pooled(_at_largest([cell for cell in of_family if cell.parameters == before])),
                float(np.mean([_pooled(_at_largest(each)) for each in _by_model(of_family)])),
                prediction.high - prediction.low + 2 / (1 - level) * miss,
                len({cell.model for cell in smaller}),
            )
        )  # fmt: skip
    return Backtest(
        tuple(found),
        _skill(found, "persistence"),
        _skill(found, "family_mean"),
        float(np.mean([each.covered for each in found])) if found else None,
        tuple(refused),
    )


@dataclass(frozen=True)
class Outcome:
    """What became of a forecast: the error in points, and the intervals of the law in its file for as many seeds as
    were run; those in the file are for one."""

    forecast: Forecast
    observed: float
    error: float
    seeds: int
    intervals: tuple[Prediction, ...]

    @property
    def covered(self) -> tuple[bool, ...]:
        return tuple(each.low <= self.observed <= each.high for each in self.intervals)


def outcome_of(forecast: Forecast, cells: Sequence[Cell]) -> Outcome | None:
    """Hold a forecast against the cells of its target; None where it has not been run."""
    own = [
        cell
        for cell in cells
        if (cell.model, cell.data_size) == (forecast.model, forecast.data_size)
        and (cell.metric, cell.arm) == (forecast.law.metric, forecast.law.arm)
        and cell.n
    ]
    if not own:
        return None
    observed = _pooled(own)
    place = forecast.family, forecast.parameters, forecast.data_size
    intervals = tuple(predict(forecast.law, *place, each.level, len(own)) for each in forecast.predictions)
    return Outcome(forecast, observed, 100 * (forecast.predictions[0].rate - observed), len(own), intervals)


def _pooled(cells: Sequence[Cell]) -> float:
    return sum(cell.hits for cell in cells) / sum(cell.n for cell in cells)


def _at_largest(cells: Sequence[Cell]) -> list[Cell]:
    largest = max(cell.data_size for cell in cells)
    return [cell for cell in cells if cell.data_size == largest]


def _by_model(cells: Sequence[Cell]) -> list[list[Cell]]:
    return [[cell for cell in cells if cell.model == model] for model in sorted({cell.model for cell in cells})]


def _skill(found: Sequence[HeldOut], baseline: str) -> float | None:
    against = sum(abs(getattr(each, baseline) - each.observed) for each in found)
    return 1 - sum(abs(each.predicted - each.observed) for each in found) / against if against else None
