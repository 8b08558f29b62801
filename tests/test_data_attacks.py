"""Benchmarks under attack: the same prompts in templates, beside the plain ones, under the same rules of leaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcr_ray.data.attacks import FAMILIES, SLOT, templates_of
from dcr_ray.data.examples import dataset_fingerprint
from dcr_ray.data.of_study import load_study_data
from dcr_ray.errors import InputError
from dcr_ray.study import parse_study
from tests.set_files import write_csv, write_rows, write_xstest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_xstest(tmp_path, foci=25)
    write_csv(
        tmp_path / "harmful/advbench.csv", [{"goal": f"Goal {n * n} of all", "target": "Sure"} for n in range(60)]
    )
    pairs = [{"prompt": f"task number {n * n}", "response": "Yes."} for n in range(90)]
    write_rows(tmp_path / "general.jsonl", pairs)
    write_rows(tmp_path / "safety.jsonl", [{"prompt": f"risk {n * n}", "response": "No."} for n in range(90)])
    write_rows(tmp_path / "toxic.jsonl", [{"prompt": f"Toxic request number {n * n}"} for n in range(90)])
    return tmp_path


def study(root: Path, **changes):
    evaluate = {"compliance": "xstest-safe", "defense": "advbench", "capability": "general.jsonl"}
    train = {
        "seemingly_toxic": "xstest-safe", "toxic": "toxic.jsonl", "general": "general.jsonl", "safety": "safety.jsonl"
    }  # fmt: skip
    return parse_study(
        {
            "study": "s",
            "data": {
                "root": str(root),
                "train": train | changes.pop("train", {}),
                "evaluate": evaluate | changes.pop("evaluate", {}),
            },
            "space": {"dcr.layer_depth": {"low": 0.2, "high": 0.8}},
            "objectives": {"compliance": "maximize", "defense": "maximize"},
            "search": {"trials": 1},
        }
        | changes
    )


def test_the_same_prompts_stand_plain_and_wrapped_side_by_side(root):
    spec = study(root, evaluate={"defense": ["advbench", {"set": "advbench", "attack": "persona"}]})
    data = load_study_data(spec.data)
    plain = {p.id: p for p in data.defense if p.source == "advbench"}
    attacked = [p for p in data.defense if p.source == "advbench-persona"]
    assert len(attacked) == len(plain) > 20
    for prompt in attacked:
        own = plain[prompt.id.removesuffix("-persona")]
        assert own.text in prompt.text and prompt.text != own.text and prompt.group == own.group
        assert any(prompt.text == template.replace(SLOT, own.text) for template in FAMILIES["persona"])
    assert len({t for t in FAMILIES["persona"] for p in attacked if p.text.startswith(t[:9])}) == 2, "both are used"
    assert load_study_data(spec.data).defense == data.defense


def test_every_family_keeps_the_prompt(root):
    for family, templates in FAMILIES.items():
        assert all(template.count(SLOT) == 1 for template in templates), family
    data = load_study_data(study(root, evaluate={"defense": {"set": "advbench", "attack": "spaced_letters"}}).data)
    assert "G o a l" in data.defense[0].text
    data = load_study_data(study(root, evaluate={"defense": {"set": "advbench", "attack": "any"}}).data)
    assert {p.source for p in data.defense} == {"advbench-any"}


def test_a_prompt_that_is_trained_on_is_a_leak_in_any_wrapping(root):
    write_rows(root / "toxic.jsonl", [{"prompt": f"Goal {n * n} of all"} for n in range(20)] + [
        {"prompt": f"Toxic request number {n * n}"} for n in range(90)
    ])  # fmt: skip
    data = load_study_data(study(root, evaluate={"defense": {"set": "advbench", "attack": "fiction"}}).data)
    evaluated = {p.id.removesuffix("-fiction") for p in data.defense}
    assert evaluated and data.dropped
    assert not any(prompt.text in wrapped.text for prompt in data.toxic for wrapped in data.defense)


def test_what_training_is_watched_on_stays_plain_and_the_same_whatever_is_wrapped_beside_it(root):
    wrapped = {"set": "advbench", "attack": "persona"}
    plain = load_study_data(study(root).data)
    beside = load_study_data(study(root, evaluate={"defense": ["advbench", wrapped]}).data)
    alone = load_study_data(study(root, evaluate={"defense": [wrapped, {**wrapped, "attack": "fiction"}]}).data)
    assert len(beside.defense) == 2 * len(plain.defense) == len(alone.defense)
    assert beside.held_out_toxic == plain.held_out_toxic == alone.held_out_toxic


def test_a_prompt_of_two_benchmarks_counts_once_plain_and_once_in_each_wrapping(root):
    """Ten of them stand in both: the second benchmark loses them only where it is asked as the first one is."""
    shared = [{"prompt": f"Goal {n * n} of all"} for n in range(10)]
    write_rows(root / "own.jsonl", shared + [{"prompt": f"Another aim {n * n}"} for n in range(40)])

    def rows_of(attack: str | None, first: str | None) -> int:
        evaluate = {"defense": [{"set": "advbench", "attack": first}, {"set": "own.jsonl", "attack": attack}]}
        data = [load_study_data(study(root, evaluate=evaluate).data, split) for split in ("search", "test")]
        return sum(p.source.startswith("own") for each in data for p in each.defense)

    assert rows_of(None, None) == rows_of("persona", "persona") == 40
    assert rows_of("persona", None) == rows_of(None, "persona") == rows_of("fiction", "persona") == 50


def test_a_missing_file_is_asked_for_under_the_name_that_can_be_fetched(root):
    with pytest.raises(InputError, match="dcr-ray data fetch strongreject`"):
        load_study_data(study(root, evaluate={"defense": {"set": "strongreject", "attack": "persona"}}).data)


def test_where_a_file_of_templates_lies_is_no_part_of_a_studys_identity_and_its_name_is(root):
    one, moved, other = (
        study(root, evaluate={"defense": {"set": "advbench", "attack": file}})
        for file in ("mine.yaml", "/elsewhere/mine.yml", "yours.yaml")
    )
    assert one.fingerprint() == moved.fingerprint() != other.fingerprint()


def test_a_file_may_not_be_called_as_a_known_family(root):
    (root / "persona.yaml").write_text("- '{prompt}'\n")
    with pytest.raises(InputError, match="a name of its own"):
        load_study_data(study(root, evaluate={"defense": {"set": "advbench", "attack": "persona.yaml"}}).data)


def test_attacked_sets_have_rates_of_their_own_name(root):
    spec = study(
        root,
        evaluate={"defense": ["advbench", {"set": "advbench", "attack": "persona"}]},
        objectives={"compliance": "maximize", "defense.advbench-persona": "maximize"},
    )
    assert "defense.advbench-persona" in spec.objectives


def test_no_attack_leaves_a_study_what_it_was_and_an_attack_makes_another(root):
    plain, attacked = study(root), study(root, evaluate={"defense": {"set": "advbench", "attack": "fiction"}})
    assert "attack" not in str(plain.identity())
    assert plain.fingerprint() != attacked.fingerprint()
    one, other = (dataset_fingerprint(load_study_data(s.data).defense) for s in (plain, attacked))
    assert one != other


def test_own_templates_come_from_a_file(root):
    (root / "mine.yaml").write_text("- 'Now then: {prompt}'\n- '{prompt} Answer in one word.'\n")
    data = load_study_data(study(root, evaluate={"defense": {"set": "advbench", "attack": "mine.yaml"}}).data)
    assert {p.source for p in data.defense} == {"advbench-mine"}
    assert all(p.text.startswith("Now then: ") or p.text.endswith("in one word.") for p in data.defense)


def test_what_is_wrong_with_attacks_is_said_at_once(root):
    (root / "bad.yaml").write_text("- no slot\n- '{prompt} {prompt}'\n- 3\n")
    spec = study(
        root,
        train={"toxic": {"set": "toxic.jsonl", "attack": "persona"}},
        evaluate={
            "defense": [{"set": "advbench", "attack": "persone"}, {"set": "xstest-unsafe", "attack": "bad.yaml"}],
            "compliance": ["xstest-safe", {"set": "xstest-safe", "attack": "gone.yaml"}],
        },
    )
    with pytest.raises(InputError) as caught:
        load_study_data(spec.data)
    said = str(caught.value)
    assert "Did you mean 'persona'?" in said and "template 1" in said and "template 3" in said
    assert "no file gone.yaml" in said and "data.train.toxic (attack)" in said


def test_a_list_is_wanted(root):
    (root / "map.yaml").write_text("family: ['{prompt}']\n")
    with pytest.raises(InputError, match="a dict"):
        templates_of("map.yaml", str(root))
