"""The trials of a study as rows, the baseline first, and these rows on a terminal.

It knows nothing of where the trials come from, and leaves verdicts to the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from dcr_ray.pareto import Objectives, gain, pareto_front
from dcr_ray.report.measured import baseline_of, layer_depth, measured
from dcr_ray.report.wording import counted, one_line
from dcr_ray.trial import Trial

if TYPE_CHECKING:
    from rich.console import Console

_STATE_ORDER = ("complete", "running", "waiting", "pruned", "failed")
_LONGEST_NAME = 24


def leaderboard(trials: Sequence[Trial], objectives: Objectives) -> list[dict[str, Any]]:
    """One row a trial: baselines, then the front, then the rest by state, constraint and first objective.

    Keys: name, role, state, layer_depth, params (the searched ones), objectives (name -> '0.83 [0.71, 0.91]' or None),
    differences (name -> '+0.12' to the first complete baseline, or None), better (name -> True, False or None where
    equal or unknown), perplexity (a number or None), on_front, feasible, reason. All values are plain JSON types.
    """
    baseline = baseline_of(trials)
    front = {id(trial): place for place, trial in enumerate(pareto_front(trials, objectives))}
    first, direction = next(iter(objectives.items()))

    def rank(trial: Trial) -> tuple:
        place = front.get(id(trial), len(front))
        value = measured(trial, first)
        worth = inf if value is None else -gain(value.value, 0.0, direction)
        return trial.role != "baseline", place, _STATE_ORDER.index(trial.state), trial.feasible is False, worth

    return [_row(trial, baseline, objectives, id(trial) in front) for trial in sorted(trials, key=rank)]


def _row(trial: Trial, baseline: Trial | None, objectives: Objectives, on_front: bool) -> dict[str, Any]:
    found = {name: measured(trial, name) for name in objectives}
    reference = {name: None if trial is baseline else measured(baseline, name) for name in objectives}
    pairs = {name: (found[name], reference[name]) for name in objectives if found[name] and reference[name]}
    gains = {name: gain(new.value, old.value, objectives[name]) for name, (new, old) in pairs.items()}
    perplexity = measured(trial, "perplexity")
    return {
        "name": trial.name,
        "role": trial.role,
        "state": trial.state,
        "layer_depth": layer_depth(trial),
        "params": dict(trial.params),
        "objectives": {name: None if value is None else str(value) for name, value in found.items()},
        "differences": {
            name: pairs[name][0].difference(pairs[name][1]) if name in pairs else None for name in objectives
        },
        "better": {name: gains[name] > 0 if gains.get(name) else None for name in objectives},
        "perplexity": None if perplexity is None else perplexity.value,
        "on_front": on_front,
        "feasible": trial.feasible,
        "reason": trial.reason,
    }


def render_leaderboard(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the rows as a table, with the reasons of failed, pruned and infeasible trials below it.

    A terminal that is too narrow loses columns in this order: the searched parameters, then the perplexity, then the
    layer depth, then the intervals. What was left out is said below the table.
    """
    from rich.table import Table
    from rich.text import Text

    if not rows:
        console.print("No trials yet.", markup=False, highlight=False)
        return
    groups, left_out = _fitting_columns(rows, console.width)
    columns = [column for group in groups for column in group]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title, numeric, _ in columns:
        table.add_column(Text(title), justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
    for index, row in enumerate(rows):
        style = "bold" if row["role"] == "baseline" else "green" if row["on_front"] else "dim"
        style = "" if row["state"] == "complete" and style == "dim" else style
        table.add_row(*(Text(cells[index], style=style) for _, _, cells in columns))
    console.print(table)
    console.print("* on the Pareto front; differences are to the baseline.", style="dim", markup=False, highlight=False)
    if left_out:
        said = f"Not shown on {console.width} columns: {', '.join(left_out)}."
        console.print(said, style="dim", markup=False, highlight=False)
    reasons = [(row["name"], _state(row), row["reason"]) for row in rows if row["reason"]]
    for name, state, reason in reasons:
        console.print(Text(f"{one_line(name, _LONGEST_NAME)} ({state}): {one_line(reason, 300)}"), highlight=False)


def searched_parameters(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The searched parameters of any row, without the layer depth, which has its own column."""
    names = dict.fromkeys(name for row in rows for name in row["params"])
    return [name for name in names if name != "dcr.layer_depth"]


_Column = tuple[str, bool, list[str]]  # title, whether it holds numbers, one cell a row


def _fitting_columns(rows: Sequence[dict[str, Any]], width: int) -> tuple[list[list[_Column]], list[str]]:
    """The groups of columns that fit, and the names of those that were dropped."""
    names = list(rows[0]["objectives"])
    searched = searched_parameters(rows)
    fixed: list[_Column] = [
        ("", False, ["*" if row["on_front"] else "" for row in rows]),
        ("trial", False, [one_line(row["name"], _LONGEST_NAME) for row in rows]),
        ("state", False, [_state(row) for row in rows]),
    ]
    depth: list[_Column] = [("l/L", True, [_number(row["layer_depth"]) for row in rows])]
    perplexity: list[_Column] = [("perplexity", True, [_number(row["perplexity"]) for row in rows])]
    params: list[_Column] = [
        (one_line(name.rsplit(".", 1)[-1], 20), True, [_number(row["params"].get(name)) for row in rows])
        for name in searched
    ]
    wide, narrow = _objective_columns(rows, names, True), _objective_columns(rows, names, False)
    depth_name, parameters = "layer depth", counted(len(params), "searched parameter")
    choices = [
        ([fixed, depth, wide, perplexity, params], []),
        ([fixed, depth, wide, perplexity], [parameters]),
        ([fixed, depth, wide], [parameters, "perplexity"]),
        ([fixed, wide], [parameters, "perplexity", depth_name]),
        ([fixed, depth, narrow, perplexity], [parameters, "intervals"]),
        ([fixed, narrow], [parameters, "perplexity", depth_name, "intervals"]),
    ]
    return next((choice for choice in choices if _width(choice[0]) <= width), choices[-1])


def _objective_columns(rows: Sequence[dict[str, Any]], names: Sequence[str], intervals: bool) -> list[_Column]:
    columns: list[_Column] = []
    for name in names:
        cells = [row["objectives"][name] or "" for row in rows]
        columns.append((one_line(name, 20), True, cells if intervals else [cell.split(" ")[0] for cell in cells]))
        columns.append(("diff", True, [row["differences"][name] or "" for row in rows]))
    return columns


def _width(groups: list[list[_Column]]) -> int:
    from rich.cells import cell_len

    return sum(1 + max(cell_len(text) for text in [title, *cells]) for group in groups for title, _, cells in group)


def _state(row: dict[str, Any]) -> str:
    return "infeasible" if row["state"] == "complete" and row["feasible"] is False else row["state"]


def _number(value: float | int | str | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else one_line(str(value), 20)
