"""The chart of where each trial's wall clock went: one bar a trial, its parts one after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcr_ray.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    legend_above,
    light_sheet,
    printable,
)
from dcr_ray.time_ledger import PARTS
from dcr_ray.trial import Trial

MOST_TRIALS_IN_BARS = 60
# Greys for what is not work, blues for training, greens and yellows for the engine; neighbours differ in lightness too.
_COLOURS = {
    "start": "#3D4650",
    "queue": "#C9CED4",
    "data": "#00395A",
    "weights_in": SKY,
    "forward_backward": BLUE,
    "optimizer": "#B5DCF3",
    "checkpoint": ORANGE,
    "weights_to_engine": "#00543D",
    "prefill": "#8FD3BC",
    "decode": GREEN,
    "judge": PURPLE,
    "tracking": "#F0E442",
    "idle": GREY,
    "unaccounted": VERMILLION,
}


def draw_time(trials: Sequence[Trial], path: Path) -> Path | None:
    """The ledger's parts of each trial, stacked, and what they leave of its wall clock, if that is not below zero.

    Above 60 trials the 60 longest are shown. None where no trial has a ledger.
    """
    ended = [trial for trial in trials if trial.wall]
    if not ended:
        return None
    longest = sorted(ended, key=lambda trial: trial.wall, reverse=True)[:MOST_TRIALS_IN_BARS]
    kept = {id(trial) for trial in longest}
    shown = [trial for trial in ended if id(trial) in kept]
    top = longest[0].wall
    unit, divisor = ("seconds", 1.0) if top < 600 else ("minutes", 60.0) if top < 36_000 else ("hours", 3600.0)
    lefts = [0.0] * len(shown)
    with light_sheet(8.0, 1.7 + 0.22 * max(4, len(shown)), path) as figure:
        axes = figure.subplots()
        for part in (*PARTS, "unaccounted"):
            lengths = [_length(trial, part) / divisor for trial in shown]
            if any(lengths):
                axes.barh(range(len(shown)), lengths, left=lefts, height=0.72, color=_COLOURS[part], label=part)
            lefts = [left + length for left, length in zip(lefts, lengths, strict=True)]
        axes.set_yticks(range(len(shown)), [printable(trial.name[:24]) for trial in shown], fontsize=8)
        axes.set_xlim(0, 1.03 * top / divisor)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel(
            f"{unit} of wall clock" + ("" if len(shown) == len(ended) else f", the {len(shown)} longest trials")
        )
        axes.grid(False, axis="y")
        legend_above(figure, [axes], list(_COLOURS))
    return path


def _length(trial: Trial, part: str) -> float:
    # A ledger is kept to 0.1 ms a part; what rounding leaves is no finding.
    return max(0.0, round(trial.unaccounted, 2) if part == "unaccounted" else trial.ledger.get(part, 0.0))
