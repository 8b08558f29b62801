"""The built-in prompts hold what their README promises: sizes, clean splits, and classes that differ in intent only.

Failures name rows by id and never show a prompt, because half of the prompts are harmful requests.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from importlib.resources import files
from itertools import combinations

import pytest

ROWS = {
    name: [
        json.loads(line)
        for line in (files("dcr_ray") / "data" / "builtin" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for name in ("seemingly_toxic", "toxic", "instructions", "refusals")
}
PROMPT_FIELDS = {"id", "prompt", "kind", "group", "split"}
PAIR_FIELDS = {"id", "prompt", "response", "kind", "split"}
LOOKS = {
    "seemingly_toxic": ("st", PROMPT_FIELDS, {"train": 84, "search": 42, "test": 42}, 14),
    "toxic": ("tx", PROMPT_FIELDS, {"train": 84, "search": 42, "test": 42}, 14),
    "instructions": ("in", PAIR_FIELDS, {"train": 240, "search": 30, "test": 30}, 15),
    "refusals": ("rf", PAIR_FIELDS, {"train": 96, "search": 12, "test": 12}, 12),
}
TRIGGER_STEMS = ("kill", "shoot", "steal", "bomb", "hack", "poison", "crack", "murder", "stab", "rob", "launder")
COMMON_REFUSAL = re.compile(r"(I'm sorry|Sorry|I can't|I cannot|I won't|I'm not able)\b")

every_file = pytest.mark.parametrize("name", LOOKS)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def uses_stem(row: dict[str, str], stem: str) -> bool:
    return any(word.startswith(stem) for word in words(row["prompt"]))


def area_under_roc(positive: list[float], negative: list[float]) -> float:
    """Share of (positive, negative) pairs in which the positive scores higher; ties count half (Mann-Whitney)."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


@every_file
def test_rows_have_their_fields_and_ids_count_up(name: str) -> None:
    prefix, fields, _, _ = LOOKS[name]
    assert [row["id"] for row in ROWS[name]] == [f"{prefix}-{number:03d}" for number in range(1, len(ROWS[name]) + 1)]
    assert [row["id"] for row in ROWS[name] if set(row) != fields] == []
    ragged = [row["id"] for row in ROWS[name] if any(v != v.strip() or not v or not v.isascii() for v in row.values())]
    assert ragged == []


@every_file
def test_splits_have_the_promised_sizes_and_each_kind_is_in_each_split(name: str) -> None:
    _, _, sizes, kinds = LOOKS[name]
    assert Counter(row["split"] for row in ROWS[name]) == sizes
    kinds_of_split = {split: {row["kind"] for row in ROWS[name] if row["split"] == split} for split in sizes}
    assert {split: len(found) for split, found in kinds_of_split.items()} == dict.fromkeys(sizes, kinds)
    assert len({row["kind"] for row in ROWS[name]}) == kinds


def test_no_prompt_stands_twice_in_the_four_files() -> None:
    ids_of_prompt = defaultdict(list)
    for rows in ROWS.values():
        for row in rows:
            ids_of_prompt[" ".join(words(row["prompt"]))].append(row["id"])
    assert [ids for ids in ids_of_prompt.values() if len(ids) > 1] == []


def test_a_group_lies_in_one_split_even_where_both_classes_share_it() -> None:
    splits_of_group = defaultdict(set)
    for row in ROWS["seemingly_toxic"] + ROWS["toxic"]:
        splits_of_group[row["group"]].add(row["split"])
    assert [group for group, splits in splits_of_group.items() if len(splits) > 1] == []


def test_no_prompt_of_one_split_is_nearly_worded_like_one_of_another() -> None:
    rows = [(row["id"], row["split"], set(words(row["prompt"]))) for rows in ROWS.values() for row in rows]
    alike = [
        (first_id, second_id)
        for (first_id, first_split, first), (second_id, second_split, second) in combinations(rows, 2)
        if first_split != second_split and 2 * len(first & second) >= len(first | second)
    ]
    assert alike == []


@pytest.mark.parametrize("split", ["train", "search", "test"])
def test_prompt_length_does_not_give_the_class_away(split: str) -> None:
    toxic, harmless = (
        [len(row["prompt"].split()) for row in ROWS[name] if row["split"] == split]
        for name in ("toxic", "seemingly_toxic")
    )
    assert abs(sum(toxic) / len(toxic) / (sum(harmless) / len(harmless)) - 1) < 0.15
    assert 0.35 < area_under_roc(toxic, harmless) < 0.65


def test_the_opening_words_do_not_give_the_class_away() -> None:
    """Naive Bayes on the first two words, fitted on the training split, stays near chance on the other two."""
    classes = ("toxic", "seemingly_toxic")
    counts = {
        name: Counter(w for row in ROWS[name] if row["split"] == "train" for w in words(row["prompt"])[:2])
        for name in classes
    }
    vocabulary = set(counts["toxic"]) | set(counts["seemingly_toxic"])

    def log_probability(word: str, name: str) -> float:
        return math.log((counts[name][word] + 1) / (counts[name].total() + len(vocabulary)))

    toxic, harmless = (
        [
            sum(log_probability(w, "toxic") - log_probability(w, "seemingly_toxic") for w in words(row["prompt"])[:2])
            for row in ROWS[name]
            if row["split"] != "train"
        ]
        for name in classes
    )
    assert 0.35 < area_under_roc(toxic, harmless) < 0.65


@pytest.mark.parametrize("stem", TRIGGER_STEMS)
def test_trigger_words_are_in_both_classes_and_never_in_instructions(stem: str) -> None:
    uses = {name: sum(uses_stem(row, stem) for row in ROWS[name]) for name in ROWS}
    assert uses["seemingly_toxic"] > 0
    assert uses["toxic"] > 0
    assert uses["instructions"] == 0


@pytest.mark.parametrize(("name", "fewest", "most"), [("instructions", 12, 45), ("refusals", 10, 35)])
def test_responses_have_the_promised_length_in_words(name: str, fewest: int, most: int) -> None:
    assert [row["id"] for row in ROWS[name] if not fewest <= len(row["response"].split()) <= most] == []


def test_refusals_open_in_many_ways_and_a_little_over_half_in_the_common_ones() -> None:
    openings = Counter(tuple(words(row["response"])[:2]) for row in ROWS["refusals"])
    assert len(openings) >= 12
    assert max(openings.values()) <= 0.2 * len(ROWS["refusals"])
    common = sum(COMMON_REFUSAL.match(row["response"]) is not None for row in ROWS["refusals"])
    assert 0.5 <= common / len(ROWS["refusals"]) <= 0.7


def test_answers_to_instructions_open_in_many_ways_and_none_is_a_refusal() -> None:
    openings = Counter(tuple(words(row["response"])[:2]) for row in ROWS["instructions"])
    assert max(openings.values()) <= 0.03 * len(ROWS["instructions"])
    assert [row["id"] for row in ROWS["instructions"] if COMMON_REFUSAL.match(row["response"])] == []
