"""A scaling study: its rungs are ordinary studies, its cells come from their journals, its report is for anybody."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM

from dcr_ray import ScalingStudy
from dcr_ray.cli.main import main
from dcr_ray.errors import InputError
from dcr_ray.ladder import comparable_problems, fit_ladder, ladder_cells, outcomes
from dcr_ray.preflight import study_folder
from dcr_ray.report.scaling import write_scaling_report
from dcr_ray.scaling.spec import load_scaling, parse_scaling
from dcr_ray.search.ask_tell import Search
from dcr_ray.search.journal import StudyJournal
from dcr_ray.weights.cut import cut_model
from dcr_ray.weights.tiny import build_tiny_model
from tests.set_files import write_sets
from tests.test_scaling_law import cells as many_cells

SPACES = Path(__file__).parent.parent / "search_spaces"
MODELS = {
    "Qwen/Qwen2.5-0.5B": "qwen", "Qwen/Qwen2.5-1.5B": "qwen", "Qwen/Qwen2.5-3B": "qwen", "Qwen/Qwen2.5-7B": "qwen",
    "meta-llama/Llama-3.2-1B": "llama", "meta-llama/Llama-3.1-8B": "llama",
}  # fmt: skip


def plain(folder: Path, models=MODELS, **changes):
    return {
        "scaling": "lad",
        "ladder": [{"model": model, "family": family} for model, family in models.items()],
        "data_axis": {"coordinate": "sft.safety_pairs", "sizes": [4, 8]},
        "arms": ["stl", "dcr"],
        "seeds": [0, 1],
        "targets": [{"model": "Qwen/Qwen2.5-72B", "family": "qwen"}],
        "forecasts": str(folder / "forecasts"),
        "reports": str(folder / "reports"),
        "study": {
            "storage": str(folder / "runs"),
            "data": {
                "train": {
                    "seemingly_toxic": "builtin-seemingly-toxic",
                    "toxic": "builtin-toxic",
                    "general": "builtin-instructions",
                    "safety": "builtin-refusals",
                },
                "evaluate": {
                    "compliance": "builtin-seemingly-toxic",
                    "defense": "builtin-toxic",
                    "capability": "builtin-instructions",
                },
            },
        },
    } | changes


def run_made_up(spec, rungs=None) -> None:
    """Every trial of every rung's study told to its journal, from a formula: compliance rises with size and data."""
    for rung in spec.ladder if rungs is None else rungs:
        for study in spec.studies(rung):
            folder = study_folder(study)
            folder.mkdir(parents=True, exist_ok=True)
            search = Search(StudyJournal(study, folder))
            size = np.log10(
                {"0.5B": 5e8, "1.5B": 1.5e9, "3B": 3e9, "7B": 7e9, "1B": 1e9, "8B": 8e9}[
                    rung.model.split("-")[-1].removeprefix("Qwen2.5-")
                ]
            )
            while (ask := search.next()) is not None:
                data = np.log10(ask.recipe.sft.safety_pairs / 8)
                logit = 0.5 + 0.8 * (size - 9) + 0.5 * data + 0.3 * (ask.recipe.method == "dcr")
                rate = 1 / (1 + np.exp(-logit))
                metrics = {"compliance": round(rate * 400) / 400, "compliance/n": 400, "compliance/unscored": 1,
                           "defense": 0.5, "defense/n": 200}  # fmt: skip
                search.finish(ask.name, {"metrics": metrics, "stages": [], "seconds": {}, "failure": None})
            search.close()


def test_a_rung_is_a_study_for_each_seed_with_a_grid_of_arms_and_data_sizes(tmp_path):
    spec = parse_scaling(plain(tmp_path))
    one, other = spec.studies(spec.ladder[0])
    assert (one.study, other.study) == ("lad-Qwen2.5-0.5B-seed0", "lad-Qwen2.5-0.5B-seed1")
    assert one.search.trials == 4 and one.search.sampler == "grid"
    assert (one.base_recipe().seed, other.base_recipe().seed) == (0, 1)
    assert one.baseline_recipe().sft.safety_pairs == 8, "the baseline is a cell of the ladder"
    assert one.recipe_of("dcr").dcr is not None and one.methods == ("stl", "dcr")


def test_cells_come_from_journals_and_what_is_missing_is_named(tmp_path):
    spec = parse_scaling(plain(tmp_path))
    run_made_up(spec, spec.ladder[:2])
    cells, missing = ladder_cells(spec)
    assert len(cells) == 2 * 2 * 2 * 2 * 2, "rungs x seeds x arms x sizes x metrics"
    assert len(missing) == 4 * 2 * 2 * 2 and {one.reason for one in missing} == {"not run yet"}
    cell = next(c for c in cells if (c.model, c.arm, c.data_size, c.metric) == ("Qwen2.5-0.5B", "dcr", 8, "compliance"))
    assert cell.n == 400 and cell.unscored == 1 and cell.parameters == 494032768
    assert cell.rate == pytest.approx(1 / (1 + np.exp(-(0.8 + 0.8 * (np.log10(5e8) - 9)))), abs=0.002)


