"""The published sets, read from small files in their original layouts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from dcr_ray.data.examples import SPLITS
from dcr_ray.data.load import load_pairs, load_prompts, load_splits
from dcr_ray.data.overlap import find_overlaps
from dcr_ray.data.sets import SETS, find_set
from dcr_ray.errors import InputError

XSTEST_BLOCKS = (
    "homonyms", "contrast_homonyms", "figurative_language", "contrast_figurative_language", "safe_targets",
    "contrast_safe_targets", "safe_contexts", "contrast_safe_contexts", "definitions", "contrast_definitions",
    "nons_group_real_discr", "real_group_nons_discr", "contrast_discr", "historical_events",
    "contrast_historical_events", "privacy_public", "privacy_fictional", "contrast_privacy",
)  # fmt: skip
WITHOUT_FOCUS = ("nons_group_real_discr", "historical_events", "contrast_historical_events")


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture
def xstest(tmp_path: Path) -> Path:
    """All 450 rows of XSTest's layout: blocks of 25 a type, a contrast block right after its safe one."""
    rows = []
    for block, type_ in enumerate(XSTEST_BLOCKS):
        for place in range(25):
            focus = "" if type_ in WITHOUT_FOCUS else ["bank account fraud", "Elderly ", "kill"][min(place, 2)]
            if type_.startswith("contrast_") and focus == "bank account fraud":
                focus = "bank fraud"
            rows.append(
                {
                    "id": str(25 * block + place + 1),
                    "prompt": f"question {place} of {type_}",
                    "type": type_,
                    "label": "unsafe" if type_.startswith("contrast_") else "safe",
                    "focus": focus,
                    "note": "",
                }
            )
    write_csv(tmp_path / "over_refusal/xstest_prompts.csv", rows)
    return tmp_path


def test_xstest_has_250_safe_prompts_of_ten_types_and_200_contrasts(xstest):
    safe, unsafe = load_prompts("xstest-safe", root=xstest), load_prompts("xstest-unsafe", root=xstest)
    assert (len(safe), len(unsafe)) == (250, 200)
    assert len({prompt.kind for prompt in safe}) == 10
    assert {prompt.source for prompt in safe} == {"xstest-safe"}


def test_every_xstest_contrast_shares_the_group_of_a_safe_prompt(xstest):
    safe = {prompt.group for prompt in load_prompts("xstest-safe", root=xstest)}
    assert {prompt.group for prompt in load_prompts("xstest-unsafe", root=xstest)} <= safe


def test_an_xstest_prompt_and_its_contrast_are_in_the_same_split_in_every_fold(xstest):
    for fold in range(5):
        split_of = {}
        for name in ("xstest-safe", "xstest-unsafe"):
            for split, prompts in load_splits(name, root=xstest, fold=fold).items():
                for prompt in prompts:
                    assert split_of.setdefault(prompt.group, split) == split


def test_historical_xstest_prompts_pair_with_the_contrast_at_the_same_place(xstest):
    group = {p.id: p.group for name in ("xstest-safe", "xstest-unsafe") for p in load_prompts(name, root=xstest)}
    assert group["326"] == group["351"] != group["327"] == group["352"]


def test_xstest_prompts_about_no_real_group_stand_alone(xstest):
    groups = [p.group for p in load_prompts("xstest-safe", root=xstest) if p.kind == "nons_group_real_discr"]
    others = {p.group for p in load_prompts("xstest-safe", root=xstest) if p.kind != "nons_group_real_discr"}
    assert len(set(groups)) == 25 and not others & set(groups)


@pytest.fixture
def red_team(tmp_path: Path) -> Path:
    rows = [
        {"instruction": f"Question {n * n} about topic {n}?", "output": f"Answer {n}.", "input": ""} for n in range(300)
    ]
    rows += [{**row, "instruction": row["instruction"].upper(), "output": "Another answer."} for row in rows[:50]]
    twin = "How would one ever come to do the thing that is described at some length in this one sentence her"
    rows += [{"instruction": f"{twin}{end}", "output": f"Answer {end}", "input": ""} for end in ("e", "self")]
    write_json(tmp_path / "training/safety_only_data_Instructions.json", rows)
    return tmp_path


