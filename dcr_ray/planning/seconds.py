"""Seconds of a stage on nodes of a cluster, from FLOPs, bytes and stated rates.

Every rate that is not a data sheet's is an assumption of `RATES`, to be replaced by measured ones
(`planning.calibration`). It knows no contention, no stragglers and no compile times.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from dcr_ray.models import ModelCard
from dcr_ray.planning.cluster import NodeType, StorageFacts
from dcr_ray.planning.flops import dcr_flops, generation_flops, kernel_flops, sft_flops
from dcr_ray.planning.memory import lora_parameters
from dcr_ray.planning.work import GenerationWork, TrainingWork
from dcr_ray.recipe import ContrastiveRecipe, SftRecipe
from dcr_ray.shape import Shape


@dataclass(frozen=True)
class Rates:
    """Assumptions. Shares are of a data sheet's figure; a rank reaches half of `training_share` at `half_rate_tokens`
    tokens a micro-step. Pairs are on a CPU and on GPUs.

    `launch_seconds` is what a layer's kernels take to be launched, forwards and backwards, on a GPU, below which no
    micro-step gets however little there is to compute. It and the optimizer's bytes a parameter on GPUs were measured
    on an H200 (1.5B, 64 prompts of unequal length, one rank), and the start-up seconds on a CPU."""

    training_share: float = 0.40
    half_rate_tokens: float = 256.0
    launch_seconds: float = 6.4e-3
    optimizer_bytes: tuple[float, float] = (30.0, 68.0)
    prefill_share: float = 0.40
    decode_bandwidth_share: float = 0.60
    link_share: float = 0.70
    host_link_bytes_per_second: float = 25e9
    host_adam_parameters_per_second: float = 1e9
    cpu_core_flops_per_second: float = 65e9
    cpu_bandwidth_bytes_per_second: float = 20e9
    decoded_at_once: int = 256
    group_start_seconds: tuple[float, float] = (25.0, 90.0)
    engine_start_seconds: tuple[float, float] = (20.0, 120.0)
    judge_seconds: float = 1.0


RATES = Rates()


@dataclass(frozen=True)
class Where:
    """Where a gang runs: `ranks` over `nodes` nodes of one type."""

    node: NodeType
    nodes: int
    ranks: int

    @property
    def on_gpu(self) -> bool:
        return self.node.gpu is not None

    @property
    def ranks_per_node(self) -> int:
        return ceil(self.ranks / self.nodes)

    def flops_per_second(self, rates: Rates) -> float:
        """One rank's peak."""
        if self.node.gpu:
            return self.node.gpu.flops_per_second
        return rates.cpu_core_flops_per_second / rates.training_share * self.node.facts.cpus / self.ranks_per_node

    def bytes_per_second(self, rates: Rates) -> float:
        """At which a gathered tensor reaches every rank (the bus bandwidth of collectives).

        In rings every byte enters a node once, over all of its interfaces together, and then passes from GPU to GPU: so
        it is the slower of a GPU's link and a whole node's, not a rank's share of it.
        """
        inside = self.node.gpu.link_bytes_per_second if self.node.gpu else rates.cpu_bandwidth_bytes_per_second
        between = 1e9 * self.node.facts.network_gb_s
        return rates.link_share * (inside if self.nodes == 1 else min(inside, between))

    def memory_bytes_per_second(self, rates: Rates) -> float:
        """Of one rank's device."""
        if self.node.gpu:
            return self.node.gpu.memory_bytes_per_second * rates.decode_bandwidth_share
        return rates.cpu_bandwidth_bytes_per_second


@dataclass(frozen=True)
class StageSeconds:
    """Parts of a stage's time. Exchange that is hidden behind arithmetic is not in `exchange`."""

    compute: float = 0.0
    exchange: float = 0.0
    optimizer: float = 0.0
    weights: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        return self.compute + self.exchange + self.optimizer + self.weights + self.decode


def hidden_exchange_tokens(where: Where, rates: Rates = RATES) -> float:
    """Tokens a rank and micro-step from which ZeRO-3's exchange hides behind arithmetic.

    6P bytes over the link against 8PT operations (two gathers and one reduction of bf16 parameters; recomputed
    activations), so it does not depend on the model: T = 6 x peak x share / (8 x bandwidth).
    """
    arithmetic = where.flops_per_second(rates) * rates.training_share
    return 6 * arithmetic / (8 * where.bytes_per_second(rates))


def dcr_seconds(
    card: ModelCard,
    recipe: ContrastiveRecipe,
    work: TrainingWork,
    shape: Shape,
    where: Where,
    storage: StorageFacts,
    rates: Rates = RATES,
) -> StageSeconds:
    """The DCR stage. Its weights are read from where they are kept, and its trained layers are written in fp32."""
    layer, frozen = recipe.layer(card.layers), recipe.frozen_layers(card.layers)
    flops = dcr_flops(
        card, layer, work.tokens, work.length, frozen=frozen, checkpointing=shape.activation_checkpointing
    )
    # Micro-batches run forwards once more, without gradient (gradient caching).
    again = 4 / 3 if shape.micro_batch_size and shape.micro_batch_size * shape.ranks < work.batch else 1.0
    trained = (layer - frozen) * card.layer_parameters
    return _training(
        flops.hardware * again,
        layer * again,
        card.trunk_parameters(layer),
        trained,
        4 * trained,
        work,
        shape,
        where,
        storage,
        rates,
    )


