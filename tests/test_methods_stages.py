"""Methods as choices of a study: their stages, what they share, and one study with all of them on real parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from dcr_ray.errors import InputError
from dcr_ray.evaluate.run import open_engine, run_generate
from dcr_ray.judges.run import run_judge
from dcr_ray.preflight import preflight
from dcr_ray.recipe import METHOD_SECTIONS, Recipe
from dcr_ray.report.dynamics_chart import draw_dynamics, dynamics_section, figures_of, looks_of
from dcr_ray.stages import StudyInputs, run_stages
from dcr_ray.study import EvaluationSpec, parse_study
from dcr_ray.train.run import run_training_stage
from dcr_ray.trial import StageView, Trial
from dcr_ray.weights.tiny import build_tiny_model

SETS = {
    "train": {
        "seemingly_toxic": {"set": "builtin-seemingly-toxic", "limit": 30},
        "toxic": {"set": "builtin-toxic", "limit": 30},
        "general": {"set": "builtin-instructions", "limit": 24},
        "safety": {"set": "builtin-refusals", "limit": 8},
        "augment": {"set": "builtin-instructions", "limit": 6},
    },
    "evaluate": {
        "compliance": {"set": "builtin-seemingly-toxic", "limit": 12},
        "defense": {"set": "builtin-toxic", "limit": 12},
        "capability": {"set": "builtin-instructions", "limit": 8},
    },
}


def study(folder: Path, **changes):
    return parse_study(
        {
            "study": "methods",
            "model": str(folder / "model"),
            "storage": str(folder / "runs"),
            "reports": str(folder / "reports"),
            "data": SETS,
            "recipe": {
                "dcr": {"batch_size": 8},
                "sft": {"max_tokens": 64, "learning_rate": 1e-3},
                "scans": {"threshold": None, "strength": 0.5},
            },
            "space": {"method": {"choices": ["stl-aug", "surgical", "scans", "actor", "dcr"]}},
            "objectives": {"compliance": "maximize", "defense": "maximize"},
            "search": {"sampler": "grid", "trials": 5},
            "evaluation": {"engine": "transformers", "max_tokens": 6, "max_model_tokens": 512},
        }
        | changes
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    build_tiny_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def inputs(folder) -> StudyInputs:
    dynamics = {"looks": 2, "prompts": 4, "kernel_prompts": 2, "scopes": ["all"]}
    diagnosis = {"prompts": 3, "groups": 2, "scopes": ["all"], "probed": 12}
    return preflight(study(folder, dynamics=dynamics, diagnosis=diagnosis)).inputs


def run(inputs: StudyInputs, recipe: Recipe, trial: str):
    """All stages of a trial in this process, as a WorkerGroup and an Engine run them."""
    engine = open_engine(EvaluationSpec(engine="transformers"), inputs.model_dir, threads=None, kv_cache_bytes=None)

    def submit(task):
        if (record := task.record()) is not None:
            return record, True
        task.begin()
        if task.place == "train":
            results = run_training_stage(task.job)
        else:
            results = run_judge(task.job) if task.place == "here" else run_generate(task.job, engine)
        return task.commit(results, {}), False

    return run_stages(inputs.tasks(recipe, trial), submit, lambda *_: None)


def recipe_of(folder: Path, method: str) -> Recipe:
    return study(folder).recipe_of(method)


def test_a_recipe_keeps_the_section_of_its_method_alone():
    for method, sections in (
        ("stl", set()), ("stl-aug", {"augment"}), ("surgical", {"surgical"}), ("scans", {"scans"}),
        ("actor", {"actor"}), ("dcr", {"dcr"}),
    ):  # fmt: skip
        recipe = Recipe(method=method)
        assert {name for name in METHOD_SECTIONS if getattr(recipe, name) is not None} == sections
        assert Recipe.model_validate(recipe.model_dump()) == recipe
    assert Recipe(dcr=None) == Recipe(method="stl") and Recipe(method="stl").method == "stl"
    with pytest.raises(ValidationError, match="needs its section `scans`"):
        Recipe(method="scans", scans=None)


def test_methods_that_start_from_the_baseline_share_its_sft(folder, inputs):
    tasks = {method: inputs.tasks(recipe_of(folder, method), method) for method in ("stl", "actor", "scans", "dcr")}
    names = {method: [task.stage for task in each] for method, each in tasks.items()}
    assert names["stl"] == ["sft", "generate", "judge", "diagnose"]
    assert names["actor"] == names["scans"] == ["sft", "edit", "generate", "judge", "diagnose"]
    assert names["dcr"] == ["dcr", "sft", "generate", "judge", "diagnose"]
    assert tasks["actor"][0].key == tasks["scans"][0].key == tasks["stl"][0].key != tasks["dcr"][1].key
    assert tasks["scans"][-1].key == tasks["stl"][-1].key, "SCANS changes no weight"
    assert tasks["scans"][2].job.checkpoint_dir == tasks["stl"][0].directory
    assert tasks["actor"][2].job.steering_dir is None and tasks["scans"][2].job.steering_dir


@pytest.fixture(scope="module")
def outcomes(folder, inputs):
    return {m: run(inputs, recipe_of(folder, m), m) for m in ("stl", "stl-aug", "scans", "actor", "dcr", "surgical")}


def test_every_method_runs_to_its_rates_and_surgical_says_what_it_lacks(outcomes):
    for method, outcome in outcomes.items():
        if method == "surgical":
            assert outcome["failure"]["stage"] == "edit"
            assert "really refused; Surgical needs 8" in outcome["failure"]["reason"]
        else:
            assert outcome["failure"] is None, (method, outcome["failure"])
            assert {"compliance", "defense", "perplexity"} <= outcome["metrics"].keys()
            assert 0 < outcome["metrics"]["kernel.all.seemingly_toxic-toxic"] < 1.2
            assert 0 <= outcome["metrics"]["separability.auroc"] <= 1
    assert outcomes["scans"]["metrics"]["perplexity"] != outcomes["stl"]["metrics"]["perplexity"]


def test_looks_into_training_are_drawn_and_told(outcomes, folder, tmp_path):
    trials = [
        Trial(
            method, "baseline" if method == "stl" else "search", "complete", recipe_of(folder, method),
            stages=tuple(
                StageView(s["name"], s["key"], s["path"], s["seconds"], s["cached"]) for s in outcomes[method]["stages"]
            ),
        )
        for method in ("stl", "dcr")
    ]  # fmt: skip
    looks = looks_of(trials[1])
    assert [stage for stage, _ in looks] == ["dcr", "sft"] and len(looks[0][1]) == 3
    flat = figures_of(looks[0][1][-1])
    assert {"refusal/toxic", "refusal/general", "kernel/all/seemingly_toxic-toxic"} <= flat.keys()
    text = dynamics_section(trials, tmp_path / "dynamics.png")
    assert (tmp_path / "dynamics.png").stat().st_size > 20_000
    assert "| dcr (dcr) | sft |" in text and "| stl (stl) | sft |" in text
    assert draw_dynamics({}, tmp_path / "none.png") is None
    assert json.dumps(looks)


def test_coordinates_of_methods_that_no_trial_has_are_refused(folder):
    with pytest.raises(InputError, match="a coordinate of `scans`, which no trial uses"):
        study(folder, space={"scans.strength": {"low": 1.0, "high": 4.0}}, search={"trials": 2})
    spec = study(
        folder,
        space={
            "method": {"choices": ["scans", "dcr"]},
            "scans.strength": {"low": 1.0, "high": 4.0, "when": {"method": ["scans"]}},
        },
        search={"trials": 2},
    )
    assert spec.methods == ("scans", "dcr")


def test_what_a_method_lacks_is_said_before_anything_starts(folder):
    with pytest.raises(InputError) as caught:
        study(
            folder,
            data=SETS | {"train": {k: v for k, v in SETS["train"].items() if k != "augment"}},
            resources={"tensor_parallel": 2},
        )
    assert [p.where for p in caught.value.problems] == ["data.train.augment", "resources.tensor_parallel"]
    with pytest.raises(InputError, match="zero_stage"):
        preflight(study(folder, shape={"zero_stage": 3}, dynamics={"scopes": ["all"]}))
    with pytest.raises(InputError, match=r"dynamics\.scopes"):
        preflight(study(folder, dynamics={"scopes": ["every"]}))


def test_trials_that_share_all_stages_judge_in_places_of_their_own(folder, inputs):
    one, other = (inputs.tasks(recipe_of(folder, "stl"), name) for name in ("stl", "t000"))
    assert [task.key for task in one] == [task.key for task in other]
    judges = [next(task for task in tasks if task.stage == "judge") for tasks in (one, other)]
    assert judges[0].job.output_dir != judges[1].job.output_dir
    for task in judges:
        task.begin()
    records = [task.commit({"metrics": {}}, {}) for task in judges]
    assert records[0].path == records[1].path == judges[0].directory and Path(records[0].path).is_dir()
