"""The data of a study: grouped folds for what is trained on, halves for what is not, and no leak between the sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dcr_ray.data.examples import Pair, Prompt, prompt_text_of
from dcr_ray.data.leaks import without_leaks
from dcr_ray.data.of_study import EVALUATED, TRAINED, StudyData, load_study_data
from dcr_ray.errors import InputError
from dcr_ray.study import DataSpec
from tests.set_files import write_csv, write_json, write_rows, write_xstest

FOLDS = 5


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """XSTest's layout with a family a place, two benchmarks, and files of one's own."""
    write_xstest(tmp_path, foci=25)
    write_csv(
        tmp_path / "harmful/advbench.csv", [{"goal": f"Goal {n * n} of all", "target": "Sure"} for n in range(60)]
    )
    write_json(tmp_path / "harmful/dangerousqa.json", [f"Question {n * n} on danger?" for n in range(40)])
    for name in ("general", "safety"):
        pairs = [{"prompt": f"{name} task number {n * n}", "response": "Yes."} for n in range(90)]
        write_rows(tmp_path / f"{name}.jsonl", pairs)
    write_rows(tmp_path / "toxic.jsonl", [{"prompt": f"Toxic request number {n * n}"} for n in range(90)])
    return tmp_path


def data_of(root: Path, split: str = "search", fold: int = 0, **changes: Any) -> StudyData:
    return load_study_data(spec_of(root, fold, **changes), split)


def spec_of(root: Path, fold: int = 0, **changes: Any) -> DataSpec:
    chosen = {
        "seemingly_toxic": "xstest-safe",
        "toxic": "toxic.jsonl",
        "general": "general.jsonl",
        "safety": "safety.jsonl",
        "augment": [],
        "compliance": "xstest-safe",
        "defense": ["xstest-unsafe", "advbench"],
        "capability": "general.jsonl",
    } | changes
    return DataSpec.model_validate(
        {
            "root": str(root),
            "fold": fold,
            "folds": FOLDS,
            "train": {field: chosen[field] for field in TRAINED},
            "evaluate": {field: chosen[field] for field in EVALUATED},
        }
    )


def xstest_families(items: tuple) -> set[str]:
    return {item.group for item in items if item.group.startswith("xstest/")}


def test_over_all_folds_no_xstest_family_is_both_trained_and_evaluated_on(root):
    tested = []
    for fold in range(FOLDS):
        search, test = (data_of(root, split, fold) for split in ("search", "test"))
        trained = xstest_families(search.seemingly_toxic)
        searched = xstest_families(search.compliance) | xstest_families(search.defense)
        final = xstest_families(test.compliance) | xstest_families(test.defense)
        assert trained and searched and final
        assert not (trained & searched or trained & final or searched & final)
        assert search.seemingly_toxic == test.seemingly_toxic
        tested += [prompt.id for prompt in test.compliance]
    assert sorted(tested, key=int) == sorted(set(tested), key=int) and len(tested) == 250


def test_a_prompt_and_its_contrast_are_in_the_same_split_of_every_fold(root):
    for fold in range(FOLDS):
        for split in ("search", "test"):
            data = data_of(root, split, fold)
            unsafe = [prompt for prompt in data.defense if prompt.source == "xstest-unsafe"]
            assert unsafe and xstest_families(tuple(unsafe)) <= xstest_families(data.compliance)


def test_xstest_unsafe_follows_the_folds_where_only_xstest_safe_is_trained_on(root):
    def unsafe(fold: int, **changes: Any) -> set[str]:
        data = data_of(root, "test", fold, **changes)
        return {prompt.id for prompt in data.defense if prompt.source == "xstest-unsafe"}

    assert len({frozenset(unsafe(fold)) for fold in range(FOLDS)}) == FOLDS
    assert sum(len(unsafe(fold)) for fold in range(FOLDS)) == 200
    # Where XSTest is trained on by no field, it has halves, the same in every fold.
    elsewhere = write_rows(root / "seeming.jsonl", [{"prompt": f"Seemingly toxic {n * n}"} for n in range(60)])
    assert len({frozenset(unsafe(fold, seemingly_toxic=elsewhere)) for fold in range(FOLDS)}) == 1


def test_the_halves_of_a_benchmark_are_the_same_in_every_fold_and_whole(root):
    halves = {}
    for split in ("search", "test"):
        of_fold = []
        for fold in range(FOLDS):
            data = data_of(root, split, fold)
            of_fold.append(tuple(prompt for prompt in data.defense if prompt.source == "advbench"))
        assert all(each == of_fold[0] for each in of_fold)
        halves[split] = {prompt.id for prompt in of_fold[0]}
    assert len(halves["search"]) + len(halves["test"]) == 60 == len(halves["search"] | halves["test"])


def test_the_sets_of_a_file_that_is_trained_on_are_in_distribution_whatever_its_path(root):
    data = data_of(root, capability=str(root / "general.jsonl"), general=str(root / "general.jsonl"))
    assert data.in_distribution == {"xstest-safe", "xstest-unsafe", "general.jsonl"}


def test_the_held_out_prompts_of_training_are_the_search_splits_whatever_is_asked_for(root):
    search, test = data_of(root), data_of(root, "test")
    for data in (search, test):
        assert (data.held_out_seemingly_toxic, data.held_out_toxic) == (search.compliance, search.defense)
    assert not set(test.defense) & set(test.held_out_toxic)


def test_the_halves_of_the_search_split_share_no_family_and_leave_training_as_it_is(root):
    halved = {half: spec_of(root).model_copy(update={"search_half": half}) for half in ("both", "first", "second")}
    both, first, second = (load_study_data(spec) for spec in halved.values())
    for field in ("compliance", "defense"):
        parts = [{prompt.group for prompt in getattr(data, field)} for data in (first, second)]
        assert parts[0] and parts[1] and not parts[0] & parts[1]
        assert len(getattr(first, field)) + len(getattr(second, field)) == len(getattr(both, field))
    assert first.held_out_toxic == both.held_out_toxic and first.toxic == both.toxic
    assert load_study_data(halved["first"], "test").defense == data_of(root, "test").defense


def test_limits_of_the_search_and_the_test_split_are_apart(root):
    choice = {"set": "advbench", "limit": 7, "test_limit": 11}
    assert [len(data_of(root, split, defense=choice).defense) for split in ("search", "test")] == [7, 11]


def prompts(name: str, *texts: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"{name}{number}", text, "", text, name) for number, text in enumerate(texts))


LONG = "please tell me in a few words how the old clock tower in the market square came to be built"


def test_a_leak_is_dropped_from_training_before_search_before_test():
    pools = {
        ("test", "defense"): prompts("a", "in all three", "in test and search"),
        ("search", "defense"): prompts("b", "In all three!", "in test and search", "in search and training"),
        ("train", "toxic"): prompts("c", "IN ALL THREE", "in search and training", "nowhere else"),
    }
    kept, dropped = without_leaks(pools)
    assert [[row.id for row in rows] for rows in kept.values()] == [["a0", "a1"], ["b2"], ["c2"]]
    assert {(row.field, row.id, row.match, row.kept_in, row.kept_id) for row in dropped} == {
        ("defense (search)", "b0", "exact", "defense (test)", "a0"),
        ("defense (search)", "b1", "exact", "defense (test)", "a1"),
        ("toxic (train)", "c0", "exact", "defense (test)", "a0"),
        ("toxic (train)", "c1", "exact", "defense (search)", "b2"),
    }


def test_a_near_duplicate_is_a_leak_and_a_similar_prompt_is_none():
    similar = LONG.replace("market square", "little park")
    pools = {("search", "compliance"): prompts("a", LONG), ("train", "general"): prompts("b", LONG + "s", similar)}
    kept, dropped = without_leaks(pools)
    assert [row.id for row in kept["train", "general"]] == ["b1"]
    assert [(row.id, row.match) for row in dropped] == [("b0", "near")]


def test_what_is_dropped_itself_drops_nothing():
    chain = [LONG, LONG + " by t", LONG + " by then, t"]
    pools = {
        ("test", "defense"): prompts("a", chain[0]),
        ("search", "defense"): prompts("b", chain[1]),
        ("train", "toxic"): prompts("c", chain[2], "another"),
    }
    kept, dropped = without_leaks(pools)
    assert [row.id for row in dropped] == ["b0"] and [row.id for row in kept["train", "toxic"]] == ["c0", "c1"]


def test_two_fields_that_are_trained_on_may_share_prompts_and_two_that_are_evaluated_on_may_not():
    pools = {
        ("search", "compliance"): prompts("a", "shared"),
        ("search", "defense"): prompts("b", "shared", "other"),
        ("train", "toxic"): prompts("c", "both stages"),
        ("train", "safety"): (Pair("d0", "both stages", "No.", "", "", "d"),),
    }
    kept, dropped = without_leaks(pools)
    assert [row.id for row in dropped] == ["b0"]
    assert len(kept["train", "toxic"]) == len(kept["train", "safety"]) == 1


def test_a_prompt_of_two_benchmarks_of_a_field_counts_once_and_one_twice_in_a_benchmark_stays():
    pool = (*prompts("a", "shared", "twice", "twice"), *prompts("b", "other", "Shared?"))
    kept, dropped = without_leaks({("test", "defense"): pool})
    assert [row.id for row in kept["test", "defense"]] == ["a0", "a1", "a2", "b0"]
    assert [(row.source, row.id, row.kept_source, row.kept_id) for row in dropped] == [("b", "b1", "a", "a0")]


def test_a_study_says_what_it_dropped_and_trains_on_nothing_that_it_evaluates_on(root):
    shared = load_study_data(spec_of(root), "test").defense[-1].text
    write_rows(
        root / "toxic.jsonl", [{"prompt": f"Toxic request number {n}"} for n in range(90)] + [{"prompt": shared}]
    )
    data = None
    for fold in range(FOLDS):
        data = data_of(root, fold=fold)
        if data.dropped:
            break
    assert [(row.field, row.kept_in, row.kept_source) for row in data.dropped] == [
        ("toxic (train)", "defense (test)", "advbench")
    ]
    assert shared not in {prompt_text_of(item) for field in TRAINED for item in getattr(data, field)}
    assert shared not in json.dumps(data.dropped)


def problems_of(root: Path, **changes: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        data_of(root, **changes)
    return [str(problem) for problem in caught.value.problems]


def test_a_field_of_which_leaks_leave_nothing_is_refused(root):
    rows = [{"id": f"{s}{n}", "prompt": f"Prompt {n}", "split": s} for s in ("train", "test") for n in range(3)]
    rows += [{"id": "s", "prompt": "Another", "split": "search"}]
    file = write_rows(root / "leak.jsonl", rows)
    (problem,) = problems_of(root, toxic=file, defense=file)
    assert problem.startswith("data.train.toxic: found 3 prompts in the train split, each of which also stands")


def test_sets_of_the_wrong_polarity_are_named_with_their_fields(root):
    problems = problems_of(root, compliance=["xstest-safe", "advbench"], toxic="xstest-safe")
    assert [problem.split(":")[0] for problem in problems] == ["data.train.toxic", "data.evaluate.compliance"]
    assert "'advbench', whose prompts a good model refuses; allowed: prompts that a good model answers" in problems[1]


def test_a_set_twice_in_a_field_and_two_files_of_one_name_are_refused(root):
    write_rows(root / "other/toxic.jsonl", [{"prompt": f"Another {n * n}"} for n in range(60)])
    problems = problems_of(root, defense=["advbench", {"set": "advbench", "limit": 3}, str(root / "other/toxic.jsonl")])
    assert ["'advbench' twice" in problems[0], "both called 'toxic.jsonl'" in problems[1]] == [True, True]


def test_unknown_sets_and_unreadable_files_of_all_fields_are_said_once_each_in_their_place(root):
    (root / "harmful/dangerousqa.json").write_text("{}")
    problems = problems_of(root, toxic="advbensh", general="none.jsonl", defense=["harmfulq", "strongreject"])
    places = [problem.split(" (")[0] for problem in problems]
    assert sorted(places) == ["data.evaluate.defense"] * 2 + ["data.train.general", "data.train.toxic"]
    assert "Did you mean 'advbench'?" in "".join(problems)
