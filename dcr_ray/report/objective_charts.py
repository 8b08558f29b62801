"""Charts of what was measured: trials in the plane of two objectives, and layer depth against each objective.

It knows nothing of how the parameters act together; each chart returns None where it would have nothing to show.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from dcr_ray.pareto import Objectives, pareto_front
from dcr_ray.report.canvas import BLUE, GREY, VERMILLION, label_points, legend_above, light_sheet, printable
from dcr_ray.report.measured import Measured, baseline_of, layer_depth, measured
from dcr_ray.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TRIALS_WITH_LABELS = 15
_LEGEND = ("baseline", "its 95 % interval", "on the front", "Pareto front", "front of the pair alone", "other trials")


def draw_pareto(trials: Sequence[Trial], objectives: Objectives, path: Path) -> Path | None:
    """The complete trials in the plane of each pair of objectives, with 95 % intervals and the front as a step line.

    With more than two objectives the filled points are on the front of all of them and each panel's line is the front
    of its own pair. With one objective its values are drawn in the order of the trials. Above 15 trials only the front
    and the baseline are labelled.
    """
    shown = [
        trial for trial in trials if trial.state == "complete" and all(measured(trial, name) for name in objectives)
    ]
    if not shown:
        return None
    names = list(objectives)
    pairs = list(combinations(names, 2)) or [(None, names[0])]
    columns = min(3, len(pairs))
    rows = ceil(len(pairs) / columns)
    size = (8.0, 6.0) if len(pairs) == 1 else (5.0 * columns, 0.6 + 4.6 * rows)
    front = pareto_front(trials, objectives)
    with light_sheet(*size, path) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid[len(pairs) :]:
            axes.remove()
        panels = [
            (axes, x, y, _plane(axes, shown, front, objectives, x, y))
            for axes, (x, y) in zip(grid, pairs, strict=False)
        ]
        legend_above(figure, [axes for axes, *_ in panels], _LEGEND)
        few = len(shown) <= MOST_TRIALS_WITH_LABELS
        wanted = [*front, *(trial for trial in shown if trial.role == "baseline"), *(shown if few else [])]
        for axes, x, y, places in panels:
            bars = [bar for trial in wanted for bar in _bars(trial, x, y)]
            label_points(axes, _labels(places, wanted), list(places.values()), bars)
    return path


def draw_layer_depth(trials: Sequence[Trial], objectives: Objectives, path: Path) -> Path | None:
    """The depth l/L of the contrastive loss against each objective, the baseline as a band across.

    Trials of equal depth are set side by side in the order of the study, since any other order would look like a trend.
    None where fewer than two depths were completed.
    """
    shown = [
        trial
        for trial in trials
        if trial.role == "search" and trial.state == "complete" and layer_depth(trial) is not None
    ]
    if len({layer_depth(trial) for trial in shown}) < 2:
        return None
    columns = min(3, len(objectives))
    rows = ceil(len(objectives) / columns)
    front, baseline = pareto_front(trials, objectives), baseline_of(trials)
    with light_sheet(max(6.0, 4.4 * columns), 0.6 + 3.6 * rows, path) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid[len(objectives) :]:
            axes.remove()
        for axes, name in zip(grid, objectives, strict=False):
            _depth_panel(axes, shown, front, baseline, name, objectives)
        legend_above(figure, grid[: len(objectives)], _LEGEND)
    return path


def _plane(
    axes: Axes, shown: Sequence[Trial], front: Sequence[Trial], objectives: Objectives, x: str | None, y: str
) -> dict[str, tuple[float, float]]:
    """Draw one panel; where each trial stands in it, by name."""
    points = [
        (trial, Measured(place) if x is None else measured(trial, x), measured(trial, y))
        for place, trial in enumerate(shown, start=1)
    ]
    places = {trial.name: (across.value, up.value) for trial, across, up in points}
    _points(axes, points, front, faint=len(shown) > MOST_TRIALS_WITH_LABELS)
    axes.set_xlabel("complete trials, in the order of the study" if x is None else _axis_title(x, objectives))
    axes.set_ylabel(_axis_title(y, objectives))
    axes.margins(0.08)
    if x is None:
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        pair = {x: objectives[x], y: objectives[y]}
        line = sorted(places[trial.name] for trial in pareto_front(shown, pair))
        # Between two points of the front the better x buys the worse y, so the corner lies on the side of the worse x.
        steps = "steps-pre" if objectives[x] == "maximize" else "steps-post"
        label = "Pareto front" if len(objectives) == 2 else "front of the pair alone"
        axes.plot(
            *zip(*line, strict=True), drawstyle=steps, color=BLUE, linewidth=1.3, zorder=2, label=label
        ) if line else None
    return places


def _points(
    axes: Axes, points: Sequence[tuple[Trial, Measured, Measured]], front: Sequence[Trial], faint: bool
) -> None:
    """Every trial with its intervals, those that look alike in one stroke: there may be thousands."""
    names = {trial.name for trial in front}
    alike: dict[str, list[tuple[Measured, Measured]]] = {}
    for trial, x, y in points:
        alike.setdefault(_look_of(trial, trial.name in names), []).append((x, y))
    for label, places in alike.items():
        bars = axes.errorbar(
            [x.value for x, _ in places],
            [y.value for _, y in places],
            xerr=_reach([x for x, _ in places]),
            yerr=_reach([y for _, y in places]),
            linestyle="none",
            elinewidth=0.9,
            capsize=0,
            label=label,
            **_LOOKS[label],
        )
        strong = label in ("baseline", "on the front")
        for bar in bars[2]:
            bar.set_alpha(0.7 if strong else 0.18 if faint else 0.4)


_LOOKS = {
    "baseline": {"color": VERMILLION, "marker": "D", "markersize": 8, "zorder": 5},
    "on the front": {"color": BLUE, "marker": "o", "markersize": 7, "zorder": 4},
    "breaks a constraint": {"color": GREY, "marker": "o", "markersize": 6, "zorder": 3, "mfc": "white"},
    "other trials": {"color": GREY, "marker": "o", "markersize": 6, "zorder": 3},
}


def _look_of(trial: Trial, on_front: bool) -> str:
    if trial.role == "baseline":
        return "baseline"
    if on_front:
        return "on the front"
    return "breaks a constraint" if trial.feasible is False else "other trials"


def _reach(values: Sequence[Measured]) -> list[list[float]] | None:
    """The intervals as matplotlib wants them: how far each goes below and above; 0 where there is none."""
    if not any(value.has_interval for value in values):
        return None
    ends = [(value.low, value.high) if value.has_interval else (value.value, value.value) for value in values]
    return [
        [max(0.0, value.value - low) for value, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - value.value) for value, (_, high) in zip(values, ends, strict=True)],
    ]


def _bars(trial: Trial, x: str | None, y: str) -> list[tuple[float, float, float, float]]:
    """The trial's error bars in a panel of two objectives, as lines."""
    across, up = (None if x is None else measured(trial, x)), measured(trial, y)
    if across is None:
        return []
    level = [(across.low, up.value, across.high, up.value)] if across.has_interval else []
    return level + ([(across.value, up.low, across.value, up.high)] if up.has_interval else [])


