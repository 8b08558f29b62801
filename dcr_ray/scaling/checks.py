"""What a ladder of cells can and cannot tell, said before anything is fitted or run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dcr_ray.errors import Problem
from dcr_ray.scaling.cells import Cell

FEWEST_SIZES = 3
"""Of a family, for a slope that can be held against its own scatter."""


def law_problems(cells: Sequence[Cell]) -> tuple[list[Problem], list[str]]:
    """What rules out a law, and the terms that these cells cannot tell, which are left out of it."""
    problems = []
    scored = [cell for cell in cells if cell.n]
    for name in ("metric", "arm"):
        kinds = sorted({getattr(cell, name) for cell in scored})
        if len(kinds) > 1:
            problems.append(Problem(name, ", ".join(kinds), "one at a time: fit a law for each"))
    sizes = {cell.model: cell.parameters for cell in scored}
    if len(set(sizes.values())) < 2:
        found = f"{len(set(sizes.values()))} model size{'s' if len(set(sizes.values())) != 1 else ''}"
        problems.append(Problem("sizes", found, "2 or more", "One size tells its own rate, and no trend."))
    families = {cell.model: cell.family for cell in scored}
    coefficients = len(set(families.values())) + 1
    if sizes and len(sizes) <= coefficients and not problems:
        found = f"{len(sizes)} checkpoints for {coefficients} coefficients (a slope, and an intercept a family)"
        fix = "The rates at these sizes and the arms at each of them can still be compared."
        problems.append(Problem("sizes", found, f"{coefficients + 1} checkpoints or more", fix))
    left_out = []
    by_model: dict[str, set[int]] = {}
    for cell in scored:
        by_model.setdefault(cell.model, set()).add(cell.data_size)
    varied = [model for model, found in by_model.items() if len(found) > 1]
    if not varied:
        left_out += ["data", "size x data"]
    elif len({sizes[model] for model in varied}) < 2:
        left_out.append("size x data")
    return problems, left_out


def ladder_problems(cells: Sequence[Cell]) -> list[Problem]:
    """What weakens a ladder without ruling a law out: one family, few sizes, unequal trials, confounded settings."""
    problems = []
    sizes: dict[str, set[int]] = {}
    for cell in cells:
        sizes.setdefault(cell.family, set()).add(cell.parameters)
    if len(sizes) == 1:
        family = next(iter(sizes))
        fix = "A second family says whether the slope is this one's own; forecasts hold for this family alone."
        problems.append(Problem("families", f"only {family}", "2 or more", fix))
    problems += [
        Problem(
            f"sizes of {family}",
            f"{len(found)}",
            f"{FEWEST_SIZES} or more",
            "Its intercept can be told, its own slope cannot.",
        )
        for family, found in sorted(sizes.items())
        if len(found) < FEWEST_SIZES
    ]
    counts = Counter((cell.model, cell.data_size, cell.arm) for cell in cells)
    seeds = set(counts.values())
    if len(seeds) > 1:
        fewest, most = min(counts.items(), key=lambda item: item[1]), max(counts.items(), key=lambda item: item[1])
        found = f"{fewest[1]} for {fewest[0][0]} and {most[1]} for {most[0][0]}"
        fix = "Sizes with more trials or seeds have luckier winners, which fakes a trend: give all the same."
        problems.append(Problem("trials or seeds a cell", found, "as many for every size", fix))
    return problems
