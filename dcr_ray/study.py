"""A StudySpec: base model x data x search space x objectives x budget, as one YAML in search_spaces/ says it.

It checks everything that can be known from the text alone. Whether files, models, memory and a cluster are there is
known only to `preflight`.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dcr_ray.errors import InputError, Problem, nearest_name
from dcr_ray.fingerprint import digest
from dcr_ray.judge_spec import JudgeSpec, StringSpec, with_bare_names
from dcr_ray.recipe import MethodName, Recipe
from dcr_ray.shape import Shape
from dcr_ray.space import Dimension, Space, grid_points, recipe_paths, space_problems, with_values

Direction = Literal["maximize", "minimize"]

RATES = ("compliance", "defense")
PARTS = ("macro", "in_distribution", "out_of_distribution")
METRICS = (*RATES, "perplexity", *(f"{rate}.{part}" for rate in RATES for part in PARTS))
"""What the evaluation of a finished trial yields, and so what objectives and constraints may name. A rate alone is over
all prompts of its field; a rate of one set, such as `compliance.oktest`, may be named too."""

HALVING_METRICS = ("held_out_auroc", "held_out_margin", "held_out_within_cosine", "held_out_across_cosine")
"""What the DCR stage yields before SFT and generation are paid for."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def attack_name(attack: str) -> str:
    """What a wrapped set is called after its own name and a hyphen: the family's name, or that of its YAML file."""
    path = Path(attack)
    return path.stem if path.suffix in (".yaml", ".yml") else attack


class SetChoice(_Section):
    """A data set by name or path, or the part of it that is wanted; or one's own file, described here."""

    set: str
    file: str | None = Field(None, description="one's own file, which gets the name under `set`; a path, or below root")
    columns: dict[Literal["prompt", "response", "id", "kind", "group", "split"], str] = Field(
        default_factory=dict, description="the file's own names of columns"
    )
    only: dict[str, str] = Field(default_factory=dict, description="values by column; all other rows are left out")
    polarity: Literal["should_comply", "should_refuse"] | None = None
    limit: int | None = Field(None, ge=1, description="how many rows, the same ones every time; not of a test split")
    test_limit: int | None = Field(None, ge=1, description="how many rows of the test split; none takes all")
    attack: str | None = Field(
        None,
        min_length=1,
        description="evaluated prompts in templates that talk models round: a family's name, any, or a YAML file",
    )

    @model_validator(mode="after")
    def _described_with_its_file(self) -> SetChoice:
        if self.file is None and (self.columns or self.only or self.polarity):
            raise ValueError("columns, only and polarity describe one's own file; name it under file")
        return self


class _Sets(_Section):
    """Several sets a field; a bare name stands for the whole set."""

    @field_validator("*", mode="before")
    @classmethod
    def _bare_names(cls, value: Any) -> Any:
        entries = value if isinstance(value, list | tuple) else [value]
        return [{"set": entry} if isinstance(entry, str) else entry for entry in entries]


class TrainData(_Sets):
    seemingly_toxic: tuple[SetChoice, ...] = Field(description="harmless prompts that look harmful, for the DCR stage")
    toxic: tuple[SetChoice, ...] = Field(description="harmful prompts, for the DCR stage")
    general: tuple[SetChoice, ...] = Field(description="instructions with good answers, for SFT")
    safety: tuple[SetChoice, ...] = Field(description="harmful prompts with refusals, for SFT")
    augment: tuple[SetChoice, ...] = Field(
        (), description="seemingly toxic prompts with helpful answers, for the method stl-aug"
    )


class EvaluationData(_Sets):
    compliance: tuple[SetChoice, ...] = Field(description="prompts that should be answered")
    defense: tuple[SetChoice, ...] = Field(description="prompts that should be refused")
    capability: tuple[SetChoice, ...] = Field(description="instructions with answers, for perplexity")


