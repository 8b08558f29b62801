"""The command line as a user meets it: exit codes, errors with every problem, JSON on stdout, examples in help."""

from __future__ import annotations

import json

import pytest
import yaml

from dcr_ray.cli.main import build_parser, main
from dcr_ray.search.ask_tell import Search
from dcr_ray.search.journal import StudyJournal
from dcr_ray.study import load_study
from dcr_ray.weights.tiny import build_tiny_model
from tests.test_search import run_all


@pytest.fixture
def tiny_spec(tmp_path):
    """A study file on a tiny model and the built-in data."""
    build_tiny_model(tmp_path / "model")
    plain = {
        "study": "tiny",
        "model": str(tmp_path / "model"),
        "data": {
            "train": {
                "seemingly_toxic": "builtin-seemingly-toxic",
                "toxic": "builtin-toxic",
                "general": {"set": "builtin-instructions", "limit": 24},
                "safety": {"set": "builtin-refusals", "limit": 8},
            },
            "evaluate": {
                "compliance": "builtin-seemingly-toxic",
                "defense": "builtin-toxic",
                "capability": "builtin-instructions",
            },
        },
        "recipe": {"dcr": {"batch_size": 8}, "sft": {"max_tokens": 64}},
        "space": {"dcr.layer_depth": {"low": 0.3, "high": 0.8}},
        "objectives": {"compliance": "maximize", "defense": "maximize"},
        "search": {"trials": 3},
        "storage": str(tmp_path / "runs"),
        "reports": str(tmp_path / "reports"),
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(plain))
    return file


def test_every_command_shows_examples_in_its_help(capsys):
    parser = build_parser()
    names = next(action.choices for action in parser._actions if action.choices and "sweep" in action.choices)
    for name, command in names.items():
        assert f"dcr-ray {name}" in command.format_help().split("Examples:")[1]


def test_bad_input_is_all_said_at_once_and_ends_with_2(tiny_spec, capsys):
    overrides = ["search.trails=3", "model=/no/such/model", "data.train.toxic=builtin-toxi", "evaluation.max_tokens=0"]
    options = [part for override in overrides for part in ("--set", override)]
    assert main(["sweep", str(tiny_spec), *options]) == 2
    said = capsys.readouterr().err
    assert "search.trails" in said and "Did you mean 'trials'?" in said
    assert "evaluation.max_tokens" in said


def test_what_only_the_machine_knows_is_said_at_once_too(tiny_spec, capsys):
    overrides = [
        "model=/no/such/model",
        "data.train.toxic=builtin-toxi",
        "data.train.general=/no/file.jsonl",
        "tracking.uri=./mlruns",
    ]
    options = [part for override in overrides for part in ("--set", override)]
    assert main(["sweep", str(tiny_spec), *options]) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'builtin-toxic'?" in said
    assert "/no/such/model" in said and "/no/file.jsonl" in said and "tracking.uri" in said


def test_training_on_what_is_evaluated_is_refused(tiny_spec, tmp_path, capsys):
    rows = [
        json.dumps({"id": f"{split}-{i}", "prompt": f"Prompt number {i}?", "split": split})
        for split, numbers in (("train", range(4)), ("search", range(4)), ("test", range(4, 8)))
        for i in numbers
    ]
    (tmp_path / "leak.jsonl").write_text("\n".join(rows))
    file = tmp_path / "leak.jsonl"
    options = ["--set", f"data.train.seemingly_toxic={file}", "--set", f"data.evaluate.compliance={file}"]
    assert main(["sweep", str(tiny_spec), *options]) == 2
    said = capsys.readouterr().err
    assert "data.train.seemingly_toxic: found 4 prompts in the train split, each of which also stands" in said, said


def test_a_model_that_is_no_causal_language_model_is_refused(tiny_spec, tmp_path, capsys):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    assert main(["plan", str(tiny_spec), "--set", f"model={folder}", "--json"]) == 2
    assert "BertModel" in capsys.readouterr().out


def test_a_cluster_that_does_not_answer_is_bad_input(tiny_spec, capsys):
    assert main(["sweep", str(tiny_spec), "--address", "127.0.0.1:9"]) == 2
    assert "--address" in capsys.readouterr().err


def test_a_plan_counts_stages_memory_and_data(tiny_spec, capsys):
    assert main(["plan", str(tiny_spec), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["stages"] == {"dcr": 3, "sft": 4, "edit": 0, "generate": 4, "judge": 4, "diagnose": 0}
    assert plan["data"]["general"] == 24 and plan["seconds"] is None
    assert plan["memory_bytes"] and plan["disk_bytes"] > 0
    assert main(["plan", str(tiny_spec)]) == 0
    assert "SFT stage" in capsys.readouterr().out


def test_a_plan_counts_what_a_grid_shares(tiny_spec, capsys):
    options = [
        "--set",
        "space={sft.learning_rate: {choices: [1.0e-5, 2.0e-5]}}",
        "--set",
        "search={sampler: grid, trials: 2}",
    ]
    assert main(["plan", str(tiny_spec), "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["shared"]["dcr"] == 1


def test_too_little_memory_is_said_with_the_numbers(tiny_spec, capsys):
    huge = "recipe.sft={batch_size: 4096, max_tokens: 131072}"
    assert main(["plan", str(tiny_spec), "--set", huge, "--json"]) == 2
    assert "GiB needed" in capsys.readouterr().out


@pytest.fixture
def finished_study(tiny_spec):
    spec = load_study(tiny_spec)
    folder = tiny_spec.parent / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(spec.as_yaml())
    run_all(Search(StudyJournal(spec, folder)))
    return tiny_spec.parent / "runs"


def test_status_lists_every_trial_with_state_recipe_metrics_and_stages(finished_study, capsys):
    assert main(["status", "tiny", "--storage", str(finished_study), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [trial["name"] for trial in document["trials"]] == ["stl", "t000", "t001", "t002"]
    assert {"state", "recipe", "metrics", "stages", "params"} <= document["trials"][1].keys()
    assert document["driver"] is None
    assert main(["status", "tiny", "--storage", str(finished_study)]) == 0
    assert "not running" in capsys.readouterr().out


def test_a_report_can_be_written_at_any_time(finished_study, tmp_path, capsys):
    assert main(["report", "tiny", "--storage", str(finished_study), "--out", str(tmp_path / "out")]) == 0
    assert "t001" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "pareto.png").stat().st_size > 1000


def test_a_study_that_is_not_there_is_bad_input_with_the_nearest_name(finished_study, capsys):
    assert main(["status", "tinny", "--storage", str(finished_study)]) == 2
    assert "Did you mean 'tiny'?" in capsys.readouterr().err


def test_a_second_driver_is_refused(finished_study, tiny_spec, capsys):
    import fcntl

    with open(finished_study / "tiny" / "driver.lock", "w") as lock:
        lock.write('{"pid": 1, "host": "elsewhere"}')
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["sweep", str(tiny_spec)]) == 2
        assert "is running" in capsys.readouterr().err


def test_data_sets_and_models_are_listed_as_json(capsys):
    assert main(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert sum(rows["builtin-toxic"]["rows"].values()) >= 120
    assert main(["models", "list", "--json"]) == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out
    assert main(["data", "check", "builtin-toxic", "builtin-seemingly-toxic", "--json"]) == 0
