"""The beginning that all prompts of a chunk share, as chat templates with a system prompt make it, computed once.

In a causal model the states of the shared tokens are the same in every row, so one row of them is enough: its keys and
values serve all rows, and the gradients of all rows add up in it. Exact; with short prompts it halves the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

SHORTEST = 8
"""Fewer shared tokens than this do not pay for a second pass through the layers."""


def shared_prefix(rows: Sequence[Sequence[int]], limit: int) -> int:
    """How many tokens all rows begin with, at most `limit` and leaving every row one; 0 where it does not pay."""
    limit = min(limit, min(len(row) for row in rows) - 1)
    shared = 0
    while shared < limit and all(row[shared] == rows[0][shared] for row in rows):
        shared += 1
    return shared if shared >= SHORTEST and len(rows) > 1 else 0


def states_after(model: Any, input_ids: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """States of the shared prefix [1, prefix, width] and of the rest [n, longest - prefix, width].

    `model` is a transformers decoder without head; all rows of input_ids [n, longest] begin with the same tokens.
    """
    if prefix == 0:
        states = model(input_ids=input_ids, use_cache=False)[0]
        return states[:1, :0], states
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    shared = model(input_ids=input_ids[:1, :prefix], past_key_values=cache, use_cache=True)[0]
    cache.batch_repeat_interleave(len(input_ids))
    rest = model(input_ids=input_ids[:, prefix:], past_key_values=cache, use_cache=True)[0]
    return shared, rest
