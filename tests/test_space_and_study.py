"""A study's YAML: what is accepted, and that everything wrong with it is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dcr_ray.errors import InputError
from dcr_ray.space import Dimension, sample, with_values
from dcr_ray.study import Bound, apply_overrides, load_study, parse_study

SPACES = Path(__file__).parent.parent / "search_spaces"


def plain_study(**changes) -> dict:
    study = {
        "study": "s",
        "data": {
            "train": {"seemingly_toxic": "a", "toxic": "b", "general": "c", "safety": {"set": "d", "limit": 3}},
            "evaluate": {"compliance": ["a", "e"], "defense": "b", "capability": "c"},
        },
        "space": {"dcr.layer_depth": {"low": 0.3, "high": 0.8}},
        "objectives": {"compliance": "maximize"},
        "search": {"trials": 3},
    }
    return study | changes


def problems_in(raw: dict) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        parse_study(raw)
    return {problem.where: str(problem) for problem in caught.value.problems}


STUDIES = sorted(file for file in SPACES.glob("*.yaml") if not file.name.startswith("ladder_"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_shipped_search_space_loads(file):
    spec = load_study(file)
    assert spec.study == file.stem
    assert spec.dimensions


def test_a_bare_name_stands_for_a_whole_set_and_several_may_be_named():
    spec = parse_study(plain_study())
    assert [choice.set for choice in spec.data.evaluate.compliance] == ["a", "e"]
    assert spec.data.train.safety[0].limit == 3


def test_all_problems_of_all_sections_are_said_at_once_with_path_and_nearest_name():
    raw = plain_study(
        sarch={"trials": 3},
        search={"trials": 0, "sampler": "tpee"},
        objectives={"complience": "maximize"},
        recipe={"dcr": {"layer": 4}, "sft": {"epochs": -1}},
        space={
            "dcr.layer_depht": {"low": 0.1, "high": 0.2},
            "dcr.margin": {"low": 0.1, "high": 3.0},
            "dcr.scale": {"low": 5},
        },
    )
    found = problems_in(raw)
    assert "Did you mean 'search'?" in found["sarch"]
    assert {"search.trials", "search.sampler", "objectives.complience", "recipe.sft.epochs"} <= found.keys()
    assert "'compliance'" in found["objectives.complience"]
    assert "layer_depth" in found["recipe.dcr.layer"]
    assert "Did you mean 'dcr.layer_depth'?" in found["space.dcr.layer_depht"]
    assert "less than 1" in found["space.dcr.margin"]
    assert "low and high" in found["space.dcr.scale"]


def test_a_layer_beyond_the_model_is_refused_by_its_relative_depth():
    assert (
        "less than or equal to 1"
        in problems_in(plain_study(recipe={"dcr": {"layer_depth": 1.2}}))["recipe.dcr.layer_depth"]
    )


def test_a_condition_must_name_an_earlier_choice():
    space = {
        "dcr.margin": {"low": 0.1, "high": 0.4, "when": {"dcr.loss": ["circle"]}},
        "dcr.loss": {"choices": ["circle", "infonce"]},
    }
    assert "space.dcr.margin.when.dcr.loss" in problems_in(plain_study(space=space))


def test_the_gaussian_process_and_the_grid_refuse_conditions():
    space = {
        "dcr.loss": {"choices": ["circle", "infonce"]},
        "dcr.margin": {"low": 0.1, "high": 0.4, "when": {"dcr.loss": ["circle"]}},
    }
    for sampler in ("gp", "grid"):
        assert "space.dcr.margin.when" in problems_in(
            plain_study(space=space, search={"trials": 3, "sampler": sampler})
        )


class _Lowest:
    """Suggests the lowest value or the first choice."""

    def suggest_float(self, name, low, high, *, step, log):
        return low

    def suggest_int(self, name, low, high, *, step, log):
        return low

    def suggest_categorical(self, name, choices):
        return choices[0]


def test_a_conditional_coordinate_is_sampled_only_where_its_condition_holds():
    space = {
        "dcr.loss": Dimension(choices=("infonce", "circle")),
        "dcr.margin": Dimension(low=0.1, high=0.4, when={"dcr.loss": ("circle",)}),
        "dcr.batch_size": Dimension(low=8, high=64),
    }
    assert sample(space, _Lowest()) == {"dcr.loss": "infonce", "dcr.batch_size": 8}


def test_values_are_set_in_a_copy():
    base = {"dcr": {"scale": 1.0}}
    assert with_values(base, {"dcr.margin": 0.2, "sft.lora.rank": 4}) == {
        "dcr": {"scale": 1.0, "margin": 0.2},
        "sft": {"lora": {"rank": 4}},
    }
    assert base == {"dcr": {"scale": 1.0}}


def test_overrides_reach_nested_values_and_coordinates_of_the_space():
    raw = apply_overrides(plain_study(), ["search.trials=9", "space.dcr.layer_depth.high=0.6", "data.root=/d"])
    spec = parse_study(raw)
    assert spec.search.trials == 9
    assert spec.dimensions["dcr.layer_depth"].high == 0.6
    assert spec.data.root == "/d"


def test_a_malformed_override_is_bad_input():
    with pytest.raises(InputError, match="a.b=value"):
        apply_overrides(plain_study(), ["search.trials"])


def test_the_budget_and_the_machine_are_not_part_of_a_study_s_identity_and_the_space_is():
    spec = parse_study(plain_study())
    more = parse_study(plain_study(search={"trials": 30}, shape={"ranks": 2}, storage="/elsewhere"))
    other = parse_study(plain_study(space={"dcr.layer_depth": {"low": 0.2, "high": 0.8}}))
    assert spec.fingerprint() == more.fingerprint() != other.fingerprint()


def test_a_spec_survives_its_own_yaml():
    spec = parse_study(plain_study(constraints={"defense": {"at_least_baseline_plus": -0.05}}))
    assert parse_study(yaml.safe_load(spec.as_yaml())) == spec


def test_a_bound_measures_how_far_a_value_is_beyond_it():
    assert Bound(at_least_baseline_plus=-0.1).violation(0.7, 0.9) == pytest.approx(0.1)
    assert Bound(at_most_baseline_times=1.2).violation(11.0, 10.0) == pytest.approx(-1.0)
    assert Bound(at_least=0.5, at_most=0.9).violation(0.95, None) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="baseline"):
        Bound(at_most_baseline_times=1.2).violation(1.0, None)


def test_a_missing_file_names_the_nearest_one(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("study: s")
    with pytest.raises(InputError, match="quickstart.yaml"):
        load_study(tmp_path / "quickstar.yaml")
