"""A plan for a cluster as tables of text."""

from __future__ import annotations

from typing import Any

import yaml

from dcr_ray.planning.cost import ClusterPlan
from dcr_ray.planning.seconds import hidden_exchange_tokens
from dcr_ray.planning.shapes import gib, said

Table = tuple[str, tuple[str, ...], list[dict[str, Any]]]
"""Title, columns, rows."""


def cluster_tables(plan: ClusterPlan) -> list[Table]:
    """The tables that say a plan, what keeps the study from running first."""
    tables: list[Table] = []
    if plan.problems:
        rows = [vars(problem) for problem in plan.problems]
        tables.append(("What keeps the study from running", ("where", "found", "allowed", "fix"), rows))
    tables.append(("What it runs on", ("what", "is"), _places(plan)))
    needs = [*(plan.training.needs if plan.training else ()), *((plan.engine.need,) if plan.engine else ())]
    if needs:
        tables.append(("Memory, GiB", ("what", "on_a_rank", "there_is", "on_a_host", "host_has", "largest_parts"), [
            _memory(plan, need) for need in needs
        ]))  # fmt: skip
    if plan.stages:
        unit = f"{plan.unit}_hours"
        rows = [
            {
                "stage": name,
                "to_run": cost.to_run,
                "shared": cost.shared,
                "seconds_each": round(cost.each, 1),
                unit: round(cost.reserved, 2),
                plan.cluster.currency: round(cost.price, 2),
            }
            for name, cost in plan.stages.items()
        ]
        each = sum(cost.each for cost in plan.stages.values())
        rows.append({"stage": "a trial with all of them", "seconds_each": round(each, 1)})
        columns = ("stage", "to_run", "shared", "seconds_each", unit, plan.cluster.currency)
        tables.append(("Stages, each paid at the share of its node that it takes", columns, rows))
        tables.append(("The study", ("what", "is"), _totals(plan)))
    return tables


def settings_text(plan: ClusterPlan) -> str:
    """What to put into the study's YAML to run it as planned; empty where nothing fits."""
    settings = plan.settings()
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=120) if settings else ""


def _places(plan: ClusterPlan) -> list[dict[str, Any]]:
    card, cluster = plan.card, plan.cluster
    nodes = ", ".join(f"{node.count} x {node.name}" for node in cluster.nodes)
    rows = [
        {"what": "model", "is": f"{card.name}: {card.parameters:,} parameters, {card.layers} layers"},
        {"what": "cluster", "is": f"{cluster.name}: {nodes}; {cluster.gpus} GPUs"},
    ]
    if plan.training:
        rows.append({"what": "training", "is": f"{plan.groups} group(s) of {said(plan.training)}"})
        if plan.cheapest and plan.cheapest.shape != plan.training.shape:
            cheaper = plan.training.reserved_seconds / plan.cheapest.reserved_seconds
            rows.append({"what": "cheaper", "is": f"{said(plan.cheapest)}: {cheaper:.1f} times less a trial"})
        if plan.training.shape.zero_stage == 3:
            tokens = hidden_exchange_tokens(plan.training.where, plan.calibration.rates)
            told = f"hidden behind arithmetic from {tokens:,.0f} tokens a rank and micro-step"
            rows.append({"what": "ZeRO-3's exchange", "is": told})
    if plan.engine:
        where = plan.engine.where
        parallel = f"tensor parallel {where.ranks}" if where.on_gpu else "on the CPU"
        rows.append({"what": "engines", "is": f"{plan.engines}, {parallel}, on {where.node.name}"})
    return [*rows, {"what": "rates", "is": plan.calibration.said}]


def _memory(plan: ClusterPlan, need: Any) -> dict[str, Any]:
    training = plan.training is not None and need in plan.training.needs
    node = (plan.training if training else plan.engine).where.node
    parts = sorted(need.parts.items(), key=lambda part: -part[1])[:3]
    return {
        "what": need.what,
        "on_a_rank": gib(need.rank_bytes),
        "there_is": gib(node.gpu.memory_bytes if node.gpu else node.host_memory_bytes),
        "on_a_host": gib(need.host_bytes),
        "host_has": gib(node.host_memory_bytes),
        "largest_parts": ", ".join(f"{name} {gib(size)}" for name, size in parts if size),
    }


def _totals(plan: ClusterPlan) -> list[dict[str, Any]]:
    cluster = plan.cluster
    price = f"{plan.price:,.2f} {cluster.currency}" if plan.price else "not known: the file has no prices"
    if plan.price and cluster.prices_as_of:
        price += f" (prices: {cluster.prices_as_of})"
    rows = [
        {"what": "hours", "is": f"{plan.hours:.2f}"},
        {"what": f"{plan.unit}-hours of the whole cluster", "is": f"{plan.reserved_hours:.1f}"},
        {"what": "price of the whole cluster", "is": price},
        {"what": "shared storage", "is": f"{gib(plan.storage_bytes)} GiB for all checkpoints"},
    ]
    if plan.repeated_share:
        rows.append({"what": "done twice after interruptions", "is": f"{plan.repeated_share:.1%} of the training"})
    return rows
