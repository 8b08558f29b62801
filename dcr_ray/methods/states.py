"""What a plain transformers model computes at the ends of prompts: residual states, next-token log-probabilities.

Prompts are padded on the left, so that their last tokens stand in one column. It knows no method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

BATCH_PROMPTS = 16


class Batch(NamedTuple):
    """Token ids, mask and positions, each [prompts, longest]."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self._asdict()


def load_model(folder: str | Path, device: torch.device) -> Any:
    """The folder's model in evaluation mode, in fp32 whatever it is stored in: directions are differences of means."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.to(device).eval().requires_grad_(False)


def blocks(model: Any) -> nn.ModuleList:
    """The decoder layers, in their order."""
    return model.base_model.layers


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> Batch:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return Batch(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))


def in_batches(rows: Sequence[Sequence[int]], device: torch.device, size: int = BATCH_PROMPTS) -> Iterator[Batch]:
    for start in range(0, len(rows), size):
        yield left_padded(rows[start : start + size], device)


def common_end(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows end with: what the chat template puts after an instruction. Needs two or more rows."""
    shortest = min(map(len, rows))
    return next((i for i in range(shortest) if len({row[-1 - i] for row in rows}) > 1), shortest)


def end_states(model: Any, rows: Sequence[Sequence[int]], positions: int) -> Tensor:
    """States at the last `positions` tokens of every row, [rows, layers + 1, positions, width], on the CPU.

    Index l < layers is the input of block l, counted from 0; index `layers` is the last block's output, before the
    final norm.
    """
    found: list[Tensor] = []
    taken: list[Tensor] = []
    last = len(blocks(model)) - 1

    def before(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        taken.append((arguments[0] if arguments else named["hidden_states"])[:, -positions:].cpu())

    def after(_: Any, __: Any, output: Any) -> None:
        taken.append(states_of(output)[:, -positions:].cpu())

    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks(model)]
    hooks.append(blocks(model)[last].register_forward_hook(after))
    try:
        with torch.inference_mode():
            for batch in in_batches(rows, model.device):
                taken.clear()
                model(**batch.inputs, use_cache=False, logits_to_keep=1)
                found.append(torch.stack(taken, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found)


def states_of(output: Any) -> Tensor:
    """The hidden states in a block's or a sublayer's output, which may be a tuple."""
    return output[0] if isinstance(output, tuple) else output


def next_token_logprobs(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities in nats of the token after each row, [rows, vocabulary], on the model's device."""
    with torch.inference_mode():
        parts = [
            model(**batch.inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
            for batch in in_batches(rows, model.device)
        ]
    return torch.cat(parts)


def refusal_scores(logprobs: Tensor, refusal_tokens: frozenset[int]) -> Tensor:
    """log p - log(1 - p) of the probability p that the next token begins a refusal, [rows] (arXiv 2406.11717, 2.3)."""
    p = logprobs[:, sorted(refusal_tokens)].double().exp().sum(1).clamp(1e-12, 1 - 1e-12)
    return p.log() - (1 - p).log()
