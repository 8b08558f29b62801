"""How likely a model's answer is to begin with one of some tokens, for many prompts at once, from a plain model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcr_ray.diagnosis.opened import Opened, right_padded

BATCH_PROMPTS = 32


def last_states(opened: Opened, rows: Sequence[Sequence[int]]) -> Tensor:
    """Normed states at each prompt's last token, [prompts, width]. Rows are padded on the right."""
    found = []
    for start in range(0, len(rows), BATCH_PROMPTS):
        ids, mask, last = right_padded(rows[start : start + BATCH_PROMPTS], opened.device)
        with torch.no_grad():
            states = opened.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        found.append(states[torch.arange(len(last), device=ids.device), last])
    return torch.cat(found)


def first_token_refusals(opened: Opened, rows: Sequence[Sequence[int]], tokens: frozenset[int]) -> Tensor:
    """Probability in [0, 1] that the token after each prompt is one of these, [prompts], on the CPU."""
    logits = last_states(opened, rows) @ opened.head.T
    return logits.softmax(-1)[:, sorted(tokens)].sum(1).cpu()
