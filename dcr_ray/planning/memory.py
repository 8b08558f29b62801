"""Memory that a stage or an engine needs, per rank and per host, in closed form from a ModelCard and a Shape.

It knows no measurements of the run at hand: the workspace is a stated allowance, to be replaced by measured ratios. It
stands for what is not counted: fragmentation, attention masks, CUDA graphs, buffers of collectives. Nor is the host's
memory while weights are read from disk. Peaks measured for one process on CPU (135M, float32, 8 x 64 tokens) were 0.82
of the estimate for the DCR stage at half depth and 0.86 for full SFT.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Literal

from dcr_ray.errors import Problem
from dcr_ray.models import FAMILIES, ModelCard
from dcr_ray.recipe import LoraRecipe
from dcr_ray.shape import HEAD_BUFFER_BYTES, Shape

Dtype = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]

ITEM_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2}
GIB = 1 << 30

WORKSPACE_SHARE = 0.10
"""Of everything else: an allowance, not a measurement."""

WORKSPACE_BYTES: dict[str, int] = {"cuda": 3 * GIB, "cpu": int(0.8 * GIB)}
"""On CUDA an allowance for context and communication; on CPU the measured resident memory of an idle worker."""

ENGINE_WORKSPACE_BYTES: dict[str, int] = {"cuda": 3 * GIB, "cpu": int(1.2 * GIB)}
"""The same for vLLM; on CPU the 2.9 GB measured for a 135M float32 engine, less its weights and 1 GiB of KV cache."""

ZERO3_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default stage3_max_live_parameters: so many may stay gathered on every rank of a large model."""


