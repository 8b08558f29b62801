"""Every search space that is shipped plans without a problem where its data are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dcr_ray.data.ledger import study_ledger
from dcr_ray.data.of_study import load_study_data
from dcr_ray.errors import InputError
from dcr_ray.planning.cluster import load_cluster
from dcr_ray.planning.plan import plan_for_cluster, plan_study
from dcr_ray.recipe import EDIT_METHODS
from dcr_ray.study import load_study
from dcr_ray.weights.tiny import build_tiny_model
from tests.set_files import write_sets

SPACES = Path(__file__).parent.parent / "search_spaces"
STUDIES = sorted(file for file in SPACES.glob("*.yaml") if not file.name.startswith("ladder_"))
"""Ladders are no studies; they are tested by themselves."""


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> list[str]:
    """What a user's machine has: the sets' files and a model, here a tiny one."""
    folder = tmp_path_factory.mktemp("machine")
    write_sets(folder / "data")
    build_tiny_model(folder / "model")
    return [f"data.root={folder / 'data'}", f"model={folder / 'model'}", f"storage={folder / 'runs'}"]


def for_cluster(file: Path) -> Path | None:
    """The cluster file that a search space says it is made for."""
    found = re.search(r"^# cluster: (\S+)$", file.read_text(), re.MULTILINE)
    return SPACES.parent / found[1] if found else None


@pytest.mark.parametrize("file", list(filter(for_cluster, STUDIES)), ids=lambda file: file.stem)
def test_a_search_space_made_for_a_cluster_fits_it(file, here):
    spec = load_study(file, here[:1])
    plan = plan_for_cluster(spec, load_cluster(for_cluster(file)))
    assert plan.problems == () and plan.price > 0
    assert plan.groups * spec.shape.ranks + plan.engines * spec.resources.tensor_parallel <= plan.cluster.gpus


@pytest.mark.parametrize("file", [file for file in STUDIES if not for_cluster(file)], ids=lambda file: file.stem)
def test_a_shipped_search_space_plans(file, here):
    spec = load_study(file, here)
    plan = plan_study(spec)
    assert plan.problems == ()
    assert plan.trials == spec.search.trials + 1
    # Methods that act on the baseline's model share its SFT.
    after_sft = sum(method in EDIT_METHODS for method in spec.methods)
    assert plan.stages["sft"] == plan.trials - after_sft
    assert min(plan.data[field] for field in ("seemingly_toxic", "toxic", "compliance", "defense")) >= 20


@pytest.mark.parametrize("name", ["smollm2-135m", "same_source"])
def test_a_shipped_search_space_without_its_data_says_where_they_go(name, tmp_path):
    with pytest.raises(InputError) as caught:
        load_study_data(load_study(SPACES / f"{name}.yaml", [f"data.root={tmp_path}"]).data)
    assert all("no file" in problem.found and "data.root" in problem.fix for problem in caught.value.problems)
    # A set that several fields name is missing in each of them, and once in each.
    assert len(caught.value.problems) == len(set(caught.value.problems))


def test_both_sides_of_the_same_source_arm_are_of_one_file_and_share_its_folds(here):
    spec = load_study(SPACES / "same_source.yaml", here)
    for split in ("search", "test"):
        data = load_study_data(spec.data, split)
        assert {"xstest-safe", "xstest-unsafe"} <= data.in_distribution
        assert not {"or-bench-hard-1k", "or-bench-toxic", "oktest", "advbench"} & data.in_distribution
        trained = {prompt.group for prompt in (*data.seemingly_toxic, *data.toxic)}
        evaluated = {prompt.group for prompt in (*data.compliance, *data.defense)}
        assert not trained & evaluated
        # Most families of the one side have their contrast on the other.
        assert len({p.group for p in data.toxic} - {p.group for p in data.seemingly_toxic}) == 0
    assert not [entry for entry in study_ledger(spec.data).entries if entry.action == "dropped"]


def test_the_same_source_arm_of_or_bench_is_as_its_comment_says(here):
    comment = (SPACES / "same_source.yaml").read_text()
    overrides = re.findall(r"--set '?(study=\w+|data\.train[^']+})'?", comment)
    assert len(overrides) == 3
    spec = load_study(SPACES / "same_source.yaml", [*here, *overrides])
    data = load_study_data(spec.data)
    assert {prompt.source for prompt in data.seemingly_toxic} == {"or-bench-hard-1k"}
    assert {prompt.source for prompt in data.toxic} == {"or-bench-toxic"}
    assert {"or-bench-hard-1k", "or-bench-toxic"} <= data.in_distribution
    assert not {"xstest-safe", "xstest-unsafe"} & data.in_distribution
    assert plan_study(spec).problems == ()


def test_the_same_source_arm_differs_from_the_study_it_controls_in_its_data_alone():
    arm, study = (load_study(SPACES / f"{name}.yaml") for name in ("same_source", "smollm2-135m"))
    apart = {key for key, value in arm.model_dump().items() if value != study.model_dump()[key]}
    assert apart == {"study", "data"}
    assert (arm.data.train.general, arm.data.train.safety) == (study.data.train.general, study.data.train.safety)