def sft_seconds(
    card: ModelCard,
    recipe: SftRecipe,
    work: TrainingWork,
    shape: Shape,
    where: Where,
    storage: StorageFacts,
    rates: Rates = RATES,
) -> StageSeconds:
    """The SFT stage, with the whole model written at its end."""
    flops = sft_flops(
        card,
        work.tokens,
        work.answer_tokens,
        work.length,
        recipe.lora,
        checkpointing=shape.activation_checkpointing,
    )
    trained = lora_parameters(card, recipe.lora) if recipe.lora else card.parameters
    written = _item(shape, where) * card.parameters
    return _training(flops.hardware, card.layers, card.parameters, trained, written, work, shape, where, storage, rates)


def generation_seconds(
    card: ModelCard, work: GenerationWork, where: Where, storage: StorageFacts, rates: Rates = RATES
) -> StageSeconds:
    """Weights in, prompts read, answers written. `where.ranks` is the engine's tensor-parallel size.

    Decoding is bound by memory or by arithmetic: a step reads the weights and the caches of all sequences, and computes
    two operations a weight and sequence.
    """
    item = 2 if where.on_gpu else 4
    length = work.prompt_tokens + work.answer_tokens
    read = generation_flops(card, work.prompts * work.prompt_tokens + work.scored, 0, length)
    peak = where.ranks * where.flops_per_second(rates) * rates.prefill_share
    at_once = max(1, min(work.prompts, rates.decoded_at_once))
    cache = 2 * card.layers * card.kv_heads * card.head_dim * item * length * at_once
    bandwidth = where.ranks * where.memory_bytes_per_second(rates)
    step = max((item * card.parameters + cache) / bandwidth, 2 * card.parameters * at_once / peak)
    return StageSeconds(
        compute=read.model / peak,
        decode=step * work.answer_tokens * ceil(work.prompts / at_once),
        weights=item * card.parameters / (1e9 * storage.read_gb_s),
    )


def edit_seconds(
    card: ModelCard, tokens: float, where: Where, storage: StorageFacts, rates: Rates = RATES
) -> StageSeconds:
    """`tokens` of prompts read forwards on one device in fp32, weights read and written once."""
    share = rates.training_share / (2 if where.on_gpu else 1)
    compute = generation_flops(card, tokens, 0, 64).model / (where.flops_per_second(rates) * share)
    weights = 4 * card.parameters * (1 / (1e9 * storage.read_gb_s) + 1 / (1e9 * storage.write_gb_s))
    return StageSeconds(compute=compute, weights=weights)


def diagnose_seconds(
    card: ModelCard,
    prompts: int,
    groups: int,
    probed: int,
    length: float,
    where: Where,
    storage: StorageFacts,
    rates: Rates = RATES,
) -> StageSeconds:
    """Kernel and separability on one device in fp32; the probes of scikit-learn are reckoned at a second a layer."""
    share = rates.training_share / (2 if where.on_gpu else 1)
    flops = kernel_flops(card, prompts, groups, length).model + generation_flops(card, probed * length, 0, length).model
    weights = 4 * card.parameters / (1e9 * storage.read_gb_s)
    return StageSeconds(compute=flops / (where.flops_per_second(rates) * share) + card.layers, weights=weights)


def _training(
    flops: float,
    layers: float,
    parameters: int,
    trained: int,
    written_bytes: float,
    work: TrainingWork,
    shape: Shape,
    where: Where,
    storage: StorageFacts,
    rates: Rates,
) -> StageSeconds:
    item, ranks = _item(shape, where), shape.ranks
    # A batch that does not divide leaves ranks with fillers.
    rows = ceil(work.batch / ranks)
    micro = min(shape.micro_batch_size or rows, rows)
    micro_steps = work.steps * ceil(rows / micro)
    tokens = micro * work.length
    share = rates.training_share * (tokens / (tokens + rates.half_rate_tokens) if where.on_gpu else 1.0)
    compute = flops * rows / work.batch / (where.flops_per_second(rates) * share)
    if where.on_gpu:
        recomputed = 4 / 3 if shape.activation_checkpointing else 1.0
        compute = max(compute, micro_steps * layers * recomputed * rates.launch_seconds)
    link = where.bytes_per_second(rates)
    if ranks == 1:
        exchange = 0.0
    elif shape.zero_stage == 3:
        exchange = max(0.0, micro_steps * 3 * item * parameters / link - compute)
    else:
        exchange = work.steps * 2 * item * trained / link
    if shape.offload_optimizer and where.on_gpu:
        optimizer = work.steps * (
            (4 + item) * trained / ranks / rates.host_link_bytes_per_second
            + trained / where.nodes / rates.host_adam_parameters_per_second
        )
    else:
        divided = ranks if shape.zero_stage else 1
        moved = rates.optimizer_bytes[where.on_gpu] * trained / divided
        optimizer = work.steps * moved / where.memory_bytes_per_second(rates)
    if shape.offload_parameters and where.on_gpu:
        exchange += micro_steps * 2 * item * parameters / ranks / rates.host_link_bytes_per_second
    # Divided parameters are read from disk by every node; whole ones are copied from where the process keeps them.
    kept = rates.host_link_bytes_per_second if where.on_gpu else rates.cpu_bandwidth_bytes_per_second
    read = item * parameters / (1e9 * storage.read_gb_s if shape.zero_stage == 3 else kept)
    return StageSeconds(compute, exchange, optimizer, read + written_bytes / (1e9 * storage.write_gb_s))


def _item(shape: Shape, where: Where) -> int:
    return 2 if shape.precision == "bf16" or (shape.precision == "auto" and where.on_gpu) else 4
