"""A ScalingSpec: a ladder of base models x data sizes x methods x seeds, as one YAML in search_spaces/ says it.

Every (model, seed) is an ordinary study with a grid of methods and data sizes, on the same data, cache and evaluation,
so that a ladder resumes, shares stages and is extended by a rung like any study. It checks what can be known from the
text; what weakens a ladder is told by `checks.ladder_problems` before it is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcr_ray.errors import InputError, Problem
from dcr_ray.recipe import MethodName
from dcr_ray.space import with_values
from dcr_ray.study import StudySpec, apply_overrides, parse_study, problems_of

DATA_AXES = ("sft.safety_pairs", "dcr.prompts_per_class")
"""Coordinates of a recipe by which training data are cut to nested subsets."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rung(_Section):
    """One base model of the ladder. Models that share an intercept are of one family."""

    model: str = Field(description="built-in name, hub id or local folder")
    family: str = Field(min_length=1)
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$", description="none: that of the model")
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
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    metrics: tuple[str, ...] = Field(("compliance", "defense"), min_length=1)
    judge: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="sensitivity and specificity of the judge, by metric: what floor and ceiling it can show",
    )
    targets: tuple[Target, ...] = ()
    study: dict[str, Any] = Field(description="what every cell's study has in common: data, recipe, evaluation, ...")
    forecasts: str = Field("reports/forecasts", description="folder of forecasts; they are never overwritten")
    reports: str = Field("reports", description="folder that gets a folder with the report")

    def studies(self, rung: Rung) -> list[StudySpec]:
        """The studies of one rung, one for each seed. Raises InputError with every problem of one."""
        sizes = list(self.data_axis.sizes)
        space: dict[str, Any] = {self.data_axis.coordinate: {"choices": sizes}}
        searched = [arm for arm in self.arms if arm != "stl"]
        if self.arms != ("stl",):
            space = {"method": {"choices": list(self.arms)}} | space
        found = []
        for seed in self.seeds:
            plain = with_values(self.study, rung.set)
            # The study's own baseline is then the STL cell at the largest size, and costs nothing.
            recipe = with_values(plain.get("recipe") or {}, {"seed": seed, self.data_axis.coordinate: sizes[-1]})
            if not searched:
                recipe["method"] = "stl"
            plain |= {
                "study": f"{self.scaling}-{rung.label}-seed{seed}",
                "model": rung.model,
                "recipe": recipe,
                "space": space,
                "objectives": {name: "maximize" for name in self.metrics if name in ("compliance", "defense")}
                or {"compliance": "maximize"},
                "search": {"concurrent": 2} | dict(plain.get("search") or {})
                | {"sampler": "grid", "trials": len(sizes) * len(self.arms), "seed": seed},
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
    for rung in spec.ladder:
        try:
            spec.studies(rung)
        except InputError as error:
            # What all rungs have in common is said once.
            problems += [each for each in error.problems if each not in problems]
    if problems:
        raise InputError(problems)
    return spec