def test_toxic_prompts_and_safety_pairs_share_no_text_and_leave_none_out(red_team):
    prompts, pairs = load_prompts("hh-red-team", root=red_team), load_pairs("stl-safety", root=red_team)
    assert len(prompts) + len(pairs) == 352
    assert 0.2 < len(prompts) / 352 < 0.45
    assert find_overlaps({"dcr": prompts, "sft": pairs}) == []


def test_near_duplicates_in_the_red_team_file_share_a_group(red_team):
    items = [*load_prompts("hh-red-team", root=red_team), *load_prompts("stl-safety", root=red_team)]
    assert len({item.group for item in items if item.text.startswith("How would")}) == 1


def test_the_same_prompt_with_two_answers_keeps_two_ids(red_team):
    pairs = load_pairs("stl-safety", root=red_team)
    assert len({pair.id for pair in pairs}) == len(pairs)


def test_an_alpaca_prompt_is_the_instruction_and_below_it_the_input(tmp_path):
    rows = [
        {"instruction": "Add the numbers.", "input": "1, 2", "output": "3"},
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
    ]
    write_json(tmp_path / "training/alpaca_15k.json", rows)
    assert [pair.prompt for pair in load_pairs("alpaca", root=tmp_path)] == ["Add the numbers.\n1, 2", "Say hello."]


def test_alpaca_rows_without_an_output_are_left_out(tmp_path):
    rows = [{"instruction": f"Say {n}.", "input": "", "output": "" if n == 1 else str(n)} for n in range(3)]
    write_json(tmp_path / "training/alpaca_15k.json", rows)
    assert [pair.response for pair in load_pairs("alpaca", root=tmp_path)] == ["0", "2"]


def test_every_other_layout_is_read(tmp_path):
    write_csv(tmp_path / "harmful/advbench.csv", [{"goal": "Do a thing, twice", "target": "Sure"}])
    write_csv(tmp_path / "over_refusal/OKTest.csv", [{"prompt": "How do I kill time?\n"}])
    write_csv(tmp_path / "over_refusal/or-bench-hard-1k.csv", [{"prompt": "Why?", "category": "illegal"}])
    write_json(tmp_path / "over_refusal/PHTest-200.json", [{"ID": 465, "prompt": "What?", "Harmfulness": "harmless"}])
    write_json(tmp_path / "harmful/I-CoNa.json", {"instructions": ["One", "Two"], "inputs": []})
    write_json(tmp_path / "harmful/dangerousqa.json", ["A question"])
    (tmp_path / "harmful/malicious_instruct.txt").write_text("First line\nSecond line\n")
    line = {"id": "x1", "category": "c", "subcategory": "s", "prompt": "Explain it.", "response": ""}
    (tmp_path / "over_refusal/coconot_contrast_eval.jsonl").write_text(json.dumps(line) + "\n")
    texts = {
        name: [prompt.text for prompt in load_prompts(name, root=tmp_path)]
        for name in ("advbench", "oktest", "or-bench-hard-1k", "phtest", "i-cona", "harmfulq", "malicious-instruct")
    }
    assert texts == {
        "advbench": ["Do a thing, twice"],
        "oktest": ["How do I kill time?"],
        "or-bench-hard-1k": ["Why?"],
        "phtest": ["What?"],
        "i-cona": ["One", "Two"],
        "harmfulq": ["A question"],
        "malicious-instruct": ["First line", "Second line"],
    }
    assert load_prompts("phtest", root=tmp_path)[0].id == "465"
    coconot = load_prompts("coconot-contrast", root=tmp_path)[0]
    assert (coconot.id, coconot.kind, coconot.text) == ("x1", "s", "Explain it.")


def test_every_set_names_its_file_licence_and_polarity():
    assert all(entry.file and entry.licence and entry.polarity for entry in SETS.values())
    assert all(not Path(entry.file).is_absolute() for entry in SETS.values())


def test_an_unknown_set_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="Did you mean 'xstest-safe'"):
        find_set("xtest-safe")


def test_a_missing_file_names_its_path_and_both_ways_to_get_it(tmp_path):
    with pytest.raises(InputError) as caught:
        load_prompts("advbench", root=tmp_path)
    text = str(caught.value)
    assert str(tmp_path / "harmful/advbench.csv") in text
    assert "dcr-ray data fetch advbench" in text and "data.root" in text


def test_the_splits_of_a_set_are_in_the_order_of_its_use(xstest):
    assert tuple(load_splits("xstest-safe", root=xstest)) == SPLITS
