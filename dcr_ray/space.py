"""The search space: which coordinates of a Recipe are searched, over which ranges, under which conditions.

It knows nothing of Optuna: `sample` only calls the three `suggest_*` methods of the trial that it is handed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcr_ray.errors import Problem, nearest_name
from dcr_ray.recipe import METHOD_SECTIONS, SECTION_OF_METHOD, LoraRecipe, Recipe, SftRecipe

Value = float | int | str | bool


class Dimension(BaseModel):
    """One searched coordinate: a range (`low`, `high`, optionally `log` or `step`) or a list of `choices`.

    With `when` it is only searched where other coordinates, all of them choices, have one of the named values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = Field(None, gt=0)
    choices: tuple[Value, ...] | None = Field(None, min_length=1)
    when: dict[str, tuple[Value, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _a_range_or_choices(self) -> Dimension:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("give either choices, or both low and high")
        if self.choices is None:
            if not self.low < self.high:
                raise ValueError(f"low {self.low} must be below high {self.high}")
            if self.log and self.low <= 0:
                raise ValueError(f"a log range needs low above 0, not {self.low}")
            if self.log and self.step is not None:
                raise ValueError("log and step exclude each other")
        elif self.low is not None or self.high is not None or self.log or self.step is not None:
            raise ValueError("choices exclude low, high, log and step")
        return self

    @property
    def whole(self) -> bool:
        """True for a range of integers."""
        return all(isinstance(bound, int) for bound in (self.low, self.high))

    def holds(self, value: Value) -> bool:
        """Whether a value is one of the choices, or lies in the range; on a step of it where there are steps."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, str | bool) or not self.low <= value <= self.high or (self.whole and value != int(value)):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-9

    def ends(self) -> tuple[Value, ...]:
        """The values to check against the recipe's own limits."""
        return self.choices if self.choices is not None else (self.low, self.high)


Space = dict[str, Dimension]


class Suggests(Protocol):
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...
    def suggest_categorical(self, name: str, choices: Any) -> Value: ...


def sample(space: Space, trial: Suggests) -> dict[str, Value]:
    """Values for every coordinate whose condition holds, in the order of the space."""
    params: dict[str, Value] = {}
    for path, dimension in space.items():
        if not all(params.get(other) in allowed for other, allowed in dimension.when.items()):
            continue
        if dimension.choices is not None:
            params[path] = trial.suggest_categorical(path, list(dimension.choices))
        elif dimension.whole:
            params[path] = trial.suggest_int(
                path, dimension.low, dimension.high, step=int(dimension.step or 1), log=dimension.log
            )
        else:
            params[path] = trial.suggest_float(
                path, dimension.low, dimension.high, step=dimension.step, log=dimension.log
            )
    return params


def grid_points(space: Space) -> dict[str, list[Value]]:
    """Every value of every coordinate: choices as they are, stepped ranges from low to high."""
    points = {}
    for path, dimension in space.items():
        if dimension.choices is not None:
            points[path] = list(dimension.choices)
        else:
            count = int(round((dimension.high - dimension.low) / dimension.step, 9))
            points[path] = [dimension.low + index * dimension.step for index in range(count + 1)]
    return points


def with_values(base: dict[str, Any], params: dict[str, Value]) -> dict[str, Any]:
    """A copy of the nested `base` with each dotted path of `params` set."""
    result = {key: with_values(value, {}) if isinstance(value, dict) else value for key, value in base.items()}
    for path, value in params.items():
        node = result
        *parents, last = path.split(".")
        for parent in parents:
            child = node.get(parent)
            node[parent] = child = child if isinstance(child, dict) else {}
            node = child
        node[last] = value
    return result


def recipe_paths() -> list[str]:
    """Every dotted path of a Recipe that may be searched."""

    def leaves(prefix: str, model: type[BaseModel]) -> Iterator[str]:
        yield from (prefix + name for name in model.model_fields)

    top = [name for name in Recipe.model_fields if name not in ("sft", "seed", *SECTION_OF_METHOD.values())]
    sft = [path for path in leaves("sft.", SftRecipe) if path != "sft.lora"]
    own = [path for section, model in METHOD_SECTIONS.items() for path in leaves(f"{section}.", model)]
    return [*own, *sft, *leaves("sft.lora.", LoraRecipe), *top]


def space_problems(space: Space, base: dict[str, Any]) -> list[Problem]:
    """Paths that no recipe has, ends that no recipe allows, and conditions that can never hold."""
    problems = []
    known = recipe_paths()
    seen: dict[str, Dimension] = {}
    for path, dimension in space.items():
        where = f"space.{path}"
        if path not in known:
            problems.append(Problem(where, f"'{path}'", "a field of the recipe", nearest_name(path, known)))
            continue
        for end in dimension.ends():
            problems += [
                Problem(where, f"{end!r}", message, "Narrow the range or the choices.")
                for message in _recipe_messages(with_values(base, {path: end}), path)
            ]
        for other, values in dimension.when.items():
            condition = f"{where}.when.{other}"
            if other not in seen or seen[other].choices is None:
                fix = "List the coordinate it depends on before it, as choices."
                problems.append(Problem(condition, f"'{other}'", "an earlier coordinate with choices", fix))
            elif strangers := [value for value in values if value not in seen[other].choices]:
                problems.append(Problem(condition, f"{strangers}", f"some of {list(seen[other].choices)}"))
        seen[path] = dimension
    return problems + _idle_coordinates(seen, base)


def _idle_coordinates(space: Space, base: dict[str, Any]) -> list[Problem]:
    """Coordinates of methods that no trial has."""
    methods = space["method"].choices if "method" in space else (base.get("method", "dcr"),)
    used = {SECTION_OF_METHOD.get(str(method)) for method in methods or ()}
    return [
        Problem(
            f"space.{path}",
            f"a coordinate of `{section}`, which no trial uses",
            f"coordinates of {', '.join(map(str, methods or ()))}",
            "Search `method` too, or leave the coordinate out.",
        )
        for path in space
        if (section := path.split(".")[0]) in METHOD_SECTIONS and section not in used
    ]


def _recipe_messages(values: dict[str, Any], path: str) -> list[str]:
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        # A problem elsewhere in the recipe is reported there, once, and not again for every range.
        ours = path.split(".")
        return [
            entry["msg"]
            for entry in error.errors()
            if list(map(str, entry["loc"])) == ours
            or (entry["type"] == "value_error" and str(entry["loc"][0]) == ours[0])
        ]
    return []
