"""What a study will run, share and need, said before anything is started.

For this machine seconds come from the records of earlier stages of the same model where there are some; without any,
they are not guessed. For a cluster that is described in a file they are reckoned (`planning.cost`), and nothing is
fetched.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path
from statistics import median
from typing import Any

from dcr_ray.cache import StageCache
from dcr_ray.data.of_study import EVALUATED, TRAINED, load_study_data
from dcr_ray.errors import InputError, Problem, nearest_name
from dcr_ray.models import ModelCard
from dcr_ray.planning.calibration import calibrated
from dcr_ray.planning.cards import known_card, known_models
from dcr_ray.planning.cluster import Cluster
from dcr_ray.planning.cost import ClusterPlan, plan_on_cluster
from dcr_ray.planning.machine import this_machine
from dcr_ray.planning.memory import GIB
from dcr_ray.planning.needs import disk_bytes, memory_needs
from dcr_ray.planning.work import DataFacts
from dcr_ray.recipe import EDIT_METHODS, Recipe
from dcr_ray.space import Space, grid_points, sample
from dcr_ray.study import StudySpec

STAGES = ("dcr", "sft", "edit", "generate", "judge", "diagnose")


@dataclass(frozen=True)
class StudyPlan:
    """Counts of stages, bytes and seconds. `seconds` is None where no earlier record tells."""

    study: str
    trials: int
    stages: dict[str, int]
    shared: dict[str, int]
    seconds_per_stage: dict[str, float | None]
    seconds: float | None
    memory_bytes: dict[str, int]
    disk_bytes: int
    model: dict[str, Any]
    data: dict[str, int]
    problems: tuple[Problem, ...]

    def as_dict(self) -> dict[str, Any]:
        plain = dict(vars(self))
        return plain | {"problems": [vars(problem) for problem in self.problems]}


def plan_study(spec: StudySpec) -> StudyPlan:
    """Plan a study. What is wrong with it is in `problems`; nothing is raised for it."""
    from dcr_ray.preflight import preflight, storage_root

    machine = this_machine()
    problems: tuple[Problem, ...] = ()
    ready = None
    try:
        ready = preflight(spec, machine=machine)
    except InputError as error:
        problems = error.problems
    stages, shared = stage_counts(spec)
    memory, disk, model, data = {}, 0, {}, {}
    if ready is not None:
        card = ready.inputs.card
        for need in memory_needs(ready.spec, card, on_gpu=machine.gpus > 0):
            memory[need.what] = memory.get(need.what, 0) + max(need.rank_bytes, need.host_bytes)
        disk = disk_bytes(ready.spec, card)
        model = {
            "name": spec.model,
            "layers": card.layers,
            "parameters": card.parameters,
            "folder": ready.inputs.model_dir,
        }
        data = {field: len(getattr(ready.inputs.data, field)) for field in (*TRAINED, *EVALUATED)}
    measured = _measured_seconds(StageCache(storage_root(spec) / "cache"), ready.inputs.model_identity if ready else "")
    asked = [name for name in stages if stages[name]]
    known = all(measured[name] is not None for name in asked)
    total = sum(stages[name] * measured[name] for name in asked) if known else None
    return StudyPlan(
        spec.study, spec.search.trials + 1, stages, shared, measured, total, memory, disk, model, data, problems
    )


def drawn_recipes(spec: StudySpec) -> list[Recipe]:
    """The STL baseline's recipe and one for each trial up to 2,000: a grid's own points, else random ones."""
    count = min(spec.search.trials, 2000)
    if spec.search.sampler == "grid":
        points = grid_points(spec.dimensions)
        drawn = (dict(zip(points, values, strict=True)) for values in product(*points.values()))
    else:
        draws = random.Random(spec.search.seed)
        first = [dict(point) for point in spec.search.first]
        drawn = chain(first, (_draw(spec.dimensions, draws) for _ in range(count - len(first))))
    return [spec.baseline_recipe(), *(spec.searched_recipe(params) for params in islice(drawn, count))]


def stage_counts(spec: StudySpec) -> tuple[dict[str, int], dict[str, int]]:
    """Stages to run, and how many trials find theirs already run, for as many random points as there are trials."""
    recipes = drawn_recipes(spec)
    after_sft = {"method", *EDIT_METHODS}
    keys = {
        "dcr": [recipe.dcr.model_dump_json() for recipe in recipes if recipe.dcr],
        # What a method does after SFT leaves the SFT the same.
        "sft": [recipe.model_dump_json(exclude=after_sft) for recipe in recipes],
        "edit": [recipe.model_dump_json() for recipe in recipes if recipe.edit],
        "generate": [recipe.model_dump_json(exclude={"method"}) for recipe in recipes],
    }
    keys["judge"] = keys["generate"]
    keys["diagnose"] = [
        recipe.model_dump_json(exclude={"method", "scans"}) for recipe in recipes if spec.diagnosis is not None
    ]
    counts = {name: len(set(keys[name])) for name in STAGES}
    return counts, {name: len(keys[name]) - counts[name] for name in STAGES}


def plan_for_cluster(spec: StudySpec, cluster: Cluster, facts: DataFacts | None = None) -> ClusterPlan:
    """Plan a study on a cluster that need not be there. Its model's files are not looked at: a card that is known by
    name will do, or the config.json of a folder or of the cache. `facts` are those of its data where they are known.

    Raises InputError where the study's data or model cannot be known here.
    """
    problems: list[Problem] = []
    card = None
    try:
        facts = facts or data_facts(spec)
    except InputError as error:
        problems += error.problems
    try:
        card = planned_card(spec.model)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    gpu = next((node.gpu for node in cluster.gpu_nodes), None)
    from dcr_ray.preflight import storage_root

    calibration = calibrated(StageCache(storage_root(spec) / "cache").records(), card.parameters, gpu)
    return plan_on_cluster(spec, card, facts, cluster, drawn_recipes(spec), stage_counts(spec), calibration)


def data_facts(spec: StudySpec) -> DataFacts:
    """What planning needs of a study's data. Raises InputError as loading them does."""
    return DataFacts.of(load_study_data(spec.data), (*TRAINED, *EVALUATED))