class DataSpec(_Section):
    root: str | None = Field(None, description="folder with the original files of the sets; none asks the hub")
    fold: int = Field(0, ge=0, description="which grouped fold is the test split; the next one is the search split")
    folds: int = Field(5, ge=3, le=20)
    search_half: Literal["both", "first", "second"] = Field(
        "both",
        description="which half of the search split's prompts a model is scored on: what is chosen by one half can be "
        "measured on the other",
    )
    train: TrainData
    evaluate: EvaluationData


class Bound(_Section):
    """A limit on a metric, absolute or relative to the STL baseline's value."""

    at_least: float | None = None
    at_most: float | None = None
    at_least_baseline_plus: float | None = Field(None, description="a negative number allows a loss")
    at_most_baseline_times: float | None = Field(None, gt=0)

    @property
    def needs_baseline(self) -> bool:
        return self.at_least_baseline_plus is not None or self.at_most_baseline_times is not None

    def violation(self, value: float, baseline: float | None) -> float:
        """How far `value` is beyond the limit; 0 or less is feasible (Optuna's convention).

        Raises ValueError for a relative bound without a baseline.
        """
        if self.needs_baseline and baseline is None:
            raise ValueError("a bound relative to the baseline needs the baseline's value")
        excesses = []
        if self.at_least is not None:
            excesses.append(self.at_least - value)
        if self.at_most is not None:
            excesses.append(value - self.at_most)
        if self.at_least_baseline_plus is not None:
            excesses.append(baseline + self.at_least_baseline_plus - value)
        if self.at_most_baseline_times is not None:
            excesses.append(value - baseline * self.at_most_baseline_times)
        return max(excesses)


class SearchSpec(_Section):
    sampler: Literal["tpe", "gp", "nsga2", "random", "grid"] = "tpe"
    trials: int = Field(ge=1, le=1_000_000, description="searched trials; the STL baseline comes on top")
    startup_trials: int = Field(10, ge=1, description="random trials before the sampler learns")
    seed: int = Field(0, ge=0)
    concurrent: int = Field(2, ge=1, description="trials under way at the same time")
    first: tuple[dict[str, Any], ...] = Field(
        (), description="points of the space that are tried, in this order, before the sampler is asked"
    )
    storage: str | None = Field(
        None, description="an RDB URL for Optuna; none keeps a journal file in the study's folder"
    )
    max_failed_share: float = Field(0.5, gt=0, le=1, description="the study stops when more of its trials fail")


class HalvingSpec(_Section):
    """Asynchronous successive halving on a figure that is there after the DCR stage (Li et al., arXiv 1810.05934)."""

    metric: str = "held_out_auroc"
    direction: Direction = "maximize"
    reduction_factor: float = Field(2.0, gt=1, description="the best 1/reduction_factor of the trials so far go on")
    min_trials: int = Field(3, ge=1, description="figures needed before any trial is stopped")


class EvaluationSpec(_Section):
    engine: Literal["vllm", "transformers"] = "vllm"
    max_tokens: int = Field(32, ge=1, le=8192, description="token cap of an answer")
    max_model_tokens: int = Field(512, ge=64, description="longest prompt and answer together")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    refusal_probability: bool = Field(
        False,
        description="also the probability of usual refusals, by teacher forcing: about as long as 150 tokens a prompt",
    )
    batch_invariant: bool = Field(False, description="answers that do not depend on their batch: GPUs, and slower")
    stop_when_decided: bool = Field(
        False,
        description="answers end where the string judge has read enough, most of all at refusals: 0 of 1,997 verdicts "
        "changed, and of XSTest's tokens 11, 23 and 33 % were saved at caps of 32, 64 and 256; no other judge may read "
        "such answers",
    )


class Resources(_Section):
    """What Ray reserves. None is filled from the machine or cluster."""

    worker_groups: int | None = Field(
        None,
        ge=1,
        description="none: on a machine without GPUs as many as cores, memory and search.concurrent allow, else one",
    )
    engines: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1, description="GPUs of one node over which an engine divides a model")
    cpus_per_rank: float = Field(1, gt=0)
    gpus_per_rank: float | None = Field(None, ge=0)
    threads_per_rank: int | None = Field(None, ge=1)
    cpus_per_engine: float = Field(1, gt=0)
    gpus_per_engine: float | None = Field(None, ge=0)
    threads_per_engine: int | None = Field(None, ge=1)
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="variables of ranks and engines, such as NCCL's; the driver's own NCCL_, FI_, OFI_, EFA_, UCX_ and "
        "GLOO_ variables are passed on unasked",
    )
    kv_cache_mib: int = Field(256, ge=16, description="vLLM's cache of keys and values, on the CPU")


