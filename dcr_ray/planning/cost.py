"""What a study takes on a cluster: shape, groups and engines, seconds, GPU-hours and money by stage, trial and study.

Stages that trials share count once. Money is that of the whole cluster for as long as the study runs, since nodes are
paid for whether they work or not; what the stages themselves take is told beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dcr_ray.errors import Problem
from dcr_ray.models import ModelCard
from dcr_ray.planning.calibration import Calibration
from dcr_ray.planning.cluster import Cluster
from dcr_ray.planning.memory import shortfalls
from dcr_ray.planning.needs import deepest_depth, disk_bytes, fullest_recipe
from dcr_ray.planning.seconds import (
    Rates,
    Where,
    dcr_seconds,
    diagnose_seconds,
    edit_seconds,
    generation_seconds,
    sft_seconds,
)
from dcr_ray.planning.shapes import (
    HOST_SHARE,
    EngineFit,
    Training,
    engines,
    gib,
    nothing_fits,
    planned,
    said,
    trainings,
)
from dcr_ray.planning.work import DataFacts, dcr_work, edit_tokens, generation_work, sft_work
from dcr_ray.recipe import Recipe
from dcr_ray.shape import Shape
from dcr_ray.study import StudySpec

DRAWN = 64
"""Recipes over which a stage's seconds are averaged."""


@dataclass(frozen=True)
class StageCost:
    """`each` is seconds on average, `reserved` GPU-hours of all of them (node-hours on CPUs)."""

    to_run: int
    shared: int
    each: float
    reserved: float
    price: float


@dataclass(frozen=True)
class ClusterPlan:
    """`training` and `engine` are None where nothing fits; `problems` then says by how much."""

    cluster: Cluster
    card: ModelCard
    training: Training | None
    cheapest: Training | None
    engine: EngineFit | None
    groups: int
    engines: int
    stages: dict[str, StageCost]
    hours: float
    reserved_hours: float
    price: float
    repeated_share: float
    storage_bytes: int
    calibration: Calibration
    problems: tuple[Problem, ...]

    @property
    def unit(self) -> str:
        return "GPU" if self.cluster.gpus else "node"

    def settings(self) -> dict[str, Any] | None:
        """`shape` and `resources` to put into the study, as its YAML would have them."""
        if self.training is None or self.engine is None:
            return None
        shape = {
            name: value
            for name, value in self.training.shape.model_dump(mode="json").items()
            if value != Shape.model_fields[name].default
        }
        resources = {"worker_groups": self.groups, "engines": self.engines}
        if self.engine.where.ranks > 1:
            resources["tensor_parallel"] = self.engine.where.ranks
        return {"shape": shape, "resources": resources}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        training, engine = self.training, self.engine
        needs = [*(training.needs if training else ()), *((engine.need,) if engine else ())]
        return {
            "cluster": {
                "name": self.cluster.name,
                "nodes": {node.name: node.count for node in self.cluster.nodes},
                "gpus": self.cluster.gpus,
                "price_per_hour": self.cluster.price_per_hour,
                "currency": self.cluster.currency,
                "prices_as_of": self.cluster.prices_as_of,
            },
            "model": {"name": self.card.name, "parameters": self.card.parameters, "layers": self.card.layers},
            "training": said(training) if training else None,
            "cheapest": said(self.cheapest) if self.cheapest else None,
            "engine": None if engine is None else f"tensor parallel {engine.where.ranks} on {engine.where.node.name}",
            "settings": self.settings(),
            "memory": [
                {"what": need.what, "rank_bytes": need.rank_bytes, "host_bytes": need.host_bytes, "parts": need.parts}
                for need in needs
            ],
            "groups": self.groups,
            "engines": self.engines,
            "stages": {name: vars(cost) for name, cost in self.stages.items()},
            "hours": self.hours,
            f"{self.unit.lower()}_hours": self.reserved_hours,
            "price": self.price,
            "repeated_share": self.repeated_share,
            "storage_bytes": self.storage_bytes,
            "calibration": self.calibration.said,
            "problems": [vars(problem) for problem in self.problems],
        }


