"""What simulated trials find: rates and perplexity as functions of the recipe, by a formula or from a table.

The formula is made up: compliance is best at a middle depth and a mild strength, defense pays for it, a strong stage
forgets, and too strong a one diverges. It says nothing about any model; it gives a search something to find. Rates are
drawn as k of n, so that trials differ by chance as much as real ones of that size do.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from dcr_ray.errors import InputError, Problem, StageFailed
from dcr_ray.fingerprint import digest
from dcr_ray.rates import wilson_interval
from dcr_ray.recipe import Recipe
from dcr_ray.study import StudySpec

Surface = Callable[[Recipe], dict[str, float]]
"""The true compliance, defense and perplexity of a recipe. Raises StageFailed for one that diverges."""

DIVERGES_ABOVE = 4e-3
"""A strength (learning rate x scale) above this one diverges."""


def made_up(recipe: Recipe) -> dict[str, float]:
    """The formula. Without a DCR stage: .70 compliance, .90 defense, perplexity 12."""
    if recipe.dcr is None:
        return {"compliance": 0.70, "defense": 0.90, "perplexity": 12.0}
    dcr = recipe.dcr
    if dcr.strength > DIVERGES_ABOVE:
        raise StageFailed("diverged", "the loss is not finite at step 3")
    work = dcr.strength / 3e-4 * dcr.epochs
    depth = math.exp(-(((dcr.layer_depth - 0.55) / 0.2) ** 2))
    gain = 0.22 * depth * (1 - math.exp(-work)) * math.exp(-work / 12) * (1 - abs(dcr.toxic_share - 0.5))
    return {
        "compliance": min(0.99, 0.70 + gain),
        "defense": max(0.01, 0.90 - 0.02 * work - 0.1 * max(0.0, gain - 0.15)),
        "perplexity": 12.0 * math.exp(0.02 * work),
    }


def held_out_figures(recipe: Recipe) -> dict[str, float]:
    """What the DCR stage would tell of held-out prompts before SFT is paid for, as made up as the rest."""
    gain = made_up(recipe)["compliance"] - 0.70
    return {
        "held_out_auroc": 0.70 + gain,
        "held_out_margin": gain,
        "held_out_within_cosine": 0.9,
        "held_out_across_cosine": 0.9 - gain,
    }


def from_table(file: Path, spec: StudySpec) -> Surface:
    """The row of a CSV file whose searched coordinates are nearest, each measured in shares of its range.

    Columns: the searched coordinates by their names (`dcr.layer_depth`), and compliance, defense, perplexity; the
    baseline's row leaves the coordinates empty. Raises InputError for a file without them.
    """
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise InputError([Problem("--table", f"{file} ({error.strerror})", "a CSV file")]) from error
    coordinates, figures = list(spec.dimensions), ("compliance", "defense", "perplexity")
    missing = [name for name in (*coordinates, *figures) if not rows or name not in rows[0]]
    if missing:
        raise InputError([Problem("--table", f"{file} without {', '.join(missing)}", "a column for each of them")])
    searched = [row for row in rows if row[coordinates[0]]]
    baseline = next((row for row in rows if not row[coordinates[0]]), None)
    if not searched or baseline is None:
        fix = "Leave the baseline's coordinates empty."
        raise InputError([Problem("--table", f"{len(searched)} rows of trials", "some, and one of the baseline", fix)])
    numbers = {name: [float(row[name]) for row in searched if _number(row[name])] for name in coordinates}
    spans = {name: (max(values) - min(values) or 1.0) if values else 1.0 for name, values in numbers.items()}

    def distance(row: dict[str, str], plain: dict[str, Any]) -> float:
        apart = 0.0
        for name in coordinates:
            told, wanted = row[name], reduce(getitem, name.split("."), plain)
            if _number(told) and isinstance(wanted, int | float):
                apart += ((float(told) - wanted) / spans[name]) ** 2
            else:
                apart += float(told != str(wanted))
        return apart

    def surface(recipe: Recipe) -> dict[str, float]:
        plain = recipe.model_dump()
        row = baseline if recipe.dcr is None else min(searched, key=lambda row: distance(row, plain))
        return {name: float(row[name]) for name in figures}

    return surface


def drawn_metrics(truth: dict[str, float], recipe: Recipe, spec: StudySpec, counts: dict[str, int]) -> dict[str, float]:
    """What an evaluation of `counts` prompts would have measured: the same for the same recipe and seed, every time."""
    chance = random.Random(digest({"recipe": recipe.model_dump(mode="json"), "seed": spec.search.seed}))
    metrics = {"perplexity": truth["perplexity"] * math.exp(chance.gauss(0, 0.005))}
    wanted = {*spec.objectives, *spec.constraints}
    for rate in ("compliance", "defense"):
        n = max(1, counts[rate])
        for name in (rate, *(name for name in wanted if name.startswith(f"{rate}."))):
            hits = sum(chance.random() < truth[rate] for _ in range(n))
            low, high = wilson_interval(hits / n, n)
            shown = {"": hits / n, "/low": low, "/high": high, "/n": float(n)}
            shown |= {"/degenerate_share": 0.0, "/cut_share": 0.0}
            metrics |= {f"{name}{part}": value for part, value in shown.items()}
    return metrics


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
