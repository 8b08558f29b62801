"""Transfer, forecasts, back-tests and the choice of the next cell."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import kendalltau

from dcr_ray.errors import InputError
from dcr_ray.scaling.backtest import Backtest, backtest, outcome_of
from dcr_ray.scaling.cells import Cell
from dcr_ray.scaling.design import Candidate, next_cells
from dcr_ray.scaling.forecast import make_forecast, read_forecasts, write_forecast
from dcr_ray.scaling.law import fit_law
from dcr_ray.scaling.transfer import (
    Drift,
    Optimum,
    Tried,
    drift,
    optimum,
    rank_agreement,
    regret,
    warm_starts,
)
from tests.test_scaling_law import cells

LIMITS = {"depth": (0.2, 0.9), "strength": (-4.0, -2.0)}


def surface(best: dict[str, float], count: int = 60, noise: float = 0.05, seed: int = 0) -> list[Tried]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        params = {name: float(generator.uniform(*LIMITS[name])) for name in LIMITS}
        figure = -4 * (params["depth"] - best["depth"]) ** 2 - (params["strength"] - best["strength"]) ** 2
        found.append(Tried(params, figure + noise * generator.standard_normal()))
    return found


def test_the_optimum_of_a_bowl_is_found_with_its_error():
    trials = surface({"depth": 0.55, "strength": -3.1})
    found = optimum(trials, "depth", LIMITS["depth"], family="q", parameters=1e9)
    assert abs(found.value - 0.55) < 3 * found.error < 0.3 and not found.on_edge
    assert optimum(trials, "strength", LIMITS["strength"]).value == pytest.approx(-3.1, abs=0.1)


def test_an_optimum_at_the_end_of_its_range_is_flagged():
    assert optimum(surface({"depth": 1.3, "strength": -3.0}), "depth", LIMITS["depth"]).on_edge
    assert optimum(surface({"depth": 0.0, "strength": -3.0}), "depth", LIMITS["depth"]).on_edge


def optima(slope: float, scatter: float = 0.01, seed: int = 0) -> list[Optimum]:
    generator = np.random.default_rng(seed)

    def value(level: float, size: float) -> float:
        return level + slope * np.log10(size / 1e9) + scatter * generator.standard_normal()

    return [
        Optimum("depth", family, size, value(level, size), 0.02, False)
        for family, level in (("q", 0.5), ("l", 0.4))
        for size in (0.5e9, 1.5e9, 3e9, 7e9)
    ]


def test_a_drift_is_told_from_none():
    moving, still = drift(optima(0.1)), drift(optima(0.0, scatter=0.03))
    assert moving.detectable and moving.slope == pytest.approx(0.1, abs=0.03) and moving.used == 8
    assert not still.detectable
    edges = [Optimum(**vars(each) | {"on_edge": True}) for each in optima(0.1)]
    assert drift(edges) is None and drift(optima(0.1)[:2]) is None


def test_regret_is_what_carrying_a_setting_over_costs_on_the_same_prompts():
    generator = np.random.default_rng(0)
    best = generator.random(500) < 0.9
    carried = best & (generator.random(500) < 0.95)
    found = regret("unchanged", best, carried)
    assert found.low <= 100 * (best.mean() - carried.mean()) <= found.high and found.low > 0
    assert regret("same", best, best).points == 0
    with pytest.raises(ValueError, match="paired"):
        regret("x", [True], [True, False])


def test_ranks_agree_where_sizes_order_recipes_alike():
    small = np.arange(8.0)
    assert rank_agreement(small, 3 * small + 1).tau == pytest.approx(1)
    assert rank_agreement(small, small).pairs_agreeing == 1
    against = rank_agreement(small, -small)
    assert against.tau == pytest.approx(-1) and against.pairs_agreeing == 0
    mixed = rank_agreement(small, np.array([1.0, 0, 3, 2, 5, 4, 7, 6]))
    assert 0.7 < mixed.pairs_agreeing < 1 and mixed.low < mixed.tau < 1
    ties = [1.0, 2, 2], [1.0, 1, 2]
    few = rank_agreement(*ties)
    assert few.tau == pytest.approx(kendalltau(*ties).statistic) and (few.low, few.high) == (-1, 1)
    with pytest.raises(ValueError, match="measure alike"):
        rank_agreement([1.0, 1, 1], [1.0, 2, 3])


def test_warm_starts_are_few_distinct_and_within_their_ranges():
    small, default = {"depth": 0.85, "strength": -3.0}, {"depth": 0.5, "strength": -3.5}
    drifts = {"depth": Drift("depth", 0.2, 0.1, 0.3, 5), "strength": Drift("strength", 0.3, -0.1, 0.7, 5)}
    points = warm_starts(small, default, drifts, {"strength": 0.3, "depth": 0.1}, LIMITS, decades=1.0)
    assert 3 <= len(points) <= 6 and len({json.dumps(p) for p in points}) == len(points)
    assert points[0] == {"depth": 0.9, "strength": -3.0}, "moved by what can be told, and kept in range"
    assert small in points and default in points
    assert all(LIMITS[name][0] <= value <= LIMITS[name][1] for point in points for name, value in point.items())


def test_a_forecast_is_written_once_and_held_against_its_result(tmp_path):
    made = cells(luck=0.1, noise=0.1, n=250)
    smaller = [cell for cell in made if cell.parameters < 1e10]
    forecast = make_forecast(
        "ladder", fit_law(smaller), smaller, model="q1.4e+10", family="q", parameters=int(14e9), data_size=1000
    )
    path = write_forecast(forecast, tmp_path / "forecasts")
    text = path.read_text()
    with pytest.raises(InputError, match="not overwritten"):
        write_forecast(forecast, tmp_path / "forecasts")
    assert path.read_text() == text
    (again,) = read_forecasts(tmp_path / "forecasts")
    assert again == forecast and len(again.cells) == len(again.code) == 64
    assert outcome_of(again, smaller) is None
    outcome = outcome_of(again, made)
    assert outcome.observed == pytest.approx(
        np.mean([c.rate for c in made if c.model == "q1.4e+10" and c.data_size == 1000])
    )
    assert outcome.error == pytest.approx(100 * (forecast.predictions[0].rate - outcome.observed))
    assert outcome.seeds == 2 and outcome.covered == (True, True)
    for written, held in zip(forecast.predictions, outcome.intervals, strict=True):
        assert held.rate == written.rate and written.low < held.low < held.high < written.high, "two seeds scatter less"
    with pytest.raises(InputError, match="which has been run"):
        make_forecast("x", fit_law(made), made, model="q1.4e+10", family="q", parameters=int(14e9), data_size=1000)


def test_a_steady_trend_is_foretold_better_than_by_the_size_before():
    found = backtest(cells(slope=1.2, luck=0.02, noise=0.02, n=5000))
    assert len(found.held_out) == 3 and found.skill > 0.4 and found.coverage == 1
    assert "the law's errors are" in found.verdict
    largest = found.held_out[-1]
    assert largest.model == "q1.4e+10" and largest.fitted_on == 7
    assert largest.interval_score == pytest.approx(largest.high - largest.low)
    json.dumps(found.as_dict())


def test_a_law_without_skill_is_said_so_in_words():
    """A trend that turns: the largest sizes are back where the small ones were."""
    bent = [
        Cell(**vars(cell) | {"hits": int(cell.n * (0.9 if 1e9 < cell.parameters < 7.5e9 else 0.5))})
        for cell in cells(n=1000, data=(1000,))
    ]
    found = backtest(bent)
    assert found.skill <= 0 and "no predictive value" in found.verdict


def test_what_cannot_be_held_out_is_named():
    found = backtest(cells(families=("l",)))
    assert isinstance(found, Backtest) and found.skill is None and found.refused
    assert found.verdict.startswith("No size could be held out")


def test_the_next_cell_is_the_one_that_narrows_the_forecast_most_for_its_price():
    made = [cell for cell in cells(luck=0.3, noise=0.1, n=250, data=(1000,)) if cell.parameters < 1e10]
    law = fit_law(made)
    candidates = [
        Candidate("q-14b", "q", int(14e9), 1000),
        Candidate("q-1b", "q", int(1e9), 1000),
        Candidate(made[0].model, "q", made[0].parameters, 1000),
        Candidate("q-32b", "q", int(32e9), 1000),
    ]
    price = {"q-14b": 20.0, "q-1b": 1000.0, made[0].model: 1.0, "q-32b": 500.0}
    choices = next_cells(made, law, ("q", 70e9), candidates, lambda c: price[c.model], budget=600)
    assert [choice.candidate.model for choice in choices][0] == "q-14b"
    assert all(choice.candidate.model != "q-1b" for choice in choices), "beyond the budget"
    gains = {choice.candidate.model: choice.gain for choice in choices}
    assert gains[made[0].model] < 0.05 * gains["q-14b"], "more seeds of a size narrow next to nothing"
    assert gains["q-32b"] > gains["q-14b"] > 0
