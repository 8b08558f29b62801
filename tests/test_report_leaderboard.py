"""Rows of a study and how they stand on a terminal."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from dcr_ray.report.leaderboard import leaderboard, render_leaderboard
from dcr_ray.report.measured import measured, smallest_visible_difference
from tests.report_trials import THREE, TWO, baseline, failed_trial, many_trials, search_trial


def printed(rows, width: int) -> str:
    out = io.StringIO()
    render_leaderboard(rows, Console(file=out, width=width))
    return out.getvalue()


def test_the_baseline_comes_first_then_the_front_then_the_rest_and_the_failed_last():
    trials = [
        failed_trial("broken"),
        search_trial("worse", 30, 30),
        search_trial("best", 55, 50),
        search_trial("rule-breaker", 58, 58, feasible=False),
        baseline(),
    ]
    rows = leaderboard(trials, TWO)
    assert [row["name"] for row in rows] == ["stl", "best", "worse", "rule-breaker", "broken"]
    assert [row["on_front"] for row in rows] == [False, True, False, False, False]


def test_a_row_holds_the_interval_the_difference_and_whether_it_is_better():
    row = leaderboard([baseline(compliance=30), search_trial("t", 45, 42)], THREE)[1]
    assert row["objectives"] == {
        "compliance": "0.75 [0.63, 0.84]",
        "defense": "0.70 [0.57, 0.80]",
        "perplexity": "12.25",
    }
    assert row["differences"] == {"compliance": "+0.25", "defense": "-0.10", "perplexity": "-1.25"}
    assert row["better"] == {"compliance": True, "defense": False, "perplexity": True}
    assert row["layer_depth"] == 0.5 and row["params"]["dcr.margin"] == 0.25 and row["perplexity"] == 12.25


def test_without_a_complete_baseline_there_are_no_differences():
    row = leaderboard([replace(baseline(), state="running"), search_trial("t")], TWO)[1]
    assert set(row["differences"].values()) == {None}


def test_values_that_are_not_finite_are_missing():
    trial = search_trial("t")
    trial.metrics.update({"perplexity": float("inf"), "defense": float("nan")})
    row = leaderboard([trial], TWO)[0]
    assert row["perplexity"] is None and row["objectives"]["defense"] is None


def test_rows_are_plain_json():
    rows = leaderboard(many_trials(12), TWO)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


@pytest.mark.parametrize("width", [80, 100, 140, 200])
@pytest.mark.parametrize("objectives", [TWO, THREE], ids=["two", "three"])
def test_no_row_of_the_table_is_wider_than_the_terminal_or_wrapped(width, objectives):
    trials = many_trials(12)
    text = printed(leaderboard(trials, objectives), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for trial in trials:
        row = next(line for line in lines if f" {trial.name} " in f" {line}")
        if value := measured(trial, "defense"):
            assert f"{value.value:.2f}" in row


def test_a_wide_terminal_shows_the_searched_parameters_and_a_narrow_one_says_what_it_left_out():
    rows = leaderboard(many_trials(5), TWO)
    assert "margin" in printed(rows, 200)
    assert "margin" not in printed(rows, 80) and "Not shown on 80 columns: 1 searched parameter" in printed(rows, 80)


def test_markup_in_names_and_reasons_is_shown_and_not_obeyed():
    text = printed(leaderboard([failed_trial("[red]t[/red]", reason="[bold]no\x1b[2J[/bold] room")], TWO), 120)
    assert "[red]t[/red]" in text and "[bold]no[/bold] room" in text and "\x1b" not in text


def test_an_empty_study_prints_a_sentence():
    assert printed([], 80).strip() == "No trials yet."


def test_the_smallest_visible_difference_is_what_a_simulated_test_finds_four_times_in_five():
    import numpy as np

    n, share = 400, 0.6
    step = smallest_visible_difference(share, n)
    draw = np.random.default_rng(0)
    one, other = draw.binomial(n, share - step / 2, 20_000) / n, draw.binomial(n, share + step / 2, 20_000) / n
    pooled = (one + other) / 2
    found = np.mean(np.abs(one - other) / np.sqrt(2 * pooled * (1 - pooled) / n) > 1.95996)
    assert found == pytest.approx(0.8, abs=0.02)


def test_a_share_of_one_still_has_noise_and_no_prompts_are_refused():
    assert smallest_visible_difference(1.0, 20) > 0.1
    assert smallest_visible_difference(0.5, 1) == 1.0
    with pytest.raises(ValueError, match="at least one prompt"):
        smallest_visible_difference(0.5, 0)
