"""Sequences without padding: all rows of a pass one after another in one row, and what they all begin with only once.

Linear layers, norms and the output head see real tokens alone. Attention has to know where a sequence begins: this
module gives transformers an attention function of its own that takes the rows apart, in groups of like length, and
lets every row see the shared beginning and itself. The states are those of the padded rows up to rounding. In a causal
model the states of the beginning (chat template, system prompt) are the same in every row, so its keys and values
serve all of them, and the gradients of all rows add up in it.

It serves models whose attention goes through transformers' AttentionInterface; it knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ATTENTION = "dcr_packed"
"""The name under which transformers knows this attention; a model that is loaded with it takes only packed rows."""

SHORTEST_PREFIX = 8
"""Fewer shared tokens than this do not pay for a mask, which the fastest attention kernels do not take."""

PADDED_SHARE, PADDED_TOKENS = 1.3, 64
"""A group's padded tokens are at most this share of its real ones, or this many more."""


@dataclass(frozen=True)
class Group:
    """Rows of like length that attention takes at once: how many, the longest, and where padded and packed tokens lie.

    `padded` [rows * longest] holds for each padded place the packed token that stands there (0 for a filler), `packed`
    [tokens] for each packed token its padded place; both are None where all rows are equally long.
    """

    rows: int
    longest: int
    tokens: int
    padded: Tensor | None
    packed: Tensor | None


@dataclass(frozen=True)
class Packed:
    """Rows of one pass: token ids and positions [1, tokens], the shared beginning first, then each row's own tokens.

    `starts` says where each given row's own tokens begin, `own` how many there are, in the order in which the rows were
    given; `lengths` counts the shared beginning too. `states` [1, tokens, width] may stand in for lower layers' output.
    """

    input_ids: Tensor
    position_ids: Tensor
    prefix: int
    starts: tuple[int, ...]
    own: tuple[int, ...]
    groups: tuple[Group, ...]
    states: Tensor | None = None
    _masks: dict[Any, Tensor | None] = field(default_factory=dict)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self.prefix + own for own in self.own)

    def mask(self, prefix: int, longest: int, window: int | None) -> Tensor | None:
        """What a row of `longest` own tokens may see of `prefix` + itself, bool; None where plain causality says it."""
        if prefix == 0 and (window is None or longest <= window):
            return None
        key = (prefix, longest, window)
        if key not in self._masks:
            device = self.input_ids.device
            query = prefix + torch.arange(longest, device=device)[:, None]
            distance = query - torch.arange(prefix + longest, device=device)[None, :]
            seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            self._masks[key] = seen[None, None]
        return self._masks[key]


def shared_prefix(rows: Sequence[Sequence[int]], limit: int) -> int:
    """How many tokens all rows begin with, at most `limit` and leaving every row one; 0 where it does not pay."""
    limit = min(limit, min(len(row) for row in rows) - 1)
    shared = 0
    while shared < limit and all(row[shared] == rows[0][shared] for row in rows):
        shared += 1
    return shared if shared >= SHORTEST_PREFIX and len(rows) > 1 else 0


def pack(
    rows: Sequence[Sequence[int]], prefix: int, device: torch.device, states: Sequence[Tensor] | None = None
) -> Packed:
    """Pack rows of token ids that all begin with the same `prefix` tokens; every row has more than those.

    `states` are those of each row's tokens [tokens, width], where some layer's output is known already.
    """
    own = [len(row) - prefix for row in rows]
    order = sorted(range(len(rows)), key=lambda row: (-own[row], row))
    ids, positions = list(rows[0][:prefix]), list(range(prefix))
    starts = [0] * len(rows)
    for row in order:
        starts[row] = len(ids)
        ids += rows[row][prefix:]
        positions += range(prefix, len(rows[row]))
    return Packed(
        torch.tensor([ids], dtype=torch.long, device=device),
        torch.tensor([positions], dtype=torch.long, device=device),
        prefix,
        tuple(starts),
        tuple(own),
        tuple(_groups([own[row] for row in order], device)),
        states and torch.cat([states[0][:prefix], *(states[row][prefix:] for row in order)])[None],
    )


