"""The report of a study: report.md and its charts, written into one folder.

It is a pure function of the trials and of the study's words. It knows nothing of where results are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcr_ray.pareto import Objectives
from dcr_ray.report.benchmarks import benchmarks_section
from dcr_ray.report.leaderboard import leaderboard, searched_parameters
from dcr_ray.report.loading import checkpoints_section
from dcr_ray.report.measured import Measured, baseline_of, measured
from dcr_ray.report.objective_charts import MOST_TRIALS_WITH_LABELS, draw_layer_depth, draw_pareto
from dcr_ray.report.search_charts import draw_importance
from dcr_ray.report.time_table import time_section
from dcr_ray.report.verdict import verdict
from dcr_ray.report.wording import code_block, counted, escape_markdown
from dcr_ray.trial import Trial

FEWEST_TRIALS_FOR_IMPORTANCE = 20
"""Below this an importance is an estimate of a few points in many dimensions and ranks noise."""

LONGEST_REASON = 300


def write_report(
    trials: Sequence[Trial],
    study_name: str,
    objectives: Objectives,
    spec_text: str,
    folder: Path,
    *,
    constraints: Sequence[str] = (),
    budget: str | None = None,
    importances: Mapping[str, Mapping[str, float]] | None = None,
    notes: Sequence[str] = (),
    further: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write folder/report.md, pareto.png, layer_depth.png, importance.png and time.png; return the path of report.md.

    `constraints`, `budget` and `notes` are sentences in plain text; `further` are titles and Markdown of sections that
    need more than trials. `importances` maps objective -> parameter -> share
    of importance. A chart with nothing to show is left out, and one left from an earlier report is removed. Raises
    OSError where the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    charts = {name: folder / f"{name}.png" for name in ("pareto", "layer_depth", "importance", "time")}
    for chart in charts.values():
        chart.unlink(missing_ok=True)
    rows = leaderboard(trials, objectives)
    sections = [
        f"# Report on the study {escape_markdown(study_name)}",
        "## What was asked",
        _asked(objectives, constraints, budget),
        "## Verdict",
        *verdict(trials, objectives),
        "## The front beside the baseline",
        *_front(trials, rows, objectives, charts["pareto"]),
        *(["## Benchmarks apart", *apart] if (apart := benchmarks_section(trials, objectives)) else []),
        *(part for title, text in further for part in (f"## {title}", text)),
        "## Which parameters mattered",
        _importance(trials, importances, charts["importance"]),
        "## Layer depth",
        _layer_depth(trials, objectives, charts["layer_depth"]),
        "## All trials",
        _trial_table(rows, objectives, with_params=True) if rows else "There are no trials.",
        "## Trials without a result",
        _without_result(trials),
        "## Where the time went",
        *time_section(trials, charts["time"]),
        "## Checkpoints",
        *checkpoints_section(trials, objectives),
        "## What to keep in mind",
        _caveats(trials, objectives),
        *(["## Notes", "\n".join(f"- {escape_markdown(note)}" for note in notes)] if notes else []),
        "## The study's specification",
        code_block(spec_text, "yaml"),
    ]
    report = folder / "report.md"
    report.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return report


def _asked(objectives: Objectives, constraints: Sequence[str], budget: str | None) -> str:
    lines = [
        f"- {'Raise' if way == 'maximize' else 'Lower'} {escape_markdown(name)}." for name, way in objectives.items()
    ]
    lines += [f"- Constraint: {escape_markdown(constraint)}" for constraint in constraints]
    lines.append(f"- Budget: {escape_markdown(budget)}" if budget else "- Budget: as in the specification below.")
    return "\n".join(lines)


def _front(trials: Sequence[Trial], rows: Sequence[dict[str, Any]], objectives: Objectives, chart: Path) -> list[str]:
    kept = [row for row in rows if row["on_front"] or row["role"] == "baseline"]
    if not kept:
        return ["Neither a baseline nor a front trial is there to show."]
    names = {row["name"] for row in kept}
    parts = [_trial_table(kept, objectives, with_params=False)]
    if quality := _quality_table([trial for trial in trials if trial.name in names], objectives):
        parts += [
            "How these rates were counted: prompts judged, answers that were degenerate (empty, looping or gibberish), "
            "and answers cut by the token cap.",
            quality,
        ]
    if draw_pareto(trials, objectives, chart):
        parts.append(f"![Trials by their objectives, with 95 % intervals]({chart.name})")
        complete = sum(trial.state == "complete" for trial in trials)
        if complete > MOST_TRIALS_WITH_LABELS:
            parts.append(
                "Only the front and the baseline are labelled, where there is room. Faint bars are 95 % intervals."
            )
        else:
            parts.append("Bars are 95 % intervals. A label is left out where it would cover another one.")
    return parts


def _trial_table(rows: Sequence[dict[str, Any]], objectives: Objectives, with_params: bool) -> str:
    searched = searched_parameters(rows) if with_params else []
    header = [
        "trial",
        *(["state"] if with_params else []),
        "layer depth",
        *(escape_markdown(name) for name in searched),
    ]
    for name in objectives:
        header += [escape_markdown(name), "to baseline"]
    header += ["perplexity"] * ("perplexity" not in objectives) + ["on the front", "keeps constraints"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        cells = [escape_markdown(row["name"]) + (" (baseline)" if row["role"] == "baseline" else "")]
        cells += [row["state"]] if with_params else []
        cells += [_plain(row["layer_depth"]), *(_plain(row["params"].get(name)) for name in searched)]
        for name in objectives:
            cells += [row["objectives"][name] or "", row["differences"][name] or ""]
        cells += [_plain(row["perplexity"])] * ("perplexity" not in objectives)
        cells += ["yes" if row["on_front"] else "", {True: "yes", False: "no", None: ""}[row["feasible"]]]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _quality_table(trials: Sequence[Trial], objectives: Objectives) -> str | None:
    rates = [name for name in objectives if any(f"{name}/degenerate_share" in trial.metrics for trial in trials)]
    if not rates:
        return None
    header = ["trial", *(f"{escape_markdown(name)}: {part}" for name in rates for part in ("n", "degenerate", "cut"))]
    lines = [header, ["---"] * len(header)]
    for trial in trials:
        cells = [escape_markdown(trial.name)]
        for name in rates:
            value = measured(trial, name)
            shares = [measured(trial, f"{name}/{part}") for part in ("degenerate_share", "cut_share")]
            cells += [str(value.n) if value and value.n else "", *(_share(share) for share in shares)]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _importance(trials: Sequence[Trial], importances: Mapping[str, Mapping[str, float]] | None, chart: Path) -> str:
    complete = sum(trial.state == "complete" and trial.role == "search" for trial in trials)
    if complete < FEWEST_TRIALS_FOR_IMPORTANCE:
        return (
            f"Not estimated: {counted(complete, 'search trial')} complete, and below {FEWEST_TRIALS_FOR_IMPORTANCE} "
            "an importance says more about noise than about parameters."
        )
    if not importances or not draw_importance(importances, chart):
        return "Not estimated for this report."
    return (
        f"Shares of the variance of each objective over {complete} complete trials. They describe the space that was "
        f"searched, not cause.\n\n![Importance of each parameter for each objective]({chart.name})"
    )


def _layer_depth(trials: Sequence[Trial], objectives: Objectives, chart: Path) -> str:
    if not draw_layer_depth(trials, objectives, chart):
        return "Fewer than two layer depths were completed, so there is nothing to compare."
    return (
        "Depth l/L of the layer that carries the contrastive loss. Other parameters vary from point to point, so a "
        f"trend here is not the depth's alone. Trials of equal depth stand side by side."
        f"\n\n![Layer depth against each objective]({chart.name})"
    )


def _without_result(trials: Sequence[Trial]) -> str:
    lines = [
        f"- {escape_markdown(trial.name)}: {trial.state}, "
        f"{escape_markdown(trial.reason or 'no reason was given', LONGEST_REASON)}"
        for trial in trials
        if trial.state in ("failed", "pruned")
    ]
    open_ones = sum(trial.state in ("running", "waiting") for trial in trials)
    if open_ones:
        lines.append(f"- {counted(open_ones, 'trial')} had not ended when this was written.")
    return "\n".join(lines) if lines else "Every trial ended with a result." if trials else "There are no trials."


def _caveats(trials: Sequence[Trial], objectives: Objectives) -> str:
    lines = [
        "Answers were judged by matching strings of refusals. It cannot tell whether an answer is right, useful or "
        "harmful, and it misses refusals in other words; conclusions need a judge that was checked against human "
        "labels.",
        "All figures are of the search split, which also chose the trials, so those of the best trials are too good "
        "on average. Confirm them on the test split with fresh seeds.",
        "Each trial is one training seed; another seed would move every figure.",
    ]
    degenerate = [
        (trial, name, share)
        for trial in trials
        for name in objectives
        if (share := measured(trial, f"{name}/degenerate_share")) and share.value >= 0.05
    ]
    if degenerate:
        worst, name, share = max(degenerate, key=lambda item: item[2].value)
        lines.append(
            f"{counted(len({trial.name for trial, *_ in degenerate}), 'trial')} gave 5 % or more degenerate answers; "
            f"the most were {share.value:.0%} of {escape_markdown(worst.name)} for {escape_markdown(name)}."
        )
    if baseline_of(trials) is None:
        lines.append("Without a complete baseline no figure here can be called an improvement.")
    return "\n".join(f"- {line}" for line in lines)


def _plain(value: float | int | str | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else escape_markdown(str(value))


def _share(share: Measured | None) -> str:
    return "" if share is None else f"{share.value:.1%}"
