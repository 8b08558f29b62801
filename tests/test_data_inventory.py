"""The tables behind `data list`, `data check` and `data fetch`."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dcr_ray.data.dataset import GitFile, HubTable
from dcr_ray.data.fetch import fetch
from dcr_ray.data.inventory import check, list_sets
from dcr_ray.data.load import load_prompts
from dcr_ray.data.sets import SETS
from dcr_ray.errors import InputError


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_advbench(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("goal,target\n" + "".join(f"Goal number {n} of all,Sure\n" for n in range(40)))


def test_the_list_counts_the_rows_of_every_split_or_says_why_not(tmp_path):
    write_advbench(tmp_path / "harmful/advbench.csv")
    table = {row["name"]: row for row in list_sets(tmp_path)}
    assert list(table) == list(SETS)
    assert sum(table["advbench"]["rows"].values()) == 40 and table["advbench"]["reason"] == ""
    assert table["oktest"]["rows"] is None
    assert str(tmp_path / "over_refusal/OKTest.csv") in table["oktest"]["reason"]


def test_a_clean_set_has_no_problems(tmp_path):
    rows = [{"prompt": f"{word} is what this is about, is it not?"} for word in ("bread", "water", "a stone", "music")]
    assert check([write_rows(tmp_path / "own.jsonl", rows)]) == []


def test_check_tells_duplicates_and_overlaps_apart_and_shows_no_text(tmp_path):
    one = write_rows(
        tmp_path / "one.jsonl",
        [
            {"id": "a", "prompt": "secret twin", "split": "train"},
            {"id": "b", "prompt": "Secret twin!", "split": "train"},
            {"id": "c", "prompt": "a secret seen in training", "split": "train"},
            {"id": "d", "prompt": "a secret seen in training", "split": "test"},
        ],
    )
    two = write_rows(tmp_path / "two.jsonl", [{"id": "e", "prompt": "Secret: twin", "split": "train"}])
    problems = check([one, two])
    told = {(p["problem"], p["one"].rpartition("/")[2], p["other"].rpartition("/")[2], p["ids"]) for p in problems}
    assert told >= {
        ("duplicates", "train", "train", (("a", "b"),)),
        ("overlap across splits", "train", "test", (("c", "d"),)),
        ("overlap of sets", "train", "train", (("a", "e"), ("b", "e"))),
    }
    assert "secret" not in str(problems).lower()


def test_check_finds_a_group_that_a_files_own_splits_tear_apart(tmp_path):
    rows = [
        {"id": "a", "prompt": "bread", "group": "g", "split": "train"},
        {"id": "b", "prompt": "stones", "group": "g", "split": "test"},
    ]
    problems = check([write_rows(tmp_path / "own.jsonl", rows)])
    assert [(p["problem"], p["ids"]) for p in problems] == [("group across splits", (("a", "b"),))]


def test_check_tells_every_empty_text_and_goes_on_with_the_other_sets(tmp_path):
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": ""}, {"prompt": "x", "response": "y"}, {"prompt": " "}])
    good = write_rows(tmp_path / "good.jsonl", [{"prompt": "twin", "group": "g"}, {"prompt": "Twin", "group": "g"}])
    problems = check([bad, good])
    assert [p["detail"]["found"] for p in problems if p["problem"] == "unreadable"].count("an empty prompt") == 2
    assert [p["problem"] for p in problems][-1] == "duplicates"


def test_a_file_is_fetched_into_its_place_below_the_root(tmp_path, monkeypatch):
    write_advbench(tmp_path / "origin/repository/main/behaviours.csv")
    origin = GitFile("repository", "behaviours.csv", host=(tmp_path / "origin").as_uri())
    monkeypatch.setitem(SETS, "advbench", replace(SETS["advbench"], origin=origin))
    assert [(row["status"], row["rows"]) for row in fetch(["advbench"], tmp_path / "root")] == [("fetched", 40)]
    assert [row["status"] for row in fetch(["advbench"], tmp_path / "root")] == ["there"]
    assert len(load_prompts("advbench", root=tmp_path / "root")) == 40
    assert [path.name for path in (tmp_path / "root/harmful").iterdir()] == ["advbench.csv"]


def test_a_hub_table_is_written_in_the_layout_of_the_original(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    table = tmp_path / "hub"
    table.mkdir()
    with open(table / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([["prompt", "category"], ['One, "two"', "illegal"], ["Three\nfour", "privacy"]])
    origin = HubTable(str(table), None, "train")
    monkeypatch.setitem(SETS, "or-bench-hard-1k", replace(SETS["or-bench-hard-1k"], origin=origin))
    fetch(["or-bench-hard-1k"], tmp_path / "root")
    prompts = load_prompts("or-bench-hard-1k", root=tmp_path / "root")
    assert [(prompt.text, prompt.kind) for prompt in prompts] == [('One, "two"', "illegal"), ("Three\nfour", "privacy")]


def test_all_sets_that_cannot_be_fetched_are_named_and_nothing_is_left_behind(tmp_path, monkeypatch):
    (tmp_path / "origin/repository/main").mkdir(parents=True)
    (tmp_path / "origin/repository/main/foreign.csv").write_text("another,layout\n1,2\n")
    for name, file in (("advbench", "absent.csv"), ("oktest", "foreign.csv")):
        origin = GitFile("repository", file, host=(tmp_path / "origin").as_uri())
        monkeypatch.setitem(SETS, name, replace(SETS[name], origin=origin))
    with pytest.raises(InputError) as caught:
        fetch(["advbench", "oktest", "alpaca"], tmp_path / "root")
    assert [problem.where for problem in caught.value.problems] == [
        "data set 'advbench'", "data set 'oktest'", "data set 'alpaca'",
    ]  # fmt: skip
    assert all("data.root" in problem.fix for problem in caught.value.problems)
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]


def test_the_sets_of_the_package_need_no_fetching(tmp_path):
    for row in fetch([name for name in SETS if name.startswith("builtin-")], tmp_path):
        assert row["status"] == "in the package" and row["rows"] > 0
