"""What a study as a whole needs of one machine: memory while everything is up, disk for all its checkpoints."""

from __future__ import annotations

from dataclasses import replace

from dcr_ray.errors import Problem
from dcr_ray.models import ModelCard
from dcr_ray.planning.machine import Machine
from dcr_ray.planning.memory import GIB, MemoryNeed, dcr_memory, edit_memory, engine_memory, sft_memory, shortfalls
from dcr_ray.recipe import EDIT_METHODS, Recipe
from dcr_ray.study import StudySpec

RAY_BYTES = int(1.2 * GIB)
"""Ray's own processes, the driver, the trials' coordinators and MLflow's sender, as measured on a quiet machine."""

LONGEST_PROMPT_TOKENS = 96
"""What a DCR prompt is reckoned at; single-sentence prompts with a template are shorter."""


def settled_groups(spec: StudySpec, card: ModelCard, machine: Machine | None) -> int:
    """The number of worker groups that the study says, or the one that this machine is best used with.

    On a CPU two groups of one thread do more than one group of two: small operations hardly gain from a second thread,
    and a thread that waits for a core holds up its whole pass. So there is one group for every `shape.ranks` cores, at
    most one for every concurrent trial, and fewer where memory is short. A GPU is never shared unasked.
    """
    if spec.resources.worker_groups is not None or machine is None or machine.gpus:
        return spec.resources.worker_groups or 1
    groups = max(1, min(machine.cores // spec.shape.ranks, spec.search.concurrent))
    while groups > 1 and memory_problems(with_groups(spec, groups), card, machine):
        groups -= 1
    return groups


def with_groups(spec: StudySpec, groups: int) -> StudySpec:
    """The study with its number of worker groups settled."""
    return spec.model_copy(update={"resources": spec.resources.model_copy(update={"worker_groups": groups})})


def memory_needs(spec: StudySpec, card: ModelCard, on_gpu: bool) -> list[MemoryNeed]:
    """The largest training stage of each worker group, and each engine: all of them are up at once."""
    shape, recipe = spec.shape, fullest_recipe(spec)
    bf16 = shape.precision == "bf16" or (shape.precision == "auto" and on_gpu)
    device = "cuda" if on_gpu else "cpu"
    sft = recipe.sft
    stages = [sft_memory(card, shape, sft.lora, tokens=sft.max_tokens, batch_size=sft.batch_size, device=device)]
    if recipe.dcr is not None:
        layer = recipe.dcr.model_copy(update={"layer_depth": deepest_depth(spec)}).layer(card.layers)
        tokens = min(recipe.dcr.max_prompt_tokens, LONGEST_PROMPT_TOKENS)
        stages.append(dcr_memory(card, layer, shape, tokens=tokens, batch_size=recipe.dcr.batch_size, device=device))
    if spec.dynamics is not None:
        # Rank 0 holds a further model in fp32 that is looked at.
        stages = [replace(need, looked_at_bytes=4 * card.parameters) for need in stages]
    if spec.diagnosis is not None or set(EDIT_METHODS) & set(spec.methods):
        stages.append(edit_memory(card, device))
    largest = max(stages, key=lambda need: need.rank_bytes)
    cached_tokens = spec.resources.kv_cache_mib * 2**20 // max(1, kv_bytes_per_token(card, bf16))
    sequences = max(1, cached_tokens // spec.evaluation.max_model_tokens)
    engine = engine_memory(card, sequences, spec.evaluation.max_model_tokens, "bfloat16" if bf16 else "float32", device)
    return [largest] * (spec.resources.worker_groups or 1) + [engine] * spec.resources.engines


def deepest_depth(spec: StudySpec) -> float | None:
    """The deepest layer that the study may ask for, as l/L; None without a DCR stage."""
    searched, dcr = spec.dimensions.get("dcr.layer_depth"), fullest_recipe(spec).dcr
    return max(searched.ends()) if searched else dcr.layer_depth if dcr else None


def fullest_recipe(spec: StudySpec) -> Recipe:
    """The recipe with most stages among those that the study may run."""
    return spec.recipe_of("dcr" if "dcr" in spec.methods else spec.methods[0])


def memory_problems(spec: StudySpec, card: ModelCard, machine: Machine) -> list[Problem]:
    """What does not fit into this machine's available memory, with the numbers. GPUs are left to where Ray finds
    them."""
    if machine.gpus:
        return []
    needs = memory_needs(spec, card, on_gpu=False)
    return shortfalls(needs, host_bytes=machine.memory_bytes - RAY_BYTES, together=True)


def disk_bytes(spec: StudySpec, card: ModelCard) -> int:
    """Room for every trial's model and refined layers in fp32, and one checkpoint to resume from per worker group."""
    model = 4 * card.parameters
    trials = spec.search.trials
    return (trials + 1) * model + trials * model // 2 + (spec.resources.worker_groups or 1) * 3 * model


def kv_bytes_per_token(card: ModelCard, bf16: bool) -> int:
    return 2 * card.layers * card.kv_heads * card.head_dim * (2 if bf16 else 4)
