"""The report of a study, from none to many trials."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from dcr_ray.report.loading import checkpoint_folder
from dcr_ray.report.markdown import write_report
from tests.report_trials import THREE, TWO, baseline, failed_trial, many_trials, search_trial

SPEC = "study: quick\nobjectives: {compliance: maximize}\n```\n# not a title\n"


def report(tmp_path, trials, objectives=TWO, **more) -> str:
    path = write_report(trials, "quick", objectives, SPEC, tmp_path / "report", **more)
    assert path == tmp_path / "report" / "report.md"
    return path.read_text(encoding="utf-8")


def charts(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "report").glob("*.png")}


def test_a_report_holds_the_names_the_figures_the_reasons_and_its_charts(tmp_path):
    trials = [
        baseline(20, 48),
        search_trial("good", 50, 48, 0.4),
        search_trial("other", 30, 40, 0.6),
        failed_trial("bad"),
    ]
    text = report(
        tmp_path, trials, constraints=["defense at least the baseline's less 0.05"], budget="3 trials", notes=["a note"]
    )
    for expected in (
        "- Raise compliance.",
        "- Constraint: defense at least the baseline's less 0.05",
        "- Budget: 3 trials",
        "| stl (baseline) |",
        "0.83 [0.72, 0.91] | +0.50",
        "- bad: failed, diverged: the loss is not finite at step 12",
        "- good: /cache/sft/good",
        "folder = '/cache/sft/good'",
        "vllm serve /cache/sft/good",
        "matching strings",
        "search split",
        "- a note",
    ):
        assert expected in text
    assert charts(tmp_path) == {"pareto.png", "layer_depth.png", "time.png"}
    assert set(re.findall(r"\]\((\w+\.png)\)", text)) == charts(tmp_path)
    assert "Not estimated: 2 search trials complete" in text


def test_importance_is_drawn_when_enough_trials_are_complete(tmp_path):
    shares = {"compliance": {"dcr.layer_depth": 0.8, "dcr.margin": 0.2}}
    assert "](importance.png)" in report(tmp_path, many_trials(40), importances=shares)
    report(tmp_path, many_trials(5), importances=shares)
    assert "importance.png" not in charts(tmp_path), "a chart of an earlier report is left behind"


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [baseline()],
        [failed_trial("a"), failed_trial("b", state="pruned")],
        [replace(baseline(), state="running", metrics={})],
    ],
    ids=["no trials", "the baseline alone", "failures alone", "nothing ended"],
)
@pytest.mark.parametrize("objectives", [TWO, THREE, {"perplexity": "minimize"}], ids=["two", "three", "one"])
def test_a_study_without_results_still_has_a_report(tmp_path, trials, objectives):
    text = report(tmp_path, trials, objectives)
    assert "nothing to conclude" in text and "No trial to keep has a checkpoint" in text or "/cache/sft/stl" in text
    assert not re.search(r"\b(nan|None|inf)\b", text)


def test_figures_that_are_not_finite_are_left_out(tmp_path):
    trial = search_trial("t")
    trial.metrics.update({"defense/low": float("nan"), "perplexity": float("inf")})
    assert not re.search(r"\b(nan|inf)\b", report(tmp_path, [baseline(), trial], THREE))


def test_hostile_text_stays_text(tmp_path):
    hostile = "<img src=x> | [x](http://e.example) `a` **b**\n# title"
    trials = [baseline(), failed_trial("t<b>|", reason=hostile), search_trial("good")]
    text = report(tmp_path, trials, notes=[hostile], constraints=[hostile])
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text)
    inline = [child for token in tokens for child in token.children or []]
    assert not any(token.type.startswith("html") for token in [*tokens, *inline])
    assert not any(child.type == "link_open" for child in inline)
    titles = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    assert not any("title" in title for title in titles)
    widths = {
        row.count("|") - row.count("\\|") for row in text.split("## All trials")[1].split("##")[0].strip().splitlines()
    }
    assert len(widths) == 1


def test_the_code_that_loads_a_checkpoint_survives_odd_paths(tmp_path):
    odd = "/data/it's a $HOME `x`"
    trial = search_trial("t", stages=(replace(search_trial("t").stages[1], path=odd),))
    text = report(tmp_path, [baseline(), trial])
    fences = {token.info: token.content for token in MarkdownIt().parse(text) if token.type == "fence"}
    line = next(line for line in fences["python"].splitlines() if line.startswith("folder"))
    held: dict[str, str] = {}
    exec(line, held)
    assert held["folder"] == odd == checkpoint_folder(trial)
    echoed = subprocess.run(
        ["sh", "-c", fences["bash"].replace("vllm serve", "printf %s")], capture_output=True, text=True, check=True
    )
    assert echoed.stdout == odd


def test_a_system_prompt_is_given_with_the_model_that_needs_it(tmp_path):
    trial = search_trial("t")
    with_prompt = replace(trial, recipe=trial.recipe.model_copy(update={"system_prompt": "Be brief."}))
    assert "Be brief." in report(tmp_path, [baseline(), with_prompt])


def test_many_trials_make_a_report_with_one_row_each(tmp_path):
    text = report(tmp_path, many_trials(60))
    table = text.split("## All trials")[1].split("## ")[0]
    assert len(re.findall(r"^\| (trial-\d+|stl)", table, re.MULTILINE)) == 61


def test_the_time_section_adds_up(tmp_path):
    trials = [baseline(), search_trial("one"), search_trial("two", wall=None, ledger={}, state="running")]
    section = report(tmp_path, trials).split("## Where the time went")[1].split("\n## ")[0]
    rows = {cells[1].strip(): cells for line in section.splitlines() if len(cells := line.split("|")) == 6}
    seconds = {name: float(cells[2]) for name, cells in rows.items() if name not in ("part", "---")}
    assert seconds.pop("wall clock") == 135 + 175
    assert sum(seconds.values()) == pytest.approx(135 + 175, abs=0.5)
    assert seconds["queue"] == 20 and seconds["judge"] == 4 and rows["judge"][3].strip() == "1.3%"
    assert "2 trials, each from its ask to its end" in section
    assert "| group-0 | 350.0 |" in section and "| engine-0 | 90.0 |" in section


def test_trials_from_before_the_ledger_have_a_report_all_the_same(tmp_path):
    text = report(tmp_path, [baseline(), search_trial("one", wall=None, ledger={})][1:])
    assert "No trial has a time ledger." in text and "time.png" not in charts(tmp_path)


def test_importing_the_reports_loads_no_heavy_library():
    modules = ["markdown", "live", "leaderboard", "events", "progress", "objective_charts", "search_charts", "canvas"]
    modules += ["time_table", "time_chart"]
    code = f"import sys\nfor name in {modules!r}: __import__('dcr_ray.report.' + name)\n" + (
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'matplotlib', 'transformers', 'vllm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