class DynamicsSpec(_Section):
    """Looks into training: refusals and kernels of held-out prompts at some steps of every DCR and SFT stage."""

    looks: int = Field(6, ge=1, le=200, description="a stage, besides the one before its first step")
    prompts: int = Field(24, ge=2, description="of each class, for the probability of refusal")
    kernel_prompts: int = Field(8, ge=0, description="of each class, for the kernel; 0 leaves it out")
    kernel_groups: int = Field(1, ge=1, description="of 4 probes each, the same ones at every look")
    scopes: tuple[str, ...] = Field(("all", "trunk", "last2+head"), min_length=1)
    layer_depth: float = Field(0.5, gt=0, le=1, description="l/L that parts trunk and tail")


class DiagnosisSpec(_Section):
    """Kernel and separability of every trial's finished model, as a stage of its own."""

    prompts: int = Field(12, ge=2, description="of each class, for the kernel")
    groups: int = Field(3, ge=2, description="of 4 probes each, the same ones for every trial")
    scopes: tuple[str, ...] = Field(("all", "trunk", "last2+head"), min_length=1)
    layer_depth: float = Field(0.5, gt=0, le=1, description="l/L that parts trunk and tail")
    probed: int = Field(100, ge=10, description="prompts of each class that separability is read from")


class ConfirmSpec(_Section):
    """What a confirmation claims, declared before its test split is opened."""

    margin: float = Field(0.02, gt=0, lt=1, description="loss of defense that still counts as the same safety")


class BudgetSpec(_Section):
    """Limits at the first of which the study ends; how many trials there are is `search.trials`."""

    hours: float | None = Field(None, gt=0, description="on the clock, over all runs of the study")
    gpu_hours: float | None = Field(None, gt=0, description="of the GPUs that groups and engines reserve")
    money: float | None = Field(None, gt=0, description="needs one of the two prices")
    price_per_gpu_hour: float | None = Field(None, gt=0, description="of a reserved GPU")
    price_per_hour: float | None = Field(None, gt=0, description="of the whole cluster or machine, busy or not")

    @model_validator(mode="after")
    def _one_price_for_money(self) -> BudgetSpec:
        prices = [name for name in ("price_per_gpu_hour", "price_per_hour") if getattr(self, name) is not None]
        if len(prices) > 1 or (self.money is not None and not prices):
            raise ValueError("money needs one price: price_per_gpu_hour, or price_per_hour for the whole cluster")
        return self


class TrackingSpec(_Section):
    uri: str | None = Field(None, description="MLflow tracking URI; none keeps an sqlite file in the study's folder")


