"""A Trial as it stands: one recipe, its state, what was measured, and where its stages lie.

The view that status, reports, MLflow and the Python API share. It is derived from the search's journal and the stage
records and is never itself the place where a fact is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dcr_ray.recipe import Recipe
from dcr_ray.time_ledger import unaccounted

BASELINE_NAME = "stl"
"""The trial without a method, which every study asks first."""

TrialState = Literal["waiting", "running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class StageView:
    """One stage of a trial: its record's key and folder, its seconds of work, if the cache had it, and who ran it."""

    name: str
    key: str
    path: str
    seconds: float
    cached: bool
    worker: str | None = None


@dataclass(frozen=True)
class Trial:
    """`params` holds only the searched coordinates, `recipe` everything; `metrics` is flat.

    A rate called `compliance` comes with `compliance/low`, `compliance/high` (95 % Wilson), `compliance/n`,
    `compliance/degenerate_share` and `compliance/cut_share`. `wall` is the seconds from the ask to the telling by one
    clock and `ledger` the parts they went to (dcr_ray.time_ledger); both are empty until the trial has ended.
    """

    name: str
    role: Literal["baseline", "search"]
    state: TrialState
    recipe: Recipe
    params: dict[str, float | int | str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    stages: tuple[StageView, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    feasible: bool | None = None
    reason: str | None = None
    number: int | None = None
    started: str | None = None
    ended: str | None = None
    ledger: dict[str, float] = field(default_factory=dict)
    wall: float | None = None

    @property
    def unaccounted(self) -> float | None:
        """Seconds of the wall clock that no part of the ledger names."""
        return None if self.wall is None else unaccounted(self.ledger, self.wall)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, for `--json` output and records."""
        plain = {key: value for key, value in vars(self).items() if key not in ("recipe", "stages")}
        plain["unaccounted"] = self.unaccounted
        return plain | {"recipe": self.recipe.model_dump(mode="json"), "stages": [vars(stage) for stage in self.stages]}
