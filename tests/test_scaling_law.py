"""Scaling laws: what they recover, what their intervals hold, and what they refuse to say."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import statsmodels.api as sm

from dcr_ray.errors import InputError
from dcr_ray.scaling.cells import Cell, Link, counted
from dcr_ray.scaling.checks import ladder_problems
from dcr_ray.scaling.law import Law, fit_law, naive_interval, predict
from dcr_ray.scaling.loss_law import fit_loss_law

SIZES = {"q": (0.5e9, 1.5e9, 3e9, 7e9, 14e9), "l": (1.2e9, 3.2e9, 8e9)}
LEVEL = {"q": 1.0, "l": 0.4}


def cells(
    slope: float = 0.6, data_slope: float = 0.4, mixed: float = 0.2, luck: float = 0.0, noise: float = 0.0,
    n: int = 100_000, data=(250, 500, 1000), seeds: int = 2, families=("q", "l"), seed: int = 0,
) -> list[Cell]:  # fmt: skip
    generator = np.random.default_rng(seed)
    made = []
    for family in families:
        for size in SIZES[family]:
            own = luck * generator.standard_normal()
            for amount in data:
                for run in range(seeds):
                    x, d = np.log10(size / 3e9), np.log10(amount / 1000)
                    logit = LEVEL[family] + slope * x + data_slope * d + mixed * x * d + own
                    logit += noise * generator.standard_normal()
                    rate = 1 / (1 + np.exp(-logit))
                    hits = int(generator.binomial(n, rate))
                    made.append(
                        Cell(family, f"{family}{size:.2g}", int(size), amount, "dcr", run, "compliance", hits, n)
                    )
    return made


def test_a_noiseless_ladder_gives_its_coefficients_back():
    law = fit_law(cells())
    assert law.coefficients[-1] == pytest.approx(0.6, abs=0.02)
    assert law.terms == ("data", "size x data")
    assert law.data[1] == pytest.approx(0.2, abs=0.05)
    far = predict(law, "q", 70e9, 1000)
    assert far.rate == pytest.approx(1 / (1 + np.exp(-(1.0 + 0.6 * np.log10(70 / 3)))), abs=0.01)
    assert far.decades == pytest.approx(np.log10(5))


def test_the_sign_of_the_slope_is_that_of_a_binomial_regression():
    for slope in (-0.5, 0.5):
        made = cells(slope=slope, data=(1000,), mixed=0.0, luck=0.1, noise=0.1, n=250)
        hits = np.array([[cell.hits, cell.n - cell.hits] for cell in made])
        families = np.array([[cell.family == "q", cell.family == "l"] for cell in made], dtype=float)
        x = np.log10([cell.parameters for cell in made])
        glm = sm.GLM(hits, np.column_stack([families, x]), family=sm.families.Binomial()).fit()
        assert fit_law(made).coefficients[-1] == pytest.approx(glm.params[-1], abs=0.15)


def test_intervals_cover_new_checkpoints_and_the_naive_one_does_not():
    inside, pooled, naive, studies = 0, 0, 0, 300
    for seed in range(studies):
        made = cells(luck=0.3, noise=0.15, n=250, data=(1000,), seed=seed)
        generator = np.random.default_rng(10_000 + seed)
        logit = 1.0 + 0.6 * np.log10(70e9 / 3e9) + 0.3 * generator.standard_normal()
        runs = logit + 0.15 * generator.standard_normal(4)
        seen, *_ = rates = generator.binomial(250, 1 / (1 + np.exp(-runs))) / 250
        law = fit_law(made)
        found, of_four = predict(law, "q", 70e9), predict(law, "q", 70e9, seeds=4)
        pooled += of_four.low <= rates.mean() <= of_four.high
        _, low, high = naive_interval(made, "q", 70e9)
        inside += found.low <= seen <= found.high
        naive += low <= seen <= high
    assert 0.92 <= inside / studies <= 0.99 and 0.91 <= pooled / studies <= 0.99
    assert naive / studies < 0.8


def test_none_and_all_of_n_stay_in_and_are_counted():
    made = cells(n=20, data=(1000,), families=("q",))
    made[0] = Cell(**vars(made[0]) | {"hits": 0})
    made[-1] = Cell(**vars(made[-1]) | {"hits": 20, "unscored": 3})
    assert np.isfinite(fit_law(made).coefficients).all()
    told = counted(made)
    assert told["none_of_n"] >= 1 and told["all_of_n"] >= 1 and told["unscored_responses"] == 3
    assert told["checkpoints"] == 5 and told["families"] == 1


def test_a_judges_ceiling_is_where_the_law_ends():
    link = Link.of_judge(0.95, 0.9)
    assert (link.floor, link.ceiling) == (pytest.approx(0.1), 0.95)
    assert link.rate(50.0) == pytest.approx(0.95) and link.rate(-50.0) == pytest.approx(0.1)
    logit, _ = link.logits(np.array([525.0]), np.array([1000.0]))
    assert logit[0] == pytest.approx(0.0, abs=1e-3), "halfway between floor and ceiling"
    made = cells(n=250, data=(1000,), luck=0.2, noise=0.1)
    plain, judged = (predict(fit_law(made, each), "q", 7e13) for each in (Link(), Link(0.0, 0.95)))
    assert judged.high <= 0.95 < plain.high
    with pytest.raises(ValueError, match="tell nothing"):
        Link.of_judge(0.4, 0.5)


def test_terms_that_cells_cannot_tell_are_left_out_and_named():
    assert fit_law(cells(data=(1000,))).left_out == ("data", "size x data")
    made = [cell for cell in cells() if cell.data_size == 1000 or cell.model == "q3e+09"]
    assert fit_law(made).left_out == ("size x data",)


def test_what_rules_a_law_out_is_said_with_what_can_still_be_concluded():
    two = [cell for cell in cells(families=("q",)) if cell.parameters < 2e9]
    with pytest.raises(InputError, match=r"2 checkpoints for 2 coefficients.*can still be compared"):
        fit_law(two)
    with pytest.raises(InputError, match="one at a time"):
        fit_law([*cells(), Cell("q", "q", 1, 1, "stl", 0, "defense", 1, 2)])
    three = [cell for cell in cells(families=("q",), data=(1000,)) if cell.parameters < 5e9]
    with pytest.raises(InputError, match="more seeds do not help"):
        predict(fit_law(three), "q", 70e9)
    with pytest.raises(InputError, match="the only one fitted"):
        predict(fit_law(cells(families=("q",))), "mistral", 7e9)


def test_what_weakens_a_ladder_is_said_before_it_is_run():
    made = cells(families=("q",), data=(1000,))
    assert [p.where for p in ladder_problems(made)] == ["families"]
    uneven = [*cells(data=(1000,)), *(Cell(**vars(cell) | {"seed": 9}) for cell in made if cell.parameters > 1e10)]
    assert "fakes a trend" in ladder_problems(uneven)[-1].fix


def test_a_family_that_was_not_fitted_has_a_wider_interval():
    law = fit_law(cells(luck=0.1, noise=0.1, n=250, data=(1000,)))
    new, known = predict(law, "mistral", 7e9), predict(law, "q", 7e9)
    assert new.high - new.low > known.high - known.low


def test_a_law_is_written_and_read_as_json():
    law = fit_law(cells(luck=0.1, noise=0.1, n=250))
    again = Law.from_dict(json.loads(json.dumps(law.as_dict())))
    assert again == law and predict(again, "l", 70e9, 500) == predict(law, "l", 70e9, 500)


def test_losses_give_chinchillas_parameters_back():
    generator = np.random.default_rng(0)
    n, d = (each.ravel() for each in np.meshgrid(np.logspace(7.5, 10, 8), np.logspace(8.5, 11, 7)))
    losses = 1.82 + 482 / n**0.348 + 2085 / d**0.366
    law = fit_loss_law(n, d, losses * np.exp(0.002 * generator.standard_normal(len(n))), resamples=30)
    assert law.alpha == pytest.approx(0.348, abs=0.02) and law.beta == pytest.approx(0.366, abs=0.02)
    assert law.E == pytest.approx(1.82, abs=0.05)
    assert law.low[3] <= 0.348 <= law.high[3] and law.loss(1e10, 1e11) == pytest.approx(losses[-1], rel=0.01)
    with pytest.raises(InputError) as caught:
        fit_loss_law([1e9] * 3, [1e9] * 3, [2.0] * 3)
    assert len(caught.value.problems) == 3


def test_scaling_needs_neither_torch_nor_ray():
    code = (
        "import sys, dcr_ray.scaling.law, dcr_ray.scaling.backtest, dcr_ray.scaling.design, dcr_ray.scaling.transfer\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'optuna', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
