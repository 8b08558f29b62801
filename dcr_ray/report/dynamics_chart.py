"""Learning dynamics drawn as the paper's figures 1 and 3 are: refusals and kernel ratios over the steps of training.

It knows what the looks of a stage hold (`dcr_ray.train.dynamics`) and reads them from the stages' records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

from dcr_ray.cache import RECORD_FILE
from dcr_ray.report.canvas import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, legend_above, light_sheet, printable
from dcr_ray.trial import Trial

CLASSES = {
    "general": ("general", GREEN),
    "seemingly_toxic": ("seemingly toxic", BLUE),
    "toxic": ("toxic", VERMILLION),
}

PAIRS = {
    "seemingly_toxic-toxic": ("seemingly toxic - toxic", PURPLE),
    "toxic-toxic": ("toxic - toxic", SKY),
    "general-toxic": ("general - toxic", ORANGE),
}

MOST_TRIALS = 4

Looks = list[tuple[str, list[dict[str, Any]]]]
"""The watched stages of a trial in their order, each with its looks."""


def looks_of(trial: Trial) -> Looks:
    """What the trial's stages have seen of themselves; empty where nothing watched them."""
    found = []
    for stage in trial.stages:
        file = Path(stage.path) / RECORD_FILE
        if stage.name in ("dcr", "sft") and file.is_file():
            lines = json.loads(file.read_text())["results"].get("dynamics")
            if lines:
                found.append((stage.name, lines))
    return found


def watched_trials(trials: Sequence[Trial]) -> dict[str, Looks]:
    """The looks of the baseline and of the first complete trial of each method that has any of its own, no more than
    MOST_TRIALS, by a name that tells the method. What acts on the baseline's model was trained as it was."""
    found: dict[str, Looks] = {}
    shown: set[Any] = set()
    for trial in sorted(trials, key=lambda trial: trial.role != "baseline"):
        stages = tuple(stage.key for stage in trial.stages if stage.name in ("dcr", "sft"))
        if trial.state != "complete" or len(found) == MOST_TRIALS or {stages, trial.recipe.method} & shown:
            continue
        if looks := looks_of(trial):
            shown |= {stages, trial.recipe.method}
            found[f"{trial.name} ({trial.recipe.method})"] = looks
    return found


def figures_of(line: Mapping[str, Any]) -> dict[str, float]:
    """One look as flat figures: `refusal/toxic`, `kernel/all/seemingly_toxic-toxic` (geometric mean of the symmetric
    ratio)."""
    flat = {f"refusal/{name}": each["mean"] for name, each in line["refusal"].items()}
    for scope, pairs in line["kernel"].items():
        flat |= {f"kernel/{scope}/{pair}": exp(each["symmetric_log_ratio"]["value"]) for pair, each in pairs.items()}
    return flat


def draw_dynamics(trials: Mapping[str, Looks], path: Path) -> Path | None:
    """A column for each trial: refusal probability of the three classes, and below it a row for each kernel scope.

    Shaded bands and bars are two standard errors over prompts. DCR's steps come before SFT's, parted by a line. None
    where there is nothing to draw.
    """
    if not trials:
        return None
    scopes = list(next(iter(trials.values()))[0][1][0]["kernel"])
    with light_sheet(1.0 + 3.4 * len(trials), 0.8 + 2.2 * (1 + len(scopes)), path) as figure:
        rows = figure.subplots(1 + len(scopes), len(trials), squeeze=False, sharey="row", sharex="col")
        for column, (name, looks) in enumerate(trials.items()):
            points = _along(looks)
            _curves(rows[0][column], looks, points, CLASSES, lambda line: line["refusal"])
            rows[0][column].set_title(printable(name))
            for place, scope in enumerate(scopes, 1):
                _curves(rows[place][column], looks, points, PAIRS, lambda line, scope=scope: _ratios(line, scope))
            rows[-1][column].set_xlabel("training step")
        rows[0][0].set_ylabel("P(refusal begins)")
        for place, scope in enumerate(scopes, 1):
            rows[place][0].set_ylabel(f"kernel ratio, {scope}")
            rows[place][0].set_ylim(0, 1.02)
        legend_above(figure, [panel for row in rows for panel in row])
    return path


def _along(looks: Looks) -> list[list[int]]:
    """The steps of every stage's looks, counted on from one stage to the next."""
    points, before = [], 0
    for _, lines in looks:
        points.append([before + line["step"] for line in lines])
        before = points[-1][-1]
    return points


def _ratios(line: Mapping[str, Any], scope: str) -> dict[str, dict[str, float]]:
    """Geometric means of the symmetric ratio, with the prompts' error carried over."""
    found = {}
    for pair, each in line["kernel"].get(scope, {}).items():
        figure = each["symmetric_log_ratio"]
        mean = exp(figure["value"])
        found[pair] = {"mean": mean, "error": mean * figure["prompt_error"]}
    return found


def _curves(axes: Any, looks: Looks, points: list[list[int]], curves: Mapping[str, tuple[str, str]], read: Any) -> None:
    for key, (label, colour) in curves.items():
        for place, ((_, lines), x) in enumerate(zip(looks, points, strict=True)):
            found = [read(line).get(key) for line in lines]
            if not all(found):
                continue
            y = [each["mean"] for each in found]
            low = [max(0.0, each["mean"] - 2 * each["error"]) for each in found]
            high = [min(1.0, each["mean"] + 2 * each["error"]) for each in found]
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(x, y, "o-", color=colour, markersize=3, linewidth=1.4, label=label if place == 0 else None)
    for x in points[:-1]:
        axes.axvline(x[-1], color="#9AA3AD", linewidth=0.9, linestyle="--")
    for (stage, _), x in zip(looks, points, strict=True):
        axes.annotate(
            stage.upper(), ((x[0] + x[-1]) / 2, 1), xycoords=("data", "axes fraction"), xytext=(0, -9),
            textcoords="offset points", ha="center", fontsize=7, color="#7A8490",
        )  # fmt: skip


def dynamics_section(trials: Sequence[Trial], chart: Path) -> str | None:
    """What the report says of the looks, and the chart written; None where no trial was watched."""
    watched = watched_trials(trials)
    if draw_dynamics(watched, chart) is None:
        return None
    lines = [
        f"![Learning dynamics]({chart.name})",
        "",
        "Above: how likely the first token is to begin a refusal, on held-out prompts of three kinds, as training goes "
        "on. Below: how far a small step on one prompt would move the first token after another, relative to their own "
        "(1: as far; the symmetric kernel ratio). Bands are two standard errors over prompts. The same prompts and "
        "probes serve every look.",
        "",
        "| trial | stage | refusal before -> after: general | seemingly toxic | toxic |",
        "|---|---|---|---|---|",
    ]
    for name, looks in watched.items():
        for stage, seen in looks:
            cells = [
                f"{seen[0]['refusal'][kind]['mean']:.2f} -> {seen[-1]['refusal'][kind]['mean']:.2f}" for kind in CLASSES
            ]
            lines.append(f"| {name} | {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)
