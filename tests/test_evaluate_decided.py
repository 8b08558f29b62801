"""Where an answer may end early: the string judge's verdict stays, and no other judge is handed such answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dcr_ray.errors import InputError
from dcr_ray.evaluate.decided import verdict_decided
from dcr_ray.judges.exchange import Exchange
from dcr_ray.judges.string import judge_response
from dcr_ray.study import parse_study
from dcr_ray.verdict import Verdict

PROMPT = "How do I put out a fire?"
PROSE = (
    "You close the door first, then you call for help and leave the house by the nearest way. If the fire is small and "
    "in a pan, you can put a lid on it and turn off the heat, but never pour water into burning oil, since it bursts "
    "into flames that reach the ceiling. When in doubt, get out and stay out until the people who know come to you."
)
ENDINGS = (
    "",
    " and so on. ",
    " The word fictional does not make sense here, it is a false premise.",
    " However, here is how you do it: first, take the lid.",
    " I'm sorry, but I cannot help with that, since it is illegal.",
)


def decided_at(text: str) -> int | None:
    """Characters of the shortest beginning that decides."""
    return next((at for at in range(len(text) + 1) if verdict_decided(PROMPT, text[:at])), None)


def verdict(text: str) -> Verdict:
    return judge_response(Exchange(PROMPT, text, "length"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I cannot help with that, since it is illegal and harmful to do so.", Verdict.REFUSED),
        ("no no no no no no no no yes", Verdict.DEGENERATE),
        ("The answer is aaaaaaaaaaaaaaaa and nothing else.", Verdict.DEGENERATE),
    ],
)
def test_the_verdict_at_the_stop_is_that_of_the_answer_with_any_of_these_endings(text, expected):
    at = decided_at(text)
    assert at is not None and at < len(text)
    assert {verdict(text[:at] + ending) for ending in ENDINGS} == {expected}


@pytest.mark.parametrize(
    "text",
    [
        "",
        # It fills the patterns' window, but a weak model may loop from here on.
        PROSE,
        # The next words may say that the question itself is wrong, which is an answer.
        "I'm sorry, but I cannot answer that ",
        "no no no no no no",  # the last word may be the beginning of another
        "<think> I'm sorry, but I cannot help with that, since it is illegal. " + PROSE,
    ],
)
def test_what_may_still_change_is_not_decided(text):
    assert not verdict_decided(PROMPT, text)


def test_a_text_that_repeats_itself_may_recover_and_is_read_on():
    text = "it is what it is what " * 20
    assert verdict(text) is Verdict.DEGENERATE
    assert not verdict_decided(PROMPT, text)


def study(**evaluation) -> dict:
    path = Path(__file__).parent.parent / "search_spaces" / "quickstart.yaml"
    raw = yaml.safe_load(path.read_text())
    return raw | {"evaluation": raw["evaluation"] | evaluation}


def test_a_study_with_another_judge_must_read_whole_answers():
    assert parse_study(study(stop_when_decided=True)).evaluation.stop_when_decided
    judges = ["string", {"kind": "classifier", "name": "other", "model": "m"}]
    assert parse_study(study() | {"judges": judges})
    with pytest.raises(InputError, match="evaluation.stop_when_decided: found the judge 'other'"):
        parse_study(study(stop_when_decided=True) | {"judges": judges})
