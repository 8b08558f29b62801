"""The chart of how much each parameter mattered.

It knows nothing of how importances are computed; they come from whoever holds the search's history.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from dcr_ray.report.canvas import BLUE, light_sheet, printable

MOST_PARAMETERS = 15


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
