"""A ScalingSpec: a ladder of base models x data sizes x methods x seeds, as one YAML in search_spaces/ says it.

Every (model, seed) is an ordinary study with a grid of methods and data sizes, on the same data, cache and evaluation,
so that a ladder resumes, shares stages and is extended by a rung like any study. Where recipes are searched per size
there are two more kinds of study a rung: the search, and the recipes that it chose trained anew. It checks what can be
known from the text; what weakens a ladder is told by `checks.ladder_problems` before it is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.stats import qmc

from dcr_ray.errors import InputError, Problem
from dcr_ray.recipe import MethodName
from dcr_ray.space import Dimension, with_values
from dcr_ray.study import StudySpec, apply_overrides, parse_study, problems_of

DATA_AXES = ("sft.safety_pairs", "dcr.prompts_per_class")
"""Coordinates of a recipe by which training data are cut to nested subsets."""


SEARCHED = "searched"
"""The arm of recipes that were searched at their own size."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rung(_Section):
    """One base model of the ladder. Models that share an intercept are of one family."""

    model: str = Field(description="built-in name, hub id or local folder")
    family: str = Field(min_length=1)
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$", description="none: that of the model")
    search: Literal["full", "warm", "none"] = Field(
        "full",
        description="where recipes are searched: all trials, three to six that the smaller rungs propose, or none",
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="a.b: value pairs for this rung's studies: shape, resources, what hardware asks",
    )

    @property
    def label(self) -> str:
        return self.name or Path(self.model).name


class DataAxis(_Section):
    """Training data in nested subsets: a coordinate of the recipe, and its values from small to large."""

    coordinate: str = "sft.safety_pairs"
    sizes: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_and_rising(self) -> DataAxis:
        if self.coordinate not in DATA_AXES:
            raise ValueError(f"'{self.coordinate}' is none of {', '.join(DATA_AXES)}")
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"{list(self.sizes)} does not rise from one size to the next")
        return self


