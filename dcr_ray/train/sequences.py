"""The sft stage's training sequences and the batches they come in: deterministic in the seed, blind to ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dcr_ray.errors import InputError, Problem
from dcr_ray.train.jobs import SftJob
from dcr_ray.train.tokens import pair_tokens

IGNORED = -100
"""Target of a position without loss."""

BUCKET_BATCHES = 32
"""Sequences are sorted by length within this many batches, which leaves little padding and much to chance."""


class TokenSequence(NamedTuple):
    """Token ids, for each position the token that has to follow or IGNORED, and how many are not ignored."""

    ids: list[int]
    targets: list[int]
    answer_tokens: int


def token_sequence(ids: Sequence[int], prompt_length: int, max_tokens: int, mask_prompt: bool) -> TokenSequence:
    """A prompt with its answer and end-of-sequence token, cut at `max_tokens`, so a cut answer has no end.

    With `mask_prompt` the loss is on the answer and its end, otherwise on every token but the first.
    """
    ids = list(ids[:max_tokens])
    first = max(1, prompt_length if mask_prompt else 1)
    targets = [ids[i + 1] if first <= i + 1 < len(ids) else IGNORED for i in range(len(ids))]
    return TokenSequence(ids, targets, max(0, len(ids) - first))


def job_sequences(job: SftJob) -> tuple[list[TokenSequence], list[TokenSequence], int]:
    """General and safety sequences, and how many were left out because the cut leaves no answer token.

    Raises InputError where none is left, or where safety_share asks for safety pairs and there are none.
    """
    recipe = job.recipe

    def sequences(pairs: tuple[tuple[str, str], ...]) -> list[TokenSequence]:
        found = pair_tokens(job.model_dir, pairs, job.system_prompt)
        return [token_sequence(ids, length, recipe.max_tokens, recipe.mask_prompt) for ids, length in found]

    general, safety = sequences(job.general), sequences(job.safety)
    kept = [[s for s in kind if s.answer_tokens] for kind in (general, safety)]
    dropped = len(general) + len(safety) - len(kept[0]) - len(kept[1])
    if not kept[0] and not kept[1]:
        found = f"{dropped} pairs, none with an answer token within {recipe.max_tokens} tokens"
        raise InputError([Problem("training pairs of the sft stage", found, "at least one", "Raise sft.max_tokens.")])
    if recipe.safety_share is not None and not kept[1]:
        allowed = "safety pairs, or no safety_share"
        raise InputError([Problem("safety pairs of the sft stage", "none, but safety_share is set", allowed)])
    return kept[0], kept[1], dropped


def batch_plan(
    lengths: Sequence[int], general_count: int, safety_share: float | None, epochs: float, batch_size: int, seed: int
) -> list[list[int]]:
    """The sequences of every step, by their numbers: general ones are 0 to general_count - 1, safety ones the rest.

    An epoch holds every general sequence once. Of the safety sequences it holds each once too, or, with a
    safety_share s, as many as make up that share: round(g s / (1 - s)) for g general ones, drawn without
    replacement and round after round where there are not enough. A share of an epoch is its first part.
    """
    counts = (general_count, len(lengths) - general_count)
    chance = np.random.default_rng([seed, 1])
    wanted = counts[1]
    if safety_share is not None and general_count:
        wanted = max(1, round(general_count * safety_share / (1 - safety_share)))
    stream: list[int] = []
    total = max(1, round(epochs * (general_count + wanted)))
    while len(stream) < total:
        safety: list[int] = []
        while len(safety) < wanted:
            safety += (general_count + chance.permutation(counts[1])).tolist()[: wanted - len(safety)]
        stream += chance.permutation([*range(general_count), *safety]).tolist()
    stream = stream[:total]
    plan: list[list[int]] = []
    window = BUCKET_BATCHES * batch_size
    for start in range(0, total, window):
        near = sorted(stream[start : start + window], key=lambda i: lengths[i])
        batches = [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
        plan += [batches[i] for i in chance.permutation(len(batches))]
    return plan
