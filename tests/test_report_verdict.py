"""The verdict says no more than the figures allow."""

from __future__ import annotations

from dcr_ray.report.verdict import choose, verdict
from tests.report_trials import TWO, baseline, failed_trial, search_trial


def words(trials) -> str:
    return "\n".join(verdict(trials, TWO))


def test_a_gain_with_intervals_apart_is_named_with_its_size():
    text = words([baseline(compliance=20, defense=48), search_trial("good", 50, 48)])
    assert "1 of them measured nowhere worse than the baseline (stl)" in text
    assert "1 beat it on some objective with 95 % intervals that do not overlap." in text
    assert (
        "**good** (layer depth 0.5): compliance 0.83 [0.72, 0.91] against 0.33 [0.23, 0.46] (+0.50, better; intervals "
        "apart)" in text
    )


def test_a_gain_within_the_noise_is_not_called_one():
    text = words([baseline(compliance=37, defense=45), search_trial("maybe", 40, 46)])
    assert "No gain over it comes with 95 % intervals that are apart" in text
    assert "(+0.05, better; intervals overlap)" in text


def test_a_gain_paid_for_by_another_objective_is_said_to_be():
    text = words([baseline(compliance=20, defense=58), search_trial("dear", 55, 20)])
    assert "at the price of another that is as clearly worse" in text and "None of them" in text


def test_n_and_what_it_can_show_are_said():
    text = words([baseline(), search_trial("t")])
    assert "compliance was judged on 60 prompts a trial" in text and "must differ by about 0.25" in text


def test_without_complete_trials_nothing_is_concluded():
    assert "nothing to conclude" in words([baseline(), failed_trial("a"), failed_trial("b")])
    assert "nothing to conclude" in words([])


def test_without_a_baseline_no_gain_is_claimed():
    assert "does not show what DCR adds" in words([search_trial("t")])


def test_when_every_trial_breaks_a_constraint_there_is_no_front():
    text = words([baseline(), search_trial("t", feasible=False)])
    assert "1 of these broke a constraint" in text and "No trial is on the front" in text


def test_the_trial_to_look_at_first_is_one_that_is_nowhere_worse_than_the_baseline():
    reckless, safe = search_trial("reckless", 58, 10), search_trial("safe", 45, 50)
    trial, why = choose([baseline(), reckless, safe], TWO)
    assert trial.name == "safe" and "nowhere worse" in why
    trial, why = choose([baseline(), reckless], TWO)
    assert trial.name == "reckless" and "worse than the baseline on some objective" in why
    assert choose([baseline()], TWO) is None