def test_a_ladder_is_fitted_foretold_run_on_and_held_against_its_forecast(tmp_path, capsys):
    file = tmp_path / "ladder.yaml"
    smaller = {model: family for model, family in MODELS.items() if model != "Qwen/Qwen2.5-7B"}
    target = {"targets": [{"model": "Qwen2.5-7B", "family": "qwen"}]}
    file.write_text(yaml.safe_dump(plain(tmp_path, smaller, **target)))
    run_made_up(load_scaling(file))
    assert main(["scale", "forecast", str(file), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert len(written) == 4
    assert main(["scale", "forecast", str(file)]) == 2
    assert "written before" in capsys.readouterr().err
    file.write_text(yaml.safe_dump(plain(tmp_path, MODELS, **target)))
    spec = load_scaling(file)
    run_made_up(spec, [rung for rung in spec.ladder if rung.label == "Qwen2.5-7B"])
    met = outcomes(spec, ladder_cells(spec)[0])
    assert len(met) == 4
    compliance = [one for one in met if one.forecast.law.metric == "compliance"]
    assert all(abs(one.error) < 5 and one.covered[-1] for one in compliance)
    assert main(["scale", "backtest", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["forecasts"]) == 4 and document["backtests"][0]["held_out"]
    assert main(["scale", "forecast", str(file)]) == 2
    assert "A forecast after the fact is none" in capsys.readouterr().err
    assert main(["scale", "fit", str(file), "--json"]) == 0
    laws = json.loads(capsys.readouterr().out)["laws"]
    assert laws[0]["slope"] == pytest.approx(0.8, abs=0.1)


def test_the_report_says_what_was_measured_foretold_and_missing(tmp_path, capsys):
    spec = parse_scaling(plain(tmp_path))
    run_made_up(spec)
    page = ScalingStudy(spec).report()
    html, text = page.read_text(), (page.parent / "report.md").read_text()
    for part in ("Qwen2.5-0.5B", "Back-test", "pooled cells (do not use)", "Qwen/Qwen2.5-72B", "How to read this"):
        assert part in html
    assert "nan" not in text.lower().replace("finance", "") and "<svg" in html and "<title>" in html
    assert html.count("<polyline") >= 4 and 'data-hides="family-1"' in html
    assert "Every cell that was asked for is there." in text


def test_five_hundred_cells_are_fitted_foretold_and_reported_in_seconds(tmp_path):
    cells = [
        c
        for seed in range(11)
        for c in many_cells(luck=0.2, noise=0.1, n=250, seed=0)
        for c in [type(c)(**vars(c) | {"seed": 2 * seed + c.seed})]
    ]
    assert len(cells) >= 500
    spec = parse_scaling(plain(tmp_path, metrics=["compliance"], arms=["dcr"]))
    started = time.process_time()
    write_scaling_report(spec, cells, [], fit_ladder(spec, cells), [], [], tmp_path / "report")
    assert time.process_time() - started < 5


def test_what_is_wrong_with_a_ladder_is_said_at_once(tmp_path):
    bad = plain(
        tmp_path, {"Qwen/Qwen2.5-0.5B": "qwen"}, data_axis={"coordinate": "dcr.prompts_per_class", "sizes": [4, 8]}
    )
    bad["ladder"].append({"model": "other/Qwen2.5-0.5B", "family": "qwen"})
    bad["study"]["space"] = {}
    bad["study"]["evaluation"] = {"engine": "vlm"}
    with pytest.raises(InputError) as caught:
        parse_scaling(bad)
    said = str(caught.value)
    assert "'Qwen2.5-0.5B' twice" in said and "arms: [dcr]" in said and "evaluation.engine" in said
    with pytest.raises(InputError, match="does not rise"):
        parse_scaling(plain(tmp_path, data_axis={"sizes": [8, 4]}))


@pytest.mark.parametrize("name", ["ladder_local", "ladder_qwen2.5", "ladder_llama3"])
def test_a_shipped_ladder_is_read_and_priced(name, tmp_path, capsys, monkeypatch):
    write_sets(tmp_path / "data")
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("DCR_RAY_CACHE", str(tmp_path / "cache"))
    build_tiny_model(tmp_path / "cache" / "models" / "smollm2-135m-instruct", layers=30)
    for layers in (12, 18, 24):
        cut_model(
            tmp_path / "cache/models/smollm2-135m-instruct", layers, tmp_path / f"models/smollm2-first-{layers}-layers"
        )
    monkeypatch.chdir(tmp_path)
    cluster = str(SPACES.parent / "clusters" / "aws-h100.yaml")
    line = ["scale", "plan", str(SPACES / f"{name}.yaml"), "--set", f"study.data.root={tmp_path / 'data'}", "--json"]
    capsys.readouterr()
    assert main([*line, "--cluster", cluster]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 * len(load_scaling(SPACES / f"{name}.yaml").ladder)
    assert all(row["price"] > 0 and row["problems"] == [] for row in rows)


def test_a_cut_model_is_the_first_layers_of_another(tmp_path):
    build_tiny_model(tmp_path / "m", layers=4)
    cut_model(tmp_path / "m", 2, tmp_path / "cut")
    whole, cut = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("m", "cut"))
    assert len(cut.model.layers) == 2
    for name, parameter in cut.named_parameters():
        assert (parameter == dict(whole.named_parameters())[name]).all()
    with pytest.raises(InputError) as caught:
        cut_model(tmp_path / "m", 4, tmp_path / "cut")
    assert len(caught.value.problems) == 2


def test_rungs_that_are_not_asked_alike_are_refused_before_the_ladder_starts(tmp_path):
    folders = {name: build_tiny_model(tmp_path / name) for name in ("a", "b", "c")}
    assert comparable_problems(folders) == []
    (folders["b"] / "chat_template.jinja").unlink()
    (folders["c"] / "tokenizer.json").unlink()
    found = comparable_problems(folders)
    assert "no tokenizer" in found[0].found and "b without a chat template" in found[1].found