def zero3_live_parameters(card: ModelCard, parameters: int) -> int:
    """Parameters that may stay gathered on a rank under ZeRO-3, of a model or trunk of so many: a quarter, but two
    layers or the embedding at least, and no more than DeepSpeed's own limit."""
    least = max(2 * card.layer_parameters, card.embedding_parameters)
    return min(ZERO3_LIVE_PARAMETERS, max(parameters // 4, least))


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that one rank needs on its device, part by part, and what the host needs beside them.

    On a CPU the host's memory is the device, so `host_bytes` holds all of its ranks.
    """

    what: str
    device: Device
    ranks_per_node: int
    weights_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    gathered_bytes: int = 0
    activations_bytes: int = 0
    logits_bytes: int = 0
    kv_cache_bytes: int = 0
    workspace_bytes: int = 0
    looked_at_bytes: int = 0
    offloaded_bytes: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Bytes on the device by part."""
        sizes = {field.name: getattr(self, field.name) for field in fields(self) if field.name.endswith("_bytes")}
        del sizes["offloaded_bytes"]
        return {name.removesuffix("_bytes").replace("_", " "): size for name, size in sizes.items()}

    @property
    def rank_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def host_bytes(self) -> int:
        return self.offloaded_bytes + (self.ranks_per_node * self.rank_bytes if self.device == "cpu" else 0)


def edit_memory(card: ModelCard, device: Device) -> MemoryNeed:
    """An edit or diagnose stage on one rank: the whole model in fp32, an edited copy of one layer's size, and what a
    batch of prompts takes, which is reckoned as workspace."""
    weights = 4 * card.parameters
    return MemoryNeed(
        f"edit or diagnosis of {card.name}",
        device,
        1,
        weights_bytes=weights,
        gathered_bytes=4 * card.layer_parameters,
        workspace_bytes=int(WORKSPACE_SHARE * weights) + WORKSPACE_BYTES[device],
    )


def dcr_memory(
    card: ModelCard, layer: int, shape: Shape, *, tokens: int, batch_size: int, device: Device, nodes: int = 1
) -> MemoryNeed:
    """The DCR stage with its loss at the output of `layer` (1..L), on prompts of up to `tokens` tokens.

    `batch_size` counts prompts over all ranks, which are spread evenly over `nodes`. Only the embedding and `layer`
    layers exist, the embedding is frozen, and there are no logits, so that all but the embedding scales with l/L.
    Precision "auto" counts as bf16 on CUDA and as fp32, the larger, on CPU. Raises ValueError for a layer outside 1..L.
    """
    return _training(
        MemoryNeed(f"DCR stage of {card.name} at layer {layer}", device, ceil(shape.ranks / nodes)),
        card,
        shape,
        layers=layer,
        parameters=card.trunk_parameters(layer),
        trained=layer * card.layer_parameters,
        positions=tokens * (shape.micro_batch_size or ceil(batch_size / shape.ranks)),
        with_logits=False,
        nodes=nodes,
    )


def sft_memory(
    card: ModelCard,
    shape: Shape,
    lora: LoraRecipe | None = None,
    *,
    tokens: int,
    batch_size: int,
    device: Device,
    nodes: int = 1,
) -> MemoryNeed:
    """The SFT stage on sequences of up to `tokens` tokens: full fine-tuning, or adapters on frozen weights.

    The other arguments are those of `dcr_memory`. With adapters the activations are an upper bound: frozen layers need
    not keep the inputs of their matrices.
    """
    adapters = lora_parameters(card, lora) if lora else 0
    what = f"SFT stage of {card.name}" + (f" with LoRA of rank {lora.rank}" if lora else "")
    return _training(
        MemoryNeed(what, device, ceil(shape.ranks / nodes)),
        card,
        shape,
        layers=card.layers,
        parameters=card.parameters + adapters,
        trained=adapters if lora else card.parameters,
        positions=tokens * (shape.micro_batch_size or ceil(batch_size / shape.ranks)),
        with_logits=True,
        nodes=nodes,
    )


def engine_memory(
    card: ModelCard,
    sequences: int,
    tokens: int,
    dtype: Dtype = "bfloat16",
    device: Device = "cuda",
    tensor_parallel: int = 1,
) -> MemoryNeed:
    """A vLLM engine that holds `sequences` sequences of `tokens` tokens (prompt and answer) at a time.

    KV cache: 2 (keys, values) x L x key-value heads x head_dim per token; a rank holds at least one key-value head. It
    is what the sequences need; vLLM reserves what it is told to. On CPU a tied embedding is counted twice, since vLLM
    packs a copy of it for the output head.
    """
    item = ITEM_BYTES[dtype]
    packed = card.embedding_parameters if device == "cpu" and card.tied_embeddings else 0
    weights = ceil(item * (card.parameters + packed) / tensor_parallel)
    heads = ceil(card.kv_heads / tensor_parallel)
    kv_cache = 2 * card.layers * heads * card.head_dim * item * sequences * tokens
    logits = sequences * card.vocabulary * (item + 4)
    return MemoryNeed(
        what=f"engine of {card.name}",
        device=device,
        ranks_per_node=tensor_parallel,
        weights_bytes=weights,
        logits_bytes=logits,
        kv_cache_bytes=kv_cache,
        workspace_bytes=int(WORKSPACE_SHARE * (weights + logits)) + ENGINE_WORKSPACE_BYTES[device],
    )


def shortfalls(
    needs: Iterable[MemoryNeed], *, host_bytes: int, device_bytes: int | None = None, together: bool = False
) -> list[Problem]:
    """What does not fit into a host with `host_bytes` and GPUs with `device_bytes` each, and by how much.

    `together` means that all of `needs` are up on one host at once, each on GPUs of its own: then the host must hold
    their sum.
    """
    needs = list(needs)
    problems = []
    for need in needs:
        if need.device == "cuda" and (device_bytes is None or need.rank_bytes > device_bytes):
            problems.append(_problem(need.what, "per GPU", need.rank_bytes, device_bytes or 0, need.parts))
        if need.host_bytes > host_bytes:
            parts = need.parts if need.device == "cpu" else {"offloaded": need.offloaded_bytes}
            problems.append(_problem(need.what, "on the host", need.host_bytes, host_bytes, parts))
    total = sum(need.host_bytes for need in needs)
    if together and not problems and total > host_bytes:
        parts = {need.what: need.host_bytes for need in needs}
        problems.append(_problem(", ".join(parts), "on the host, together", total, host_bytes, parts))
    return problems


def lora_parameters(card: ModelCard, lora: LoraRecipe) -> int:
    """Parameters of the adapters: rank x (inputs + outputs) per target and layer (arXiv 2106.09685, section 4.1).

    Raises ValueError for a target that a decoder layer does not have.
    """
    hidden, inner, query, key_value = card.hidden_size, card.intermediate_size, *_attention_sizes(card)
    sides = {
        "q_proj": hidden + query,
        "k_proj": hidden + key_value,
        "v_proj": hidden + key_value,
        "o_proj": hidden + query,
        "gate_proj": hidden + inner,
        "up_proj": hidden + inner,
        "down_proj": hidden + inner,
    }
    unknown = sorted(set(lora.targets) - set(sides))
    if unknown:
        raise ValueError(f"LoRA targets {', '.join(unknown)}: a layer has {', '.join(sides)}")
    return card.layers * lora.rank * sum(sides[target] for target in set(lora.targets))


def layer_activation_bytes(card: ModelCard, dtype: Dtype) -> int:
    """Bytes per token that one layer keeps for its backward pass, in transformers' unfused layers with SDPA attention.

    With n norms of h, heads ad, key-value heads kd and intermediate f: float32 keeps 3nh + 2ad + 2kd + 4f elements (of
    each norm its input, the normalised input and its output; rotated queries, attention output; rotated keys, values;
    gate, activated gate, up and their product). In bfloat16 a norm's input is a float32 copy, and in Gemma its
    normalised input too. Query-key norms add 2(ad + kd) elements. Counted with autograd's saved-tensor hooks; the
    estimate of arXiv 2205.05198, equation 2, is of another block (GELU, no GQA).
    """
    family = FAMILIES[card.architecture]
    query, key_value = _attention_sizes(card)
    item = ITEM_BYTES[dtype]
    norm_input = 4
    normalised = 4 if card.architecture.startswith("Gemma") else item
    norms = family.norms_per_layer * card.hidden_size * (norm_input + normalised + item)
    query_key_norms = (query + key_value) * (norm_input + normalised) if card.qk_norm else 0
    return norms + query_key_norms + item * (2 * query + 2 * key_value + 4 * card.intermediate_size)


def _training(
    need: MemoryNeed,
    card: ModelCard,
    shape: Shape,
    *,
    layers: int,
    parameters: int,
    trained: int,
    positions: int,
    with_logits: bool,
    nodes: int,
) -> MemoryNeed:
    """`need` filled in for `positions` tokens per micro-batch and rank.

    Model states after arXiv 1910.02054, section 3.1, as DeepSpeed lays them out (autotuning/autotuner.py). Per trained
    parameter: a gradient in the working dtype, and for Adam two float32 moments; a float32 master copy with its
    gradient too, except in float32 without ZeRO. Stage 1 divides the optimizer by the ranks, stage 2 also the
    gradients, stage 3 also the weights; of these some stay gathered, at least the embedding.
    """
    half = shape.precision == "bf16" or (shape.precision == "auto" and need.device == "cuda")
    dtype: Dtype = "bfloat16" if half else "float32"
    item, stage, ranks = ITEM_BYTES[dtype], shape.zero_stage, shape.ranks
    weights = ceil(item * parameters / (ranks if stage >= 3 else 1))
    gradients = ceil(item * trained / (ranks if stage >= 2 else 1))
    optimizer = ceil((16 if half or stage else 8) * trained / (ranks if stage >= 1 else 1))
    gathered = 0
    if stage == 3 and ranks > 1:
        embedding = card.embedding_parameters * item * (2 if trained >= card.embedding_parameters else 1)
        gathered = max(embedding, item * min(parameters, zero3_live_parameters(card, parameters)))
    kept = layer_activation_bytes(card, dtype)
    recomputed = item * card.hidden_size * layers + kept
    activations = positions * (recomputed if shape.activation_checkpointing else kept * layers)
    logits = 0
    if with_logits:
        # A buffer of float32 logits that becomes their gradient, its copy in bf16, and the head's gradient in float32.
        buffer = min(positions * card.vocabulary * 4, HEAD_BUFFER_BYTES[need.device])
        head = 4 * card.embedding_parameters if trained == card.parameters else 0
        logits = buffer * (3 if half else 2) // 2 + head
    offloaded = 0
    if shape.offload_optimizer and need.device == "cuda":
        # As DeepSpeed estimates it, buffers included; gradients follow the optimizer to the host.
        per_parameter = max(4 * ranks, 16) if stage <= 2 else 16
        offloaded, optimizer, gradients = ceil(1.5 * per_parameter * trained / nodes), 0, 0
    if shape.offload_parameters and need.device == "cuda":
        offloaded, weights = offloaded + ceil(1.5 * item * parameters / nodes), 0
    on_device = weights + gradients + optimizer + gathered + activations + logits
    return replace(
        need,
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        gathered_bytes=gathered,
        activations_bytes=activations,
        logits_bytes=logits,
        workspace_bytes=int(WORKSPACE_SHARE * on_device) + WORKSPACE_BYTES[need.device],
        offloaded_bytes=offloaded,
    )


def _attention_sizes(card: ModelCard) -> tuple[int, int]:
    return card.heads * card.head_dim, card.kv_heads * card.head_dim


def _problem(what: str, where: str, needed: int, available: int, parts: dict[str, int]) -> Problem:
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    told = ", ".join(f"{name} {size / GIB:.2f}" for name, size in largest if size)
    found = f"{needed / GIB:.2f} GiB needed {where} (largest parts: {told})"
    return Problem(what, found, f"{available / GIB:.2f} GiB", f"Short by {(needed - available) / GIB:.2f} GiB.")
