"""Charts of the search itself: how much each parameter mattered, and where each trial's time went.

It knows nothing of how importances are computed; they come from whoever holds the search's history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from dcr_ray.report.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, legend_above, light_sheet, printable
from dcr_ray.trial import Trial

MOST_TRIALS_IN_BARS = 60
MOST_PARAMETERS = 15
_STAGE_COLOURS = {"dcr": BLUE, "sft": ORANGE, "generate": GREEN, "judge": PURPLE}


def draw_importance(importances: Mapping[str, Mapping[str, float]], path: Path) -> Path | None:
    """One panel an objective (objective -> parameter -> share of importance), parameters in one common order.

    At most 15 parameters are shown, by their mean importance. None where no importance is finite.
    """
    finite = {
        objective: {name: value for name, value in shares.items() if isfinite(value)}
        for objective, shares in importances.items()
    }
    finite = {objective: shares for objective, shares in finite.items() if shares}
    if not finite:
        return None
    mean = {
        name: sum(shares.get(name, 0.0) for shares in finite.values()) / len(finite)
        for shares in finite.values()
        for name in shares
    }
    names = sorted(mean, key=mean.get, reverse=True)[:MOST_PARAMETERS][::-1]
    with light_sheet(max(6.0, 2.0 + 3.4 * len(finite)), 1.2 + 0.32 * len(names), path) as figure:
        panels = figure.subplots(1, len(finite), squeeze=False, sharey=True)[0]
        for axes, (objective, shares) in zip(panels, finite.items(), strict=True):
            bars = axes.barh(range(len(names)), [shares.get(name, 0.0) for name in names], color=BLUE, height=0.62)
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
            axes.set_title(printable(objective))
            axes.set_xlabel("share of importance")
            axes.set_xlim(0, 1.15 * max(max(shares.values()), 0.01))
            axes.grid(False, axis="y")
        panels[0].set_yticks(range(len(names)), [printable(name) for name in names])
    return path


def draw_stages(trials: Sequence[Trial], path: Path) -> Path | None:
    """Seconds of work a stage, stacked, one bar a trial; what came from the cache is pale and hatched.

    Above 60 trials the 60 with the most seconds are shown. None where no trial has a stage.
    """
    with_stages = [trial for trial in trials if trial.stages]
    if not with_stages:
        return None
    longest = sorted(with_stages, key=lambda trial: sum(stage.seconds for stage in trial.stages), reverse=True)
    kept = {id(trial) for trial in longest[:MOST_TRIALS_IN_BARS]}
    shown = [trial for trial in with_stages if id(trial) in kept]
    top = sum(stage.seconds for stage in longest[0].stages)
    unit, divisor = ("seconds", 1.0) if top < 600 else ("minutes", 60.0) if top < 36_000 else ("hours", 3600.0)
    others = iter((SKY, GREY))
    colours = dict(_STAGE_COLOURS)
    with light_sheet(8.0, 1.3 + 0.22 * max(4, len(shown)), path) as figure:
        axes = figure.subplots()
        for row, trial in enumerate(shown):
            left = 0.0
            for stage in trial.stages:
                colour = colours.setdefault(stage.name, next(others, GREY))
                length = stage.seconds / divisor
                axes.barh(
                    row,
                    length,
                    left=left,
                    height=0.72,
                    linewidth=0.5,
                    edgecolor="white" if not stage.cached else colour,
                    facecolor=(colour, 0.25) if stage.cached else colour,
                    hatch="////" if stage.cached else None,
                    label=f"{printable(stage.name)}{', from the cache' if stage.cached else ''}",
                )
                left += length
        axes.set_yticks(range(len(shown)), [printable(trial.name[:24]) for trial in shown], fontsize=8)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel(
            f"{unit} of work" + ("" if len(shown) == len(with_stages) else f", the {len(shown)} longest trials")
        )
        axes.grid(False, axis="y")
        legend_above(figure, [axes], [label for name in _STAGE_COLOURS for label in (name, f"{name}, from the cache")])
    return path