class StudySpec(_Section):
    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name of the study and of its folder")
    model: str = Field("smollm2-135m-instruct", description="built-in name, hub id or local folder")
    data: DataSpec
    recipe: dict[str, Any] = Field(default_factory=dict, description="values of the recipe that are not searched")
    space: dict[str, Any] = Field(description="coordinates that are searched")
    objectives: dict[str, Direction] = Field(min_length=1)
    constraints: dict[str, Bound] = Field(default_factory=dict)
    search: SearchSpec
    halving: HalvingSpec | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    judges: tuple[JudgeSpec, ...] = Field(
        (StringSpec(),), min_length=1, description="the first one's verdicts steer the search; all are in the outcomes"
    )
    confirm: ConfirmSpec = ConfirmSpec()
    diagnosis: DiagnosisSpec | None = Field(None, description="kernel and separability of finished models")
    dynamics: DynamicsSpec | None = Field(None, description="looks into training; none is not to look")
    shape: Shape = Shape()
    resources: Resources = Resources()
    budget: BudgetSpec = BudgetSpec()
    tracking: TrackingSpec = TrackingSpec()
    storage: str | None = Field(None, description="folder of studies and caches; none means $DCR_RAY_STORAGE or ./runs")
    reports: str = Field("reports", description="folder that gets a folder with report and plots for the study")

    @field_validator("judges", mode="before")
    @classmethod
    def _bare_judges(cls, value: Any) -> Any:
        return with_bare_names(value)

    @property
    def dimensions(self) -> Space:
        return _parse_space(self.space)[0]

    def base_recipe(self) -> Recipe:
        """The recipe with none of its searched coordinates set."""
        return Recipe.model_validate(self.recipe)

    def searched_recipe(self, params: dict[str, Any]) -> Recipe:
        """The recipe at one point of the space. Raises pydantic.ValidationError for a point no recipe allows."""
        return Recipe.model_validate(with_values(self.recipe, params))

    def baseline_recipe(self) -> Recipe:
        """Safety SFT alone, with the SFT settings that are not searched."""
        return self.recipe_of("stl")

    def recipe_of(self, method: MethodName) -> Recipe:
        """The recipe of a method with none of its searched coordinates set."""
        return Recipe.model_validate(self.recipe | {"method": method})

    @property
    def methods(self) -> tuple[MethodName, ...]:
        """The methods that trials may have, besides the STL baseline."""
        searched = self.dimensions.get("method")
        return tuple(searched.choices) if searched else (self.base_recipe().method,)

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same study. Trial budget, hardware and folders may change between runs."""
        plain = self.model_dump(mode="json")
        kept = ("model", "recipe", "space", "objectives", "constraints", "halving", "evaluation")
        identity = {key: plain[key] for key in kept}
        data = {key: value for key, value in plain["data"].items() if key != "root"}
        for choices in (*data["train"].values(), *data["evaluate"].values()):
            for choice in choices:
                # A test split's size says nothing about the search; whoever opens it writes down what it holds.
                del choice["test_limit"]
                # Where one's own file lies says nothing either; how it is read does, where it is told.
                del choice["file"]
                choice["attack"] = choice["attack"] and attack_name(choice["attack"])
                for told in ("columns", "only", "polarity", "attack"):
                    if not choice[told]:
                        del choice[told]
        if not data["train"]["augment"]:
            del data["train"]["augment"]
        if data["search_half"] == "both":
            del data["search_half"]
        identity["data"] = data
        if self.judges[0] != StringSpec():
            identity["judge"] = plain["judges"][0]
        return identity

    def fingerprint(self) -> str:
        return digest(self.identity())

    def as_yaml(self) -> str:
        """The study in full, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_study(path: str | Path, overrides: list[str] | None = None) -> StudySpec:
    """Read a YAML file, apply `a.b=c` overrides, and check it. Raises InputError with every problem found."""
    path = Path(path)
    if not path.is_file():
        near = nearest_name(
            path.name, [entry.name for entry in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        )
        raise InputError([Problem("spec", f"no file {path}", "a YAML file", near)])
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(
            [Problem(str(path), f"text that is not YAML ({' '.join(str(error).split())})", "a YAML mapping")]
        ) from error
    if not isinstance(raw, dict):
        raise InputError([Problem(str(path), f"a {type(raw).__name__}", "a YAML mapping with the keys of a study")])
    return parse_study(apply_overrides(raw, overrides or []))


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`a.b=c` pairs onto nested mappings; the value is read as YAML. Raises InputError for a pair without `=`."""
    problems = [Problem("--set", repr(item), "a.b=value") for item in overrides if not re.match(r"^[\w.-]+=", item)]
    if problems:
        raise InputError(problems)
    for item in overrides:
        key, _, text = item.partition("=")
        # A search space's keys hold dots themselves: space.dcr.scale is the entry 'dcr.scale' of space.
        head, _, rest = key.partition(".")
        if head == "space" and rest:
            path = next(
                (p for p in sorted(recipe_paths(), key=len, reverse=True) if rest == p or rest.startswith(p + ".")),
                rest,
            )
            entry = raw.setdefault("space", {})
            tail = rest[len(path) + 1 :]
            entry[path] = (
                with_values(dict(entry.get(path) or {}), {tail: yaml.safe_load(text)}) if tail else yaml.safe_load(text)
            )
        else:
            raw = with_values(raw, {key: yaml.safe_load(text)})
    return raw


def parse_study(raw: dict[str, Any]) -> StudySpec:
    """Check a study's plain form. Raises InputError with every problem found in any section."""
    problems: list[Problem] = []
    spec: StudySpec | None = None
    try:
        spec = StudySpec.model_validate(raw)
    except ValidationError as error:
        problems += problems_of(error, StudySpec)
    recipe = raw.get("recipe") or {}
    if isinstance(recipe, dict):
        try:
            Recipe.model_validate(recipe)
        except ValidationError as error:
            problems += problems_of(error, Recipe, "recipe")
    if isinstance(raw.get("space"), dict):
        space, space_errors = _parse_space(raw["space"])
        problems += space_errors + space_problems(space, recipe if isinstance(recipe, dict) else {})
        problems += _sampler_problems(space, raw)
        problems += _first_problems(space, raw)
    problems += _metric_problems(raw)
    if spec is not None and not problems:
        problems += _method_problems(spec)
    if spec is not None and spec.evaluation.stop_when_decided:
        problems += [
            Problem(
                "evaluation.stop_when_decided",
                f"the judge '{judge.name}' of kind '{judge.kind}'",
                "string judges alone",
                "Any other judge needs the whole answer: leave the setting out.",
            )
            for judge in spec.judges
            if judge.kind != "string"
        ]
    if problems:
        raise InputError(problems)
    return spec


def _method_problems(spec: StudySpec) -> list[Problem]:
    """Methods that this study cannot run for want of data, or for how it is served."""
    problems = []
    if "stl-aug" in spec.methods and not spec.data.train.augment:
        fix = "Name a set of pairs there, such as answers of another model to the prompts of xstest-safe."
        problems.append(
            Problem("data.train.augment", "nothing, and the method stl-aug", "prompts with helpful answers", fix)
        )
    if "scans" in spec.methods and spec.resources.tensor_parallel > 1:
        found = f"{spec.resources.tensor_parallel}, and the method scans, which steers hidden states as it generates"
        fix = "Run scans in a study of its own on an engine of one GPU, with evaluation.engine: transformers."
        problems.append(Problem("resources.tensor_parallel", found, "1", fix))
    if "scans" in spec.methods and spec.evaluation.stop_when_decided:
        found = "true, and the method scans"
        problems.append(Problem("evaluation.stop_when_decided", found, "false", "All methods are to be judged alike."))
    return problems


def problems_of(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[Problem]:
    """Pydantic's errors as Problems, with the nearest known name for an unknown key."""
    problems = []
    for entry in error.errors():
        # Pydantic marks the tuple positions and union arms; the path in the YAML has only keys and list indices.
        path = ".".join(str(part) for part in (prefix, *entry["loc"]) if str(part))
        if entry["type"] == "extra_forbidden":
            known = list(_fields_at(model, entry["loc"][:-1]))
            name = str(entry["loc"][-1])
            problems.append(Problem(path, f"unknown key '{name}'", ", ".join(known), nearest_name(name, known)))
        elif entry["type"] == "missing":
            problems.append(Problem(path, "nothing", "a value (this key is required)"))
        else:
            problems.append(
                Problem(path or "spec", repr(entry["input"])[:80], entry["msg"].removeprefix("Value error, "))
            )
    return problems


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    node: Any = model
    names_are_free = False
    for part in path:
        if isinstance(part, int) or names_are_free:
            names_are_free = False
            continue
        field = getattr(node, "model_fields", {}).get(part)
        if field is None:
            return []
        candidates = [field.annotation, *get_args(field.annotation)]
        node = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        names_are_free = get_origin(field.annotation) is dict
    return list(getattr(node, "model_fields", {}))


def _parse_space(raw: dict[str, Any]) -> tuple[Space, list[Problem]]:
    space: Space = {}
    problems: list[Problem] = []
    for path, entry in raw.items():
        try:
            space[path] = Dimension.model_validate(entry)
        except ValidationError as error:
            problems += problems_of(error, Dimension, f"space.{path}")
    return space, problems


def _metric_problems(raw: dict[str, Any]) -> list[Problem]:
    problems = []
    metrics = METRICS + _set_metrics(raw)
    for section in ("objectives", "constraints"):
        for name in raw.get(section) if isinstance(raw.get(section), dict) else ():
            if name not in metrics:
                problems.append(
                    Problem(f"{section}.{name}", f"'{name}'", ", ".join(metrics), nearest_name(name, metrics))
                )
    for name, bound in (raw.get("constraints") or {}).items() if isinstance(raw.get("constraints"), dict) else ():
        if isinstance(bound, dict) and not any(value is not None for value in bound.values()):
            problems.append(Problem(f"constraints.{name}", "no limit", ", ".join(Bound.model_fields)))
    halving = raw.get("halving")
    if isinstance(halving, dict) and halving.get("metric", HALVING_METRICS[0]) not in HALVING_METRICS:
        found = str(halving["metric"])
        problems.append(
            Problem("halving.metric", f"'{found}'", ", ".join(HALVING_METRICS), nearest_name(found, HALVING_METRICS))
        )
    return problems


def _set_metrics(raw: dict[str, Any]) -> tuple[str, ...]:
    """The rates of single sets that a study's evaluation yields: `compliance.oktest`."""
    data = raw.get("data")
    evaluate = data.get("evaluate") if isinstance(data, dict) else None
    names = []
    for rate in RATES if isinstance(evaluate, dict) else ():
        entries = evaluate.get(rate)
        for entry in entries if isinstance(entries, list) else [entries]:
            name = entry.get("set") if isinstance(entry, dict) else entry
            if isinstance(entry, dict) and isinstance(entry.get("attack"), str):
                name = f"{name}-{attack_name(entry['attack'])}"
            names += [f"{rate}.{name}"] if isinstance(name, str) else []
    return tuple(names)


def _first_problems(space: Space, raw: dict[str, Any]) -> list[Problem]:
    """Points of search.first that name other coordinates than the space, or lie outside it."""
    search = raw.get("search")
    first = search.get("first") if isinstance(search, dict) else None
    if not isinstance(first, list | tuple):
        return []
    problems = []
    for number, point in enumerate(each for each in first if isinstance(each, dict)):
        where = f"search.first[{number}]"
        if set(point) - set(space):
            fix = "A coordinate that is not searched belongs into the recipe."
            problems.append(Problem(where, ", ".join(sorted(set(point) - set(space))), ", ".join(space), fix))
        for name, value in point.items():
            if name in space and not space[name].holds(value):
                problems.append(
                    Problem(f"{where}.{name}", repr(value), "a value of that coordinate's range or choices")
                )
    if isinstance(search.get("trials"), int) and len(first) > search["trials"]:
        problems.append(
            Problem("search.trials", f"{search['trials']}", f"{len(first)} or more, as many as search.first")
        )
    return problems


def _sampler_problems(space: Space, raw: dict[str, Any]) -> list[Problem]:
    sampler = (raw.get("search") or {}).get("sampler") if isinstance(raw.get("search"), dict) else None
    problems = []
    for path, dimension in space.items():
        if sampler in ("grid", "gp") and dimension.when:
            fix = "Drop the condition, or use the sampler tpe, nsga2 or random."
            problems.append(
                Problem(f"space.{path}.when", f"a condition under the sampler '{sampler}'", "no conditions", fix)
            )
        if sampler == "grid" and dimension.choices is None and dimension.step is None:
            problems.append(
                Problem(f"space.{path}", "a continuous range under the sampler 'grid'", "choices, or a step")
            )
    trials = raw["search"].get("trials") if sampler == "grid" and not problems else None
    points = prod(len(values) for values in grid_points(space).values()) if isinstance(trials, int) else 0
    if isinstance(trials, int) and trials > points:
        problems.append(Problem("search.trials", f"{trials}", f"at most {points}, the number of points of the grid"))
    return problems