class RecipeSearch(_Section):
    """One method's recipe searched at every rung, with as many trials at each, in coordinates that carry over.

    The first `shared` trials are the same recipes at every rung (a scrambled Sobol sequence), so that sizes can be
    compared on them; the sampler has the others. The winner by the mean logit of the ladder's metrics is trained anew
    with the ladder's seeds at every data size and measured on prompts that the search never saw, as the arm `searched`.
    """

    method: MethodName = "dcr"
    space: dict[str, Dimension] = Field(min_length=1, description="ranges of the recipe's coordinates; no choices")
    trials: int = Field(ge=3, description="at every rung that is searched in full")
    shared: int | None = Field(None, ge=3, description="none: half of them, three at least")

    @model_validator(mode="after")
    def _ranges_that_carry_over(self) -> RecipeSearch:
        bad = [name for name, one in self.space.items() if one.choices is not None or one.when or one.step or one.whole]
        if bad:
            raise ValueError(
                f"{', '.join(bad)}: a continuous range without conditions, since an optimum is fitted along it"
            )
        if self.common > self.trials:
            raise ValueError(f"shared {self.common} is more than trials {self.trials}")
        return self

    @property
    def common(self) -> int:
        return self.shared or max(3, self.trials // 2)

    def coordinates(self, params: Mapping[str, Any]) -> dict[str, float]:
        """A point in the coordinates that optima are fitted in: logarithms to base 10 of logarithmic ranges."""
        return {name: log10(params[name]) if one.log else float(params[name]) for name, one in self.space.items()}

    def point(self, coordinates: Mapping[str, float]) -> dict[str, float]:
        """Back from `coordinates`, inside the ranges."""
        raw = {name: 10 ** coordinates[name] if one.log else coordinates[name] for name, one in self.space.items()}
        return {name: float(min(max(raw[name], one.low), one.high)) for name, one in self.space.items()}

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        low = self.coordinates({name: one.low for name, one in self.space.items()})
        high = self.coordinates({name: one.high for name, one in self.space.items()})
        return {name: (low[name], high[name]) for name in self.space}

    def shared_points(self) -> list[dict[str, float]]:
        """The recipes that are tried at every rung."""
        rows = qmc.Sobol(len(self.space), seed=0).random_base2(max(1, (self.common - 1).bit_length()))[: self.common]
        limits = list(self.limits.items())
        return [
            self.point({name: low + u * (high - low) for u, (name, (low, high)) in zip(row, limits, strict=True)})
            for row in rows.tolist()
        ]


class Target(_Section):
    """What is to be foretold: a model that need not be there, by its family and number of parameters."""

    model: str
    family: str
    parameters: float | None = Field(None, gt=0, description="none: those of a model that is known by name")
    data_size: int | None = Field(None, ge=1, description="none: the largest of the ladder")


class ScalingSpec(_Section):
    scaling: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$", description="name of the scaling study")
    ladder: tuple[Rung, ...] = Field(min_length=1)
    data_axis: DataAxis
    arms: tuple[MethodName, ...] = Field(("stl", "dcr"), min_length=1, description="methods, each at every cell")
    search: RecipeSearch | None = Field(None, description="recipes searched per size, beside the fixed arms")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    metrics: tuple[str, ...] = Field(("compliance", "defense"), min_length=1)
    judge: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="sensitivity and specificity of the judge, by metric: what floor and ceiling it can show",
    )
    targets: tuple[Target, ...] = ()
    candidates: tuple[Rung, ...] = Field((), description="models that might be run next; `scale next` ranks them")
    thresholds: dict[str, float] = Field(
        default_factory=dict, description="metric: rate that a target is asked to reach, all of them at once"
    )
    study: dict[str, Any] = Field(description="what every cell's study has in common: data, recipe, evaluation, ...")
    forecasts: str = Field("reports/forecasts", description="folder of forecasts; they are never overwritten")
    reports: str = Field("reports", description="folder that gets a folder with the report")

    @property
    def all_arms(self) -> tuple[str, ...]:
        """The fixed methods, and `searched` where recipes are searched."""
        return (*self.arms, SEARCHED) if self.search is not None else self.arms

    def search_study(self, rung: Rung, warm: Sequence[Mapping[str, float]] = ()) -> StudySpec:
        """The study that searches a recipe at one rung: shared points and then the sampler's, or `warm` points alone.

        It has the largest data size, a seed of its own and one half of the search split's prompts.
        """
        search = self.search
        seed = max(self.seeds) + 1
        first = [dict(point) for point in warm] if rung.search == "warm" else search.shared_points()
        recipe = {"method": search.method, "seed": seed, self.data_axis.coordinate: self.data_axis.sizes[-1]}
        plain = self._plain(rung, f"{self.scaling}-{rung.label}-search", recipe, "first")
        plain["space"] = {
            name: one.model_dump(mode="json", exclude_defaults=True) for name, one in search.space.items()
        }
        plain["search"] = {"concurrent": 2} | dict(plain.get("search") or {}) | {
            "sampler": "tpe", "trials": max(1, len(first)) if rung.search == "warm" else search.trials,
            "startup_trials": search.common, "seed": seed, "first": first,
        }  # fmt: skip
        return parse_study(plain)

    def again_studies(self, rung: Rung, points: Sequence[Mapping[str, Any]]) -> list[StudySpec]:
        """The studies that train given recipes anew, one for each seed of the ladder, on the prompts that cells have.

        A point holds the coordinates of the search and the data size.
        """
        found = []
        sizes = list(self.data_axis.sizes)
        for seed in self.seeds:
            recipe = {"method": self.search.method, "seed": seed, self.data_axis.coordinate: sizes[-1]}
            plain = self._plain(rung, f"{self.scaling}-{rung.label}-again-seed{seed}", recipe, "second")
            plain["space"] = {
                name: one.model_dump(mode="json", exclude_defaults=True) for name, one in self.search.space.items()
            } | {self.data_axis.coordinate: {"choices": sizes}}
            plain["search"] = {"concurrent": 2} | dict(plain.get("search") or {}) | {
                "sampler": "random", "trials": len(points), "seed": seed, "first": [dict(point) for point in points],
            }  # fmt: skip
            found.append(parse_study(plain))
        return found

    def _plain(self, rung: Rung, name: str, recipe: dict[str, Any], half: str) -> dict[str, Any]:
        plain = with_values(self.study, rung.set)
        data = dict(plain.get("data") or {}) | ({"search_half": half} if self.search is not None else {})
        return plain | {
            "study": name,
            "model": rung.model,
            "data": data,
            "recipe": with_values(plain.get("recipe") or {}, recipe),
            "objectives": {metric: "maximize" for metric in self.metrics if metric in ("compliance", "defense")}
            or {"compliance": "maximize"},
        }

    def studies(self, rung: Rung) -> list[StudySpec]:
        """The studies of one rung's fixed arms, one for each seed. Raises InputError with every problem of one."""
        sizes = list(self.data_axis.sizes)
        space: dict[str, Any] = {self.data_axis.coordinate: {"choices": sizes}}
        searched = [arm for arm in self.arms if arm != "stl"]
        if self.arms != ("stl",):
            space = {"method": {"choices": list(self.arms)}} | space
        found = []
        for seed in self.seeds:
            # The study's own baseline is then the STL cell at the largest size, and costs nothing.
            recipe = {"seed": seed, self.data_axis.coordinate: sizes[-1]} | ({} if searched else {"method": "stl"})
            plain = self._plain(rung, f"{self.scaling}-{rung.label}-seed{seed}", recipe, "second")
            plain["space"] = space
            plain["search"] = {"concurrent": 2} | dict(plain.get("search") or {}) | {
                "sampler": "grid", "trials": len(sizes) * len(self.arms), "seed": seed,
            }  # fmt: skip
            found.append(parse_study(plain))
        return found


