"""The cheapest Shape of the training stages, and the smallest engine, that fit a cluster.

Enumerated, not searched: ranks, ZeRO stage, offload, activation checkpointing and micro-batch are few. What fits is
`planning.memory`'s to say and how long it takes `planning.seconds`'; neither knows what a run will measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from dcr_ray.errors import Problem
from dcr_ray.models import ModelCard
from dcr_ray.planning.cluster import Cluster, NodeType
from dcr_ray.planning.memory import GIB, MemoryNeed, dcr_memory, engine_memory, sft_memory, shortfalls
from dcr_ray.planning.seconds import RATES, Rates, Where, dcr_seconds, sft_seconds
from dcr_ray.planning.work import DataFacts, dcr_work, sft_work
from dcr_ray.recipe import Recipe
from dcr_ray.shape import Precision, Shape

HOST_SHARE = 0.9
"""Of a host's memory, what ranks may take; the rest is Ray's, the file cache's and the system's."""

ENGINE_SEQUENCES = 64
"""Sequences that an engine should hold at once for its rate to be worth its weights."""


@dataclass(frozen=True)
class Training:
    """A shape of the training stages in a place: what it needs and how long a trial's stages take."""

    shape: Shape
    where: Where
    needs: tuple[MemoryNeed, ...]
    seconds: dict[str, float]

    @property
    def reserved_seconds(self) -> float:
        """GPU-seconds of a trial's training stages (of CPU nodes: node-seconds)."""
        share = self.where.ranks if self.where.on_gpu else self.where.nodes
        return share * sum(self.seconds.values())

    @property
    def price(self) -> float:
        """Of a trial's training stages, at the share of its nodes that the ranks take."""
        facts = self.where.node.facts
        nodes = self.where.ranks / facts.gpus if self.where.on_gpu else self.where.nodes
        return nodes * facts.price_per_hour * sum(self.seconds.values()) / 3600


@dataclass(frozen=True)
class EngineFit:
    """An engine in a place; `where.ranks` is its tensor-parallel size."""

    where: Where
    need: MemoryNeed


def trainings(
    card: ModelCard,
    recipe: Recipe,
    facts: DataFacts,
    cluster: Cluster,
    *,
    precision: Precision = "auto",
    engine_gpus: int = 0,
    deepest: float | None = None,
    rates: Rates = RATES,
) -> list[Training]:
    """All shapes that fit beside `engine_gpus` GPUs of engines, the cheapest trial first and of equal ones the faster.

    `deepest` is the deepest layer that the study may ask for, as l/L.
    """
    found = []
    for node in cluster.working_nodes:
        for shape, where in _candidates(recipe, cluster, node, precision, engine_gpus):
            candidate = planned(card, recipe, facts, cluster, shape, where, deepest=deepest, rates=rates)
            if not _short(candidate.needs, node):
                found.append(candidate)
    return sorted(found, key=lambda fit: (fit.price or fit.reserved_seconds, sum(fit.seconds.values())))


def planned(
    card: ModelCard,
    recipe: Recipe,
    facts: DataFacts,
    cluster: Cluster,
    shape: Shape,
    where: Where,
    *,
    deepest: float | None = None,
    rates: Rates = RATES,
) -> Training:
    """What one shape needs in one place, whether it fits or not."""
    device = "cuda" if where.on_gpu else "cpu"
    sft, work = recipe.sft, sft_work(recipe, facts)
    common = {"device": device, "nodes": where.nodes}
    needs = [sft_memory(card, shape, sft.lora, tokens=sft.max_tokens, batch_size=sft.batch_size, **common)]
    seconds = {"sft": sft_seconds(card, sft, work, shape, where, cluster.storage, rates).total}
    if recipe.dcr is not None:
        work = dcr_work(recipe, facts)
        depth = recipe.dcr if deepest is None else recipe.dcr.model_copy(update={"layer_depth": deepest})
        tokens = max(1, ceil(1.5 * work.length))
        layer = depth.layer(card.layers)
        needs.insert(0, dcr_memory(card, layer, shape, tokens=tokens, batch_size=recipe.dcr.batch_size, **common))
        seconds["dcr"] = dcr_seconds(card, recipe.dcr, work, shape, where, cluster.storage, rates).total
    return Training(shape, where, tuple(needs), seconds)


def engines(card: ModelCard, cluster: Cluster, max_model_tokens: int) -> list[EngineFit]:
    """Engines that fit, the fewest GPUs first. An engine stays on one node, and its heads divide over its GPUs."""
    found = []
    for node in cluster.working_nodes:
        if not node.facts.gpus:
            need = engine_memory(card, 8, max_model_tokens, "float32", "cpu")
            found.append(EngineFit(Where(node, 1, 1), need))
            continue
        for size in (size for size in (1, 2, 4, 8) if size <= node.facts.gpus and card.heads % size == 0):
            need = engine_memory(card, ENGINE_SEQUENCES, max_model_tokens, tensor_parallel=size)
            found.append(EngineFit(Where(node, 1, size), need))
    return [fit for fit in found if not _short((fit.need,), fit.where.node)]