def plan_on_cluster(
    spec: StudySpec,
    card: ModelCard,
    facts: DataFacts,
    cluster: Cluster,
    recipes: list[Recipe],
    counts: tuple[dict[str, int], dict[str, int]],
    calibration: Calibration,
) -> ClusterPlan:
    """Plan a study whose stages are counted in `counts` (to run, shared) and whose recipes are drawn in `recipes`.

    The study's own `shape` is planned where it says anything, else the cheapest. Takes nothing and raises nothing: what
    does not fit is in `problems`.
    """
    rates = calibration.rates
    base, deepest = fullest_recipe(spec), deepest_depth(spec)
    fitting = engines(card, cluster, spec.evaluation.max_model_tokens)
    wanted = spec.resources.tensor_parallel
    engine = next((fit for fit in fitting if fit.where.ranks == wanted or wanted == 1), None)
    count = spec.resources.engines
    reserved = count * engine.where.ranks if engine and engine.where.on_gpu else 0
    options = {"deepest": deepest, "rates": rates}
    found = trainings(card, base, facts, cluster, precision=spec.shape.precision, engine_gpus=reserved, **options)
    cheapest = found[0] if found else None
    problems: list[Problem] = []
    if engine is None:
        memory = max((node.gpu.memory_bytes for node in cluster.gpu_nodes if node.gpu), default=0)
        problems.append(
            Problem(
                f"engine of {card.name}",
                f"{gib(2 * card.parameters)} GiB of weights in bf16",
                f"8 GPUs of one node with {gib(memory)} GiB each",
                "GPUs with more memory.",
            )
        )
    training = cheapest
    if spec.shape != Shape(precision=spec.shape.precision, checkpoint_seconds=spec.shape.checkpoint_seconds):
        own = _own(spec, card, base, facts, cluster, deepest, calibration)
        training = next((fit for fit in found if fit.shape == own.shape), None)
        if training is None:
            problems += _own_problems(own, reserved, cluster)
            training = own if not problems else None
    elif cheapest is None:
        problems += nothing_fits(
            card, base, facts, cluster, precision=spec.shape.precision, engine_gpus=reserved, deepest=deepest
        )
    if training is None or engine is None:
        return ClusterPlan(
            cluster, card, training, cheapest, engine, 0, count, {}, 0.0, 0.0, 0.0, 0.0,
            disk_bytes(spec, card), calibration, tuple(problems),
        )  # fmt: skip
    groups = spec.resources.worker_groups or _groups(spec, training, reserved, cluster)
    stages = _stages(spec, card, facts, cluster, training, engine, recipes[:DRAWN], counts, rates)
    repeated = _repeated_share(training, spec.shape.checkpoint_seconds, rates.group_start_seconds[1])
    busy = (
        sum(stages[name].to_run * stages[name].each for name in ("dcr", "sft", "edit", "diagnose"))
        * (1 + repeated)
        / groups
    )
    generating = stages["generate"].to_run * stages["generate"].each / count
    on_gpu = training.where.on_gpu
    start = max(rates.group_start_seconds[on_gpu], rates.engine_start_seconds[on_gpu])
    # The first trial's training and the last one's answers have nothing beside them.
    longer = max(busy + stages["generate"].each, generating + stages["sft"].each) + stages["judge"].each
    hours = (start + longer) / 3600
    return ClusterPlan(
        cluster,
        card,
        training,
        cheapest,
        engine,
        groups,
        count,
        stages,
        hours,
        hours * (cluster.gpus or sum(node.count for node in cluster.nodes)),
        hours * cluster.price_per_hour,
        repeated,
        disk_bytes(spec, card),
        calibration,
        tuple(problems),
    )