def _groups(lengths: list[int], device: torch.device) -> list[Group]:
    """Groups of rows whose lengths come longest first."""
    cuts: list[list[int]] = []
    for length in lengths:
        if cuts:
            rows = cuts[-1]
            if rows[0] * (len(rows) + 1) <= PADDED_SHARE * (sum(rows) + length) + PADDED_TOKENS:
                rows.append(length)
                continue
        cuts.append([length])
    return [_group(rows, device) for rows in cuts]


def _group(lengths: list[int], device: torch.device) -> Group:
    longest, tokens = lengths[0], sum(lengths)
    if longest * len(lengths) == tokens:
        return Group(len(lengths), longest, tokens, None, None)
    length = torch.tensor(lengths)
    place = torch.arange(longest)[None, :].expand(len(lengths), -1)
    real = place < length[:, None]
    start = torch.cumsum(length, 0) - length
    padded = torch.where(real, start[:, None] + place, 0).flatten()
    packed = real.flatten().nonzero().flatten()
    return Group(len(lengths), longest, tokens, padded.to(device), packed.to(device))


class _Pad(torch.autograd.Function):
    """Packed tokens [tokens, ...] -> padded rows [rows * longest, ...]; fillers hold any token and give no gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return values.index_select(0, group.padded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.group.packed), None


class _Unpad(torch.autograd.Function):
    """Padded rows [rows * longest, ...] -> packed tokens [tokens, ...]; fillers are dropped."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return values.index_select(0, group.packed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        places = ctx.group.rows * ctx.group.longest
        return gradient.new_zeros(places, *gradient.shape[1:]).index_copy_(0, ctx.group.packed, gradient), None


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Packed,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows: query [1, heads, tokens, size], key and value likewise -> [1, tokens, heads, size]."""
    inputs = [states.transpose(1, 2)[0] for states in (query, key, value)]
    sizes = [packed.prefix, *(group.tokens for group in packed.groups)]
    parts = list(zip(*(states.split(sizes) for states in inputs), strict=True))
    options = (scaling, dropout, softcap)
    outputs = []
    shared = [states[None].transpose(1, 2) for states in parts[0]]
    if packed.prefix:
        mask = packed.mask(0, packed.prefix, sliding_window)
        outputs.append(_attend(module, *shared, mask, *options)[0])
    for group, states in zip(packed.groups, parts[1:], strict=True):
        rows = [_padded_rows(state, group) for state in states]
        if packed.prefix:
            before = [state.expand(group.rows, -1, -1, -1) for state in shared[1:]]
            rows[1:] = [torch.cat(pair, 2) for pair in zip(before, rows[1:], strict=True)]
        mask = packed.mask(packed.prefix, group.longest, sliding_window)
        attended = _attend(module, *rows, mask, *options).flatten(0, 1)
        outputs.append(attended if group.packed is None else _Unpad.apply(attended, group))
    return torch.cat(outputs)[None], None


def _padded_rows(states: Tensor, group: Group) -> Tensor:
    """[tokens, heads, size] -> [rows, heads, longest, size]."""
    padded = states if group.padded is None else _Pad.apply(states, group)
    return padded.unflatten(0, (group.rows, group.longest)).transpose(1, 2)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Queries [rows, heads, n, size], causal where there is no mask -> [rows, n, heads, size]."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # PyTorch's attention on CPUs takes four times as long in bf16 as in fp32.
        with torch.autocast("cpu", enabled=False):
            states = (query.float(), key.float(), value.float())
            return _attend(module, *states, mask, scaling, dropout, softcap)
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling)[0]
    # PyTorch's fused attention has no cap on the attention's logits (Gemma 2).
    key, value = (repeat_kv(states, module.num_key_value_groups) for states in (key, value))
    logits = torch.tanh((query @ key.transpose(2, 3)) * scaling / softcap) * softcap
    seen = mask if mask is not None else torch.ones(logits.shape[-2:], device=logits.device).tril().bool()
    weights = logits.float().masked_fill(~seen, -torch.inf).softmax(-1).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2)


def register_attention() -> None:
    """Make ATTENTION known to transformers; models may be loaded with it from then on."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)


def packed_states(model: Any, packed: Packed) -> Tensor:
    """States [tokens, width] of all packed tokens from a transformers decoder without head, loaded with ATTENTION."""
    output = model(
        input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, return_dict=False, packed=packed
    )
    return output[0][0]