def load_scaling(path: str | Path, overrides: list[str] | None = None) -> ScalingSpec:
    """Read a YAML file and check it, the studies of its rungs too. Raises InputError with every problem found."""
    path = Path(path)
    if not path.is_file():
        raise InputError([Problem("spec", f"no file {path}", "a YAML file")])
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise InputError([Problem(str(path), f"text that is not YAML ({said})", "a YAML mapping")]) from error
    if not isinstance(raw, dict):
        raise InputError([Problem(str(path), f"a {type(raw).__name__}", "a YAML mapping with the keys of a ladder")])
    return parse_scaling(apply_overrides(raw, overrides or []))


def parse_scaling(raw: dict[str, Any]) -> ScalingSpec:
    """Check a ladder's plain form. Raises InputError with every problem."""
    try:
        spec = ScalingSpec.model_validate(raw)
    except ValidationError as error:
        raise InputError(problems_of(error, ScalingSpec)) from error
    problems = []
    labels = [rung.label for rung in spec.ladder]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        problems.append(Problem("ladder", f"'{label}' twice", "rungs of different names", "Give one a `name`."))
    if spec.data_axis.coordinate.startswith("dcr.") and set(spec.arms) != {"dcr"}:
        found = f"{spec.data_axis.coordinate} with the arms {', '.join(spec.arms)}"
        problems.append(Problem("data_axis.coordinate", found, "arms: [dcr], the only one that reads it"))
    unknown = sorted(set(spec.thresholds) - set(spec.metrics))
    if unknown:
        problems.append(Problem("thresholds", ", ".join(unknown), f"some of {', '.join(spec.metrics)}"))
    if spec.search is not None and spec.search.method == "stl":
        problems.append(Problem("search.method", "stl", "a method with a recipe of its own", "Search dcr, for one."))
    for rung in spec.ladder:
        try:
            spec.studies(rung)
            if spec.search is not None and rung.search == "full":
                spec.search_study(rung)
        except InputError as error:
            # What all rungs have in common is said once.
            problems += [each for each in error.problems if each not in problems]
    if problems:
        raise InputError(problems)
    return spec