def _own(
    spec: StudySpec,
    card: ModelCard,
    base: Recipe,
    facts: DataFacts,
    cluster: Cluster,
    deepest: float | None,
    calibration: Calibration,
) -> Training:
    """The study's own shape, packed on as few nodes as hold its ranks."""
    node = max(cluster.working_nodes, key=lambda node: node.facts.gpus or node.facts.cpus)
    over = -(-spec.shape.ranks // (node.facts.gpus or node.facts.cpus))
    shape = spec.shape.model_copy(update={"checkpoint_seconds": Shape().checkpoint_seconds})
    where = Where(node, over, spec.shape.ranks)
    return planned(card, base, facts, cluster, shape, where, deepest=deepest, rates=calibration.rates)


def _own_problems(own: Training, engine_gpus: int, cluster: Cluster) -> list[Problem]:
    node = own.where.node
    problems = []
    if own.where.on_gpu and own.where.ranks + engine_gpus > cluster.gpus:
        found = f"{own.where.ranks} ranks and {engine_gpus} GPUs of engines"
        problems.append(
            Problem("shape.ranks", found, f"{cluster.gpus} GPUs, the cluster's", "Fewer ranks, or more nodes.")
        )
    memory = node.gpu.memory_bytes if node.gpu else None
    host = int(HOST_SHARE * node.host_memory_bytes)
    return problems + shortfalls(own.needs, host_bytes=host, device_bytes=memory)


def _groups(spec: StudySpec, training: Training, engine_gpus: int, cluster: Cluster) -> int:
    """As many groups as there is room for, at most one for each trial under way."""
    if not training.where.on_gpu:
        return 1
    return max(1, min((cluster.gpus - engine_gpus) // training.where.ranks, spec.search.concurrent))


def _stages(
    spec: StudySpec,
    card: ModelCard,
    facts: DataFacts,
    cluster: Cluster,
    training: Training,
    engine: EngineFit,
    recipes: list[Recipe],
    counts: tuple[dict[str, int], dict[str, int]],
    rates: Rates,
) -> dict[str, StageCost]:
    shape, where, storage = training.shape, training.where, cluster.storage
    seconds: dict[str, list[float]] = {
        "dcr": [], "sft": [], "edit": [], "generate": [], "judge": [rates.judge_seconds], "diagnose": []
    }  # fmt: skip
    for recipe in recipes:
        if recipe.dcr is not None:
            work = dcr_work(recipe, facts)
            seconds["dcr"].append(dcr_seconds(card, recipe.dcr, work, shape, where, storage, rates).total)
        work = sft_work(recipe, facts)
        seconds["sft"].append(sft_seconds(card, recipe.sft, work, shape, where, storage, rates).total)
        if recipe.edit is not None:
            tokens = edit_tokens(recipe, facts, card.layers)
            seconds["edit"].append(edit_seconds(card, tokens, where, storage, rates).total)
        answers = generation_work(recipe, facts, spec.evaluation.max_tokens)
        seconds["generate"].append(generation_seconds(card, answers, engine.where, storage, rates).total)
    if spec.diagnosis is not None:
        asked, length = spec.diagnosis, facts.prompt_tokens("compliance", spec.base_recipe().system_prompt)
        seconds["diagnose"].append(
            diagnose_seconds(
                card, 3 * asked.prompts, asked.groups, 2 * asked.probed, length, where, storage, rates
            ).total
        )
    to_run, shared = counts
    stages = {}
    for name, each in seconds.items():
        mean = sum(each) / max(1, len(each))
        place = {"generate": engine.where, "judge": None}.get(name, where)
        units = 0 if place is None else place.ranks if place.on_gpu else place.nodes
        facts_of = (place or where).node.facts
        price = facts_of.price_per_hour / (facts_of.gpus or 1)
        reserved = to_run[name] * mean * units / 3600
        stages[name] = StageCost(to_run[name], shared[name], mean, reserved, reserved * price)
    return stages


def _repeated_share(training: Training, checkpoint_seconds: float, restart_seconds: float) -> float:
    """Work done twice, as a share: an interruption of any node of the gang costs half the time between two checkpoints,
    and a restart."""
    interruptions = training.where.nodes * training.where.node.facts.interruptions_per_hour
    longest = max(training.seconds.values())
    return interruptions * (min(checkpoint_seconds, longest) / 2 + restart_seconds) / 3600
