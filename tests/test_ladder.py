"""A scaling study: its rungs are ordinary studies, its cells come from their journals, its report is for anybody."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM

from dcr_ray import ScalingStudy
from dcr_ray.cli.main import main
from dcr_ray.errors import InputError
from dcr_ray.ladder import choices, fit_ladder, ladder_cells, outcomes
from dcr_ray.ladder_run import _again, _fixed, _search, comparable_problems, planned, planned_problems
from dcr_ray.ladder_search import again_trials, begun_search, search_results, transfer_of, warm_points
from dcr_ray.planning.cluster import load_cluster
from dcr_ray.preflight import study_folder
from dcr_ray.report.scaling import write_scaling_report
from dcr_ray.scaling.spec import SEARCHED, load_scaling, parse_scaling
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


SEARCH = {
    "method": "dcr",
    "space": {
        "dcr.layer_depth": {"low": 0.2, "high": 0.9},
        "sft.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    },
    "trials": 8,
    "shared": 5,
}
LADDER = [
    {"model": "Qwen/Qwen2.5-0.5B", "family": "qwen"}, {"model": "Qwen/Qwen2.5-1.5B", "family": "qwen"},
    {"model": "Qwen/Qwen2.5-3B", "family": "qwen"}, {"model": "Qwen/Qwen2.5-7B", "family": "qwen", "search": "warm"},
]  # fmt: skip


def tell(study, flat: bool = False) -> None:
    """Every trial of a study from a formula: best at a depth of 0.5 and a learning rate of 1e-4, or alike if `flat`."""
    folder = study_folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    search = Search(StudyJournal(study, folder))
    while (ask := search.next()) is not None:
        depth = ask.recipe.dcr.layer_depth if ask.recipe.dcr else 0.2
        rate = np.log10(ask.recipe.sft.learning_rate)
        share = 0.9 if flat else 1 / (1 + np.exp(-(2 - 8 * (depth - 0.5) ** 2 - (rate + 4) ** 2)))
        metrics = {"compliance": round(share * 400) / 400, "compliance/n": 400, "defense": 0.5, "defense/n": 200}
        search.finish(ask.name, {"metrics": metrics, "stages": [], "seconds": {}, "failure": None})
    search.close()


def searched(folder: Path, flat: str = ""):
    spec = parse_scaling(plain(folder, ladder=LADDER, arms=["stl"], search=SEARCH))
    for rung in spec.ladder:
        # As preflight leaves them: folders are there before their studies have begun, and reading begins none.
        for name in (f"lad-{rung.label}-search", *(f"lad-{rung.label}-again-seed{seed}" for seed in spec.seeds)):
            (folder / "runs" / name).mkdir(parents=True)
    for rung in spec.ladder:
        for kind in (_fixed, _search, _again):
            for study in kind(spec, rung):
                tell(study, rung.label == flat)
    return spec


def test_a_size_at_which_all_recipes_measure_alike_has_no_order_to_compare(tmp_path):
    found = transfer_of(searched(tmp_path, flat="Qwen2.5-1.5B"))
    assert [(small, large) for small, large, _ in found.agreements] == [("Qwen2.5-0.5B", "Qwen2.5-3B")]
    alike = [note for note in found.notes if "measured alike at Qwen2.5-1.5B, so there is no order" in note]
    assert len(alike) == 2


def test_recipes_are_searched_alike_at_every_size_and_measured_anew_on_other_prompts(tmp_path):
    spec = searched(tmp_path)
    first, second = (spec.search_study(rung) for rung in spec.ladder[:2])
    assert first.search.first == second.search.first and len(first.search.first) == 5
    assert first.search.trials == second.search.trials == 8 and first.data.search_half == "first"
    assert all(study.data.search_half == "second" for study in spec.studies(spec.ladder[0]))
    assert first.base_recipe().seed not in spec.seeds
    cells, missing = ladder_cells(spec)
    assert not missing
    own = [cell for cell in cells if cell.arm == "searched" and cell.metric == "compliance"]
    assert len(own) == 4 * 2 * 2, "rungs x sizes x seeds"
    fixed = [cell for cell in cells if cell.arm == "stl" and cell.metric == "compliance"]
    assert min(cell.rate for cell in own) > max(cell.rate for cell in fixed)


def test_settings_are_carried_to_the_target_as_its_first_and_only_trials(tmp_path):
    spec = searched(tmp_path)
    small, target = spec.ladder[2], spec.ladder[3]
    results = {each.rung: each for each in search_results(spec)}
    assert 3 <= len(results["Qwen2.5-7B"].tried) <= 6
    source = spec.search.coordinates(results[small.label].winner)
    assert any(each.params == pytest.approx(source) for each in results["Qwen2.5-7B"].tried), "unchanged"
    assert warm_points(spec, spec.ladder[0], list(results.values())) == [], "nothing is smaller"
    carried = transfer_of(spec)
    assert {(small, large) for small, large, _ in carried.agreements} == {
        ("Qwen2.5-0.5B", "Qwen2.5-1.5B"), ("Qwen2.5-0.5B", "Qwen2.5-3B"), ("Qwen2.5-1.5B", "Qwen2.5-3B")
    }  # fmt: skip
    assert all(each.pairs_agreeing == 1 for *_, each in carried.agreements), "no noise, the same ranks"
    depths = [each for each in carried.optima if each.coordinate == "dcr.layer_depth"]
    assert len(depths) == 3 + (len(results["Qwen2.5-7B"].tried) >= 6)
    trials = again_trials(spec, target)
    assert set(trials[0]) == {"4", "8", "unchanged", "extrapolated", "default"}
    points = [{name: trial.params for name, trial in found.items()} for found in trials.values()]
    assert points[0] == points[1], "one recipe, several seeds"


def test_a_search_that_was_begun_keeps_its_points_when_a_size_is_added(tmp_path):
    spec = searched(tmp_path)
    before = begun_search(spec, spec.ladder[3], search_results(spec)).search.first
    more = [{"model": "meta-llama/Llama-3.1-8B", "family": "llama"}, *LADDER]
    longer = parse_scaling(plain(tmp_path, ladder=more, arms=["stl"], search=SEARCH))
    assert begun_search(longer, longer.ladder[4], search_results(longer)).search.first == before


def test_the_report_shows_transfer_ceilings_joint_chances_and_costs(tmp_path):
    spec = searched(tmp_path)
    spec = parse_scaling(spec.model_dump(mode="json") | {"thresholds": {"compliance": 0.8, "defense": 0.4}})
    page = ScalingStudy(spec).report()
    html, text = page.read_text(), (page.parent / "report.md").read_text()
    for part in ("Do settings carry over", "Winners of the searches", "ceiling of 0.95", "Several thresholds at once"):
        assert part in html and part in text
    assert html.count("<svg") == 2 * 2 + 2, "a law each, and a coordinate each"
    assert "Cells that were run" in text


def test_unequal_searches_and_a_single_family_are_said_before_a_ladder_is_run(tmp_path):
    said = " ".join(map(str, planned_problems(parse_scaling(plain(tmp_path, ladder=LADDER, search=SEARCH)))))
    assert "search trials" in said and "only qwen" in said
    few = parse_scaling(plain(tmp_path, {"Qwen/Qwen2.5-0.5B": "qwen", "meta-llama/Llama-3.1-8B": "llama"}))
    assert "2 checkpoints for 3 coefficients" in " ".join(map(str, planned_problems(few)))
    unknown = SEARCH | {"space": {"dcr.layer_depth": {"uniform": [0.2, 0.5]}}}
    with pytest.raises(InputError, match="search.space.dcr.layer_depth.uniform: .* allowed: low, high, log"):
        parse_scaling(plain(tmp_path, search=unknown))
    bad = SEARCH | {"space": {"dcr.layer_depth": {"choices": [0.2, 0.5]}}}
    with pytest.raises(InputError, match="a continuous range"):
        parse_scaling(plain(tmp_path, search=bad))


def test_the_next_cell_is_priced_on_a_cluster(tmp_path, capsys):
    file = tmp_path / "ladder.yaml"
    candidates = [
        {"model": "Qwen/Qwen2.5-14B", "family": "qwen"},
        {"model": "meta-llama/Llama-3.2-3B", "family": "llama"},
    ]
    file.write_text(yaml.safe_dump(plain(tmp_path, candidates=candidates)))
    run_made_up(load_scaling(file))
    cluster = str(SPACES.parent / "clusters" / "aws-h100.yaml")
    assert main(["scale", "next", str(file), "--cluster", cluster, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == (len(MODELS) + 2) * 2 and all(row["price"] > 0 for row in rows)
    worth = {row["candidate"]["model"]: row["gain"] for row in rows}
    assert worth["Qwen2.5-14B"] == max(worth.values()) > 0
    assert main(["scale", "next", str(file), "--cluster", cluster, "--budget", "0.000001"]) == 0
    assert "No cell" in capsys.readouterr().out
    assert main(["scale", "next", str(file), "--cluster", cluster, "--target", "Qwen2.5-72B"]) == 2


def test_a_searched_arm_is_priced_with_the_search_that_a_size_still_needs(tmp_path):
    spec = searched(tmp_path)
    cells, _ = ladder_cells(spec)
    on, rung = load_cluster(SPACES.parent / "clusters" / "aws-h100.yaml"), spec.ladder[0]

    def price() -> float:
        found = choices(spec, cells, spec.targets[0], "compliance", SEARCHED, on, None)
        return next(each.price for each in found if each.candidate.model == rung.label)

    begun = price()
    shutil.rmtree(tmp_path / "runs" / f"lad-{rung.label}-search")
    search = planned(spec.search_study(rung), on, {})["price"]
    assert search > 0 and price() == pytest.approx(begun + search)


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


@pytest.mark.parametrize("name", ["ladder_local", "ladder_searched", "ladder_qwen2.5", "ladder_llama3"])
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
    spec = load_scaling(SPACES / f"{name}.yaml")
    assert len(rows) == len(spec.ladder) * (3 if spec.search else 2), "studies a size"
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