def planned_card(model: str) -> ModelCard:
    """The card of a model by name or folder, without fetching anything. Raises InputError where it cannot be known."""
    from dcr_ray.weights.resolve import default_cache_dir, resolve

    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return ModelCard.from_folder(folder, model)
    card = known_card(model)
    if card is not None:
        return card
    try:
        return ModelCard.from_folder(resolve(model, cache_dir=default_cache_dir(), offline=True), model)
    except InputError as error:
        fix = f"{nearest_name(model, known_models())} Or fetch it first, or name a folder with its config.json.".strip()
        found = f"'{model}', whose sizes are not known here ({error.problems[0].found})"
        raise InputError([Problem("model", found, "a known model, a folder, or a model in the cache", fix)]) from error


class _Draws:
    """Uniform draws in the place of an Optuna trial."""

    def __init__(self, draws: random.Random):
        self._draws = draws

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        return (
            self._draws.uniform(low, high)
            if step is None
            else low + step * self._draws.randint(0, int((high - low) / step))
        )

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        return self._draws.randrange(low, high + 1, step)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._draws.choice(choices)


def _draw(space: Space, draws: random.Random) -> dict[str, Any]:
    return sample(space, _Draws(draws))


def _measured_seconds(cache: StageCache, model_identity: str) -> dict[str, float | None]:
    of_model: dict[str, list[float]] = {name: [] for name in STAGES}
    trained = set()
    for record in cache.records():
        if record.identity.get("model") == model_identity:
            trained.add(record.key)
            of_model[record.stage].append(record.seconds)
    generated = {r.key: r for r in cache.records() if r.stage == "generate" and r.identity.get("parent") in trained}
    of_model["generate"] = [record.seconds for record in generated.values()]
    of_model["judge"] = [
        r.seconds for r in cache.records() if r.stage == "judge" and r.identity.get("parent") in generated
    ]
    return {name: median(values) if values else None for name, values in of_model.items()}


def plan_tables(plan: StudyPlan) -> list[tuple[str, tuple[str, ...], list[dict[str, Any]]]]:
    """(title, columns, rows) of the tables that say it."""
    from dcr_ray.report.wording import duration

    tables: list[tuple[str, tuple[str, ...], list[dict[str, Any]]]] = []
    if plan.problems:
        columns = ("where", "found", "allowed", "fix")
        tables.append(("What keeps the study from running", columns, [vars(problem) for problem in plan.problems]))
    rows = [
        {
            "stage": name,
            "to_run": plan.stages[name],
            "shared": plan.shared[name],
            "seconds_each": plan.seconds_per_stage[name],
        }
        for name in STAGES
    ]
    tables.append(
        (
            f"{plan.study}: {plan.trials} trials, the STL baseline among them",
            ("stage", "to_run", "shared", "seconds_each"),
            rows,
        )
    )
    needs = [{"what": what, "GiB": round(size / GIB, 2)} for what, size in plan.memory_bytes.items()]
    if plan.memory_bytes:
        needs.append({"what": "disk for checkpoints", "GiB": round(plan.disk_bytes / GIB, 2)})
        tables.append(("Memory and disk", ("what", "GiB"), needs))
        tables.append(("Data", ("set", "rows"), [{"set": name, "rows": rows} for name, rows in plan.data.items()]))
    time = (
        "not known: no finished stage of this model tells"
        if plan.seconds is None
        else f"{duration(plan.seconds)} of stage time, one after another"
    )
    tables.append(("Time", ("estimate",), [{"estimate": time}]))
    return tables
