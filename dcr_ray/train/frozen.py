"""Layers at the bottom of the trunk that do not train, run once for each prompt instead of once for each step.

The states after the last frozen layer are the same in every epoch and in every trial that freezes as many layers of the
same base model, so they are kept in memory and put in where the first trained layer begins. Exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcr_ray.train.packing import Packed, pack, shared_prefix
from dcr_ray.train.trunk import PooledStates

KEPT_BYTES = 2 * 2**30
"""How much is kept at most; what is beyond it is computed again each time."""

ROWS_AT_ONCE = 64

_kept: dict[Any, dict[tuple[int, ...], Tensor]] = {}
"""States [tokens, width] by token ids, for one base model and number of layers at a time."""


class FrozenLayers:
    """States after the frozen layers, of which `lower` is made; `identity` says which model, precision and layers."""

    def __init__(self, lower: PooledStates, identity: Any, device: torch.device):
        self._lower, self._device = lower.requires_grad_(False).eval(), device
        if identity not in _kept:
            _kept.clear()
            _kept[identity] = {}
        self._known = _kept[identity]

    def states(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """States [tokens, width] of each row, without gradient, on the device."""
        found = {key: self._known[key] for row in rows if (key := tuple(row)) in self._known}
        missing = [list(key) for key in dict.fromkeys(map(tuple, rows)) if key not in found]
        for start in range(0, len(missing), ROWS_AT_ONCE):
            part = missing[start : start + ROWS_AT_ONCE]
            found |= dict(zip(map(tuple, part), self._run(part), strict=True))
        room = KEPT_BYTES - sum(states.numel() * states.itemsize for states in self._known.values())
        for key, states in found.items():
            if key not in self._known and (room := room - states.numel() * states.itemsize) >= 0:
                self._known[key] = states
        return [found[tuple(row)] for row in rows]

    @torch.no_grad()
    def _run(self, rows: list[list[int]]) -> list[Tensor]:
        packed = pack(rows, shared_prefix(rows, min(map(len, rows))), self._device)
        states = self._lower.states(packed)
        begin = states[: packed.prefix]
        return [
            torch.cat([begin, states[start : start + own]])
            for start, own in zip(packed.starts, packed.own, strict=True)
        ]


class _PutIn(nn.Module):
    """In the place of a frozen layer: gives the states that the packed rows carry."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        # Models with several kinds of attention ask a layer for its own.
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, hidden_states: Tensor, *, packed: Packed, **_: Any) -> Tensor:
        return packed.states


def without_frozen_layers(trunk: Any, frozen: int) -> None:
    """Replace the trunk's lowest layers; the rows it is given must then carry the states after them."""
    for i in range(frozen):
        trunk.layers[i] = _PutIn(trunk.layers[i])