def nothing_fits(
    card: ModelCard,
    recipe: Recipe,
    facts: DataFacts,
    cluster: Cluster,
    *,
    precision: Precision = "auto",
    engine_gpus: int = 0,
    deepest: float | None = None,
) -> list[Problem]:
    """By how much the training stages are short in the shape that comes nearest, and what would help."""
    nearest: tuple[float, list[Problem]] | None = None
    for node in cluster.working_nodes:
        for shape, where in _candidates(recipe, cluster, node, precision, engine_gpus):
            needs = planned(card, recipe, facts, cluster, shape, where, deepest=deepest).needs
            short, gap, how = _short(needs, node), max(_gap(need, node) for need in needs), _said(shape, where)
            if nearest is None or gap < nearest[0]:
                nearest = gap, [Problem(f"{p.where}, {how}", p.found, p.allowed, p.fix) for p in short]
    if nearest is None:
        found = f"{cluster.gpus} GPUs, of which engines take {engine_gpus}"
        return [Problem("training stages", found, "at least one for training", "Add a node, or smaller engines.")]
    advice = ["more nodes or GPUs with more memory"]
    if recipe.sft.lora is None:
        advice.append("adapters instead of full fine-tuning (recipe.sft.lora)")
    if recipe.dcr is not None:
        advice.append("a shallower layer (dcr.layer_depth)")
    where, *others = nearest[1]
    fix = f"{where.fix} What would help: {', '.join(advice)}.".strip()
    return [Problem(where.where, where.found, where.allowed, fix), *others]


def _candidates(
    recipe: Recipe, cluster: Cluster, node: NodeType, precision: Precision, engine_gpus: int
) -> Iterator[tuple[Shape, Where]]:
    on_gpu = bool(node.facts.gpus)
    batches = [recipe.sft.batch_size] + ([recipe.dcr.batch_size] if recipe.dcr else [])
    for ranks in _ranks(node, engine_gpus if on_gpu else 0):
        where = Where(node, ceil(ranks / (node.facts.gpus or node.facts.cpus)), ranks)
        rows = ceil(max(batches) / ranks)
        # The largest micro-batch that fits is the fastest; others are tried after it.
        micro: list[int | None] = [None, *(size for size in (8, 4, 2, 1) if size < rows)]
        for zero in (0, 2, 3) if ranks > 1 else (0,):
            for offload, parameters in _offloads(on_gpu, zero):
                for checkpointing in (False, True):
                    for size in micro:
                        yield (
                            Shape(
                                ranks=ranks,
                                zero_stage=zero or (1 if offload else 0),
                                micro_batch_size=size,
                                precision=precision,
                                offload_optimizer=offload,
                                offload_parameters=parameters,
                                activation_checkpointing=checkpointing,
                            ),
                            where,
                        )


def _offloads(on_gpu: bool, zero: int) -> tuple[tuple[bool, bool], ...]:
    if not on_gpu:
        return ((False, False),)
    return ((False, False), (True, False), (True, True)) if zero == 3 else ((False, False), (True, False))


def _ranks(node: NodeType, engine_gpus: int) -> list[int]:
    """Powers of two within a node, whole nodes, and all that the engines leave."""
    each = node.facts.gpus
    if not each:
        return [1, *(size for size in (2, 4, 8) if size <= node.facts.cpus)]
    free = node.count * each - engine_gpus
    inside = [size for size in (1, 2, 4, 8, 16) if size <= min(each, free)]
    whole = [nodes * each for nodes in range(1, node.count + 1) if nodes * each <= free]
    return sorted({*inside, *whole, *([free] if free > 0 else [])})


def _short(needs: tuple[MemoryNeed, ...], node: NodeType) -> list[Problem]:
    host = int(HOST_SHARE * node.host_memory_bytes)
    return shortfalls(needs, host_bytes=host, device_bytes=node.gpu.memory_bytes if node.gpu else None)


def _gap(need: MemoryNeed, node: NodeType) -> float:
    """How far a need is beyond what there is, as a share of it; the worse of GPU and host."""
    host = need.host_bytes / (HOST_SHARE * node.host_memory_bytes)
    return max(host, need.rank_bytes / node.gpu.memory_bytes if node.gpu else 0.0)


def _said(shape: Shape, where: Where) -> str:
    parts = [f"{shape.ranks} rank{'s' if shape.ranks > 1 else ''} on {where.nodes} x {where.node.name}"]
    parts += [f"ZeRO-{shape.zero_stage}"] if shape.zero_stage else []
    parts += ["optimizer offloaded"] if shape.offload_optimizer else []
    parts += ["parameters offloaded"] if shape.offload_parameters else []
    parts += ["activation checkpointing"] if shape.activation_checkpointing else []
    parts += [f"micro-batch {shape.micro_batch_size}"] if shape.micro_batch_size else []
    return ", ".join(parts)


def said(fit: Training) -> str:
    """The shape and its place in words."""
    return _said(fit.shape, fit.where)


def gib(size: float) -> float:
    return round(size / GIB, 2)