def _labels(places: dict[str, tuple[float, float]], wanted: Sequence[Trial]) -> dict[tuple[float, float], str]:
    """One label a place, because trials with equal figures stand on one another."""
    together: dict[tuple[float, float], list[str]] = defaultdict(list)
    for trial in wanted:
        if trial.name not in together[places[trial.name]]:
            together[places[trial.name]].append(trial.name)
    return {
        place: ", ".join(printable(name[:20]) for name in names[:2])
        + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        for place, names in together.items()
    }


def _depth_panel(
    axes: Axes,
    shown: Sequence[Trial],
    front: Sequence[Trial],
    baseline: Trial | None,
    name: str,
    objectives: Objectives,
) -> None:
    at_depth: dict[float, list[Trial]] = defaultdict(list)
    for trial in shown:
        if measured(trial, name):
            at_depth[layer_depth(trial)].append(trial)
    spread = (max(at_depth) - min(at_depth)) * min(0.15, 0.7 / max(1, len(at_depth) - 1)) if at_depth else 0.0
    points = []
    for depth, trials in at_depth.items():
        step = spread / max(4, len(trials))
        for place, trial in enumerate(trials):
            aside = Measured(depth + step * (place - (len(trials) - 1) / 2))
            points.append((trial, aside, measured(trial, name)))
    _points(axes, points, front, faint=len(shown) > 3 * MOST_TRIALS_WITH_LABELS)
    if reference := measured(baseline, name):
        axes.axhline(reference.value, color=VERMILLION, linewidth=1.3, zorder=1, label="baseline")
        if reference.has_interval:
            axes.axhspan(
                reference.low,
                reference.high,
                color=VERMILLION,
                alpha=0.10,
                linewidth=0,
                zorder=0,
                label="its 95 % interval",
            )
    axes.set_xlabel("layer depth l/L")
    axes.set_ylabel(_axis_title(name, objectives))
    axes.margins(0.06)


def _axis_title(name: str, objectives: Objectives) -> str:
    return f"{printable(name)} ({'higher' if objectives[name] == 'maximize' else 'lower'} is better)"
