"""Floating-point operations of the stages, in closed form from a ModelCard.

Model FLOPs in the sense of arXiv 2204.02311, appendix B: a matrix of n weights costs 2n a token forwards, 2n for the
gradient of its input and 2n for its own; attention over s positions 4 a d s a layer and token forwards (a heads of d
dimensions; the causal half is not taken off) and twice that backwards. What is computed again for want of memory counts
in `hardware` alone. Tokens that all rows share are counted for each row, although packing computes them once.
"""

from __future__ import annotations

from dataclasses import dataclass

from dcr_ray.models import ModelCard
from dcr_ray.planning.memory import lora_parameters
from dcr_ray.recipe import LoraRecipe


@dataclass(frozen=True)
class Flops:
    """`model` is what the mathematics needs, `hardware` what is computed."""

    model: float
    hardware: float


def matrix_parameters(card: ModelCard) -> int:
    """Weights of one layer's matrices: query, key, value, output, gate, up and down, without norms and biases."""
    query, key_value = card.heads * card.head_dim, card.kv_heads * card.head_dim
    return 2 * card.hidden_size * (query + key_value) + 3 * card.hidden_size * card.intermediate_size


def dcr_flops(
    card: ModelCard, layer: int, tokens: float, length: float, *, frozen: int = 0, checkpointing: bool = False
) -> Flops:
    """`tokens` tokens in prompts of about `length` through layers 1..`layer`; the lowest `frozen` do not train.

    There is no head, and the embedding is frozen. The lowest trained layer's input needs no gradient; that is left in.
    """
    forward = 2 * matrix_parameters(card) + _attention(card, length)
    model = tokens * forward * (layer + 2 * (layer - frozen))
    return Flops(model, model + tokens * forward * (layer - frozen) * checkpointing)


def sft_flops(
    card: ModelCard,
    tokens: float,
    answer_tokens: float,
    length: float,
    lora: LoraRecipe | None = None,
    *,
    checkpointing: bool = False,
) -> Flops:
    """`tokens` tokens in sequences of about `length`, `answer_tokens` of them through the head.

    With adapters no gradient of the frozen matrices is needed: 4 instead of 6 a weight and token, and 6 an adapter's.
    """
    layers = card.layers * matrix_parameters(card)
    attention = card.layers * _attention(card, length)
    head, trained = card.embedding_parameters, 2 if lora else 3
    adapters = lora_parameters(card, lora) if lora else 0
    model = tokens * (2 * trained * layers + 3 * attention + 6 * adapters) + answer_tokens * 2 * trained * head
    return Flops(model, model + tokens * (2 * layers + attention) * checkpointing)


def generation_flops(card: ModelCard, prompt_tokens: float, answer_tokens: float, length: float) -> Flops:
    """Prompts read in and answers written, one head product for each answer's token."""
    forward = card.layers * (2 * matrix_parameters(card) + _attention(card, length))
    model = (prompt_tokens + answer_tokens) * forward + answer_tokens * 2 * card.embedding_parameters
    return Flops(model, model)


PROBES_OF_A_GROUP = 4


def kernel_flops(card: ModelCard, prompts: int, groups: int, length: float) -> Flops:
    """The kernel between `prompts` prompts of about `length` tokens, by groups of PROBES_OF_A_GROUP probes.

    A group runs every layer forwards twice and pulls each probe back through it; the products of all gradients come
    from inputs and cotangents of all tokens, or from the gradients themselves, whichever takes less.
    """
    probes, matrices = PROBES_OF_A_GROUP, card.layers * matrix_parameters(card)
    rows, tokens = probes * prompts, prompts * length
    put_out = (card.heads + 2 * card.kv_heads) * card.head_dim + 2 * card.hidden_size + 2 * card.intermediate_size
    passes = (2 * 2 + probes * 4) * tokens * matrices
    formed = 2 * rows * length * matrices + 1.5 * rows * rows * matrices
    factored = card.layers * put_out * (tokens**2 * probes + tokens * prompts * probes**2)
    products = min(formed, factored)
    total = groups * (passes + products)
    return Flops(total, total)


def _attention(card: ModelCard, length: float) -> float:
    return 4 * card.heads * card.head_dim * length
